"""Which samples are used for what: labels kept or hidden, images without labels, classes withheld, validation."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

from understudy import randomness
from understudy.data.arrays import from_object
from understudy.data.source import UNLABELLED, Samples, Source
from understudy.data.table import REGISTERED, SOURCES
from understudy.errors import UserError, did_you_mean
from understudy.recipe.check import data_problems
from understudy.recipe.schema import Data


@dataclass(frozen=True)
class Subset:
    """Some samples of a source, with the labels that may be seen.

    Args:
        samples: where they are read.
        ids: (n,) their numbers there.
        labels: (n,) class numbers; -1 where the sample has none, or it is hidden.
    """

    samples: Samples
    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, chosen: np.ndarray) -> "Subset":
        """The samples at these positions (numbers or a mask)."""
        return Subset(self.samples, self.ids[chosen], self.labels[chosen])

    def read(self, positions: np.ndarray) -> Tensor:
        """The images at these positions, as they are."""
        return self.samples.read(self.ids[positions], None)


@dataclass(frozen=True)
class Splits:
    """The parts of a data set, by their use.

    Args:
        classes: names, one a logit.
        shape: (C, H, W).
        teacher: what the teacher is trained on: every sample whose label is kept.
        control: what the student alone is trained on: those of the classes it may see.
        students: what the distilled students see: `control` plus the transfer images, their labels hidden.
        validation: chooses epochs and grid points; None where the recipe has none.
        test: gives the tables and the verdict.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    teacher: Subset
    control: Subset
    students: Subset
    validation: Subset | None
    test: Subset

    @property
    def selection(self) -> Subset:
        """What epochs are chosen on: validation, or the test set where there is none."""
        return self.validation or self.test


def add(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a data set known to recipes under a name; use as a decorator.

    Args:
        name: the name in recipes. The function is called with the recipe's further keys and gives whatever
            `understudy.data.from_object` takes.
    """

    def register(read: Callable[..., Any]) -> Callable[..., Any]:
        REGISTERED[name] = read
        return read

    return register


def load_source(data: Data, given: Any = None) -> Source:
    """Read the data set that a recipe names.

    Args:
        data: the recipe's description.
        given: for a name `python:...`, the object.

    Raises:
        UserError: no such data set or option, or it cannot be read.
    """
    if data.name.startswith("python:"):
        if given is None:
            raise UserError(f"'{data.name}' was given as an object in Python: pass the same object again")
        return from_object(given, name=data.name.removeprefix("python:"))
    if data.name in REGISTERED:
        return from_object(REGISTERED[data.name](**data.options), name=data.name)
    for path, problem in data_problems(data):
        raise UserError(problem, where=".".join(map(str, path)))
    entry = SOURCES[data.name]
    return getattr(import_module(entry.module), entry.function)(**entry.fixed, **data.options)


def split(source: Source, data: Data) -> Splits:
    """Divide a data set as a recipe says. Nothing here depends on the run's seed: all seeds share the split.

    Where the source has no labelled test set (as ImageNet), its validation set is the test set; where it has neither,
    a fifth of the training samples is.

    Raises:
        UserError: more asked for than there is, or a class that does not exist.
    """
    seed = data.seed
    train = _whole(source.train)
    validation, test = (
        _whole(part) if part is not None and (part.labels != UNLABELLED).any() else None
        for part in (source.validation, source.test)
    )
    if test is None:
        validation, test = None, validation
    if test is None:
        train, test = _hold_out(train, 0.2, randomness.key(seed, "test"), "the test set")
    if data.train != "all":
        order = randomness.permutation(randomness.key(seed, "train"), len(train))
        train = train.only(np.sort(order[: _at_most(data.train, len(train), "data.train")]))
    if data.validation in ("none", 0):
        validation = None
    elif validation is None:
        assert not isinstance(data.validation, str)
        train, validation = _hold_out(train, data.validation, randomness.key(seed, "validation"), "data.validation")
    labelled = train.only(_with_label(train.labels, data, len(source.classes)))
    seen = ~np.isin(labelled.labels, [_class_number(word, source.classes) for word in data.without])
    control = labelled.only(seen)
    for name, part in (("data.labels keeps no sample", labelled), ("data.without leaves no sample", control)):
        if not len(part):
            raise UserError(name)
    return Splits(
        classes=source.classes,
        shape=source.train.shape,
        teacher=labelled,
        control=control,
        students=_with_transfer(control, train, data, source.classes),
        validation=validation,
        test=test,
    )


def _at_most(wanted: int, available: int, key: str) -> int:
    if wanted > available:
        raise UserError(f"asks for {wanted:,} samples, there are {available:,}", where=key)
    return wanted


def _whole(samples: Samples) -> Subset:
    return Subset(samples, np.arange(len(samples)), samples.labels)


def _hold_out(part: Subset, share: float, key: int, what: str) -> tuple[Subset, Subset]:
    """What stays and what is held out: a share below 1, or that many, of the samples with a label."""
    labelled = np.flatnonzero(part.labels != UNLABELLED)
    count = round(share * len(labelled)) if share < 1 else int(share)
    if not 0 < count < len(labelled):
        raise UserError(f"would hold out {count:,} of {len(labelled):,} labelled training images", where=what)
    held = np.zeros(len(part), bool)
    held[labelled[randomness.permutation(key, len(labelled))[:count]]] = True
    return part.only(~held), part.only(held)


def _with_label(labels: np.ndarray, data: Data, classes: int) -> np.ndarray:
    """Positions of the samples whose label is kept: all, or the same number of each class."""
    if data.labels == "all":
        return np.flatnonzero(labels != UNLABELLED)
    wanted = _at_most(data.labels, int((labels != UNLABELLED).sum()), "data.labels")
    order = randomness.permutation(randomness.key(data.seed, "labels"), len(labels))
    by_class = [order[labels[order] == number] for number in range(classes)]
    # Round by round one sample of each class, so that a number that is no multiple of the classes is as even as can be.
    ranks = np.concatenate([np.arange(len(group)) for group in by_class])
    turns = np.concatenate(by_class)[np.argsort(ranks, kind="stable")]
    return np.sort(turns[:wanted])


def _with_transfer(control: Subset, train: Subset, data: Data, classes: tuple[str, ...]) -> Subset:
    if data.transfer == "none":
        return control
    withheld = [_class_number(word, classes) for word in data.without]
    rest = train.only(~np.isin(train.ids, control.ids) & ~np.isin(train.labels, withheld))
    if data.transfer != "rest":
        order = randomness.permutation(randomness.key(data.seed, "transfer"), len(rest))
        rest = rest.only(np.sort(order[: _at_most(data.transfer, len(rest), "data.transfer")]))
    hidden = np.full(len(rest), UNLABELLED)
    ids, labels = np.concatenate([control.ids, rest.ids]), np.concatenate([control.labels, hidden])
    return Subset(control.samples, ids, labels)


def _class_number(word: str | int, classes: tuple[str, ...]) -> int:
    if str(word) in classes:
        return classes.index(str(word))
    raise UserError(f"there is no class '{word}', {did_you_mean(str(word), classes)}", where="data.without")
