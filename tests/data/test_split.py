"""Which samples are used for what."""

from itertools import combinations

import numpy as np
import pytest
import torch

from understudy.data import Samples, Source, Splits, Subset, split
from understudy.data.source import UNLABELLED, Resident
from understudy.errors import UserError
from understudy.recipe.schema import Data

CLASSES = ("ant", "bee", "cow", "dog")


def samples(count: int, unlabelled: int = 0, seed: int = 0) -> Samples:
    labels = np.random.default_rng(seed).permutation(np.arange(count) % len(CLASSES)).astype(np.int64)
    labels = np.concatenate([labels, np.full(unlabelled, UNLABELLED)])
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).float()
    return Samples(Resident(images), labels, (1, 1, 1))


def source(*, train: int = 400, unlabelled: int = 0, test: int = 40, validation: int = 0) -> Source:
    return Source(
        "x",
        CLASSES,
        train=samples(train, unlabelled),
        test=samples(test, seed=1) if test else None,
        validation=samples(validation, seed=2) if validation else None,
    )


def divide(given: Source | None = None, **data) -> Splits:
    return split(given or source(), Data.model_validate({"name": "x", "validation": "none", **data}))


def true_labels(part: Subset) -> np.ndarray:
    return part.samples.labels[part.ids]


def assert_apart(splits: Splits) -> None:
    """No sample of training is held out, and none is held out twice."""
    parts = {"students": splits.students, "validation": splits.validation, "test": splits.test}
    held = [(name, part) for name, part in parts.items() if part is not None]
    for (_, first), (_, second) in combinations(held, 2):
        if first.samples is second.samples:
            assert not set(first.ids) & set(second.ids)
    for part in (splits.teacher, splits.control):
        for _, other in held[1:]:
            assert part.samples is not other.samples or not set(part.ids) & set(other.ids)
    for part in (*(part for _, part in held), splits.teacher, splits.control):
        assert len(set(part.ids)) == len(part.ids)


# Everything, and what is held out


def test_by_default_everybody_sees_everything():
    splits = divide()
    for part in (splits.teacher, splits.control, splits.students):
        np.testing.assert_array_equal(part.ids, np.arange(400))
        np.testing.assert_array_equal(part.labels, true_labels(part))
    assert splits.validation is None
    assert splits.selection is splits.test
    assert len(splits.test) == 40


@pytest.mark.parametrize(
    ("asked", "count"), [(0.1, 40), (0.25, 100), (30, 30), (0.001, None), (400, None), (1000, None)]
)
def test_validation_is_a_share_or_a_number_of_the_training_samples(asked: float, count: int | None):
    if count is None:
        with pytest.raises(UserError, match=r"data\.validation: would hold out .* of 400 labelled"):
            divide(validation=asked)
        return
    splits = divide(validation=asked)
    assert splits.validation is not None
    assert (len(splits.validation), len(splits.students)) == (count, 400 - count)
    assert splits.selection is splits.validation
    assert_apart(splits)


def test_a_validation_set_of_its_own_is_used():
    splits = divide(source(validation=24), validation=0.1)
    assert splits.validation is not None
    assert (len(splits.validation), len(splits.students)) == (24, 400)
    assert divide(source(validation=24)).validation is None


def test_without_a_test_set_validation_is_the_test_set():
    splits = divide(source(test=0, validation=24), validation=0.1)
    assert splits.validation is not None
    assert (len(splits.test), len(splits.validation), len(splits.students)) == (24, 40, 360)


def test_a_test_set_without_labels_tests_nothing():
    given = Source("x", CLASSES, train=samples(400), test=samples(0, 30), validation=samples(24, seed=2))
    assert len(divide(given).test) == 24


def test_with_training_samples_alone_a_fifth_is_the_test_set_whatever_else_is_asked():
    first = divide(source(test=0), validation=0.1)
    assert (len(first.test), len(first.validation or ()), len(first.students)) == (80, 32, 288)
    assert_apart(first)
    for other in (divide(source(test=0), train=100), divide(source(test=0), labels=20, seed=0)):
        np.testing.assert_array_equal(other.test.ids, first.test.ids)
        assert_apart(other)


