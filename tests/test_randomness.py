"""The hashes behave like independent uniform draws, and depend on nothing but their key.

All keys are fixed, so that a test here never passes or fails by chance: thresholds are generous on p-values
of one fixed sample each.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from understudy.randomness import generator, key, keys, permutation, seed_torch, uniform

IDS = np.arange(100_000)


def correlation_p_value(first: np.ndarray, second: np.ndarray) -> float:
    return float(stats.pearsonr(first, second).pvalue)


@pytest.mark.parametrize("parent", [0, 1, 2**64 - 1, key("any", 3)])
def test_draws_are_uniform(parent: int):
    draws = uniform(keys(parent, IDS), 3)
    assert draws.shape == (len(IDS), 3)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


def test_every_bit_of_a_key_is_a_fair_coin():
    sample_keys = keys(key("bits"), IDS)
    ones = [int((sample_keys >> np.uint64(bit) & np.uint64(1)).sum()) for bit in range(64)]
    # Five standard deviations of a binomial over 64 bits.
    assert np.abs(np.array(ones) - len(IDS) / 2).max() < 5 * np.sqrt(len(IDS)) / 2


def test_one_changed_bit_of_an_id_or_of_a_parent_changes_half_of_the_key():
    ids = IDS[:2000].astype(np.uint64)
    for bit in range(64):
        changed = np.uint64(1) << np.uint64(bit)
        by_id = np.bitwise_count(keys(9, ids) ^ keys(9, ids ^ changed)).mean()
        by_parent = np.bitwise_count(keys(9, ids) ^ keys(9 ^ (1 << bit), ids)).mean()
        # The mean of 2000 draws of 32 ± 4 is within 0.09 of 32; 0.5 is more than five of those.
        assert abs(by_id - 32) < 0.5
        assert abs(by_parent - 32) < 0.5


@pytest.mark.parametrize("lag", [1, 2, 32, 128, 50_000])
def test_neighbouring_ids_are_not_correlated(lag: int):
    draws = uniform(keys(key(0, "view", 0), IDS))[:, 0]
    assert correlation_p_value(draws[:-lag], draws[lag:]) > 1e-3


def test_pairs_of_neighbouring_ids_fill_the_square_evenly():
    draws = uniform(keys(key(0, "view", 0), IDS))[:, 0]
    counts, _, _ = np.histogram2d(draws[:-1:2], draws[1::2], bins=16)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("other", [(0, "view", 1), (1, "view", 0), (0, "order", 0)])
def test_streams_epochs_and_seeds_are_not_correlated(other: tuple):
    first = uniform(keys(key(0, "view", 0), IDS))[:, 0]
    second = uniform(keys(key(*other), IDS))[:, 0]
    assert correlation_p_value(first, second) > 1e-3
    counts, _, _ = np.histogram2d(first, second, bins=16)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_the_numbers_of_one_key_are_not_correlated():
    draws = uniform(keys(key("columns"), IDS), 6)
    off_diagonal = np.corrcoef(draws.T) - np.eye(6)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(len(IDS))
    # Nor those of a key with the shifted ones of its neighbour, as counters that overlap would be.
    assert np.abs(np.corrcoef(draws[1:].T, draws[:-1].T)[:6, 6:]).max() < 5 / np.sqrt(len(IDS))


def test_keys_derived_from_keys_do_not_repeat_their_draws():
    sample_keys = keys(key("parent"), IDS[:1000])
    derived = [uniform(keys(key("stage", stage), sample_keys), 8) for stage in range(4)]
    everything = np.concatenate([uniform(sample_keys, 8), *derived])
    assert len(np.unique(everything)) == everything.size


def test_keys_of_many_ids_are_distinct():
    assert len(np.unique(keys(3, np.arange(1_000_000)))) == 1_000_000


def test_a_key_does_not_depend_on_the_other_ids_asked_for():
    ids = np.random.default_rng(0).integers(0, 2**62, 257)
    together = keys(11, ids)
    order = np.random.default_rng(1).permutation(len(ids))
    np.testing.assert_array_equal(keys(11, ids[order]), together[order])
    np.testing.assert_array_equal(keys(11, ids.reshape(257, 1)), together.reshape(257, 1))
    for place in range(len(ids)):
        assert keys(11, ids[place : place + 1])[0] == together[place]


def test_a_draw_does_not_depend_on_the_other_keys_or_on_how_many_are_drawn():
    sample_keys = keys(12, np.arange(257))
    together = uniform(sample_keys, 5)
    np.testing.assert_array_equal(uniform(sample_keys[40:41], 5)[0], together[40])
    np.testing.assert_array_equal(uniform(sample_keys, 2), together[:, :2])


def test_the_type_of_ids_does_not_matter():
    ids = np.arange(10)
    np.testing.assert_array_equal(keys(1, ids.astype(np.int32)), keys(1, ids))
    np.testing.assert_array_equal(keys(1, ids.astype(np.uint64)), keys(1, ids))


def test_values_are_pinned():
    """A change of these numbers changes every experiment; SplitMix64 in Python integers."""

    def mix(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    golden = 0x9E3779B97F4A7C15
    parent = key(0, "order", 3)
    assert parent == 3711057560728892766
    for number in (0, 1, 12345):
        expected = mix(mix((number * golden + parent) % 2**64) + golden)
        assert int(keys(parent, np.array([number]))[0]) == expected
        assert uniform(keys(parent, np.array([number])))[0, 0] == (mix(mix((expected + golden) % 2**64)) >> 11) / 2**53


def test_a_key_depends_on_each_part_its_type_and_their_order():
    parts = [(1, 2), (2, 1), (1, "2"), ("1", 2), (12,), ("12",), (1, 2, 0), ("a", "b"), ("ab",), ()]
    assert len({key(*part) for part in parts}) == len(parts)


def test_an_integer_part_counts_by_its_value():
    assert key(np.int64(3), "order") == key(3, "order") == key(np.uint8(3), "order")
    with pytest.raises(TypeError):
        key(1.0)  # pyright: ignore[reportArgumentType]


def test_a_permutation_holds_every_number_once():
    for count in (0, 1, 2, 1000):
        order = permutation(key("order"), count)
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_a_permutation_changes_with_every_part_of_its_key():
    orders = [permutation(key(*parts), 50) for parts in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]]
    for place, order in enumerate(orders):
        # Two independent orders of 50 agree at about one place.
        assert all((order == other).sum() < 10 for other in orders[:place])
    np.testing.assert_array_equal(permutation(key(0, "a", 0), 50), orders[0])


def test_every_order_is_equally_likely():
    orders = np.array([permutation(key(0, "order", epoch), 4) for epoch in range(6000)])
    _, counts = np.unique(orders @ np.array([64, 16, 4, 1]), return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_generator_repeats_and_differs_between_keys():
    first, again, other = (generator(key("beta", step)).beta(0.2, 0.2, 100) for step in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_seeding_torch_reproduces_dropout_masks():
    ones = torch.ones(1000)

    def mask(parent: int) -> torch.Tensor:
        seed_torch(parent)
        torch.rand(3)  # something is always drawn before
        return torch.nn.functional.dropout(ones)

    step_0, step_1 = key(0, "step", 0), key(0, "step", 1)
    first = mask(step_0)
    torch.rand(17)
    assert torch.equal(mask(step_0), first)
    agreement = (mask(step_1) == first).float().mean()
    assert 0.4 < agreement < 0.6


def test_seeding_torch_takes_any_key():
    for parent in (0, 2**64 - 1, keys(1, np.arange(1))[0]):
        seed_torch(parent)
        drawn = torch.rand(1)
        seed_torch(parent)
        assert torch.equal(torch.rand(1), drawn)
