"""Mixup and CutMix: the plan's distribution, the mixed pixels and the labels."""

import numpy as np
import pytest
import torch
from scipy import stats

from understudy.data.mix import Mix, mix_images, mix_labels, plan
from understudy.errors import UserError
from understudy.randomness import key


def plans(count: int, **settings) -> list[Mix]:
    size = {"height": 32, "width": 32, **settings}
    return [plan(key("batch", step), 8, **size) for step in range(count)]


def batch(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# The plan


def test_a_plan_is_a_function_of_its_key():
    first, again, other = (plan(key(step), 64, mixup=0.4, cutmix=1.0, height=32, width=32) for step in (0, 0, 1))
    np.testing.assert_array_equal(first.partner, again.partner)
    assert (first.ratio, first.box) == (again.ratio, again.box)
    assert not np.array_equal(first.partner, other.partner)
    assert first.ratio != other.ratio


def test_partners_are_a_permutation():
    for mix in plans(20, mixup=1.0):
        np.testing.assert_array_equal(np.sort(mix.partner), np.arange(8))


def test_partners_are_equally_likely():
    counts = np.zeros((8, 8))
    for mix in plans(1000, mixup=1.0):
        counts[np.arange(8), mix.partner] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_ratio_of_mixup_is_beta_distributed(alpha: float):
    mixes = plans(1500, mixup=alpha)
    assert all(mix.box is None for mix in mixes)
    assert stats.kstest([mix.ratio for mix in mixes], stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_the_ratio_does_not_follow_the_partners():
    mixes = plans(1500, mixup=1.0)
    moved = [mix.partner[0] for mix in mixes]
    assert stats.spearmanr(moved, [mix.ratio for mix in mixes]).pvalue > 1e-3


def test_the_ratio_of_cutmix_is_the_area_that_is_left():
    for mix in plans(300, cutmix=1.0, height=20, width=48):
        assert mix.box is not None
        pixels = mix_images(torch.zeros(1, 1, 20, 48), torch.ones(1, 1, 20, 48), mix)
        assert mix.ratio == pytest.approx(1 - pixels.mean().item(), abs=1e-6)
        top, left, height, width = mix.box
        assert 0 <= top <= top + height <= 20
        assert 0 <= left <= left + width <= 48


def test_boxes_of_cutmix_have_the_shape_of_the_image_and_lie_around_uniform_centres():
    whole = [
        mix
        for mix in plans(4000, cutmix=1.0, height=256, width=512)
        # Boxes that touch no border are not clipped.
        if mix.box
        and mix.box[0] > 0
        and mix.box[1] > 0
        and mix.box[0] + mix.box[2] < 256
        and mix.box[1] + mix.box[3] < 512
        and mix.box[2] > 32
    ]
    ratios = np.array([mix.box[3] / mix.box[2] for mix in whole if mix.box])
    assert len(ratios) > 300
    assert np.abs(ratios - 2).max() < 0.1
    # Whatever the size of the box, the pixel in the middle is covered equally often from all sides.
    covered = np.zeros((4, 4))
    for mix in plans(2000, cutmix=1.0):
        assert mix.box is not None
        top, left, height, width = mix.box
        picture = np.zeros((32, 32))
        picture[top : top + height, left : left + width] = 1
        covered += picture.reshape(4, 8, 4, 8).mean(axis=(1, 3))
    assert np.abs(covered - covered[::-1]).max() / covered.mean() < 0.15
    assert np.abs(covered - covered.T).max() / covered.mean() < 0.15


def test_both_methods_are_chosen_equally_often():
    boxes = [mix.box is not None for mix in plans(1000, mixup=0.2, cutmix=1.0)]
    assert stats.binomtest(sum(boxes), 1000).pvalue > 1e-3


def test_with_both_parameters_zero_nothing_is_mixed():
    images = batch((8, 3, 32, 32))
    mix = plans(1)[0]
    assert torch.equal(mix_images(images, images[mix.partner], mix), images)
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, 0])
    soft = mix_labels(labels, labels[mix.partner], mix, 3)
    assert torch.equal(soft[[0, 1, 2]], torch.eye(3))


@pytest.mark.parametrize("settings", [{"mixup": -0.1}, {"cutmix": -1.0}, {"mixup": float("nan")}])
def test_a_parameter_below_zero_is_refused(settings: dict):
    with pytest.raises(UserError, match=next(iter(settings))):
        plan(1, 8, height=32, width=32, **settings)


