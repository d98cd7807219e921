"""Every data source by its recipe name: where its reader is, and the options that the name fixes. No torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Where a reader is, the options the name fixes, and one sentence about it."""

    module: str
    function: str
    fixed: dict[str, Any] = field(default_factory=dict)
    about: str = ""


SOURCES: dict[str, Entry] = {
    "digits": Entry("understudy.data.digits", "digits", about="scikit-learn's 1,797 digits of 8x8 pixels"),
    "mnist": Entry("understudy.data.idx", "idx", {"dataset": "mnist"}, about="MNIST from idx files"),
    "fashion-mnist": Entry("understudy.data.idx", "idx", {"dataset": "fashion-mnist"}, about="Fashion-MNIST"),
    "cifar10": Entry("understudy.data.cifar", "cifar", {"dataset": "cifar10"}, about="CIFAR-10, its author's archive"),
    "cifar100": Entry("understudy.data.cifar", "cifar", {"dataset": "cifar100"}, about="CIFAR-100, likewise"),
    "flowers": Entry("understudy.data.published", "flowers", about="Flowers-102 as published"),
    "cars": Entry("understudy.data.published", "cars", about="Stanford Cars as published"),
    "inaturalist": Entry("understudy.data.published", "inaturalist", about="iNaturalist of any year as published"),
    "folder": Entry("understudy.data.folder", "folder", about="image folders: train/CLASS/*.jpg"),
    "csv": Entry("understudy.data.folder", "csv", about="a CSV of path,label"),
    "hub": Entry("understudy.data.hub", "hub", about="a Hugging Face data set: hub name or local parquet"),
}

# Filled by `understudy.data.add` in Python, or by a package that the user names with --import.
REGISTERED: dict[str, Callable[..., Any]] = {}
