"""Repeated augmentation: the lists of DeiT's sampler and of timm's, on any number of processes and on one."""

import json
from pathlib import Path

import numpy as np
import pytest

from understudy.data.repeated import deit_order, epoch_length, repeat
from understudy.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "deit"
RECORDED = [
    (entry["file"], case)
    for entry in json.loads((GOLDEN / "manifest.json").read_text())["entries"]
    if entry["id"] in ("rasampler", "timm_repeataug")
    for case in entry["conventions"]["cases"]
]


def ours(case) -> np.ndarray:
    return deit_order(
        case["len"],
        case["epoch"],
        repeats=case["num_repeats"],
        replicas=case["num_replicas"],
        rank=case["rank"],
        shuffle=case["shuffle"],
    )


@pytest.mark.parametrize(
    ("file", "case"), RECORDED, ids=lambda value: value if isinstance(value, str) else value["key"]
)
def test_the_samples_of_an_epoch_are_the_originals(file, case):
    recorded = np.load(GOLDEN / file)[case["key"]]
    if file == "rasampler.npz" and case["len"] < 256:
        assert len(recorded) == 0  # where DeiT's sampler has an empty epoch, ours does as timm's
        assert len(ours(case)) == -(-case["len"] // case["num_replicas"])
    else:
        np.testing.assert_array_equal(ours(case), recorded)


@pytest.mark.parametrize("samples", [1, 3, 255, 256, 257, 1000])
@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
@pytest.mark.parametrize("repeats", [1, 2.5, 3, 4])
def test_any_setting_gives_timms_list(samples: int, replicas: int, repeats: float):
    timm_data = pytest.importorskip("timm.data.distributed_sampler")
    for rank in range(replicas):
        sampler = timm_data.RepeatAugSampler(range(samples), replicas, rank, True, repeats)
        sampler.set_epoch(4)
        mine = deit_order(samples, 4, repeats=repeats, replicas=replicas, rank=rank)
        np.testing.assert_array_equal(mine, list(sampler))


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_step_of_all_processes_is_a_stretch_of_the_list_of_one(replicas: int):
    order = np.random.default_rng(0).permutation(1024)
    alone = repeat(order, 3)
    shares = [repeat(order, 3, replicas=replicas, rank=rank) for rank in range(replicas)]
    np.testing.assert_array_equal(np.stack(shares, 1).ravel(), alone)


def test_each_sample_comes_three_times_in_a_row_and_an_epoch_keeps_its_length():
    places = repeat(np.arange(1000), 3)
    assert len(places) == epoch_length(1000) == 768
    np.testing.assert_array_equal(places, np.repeat(np.arange(256), 3))


def test_one_repeat_of_few_samples_changes_nothing():
    np.testing.assert_array_equal(repeat(np.arange(10), 1), np.arange(10))


def test_less_than_one_repeat_is_refused():
    with pytest.raises(UserError, match=r"repeats is 1 or more, not 0\.5"):
        repeat(np.arange(10), 0.5)