def test_nothing_without_a_label_is_held_out():
    splits = divide(source(test=0, unlabelled=300), validation=0.1)
    assert splits.validation is not None
    assert (splits.test.labels >= 0).all()
    assert (splits.validation.labels >= 0).all()
    assert (len(splits.test), len(splits.validation)) == (80, 32)


def test_the_split_depends_on_its_own_seed_alone():
    asked = {"train": 300, "validation": 0.2, "labels": 40, "transfer": 50}
    first, again, other = divide(**asked), divide(**asked), divide(**asked, seed=1)
    for name in ("teacher", "control", "students", "validation"):
        np.testing.assert_array_equal(getattr(first, name).ids, getattr(again, name).ids)
        assert not np.array_equal(getattr(first, name).ids, getattr(other, name).ids)


def test_train_takes_that_many():
    splits = divide(train=123)
    assert len(splits.students) == 123
    with pytest.raises(UserError, match=r"data\.train: asks for 401 samples, there are 400"):
        divide(train=401)


# Labels kept, images without labels


@pytest.mark.parametrize("kept", [1, 4, 40, 42, 400])
def test_kept_labels_are_balanced(kept: int):
    splits = divide(labels=kept)
    counts = np.bincount(splits.teacher.labels, minlength=4)
    assert counts.sum() == kept
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(splits.teacher.ids, splits.students.ids)
    assert_apart(splits)


def test_fewer_kept_labels_are_a_part_of_more():
    assert set(divide(labels=40).teacher.ids) <= set(divide(labels=80).teacher.ids)


def test_more_labels_than_there_are_is_an_error():
    with pytest.raises(UserError, match=r"data\.labels: asks for 401 samples, there are 400"):
        divide(source(unlabelled=100), labels=401)


@pytest.mark.parametrize(("transfer", "added"), [("none", 0), ("rest", 320), (50, 50)])
def test_transfer_adds_samples_without_their_labels(transfer, added: int):
    splits = divide(labels=40, transfer=transfer, validation=40)
    assert (len(splits.teacher), len(splits.control), len(splits.students)) == (40, 40, 40 + added)
    known = splits.students.labels != UNLABELLED
    np.testing.assert_array_equal(splits.students.ids[known], splits.control.ids)
    np.testing.assert_array_equal(splits.students.labels[known], true_labels(splits.control))
    assert known.sum() == 40
    assert_apart(splits)


def test_unlabelled_images_come_with_transfer_only():
    given = source(unlabelled=100)
    assert len(divide(given).students) == 400
    splits = divide(given, transfer="rest")
    assert (len(splits.students), len(splits.control), (splits.students.labels == UNLABELLED).sum()) == (500, 400, 100)


def test_more_transfer_than_there_is_is_an_error():
    with pytest.raises(UserError, match=r"data\.transfer: asks for 361 samples, there are 360"):
        divide(labels=40, transfer=361)


# Classes withheld


@pytest.mark.parametrize("transfer", ["none", "rest", 100])
def test_withheld_classes_are_hidden_from_students_but_not_from_the_teacher(transfer):
    splits = divide(without=["bee", "dog"], labels=80, transfer=transfer, validation=0.1)
    assert set(true_labels(splits.teacher)) == {0, 1, 2, 3}
    assert set(true_labels(splits.control)) == {0, 2}
    assert set(true_labels(splits.students)) == {0, 2}
    assert set(splits.test.labels) == {0, 1, 2, 3}
    assert_apart(splits)


def test_a_class_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"data\.without: there is no class 'be', did you mean 'bee'"):
        divide(without=["be"])
    with pytest.raises(UserError, match="leaves no sample"):
        divide(without=list(CLASSES))


def test_a_class_may_be_named_by_its_number_where_that_is_its_name():
    given = Source("x", ("0", "1", "2", "3"), train=samples(40), test=samples(8))
    assert set(divide(given, without=[3]).students.labels) == {0, 1, 2}