# Images


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.731234, 1.0])
def test_mixup_of_bytes_is_the_nearest_level(ratio: float):
    own, partner = batch((16, 3, 9, 9)), batch((16, 3, 9, 9), seed=1)
    mixed = mix_images(own, partner, Mix(np.arange(16), ratio))
    assert mixed.dtype == torch.uint8
    exact = own.double() * ratio + partner.double() * (1 - ratio)
    assert (mixed.double() - exact).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_mixup_of_floats_is_the_weighted_sum(dtype: torch.dtype):
    own, partner = (batch((4, 3, 5, 5), seed).to(dtype) / 255 for seed in (0, 1))
    mixed = mix_images(own, partner, Mix(np.arange(4), 0.3))
    assert mixed.dtype == dtype
    expected = own.double() * 0.3 + partner.double() * 0.7
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutmix_takes_the_box_from_the_partner_and_nothing_else(dtype: torch.dtype):
    own, partner = batch((4, 3, 10, 12)).to(dtype), batch((4, 3, 10, 12), seed=1).to(dtype)
    mixed = mix_images(own, partner, Mix(np.arange(4), 0.8, box=(2, 3, 4, 6)))
    assert mixed.dtype == dtype
    for row in range(10):
        for column in range(12):
            source = partner if 2 <= row < 6 and 3 <= column < 9 else own
            assert torch.equal(mixed[:, :, row, column], source[:, :, row, column])


@pytest.mark.parametrize("mix", [Mix(np.arange(4), 0.37), Mix(np.arange(4), 0.5, box=(1, 1, 3, 3))])
def test_mixing_leaves_its_arguments_alone(mix: Mix):
    for dtype in (torch.uint8, torch.float32):
        own, partner = batch((4, 1, 8, 8)).to(dtype), batch((4, 1, 8, 8), seed=1).to(dtype)
        own_before, partner_before = own.clone(), partner.clone()
        mix_images(own, partner, mix)
        assert torch.equal(own, own_before)
        assert torch.equal(partner, partner_before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_a_shard_of_a_batch_is_mixed_like_the_whole(dtype: torch.dtype, settings: dict):
    images = (batch((64, 3, 7, 7)).float() / 3).to(dtype)
    mix = plan(key("shard"), 64, height=7, width=7, **settings)
    partners = images[mix.partner]
    whole = mix_images(images, partners, mix)
    for start in range(0, 64, 5):
        shard = slice(start, start + 5)
        assert torch.equal(mix_images(images[shard], partners[shard], mix), whole[shard])


def test_images_that_do_not_fit_are_refused():
    mix = Mix(np.arange(4), 0.5)
    with pytest.raises(UserError, match="differ"):
        mix_images(torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 9), mix)
    with pytest.raises(UserError, match="differ"):
        mix_images(torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8, dtype=torch.uint8), mix)
    with pytest.raises(UserError, match="int32"):
        mix_images(torch.zeros(4, 1, 8, 8, dtype=torch.int32), torch.zeros(4, 1, 8, 8, dtype=torch.int32), mix)


# Labels


def test_labels_are_shared_by_the_ratio():
    soft = mix_labels(torch.tensor([0, 2, 1]), torch.tensor([1, 2, 0]), Mix(np.array([2, 1, 0]), 0.75), 4)
    expected = torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 1, 0], [0.25, 0.75, 0, 0]])
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft, expected)


def test_cross_entropy_of_mixed_labels_is_the_authors_weighted_sum():
    logits = batch((32, 10)).float() / 50
    own, partner = batch((2, 32), seed=1).long() % 10
    soft = mix_labels(own, partner, Mix(np.arange(32), 0.37), 10)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = 0.37 * cross_entropy(logits, own) + 0.63 * cross_entropy(logits, partner)
    torch.testing.assert_close(cross_entropy(logits, soft), expected)


def test_a_row_without_either_label_is_zero():
    own, partner = torch.tensor([-1, 1, -1, 0]), torch.tensor([0, -1, -1, 1])
    soft = mix_labels(own, partner, Mix(np.arange(4), 0.6), 2)
    torch.testing.assert_close(soft, torch.tensor([[0, 0], [0, 0], [0, 0], [0.6, 0.4]]))


def test_labels_that_do_not_fit_are_refused():
    mix = Mix(np.arange(2), 0.5)
    with pytest.raises(UserError, match="vectors"):
        mix_labels(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), mix, 2)
    with pytest.raises(UserError, match="int64"):
        mix_labels(torch.zeros(2), torch.zeros(2), mix, 2)
