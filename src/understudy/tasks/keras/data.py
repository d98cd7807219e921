"""The arrays of a recipe, read without torch: images (N, H, W, C) in [0, 1], class numbers, and what is held out."""

import gzip
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import UserError
from understudy.tasks.keras.recipe import KerasData

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


@dataclass(frozen=True)
class Part:
    """Some samples: arrays, or a data set that yields batches of them.

    Args:
        x: inputs, or a tf.data data set, PyDataset or DataLoader of (inputs, labels).
        y: class numbers; None where `x` yields them.
    """

    x: Any
    y: np.ndarray | None = None

    @property
    def is_arrays(self) -> bool:
        """Whether the samples are there to be indexed."""
        return self.y is not None


@dataclass(frozen=True)
class Parts:
    """What a run trains, selects and tests on.

    Args:
        name: of the data set.
        train: for teacher and students.
        test: for the table and the verdict.
        validation: for the choice of the best epoch; None where nothing is held out.
    """

    name: str
    train: Part
    test: Part
    validation: Part | None = None


def read_parts(settings: KerasData, given: Any = None) -> Parts:
    """Read the data of a recipe.

    Args:
        settings: the recipe's `data`.
        given: what was given in Python: (x, y), or a mapping with `train`, `test` and perhaps `validation`, each
            (x, y) or a data set.

    Raises:
        UserError: not found, damaged, or of shapes that do not fit.
    """
    if given is not None:
        train, test, validation = _given(given)
    elif settings.name == "digits":
        train, test, validation = *_digits(), None
    else:
        train, test, validation = *_idx(settings), None
    if train.is_arrays and settings.train != "all":
        train = _rows(train, np.random.default_rng(settings.seed).permutation(len(train.x))[: settings.train])
    if train.is_arrays and validation is None and settings.validation != "none":
        order = np.random.default_rng([settings.seed, 1]).permutation(len(train.x))
        held_out = max(1, round(float(settings.validation) * len(order)))
        train, validation = _rows(train, order[held_out:]), _rows(train, order[:held_out])
    return Parts(settings.name, train, test, validation)


def _given(given: Any) -> tuple[Part, Part, Part | None]:
    if isinstance(given, (tuple, list)) and len(given) == 2:
        whole = _part(given, "data")
        order = np.random.default_rng(0).permutation(len(whole.x))
        held_out = max(1, len(order) // 5)
        return _rows(whole, order[held_out:]), _rows(whole, order[:held_out]), None
    if not isinstance(given, Mapping) or not {"train", "test"} <= given.keys():
        raise UserError("give (x, y), or a mapping with 'train' and 'test', each (x, y) or a data set", where="data")
    validation = given.get("validation")
    parts = _part(given["train"], "train"), _part(given["test"], "test")
    return *parts, None if validation is None else _part(validation, "validation")


def _part(given: Any, where: str) -> Part:
    if not isinstance(given, (tuple, list)):
        return Part(given)
    x, y = np.asarray(given[0]), np.asarray(given[1])
    if len(x) != len(y):
        raise UserError(f"{len(x)} inputs and {len(y)} labels", where=where)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or (y.dtype.kind == "f" and (y != np.floor(y)).any()):
        raise UserError(f"labels should be class numbers (N,), not {y.shape}", where=where)
    return Part(x, y.astype("int32"))


def _rows(part: Part, rows: np.ndarray) -> Part:
    assert part.y is not None
    return Part(part.x[rows], part.y[rows])


def _digits() -> tuple[Part, Part]:
    from sklearn.datasets import load_digits

    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    x = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(x))
    whole = Part(x, labels.astype("int32"))
    return _rows(whole, order[360:]), _rows(whole, order[:360])


def _idx(settings: KerasData) -> tuple[Part, Part]:
    folder = _folder(settings)
    parts = []
    for images_name, labels_name in _FILES.values():
        images, labels = _read(folder, images_name, 3), _read(folder, labels_name, 1)
        if len(images) != len(labels):
            raise UserError(f"{len(images)} images and {len(labels)} labels", where=folder)
        parts.append(Part((images[..., None] / np.float32(255)).astype("float32"), labels.astype("int32")))
    return parts[0], parts[1]


def _folder(settings: KerasData) -> Path:
    name = settings.name
    roots = [
        Path(root).expanduser() for root in (os.environ.get("UNDERSTUDY_DATA"), "~/.cache/understudy", "data") if root
    ]
    places = [place for root in roots for place in (root / name, root / _TORCHVISION[name] / "raw")]
    places.append(Path(f"~/.keras/datasets/{name}").expanduser())
    if settings.path is not None:
        places = [Path(settings.path).expanduser()]
    for place in places:
        if any((place / f"{_FILES['train'][0]}{ending}").is_file() for ending in ("", ".gz")):
            return place
    looked = ", ".join(map(str, places))
    raise UserError(f"no idx files of {name} (looked in {looked}): set UNDERSTUDY_DATA or data.path", where="data")


def _read(folder: Path, name: str, dimensions: int) -> np.ndarray:
    path = next((each for each in (folder / name, folder / f"{name}.gz") if each.is_file()), None)
    if path is None:
        raise UserError(f"'{name}' (or .gz) is missing beside the other files", where=folder)
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError("it is no idx file of bytes")
        start = 4 + 4 * dimensions
        shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"is damaged or no idx file ({error})", where=path) from None
