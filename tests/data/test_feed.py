"""The one loader: a batch is a function of its step and the seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from understudy.data import Batch, Feed, Samples, Subset, from_object, in_order
from understudy.data.folder import folder
from understudy.data.source import UNLABELLED, Resident
from understudy.errors import UserError
from understudy.recipe.schema import Augment

ALL = {"crop": 2, "flip": True, "rand_augment": {"ops": 1}, "erase": 0.5, "mixup": 0.4, "cutmix": 1.0}


def part(count: int = 50, classes: int = 5, unlabelled: int = 0) -> Subset:
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = np.arange(count) % classes
    labels[:unlabelled] = UNLABELLED
    return Subset(Samples(Resident(images), labels, (3, 8, 8)), np.arange(count), labels)


def feed(given: Subset | None = None, *, batch_size: int = 16, seed: int = 0, **augment) -> Feed:
    settings = Augment.model_validate(augment)
    return Feed(part() if given is None else given, batch_size=batch_size, seed=seed, settings=settings, classes=5)


def assert_same(first: Batch, second: Batch) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if not isinstance(value, torch.Tensor):
            assert value == other
        else:
            torch.testing.assert_close(value, other, rtol=0, atol=0)


@pytest.fixture
def files(tmp_path: Path) -> Subset:
    draw = np.random.default_rng(0)
    for number in range(50):
        path = tmp_path / "train" / str(number % 5) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    train = folder(path=str(tmp_path), size=8).train
    return Subset(train, np.arange(50), train.labels)


# A function of the step


def test_every_sample_is_served_once_a_pass_and_the_last_batch_may_be_short():
    feeder = feed()
    assert feeder.steps_per_pass == 4
    for start in (0, 4, 8):
        batches = [feeder[step] for step in range(start, start + 4)]
        assert [len(batch) for batch in batches] == [16, 16, 16, 2]
        assert sorted(torch.cat([batch.sample_ids for batch in batches]).tolist()) == list(range(50))


def test_a_batch_larger_than_the_data_is_the_data():
    feeder = feed(batch_size=1000)
    assert feeder.steps_per_pass == 1
    assert len(feeder[3]) == 50


def test_images_and_labels_belong_to_the_ids():
    given = part()
    for step in range(8):
        batch = feed(given)[step]
        torch.testing.assert_close(batch.images, given.samples.read(batch.sample_ids.numpy(), None))
        np.testing.assert_array_equal(batch.labels, given.labels[batch.sample_ids])
        assert batch.labelled is None


def test_ids_are_numbers_in_the_source_and_not_positions_in_the_part():
    chosen = part().only(np.array([40, 7, 23]))
    batch = feed(chosen)[0]
    assert set(batch.sample_ids.tolist()) == {40, 7, 23}
    torch.testing.assert_close(batch.images, part().samples.read(batch.sample_ids.numpy(), None))


@pytest.mark.parametrize("augment", [{}, ALL])
def test_random_access_gives_the_batches_of_iteration(augment: dict):
    iterated = [batch for group in feed(**augment).groups(0, 10, size=3) for batch in group]
    jumping = feed(**augment)
    for step in (9, 0, 5, 3, 8, 2):
        assert_same(jumping[step], iterated[step])
    assert_same(next(feed(**augment).groups(7, 10, size=2))[0], iterated[7])


def test_orders_and_views_differ_between_passes_and_seeds():
    feeder, other = feed(crop=2), feed(seed=1, crop=2)
    orders = [feeder[0].sample_ids.tolist(), feeder[4].sample_ids.tolist(), other[0].sample_ids.tolist()]
    assert len({tuple(order) for order in orders}) == 3
    views = [next_view(source, start) for source, start in ((feeder, 0), (feeder, 4), (other, 0))]
    assert (views[0] != views[1]).any()
    assert (views[0] != views[2]).any()


def next_view(feeder: Feed, start: int) -> Tensor:
    """All views of a pass, by sample."""
    batches = [feeder[step] for step in range(start, start + feeder.steps_per_pass)]
    order = torch.cat([batch.sample_ids for batch in batches]).argsort()
    return torch.cat([batch.images for batch in batches])[order]


def test_a_view_depends_on_no_other_sample_and_no_batch_size():
    settings = {key: value for key, value in ALL.items() if key not in ("mixup", "cutmix")}
    torch.testing.assert_close(
        next_view(feed(**settings), 0), next_view(feed(batch_size=7, **settings), 0), rtol=0, atol=0
    )


@pytest.mark.parametrize("augment", [{}, ALL])
@pytest.mark.parametrize("kind", ["resident", "files", "dataset"])
def test_workers_change_nothing(files: Subset, kind: str, augment: dict):
    given = {"resident": part(), "files": files, "dataset": from_dataset()}[kind]
    here, there = (
        [batch for group in feed(given, **augment).groups(1, 7, size=4, workers=workers) for batch in group]
        for workers in (0, 2)
    )
    assert len(here) == len(there) == 6
    for one, other in zip(here, there, strict=True):
        assert_same(one, other)


class _Rows(torch.utils.data.Dataset):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
        return noise, index % 5

    def __len__(self) -> int:
        return 50


def from_dataset() -> Subset:
    train = from_object(_Rows(), name="rows").train
    return Subset(train, np.arange(50), train.labels)


def test_a_file_is_cropped_by_its_key_and_then_treated_as_any_image(files: Subset):
    one, again = feed(files), feed(files)
    assert_same(one[0], again[0])
    plain = files.samples.read(one[0].sample_ids.numpy(), None)
    assert (one[0].images != plain).any()
    assert (next_view(one, 0) != next_view(one, 4)).any()


# Labels


def test_positions_with_a_label_are_listed_only_where_some_have_none():
    feeder = feed(part(unlabelled=20))
    for step in range(4):
        batch = feeder[step]
        wanted = (batch.labels != UNLABELLED).nonzero().flatten()
        if batch.labelled is None:
            assert len(wanted) == len(batch)
        else:
            torch.testing.assert_close(batch.labelled, wanted)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_probabilities_of_both(kind: str):
    feeder = feed(**{kind: 1.0})
    for step in range(4):
        batch = feeder[step]
        assert batch.labels.shape == (len(batch), 5)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(len(batch)))
        assert ((batch.labels > 0).sum(1) <= 2).all()
        own = part().labels[batch.sample_ids]
        assert (batch.labels[torch.arange(len(batch)), own] > 0).sum() >= len(batch) - 1
        assert batch.labelled is None


def test_mixing_is_that_of_the_whole_batch_with_itself():
    batch, plain = feed(mixup=1.0)[0], feed()[0]
    assert (batch.images != plain.images).any()
    torch.testing.assert_close(batch.sample_ids, plain.sample_ids)


def test_rows_of_a_batch_keep_their_labels():
    batch = feed(part(unlabelled=20))[0]
    rows = torch.tensor([3, 1, 8])
    some = batch.at(rows)
    torch.testing.assert_close(some.images, batch.images[rows])
    torch.testing.assert_close(some.labels, batch.labels[rows])
    wanted = (some.labels != UNLABELLED).nonzero().flatten()
    if some.labelled is not None:
        torch.testing.assert_close(some.labelled, wanted)


# Floats


def test_float_images_are_served_and_mixed_but_not_augmented():
    floats = from_object((torch.rand(20, 3, 8, 8), np.arange(20) % 5), name="x").train
    given = Subset(floats, np.arange(20), floats.labels)
    assert feed(given)[0].images.dtype == torch.float32
    assert feed(given, mixup=1.0)[0].images.dtype == torch.float32
    with pytest.raises(UserError, match=r"data\.augment: changes uint8 images \(0 to 255\), these are torch\.float32"):
        feed(given, flip=True)[0]


def test_evaluation_reads_in_order_and_unchanged(files: Subset):
    for given in (part(), files):
        chunks = list(in_order(given, 15))
        assert [len(labels) for _, labels in chunks] == [15, 15, 15, 5]
        torch.testing.assert_close(torch.cat([images for images, _ in chunks]), given.read(np.arange(50)))
        np.testing.assert_array_equal(torch.cat([labels for _, labels in chunks]), given.labels)
