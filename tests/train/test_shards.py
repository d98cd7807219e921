"""The shards of a batch: together they are the batch, pixel by pixel, and each knows how much of it it is."""

import numpy as np
import pytest
import torch

from understudy.data import Feed
from understudy.data.split import Subset
from understudy.recipe.schema import Augment


class Pictures:
    """Random pictures; counts what is read."""

    def __init__(self, count: int) -> None:
        self.pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator())
        self.read_ids: list[int] = []

    def read(self, ids, keys):
        self.read_ids += list(ids)
        return self.pixels[torch.from_numpy(ids)]


def feed(samples: int, batch: int, shard=(0, 1), labelled: float = 1.0, **settings) -> Feed:
    ids = np.arange(samples)
    labels = np.where(ids % 10 < labelled * 10, ids % 5, -1)
    second = Augment(flip=True) if not settings.get("mixup") else None
    return Feed(
        Subset(Pictures(samples), ids, labels), batch_size=batch, seed=3, settings=Augment(**settings), classes=5,
        second_view=second, shard=shard,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{"crop": 1, "erase": 0.5}, {"mixup": 0.5, "cutmix": 1.0, "flip": True}])
@pytest.mark.parametrize("labelled", [1.0, 0.4])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_shards_of_a_batch_are_the_batch(settings, labelled, processes):
    whole = feed(50, 16, labelled=labelled, **settings)
    shards = [feed(50, 16, (rank, processes), labelled, **settings) for rank in range(processes)]
    for step in range(whole.steps_per_pass):
        batch = whole[step]
        parts = [shard[step] for shard in shards]
        filled = [part for part in parts if part.share]
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert sum(part.labelled_share for part in parts) == pytest.approx(1)
        for rank, part in enumerate(filled):
            mine = torch.arange(rank, len(batch), processes)
            assert torch.equal(part.images, batch.images[mine])
            assert torch.equal(part.labels, batch.labels[mine])
            assert torch.equal(part.sample_ids, batch.sample_ids[mine])
            assert part.share == pytest.approx(len(mine) / len(batch))
            if batch.second is not None:
                assert torch.equal(part.second, batch.second[mine])
            known = len(batch.labelled) if batch.labelled is not None else len(batch)
            own = len(part.labelled) if part.labelled is not None else len(part)
            assert part.labelled_share == pytest.approx(own / known if known else part.share)


def test_a_process_without_samples_gets_one_that_counts_nothing():
    part = feed(17, 16, (1, 2))[1]
    assert (len(part), part.share, part.labelled_share) == (1, 0.0, 0.0)


def test_a_process_reads_its_own_samples_and_their_partners_alone():
    sharded = feed(64, 64, (1, 4), mixup=0.5)
    assert not sharded.varies  # reads a few samples, once
    read = sharded.part.samples.read_ids
    read.clear()
    sharded[0]
    assert 16 < len(read) == len(set(read)) <= 32


def test_micro_batches_know_their_share_of_what_is_labelled():
    batch = feed(20, 20, labelled=0.4)[0]
    parts = [batch.at(rows) for rows in torch.arange(20).tensor_split(3)]
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert sum(part.labelled_share for part in parts) == pytest.approx(1)
    assert [part.labelled_share * 8 for part in parts] == pytest.approx([len(part.labelled) for part in parts])
