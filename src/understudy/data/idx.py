"""MNIST and Fashion-MNIST from idx files, wherever torchvision, Keras or a person put them."""

import gzip
import hashlib
import os
import urllib.request
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from understudy.data.source import Samples, Source, resident
from understudy.errors import UserError

_IMAGES, _LABELS = 0x00000803, 0x00000801
_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_KERAS = {"mnist": "~/.keras/datasets/mnist.npz", "fashion-mnist": "~/.keras/datasets/fashion-mnist"}
_CACHE = "~/.cache/understudy"
_MIRRORS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
# MD5 of the gzipped files on these mirrors, in the order of `_FILES`.
_MD5 = {
    "mnist": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion-mnist": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
}
_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip


def idx(*, dataset: Literal["mnist", "fashion-mnist"], path: str | None = None, download: bool = False) -> Source:
    """Read a data set of idx files, plain or gzipped.

    Args:
        dataset: which of the two; it says the class names and where to look.
        path: the folder that holds the four files, or Keras' mnist.npz; when absent, `$UNDERSTUDY_DATA/NAME`, the
            layout of torchvision there and in `data`, and Keras' cache are searched.
        download: fetch the files into the cache when they are nowhere, and check them.

    Raises:
        UserError: not found, cut short, or images and labels that do not fit together.
    """
    places = _places(dataset, path)
    found = _find(places)
    if found is None and download:
        found = _download(dataset)
    if found is None:
        looked = ", ".join(str(place) for place in places)
        hint = "" if path else "; set UNDERSTUDY_DATA or data.path, or data.download=true to fetch it"
        raise UserError(f"no idx files of {dataset} (looked in {looked}){hint}", where="data.path" if path else "data")
    parts = _read_npz(found) if found.suffix == ".npz" else _read_folder(found)
    return Source(dataset, _CLASSES[dataset], **parts)


def read_idx(path: Path, magic: int) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Args:
        path: plain or gzipped (by its first bytes, not its name).
        magic: the number that says what it holds.

    Raises:
        UserError: another kind of file, or fewer bytes than its header promises.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise UserError("the gzip file is damaged or cut short: fetch it again", where=path) from None
    if len(content) < 4 or int.from_bytes(content[:4], "big") != magic:
        kind = "images" if magic == _IMAGES else "labels"
        raise UserError(f"is no idx file of {kind} (its first bytes are {content[:4].hex() or 'missing'})", where=path)
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4))
    wanted = prod(shape)
    if len(content) - start != wanted:
        held = max(0, len(content) - start)
        raise UserError(f"its header promises {wanted:,} bytes of values, it holds {held:,}", where=path)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _places(dataset: str, path: str | None) -> list[Path]:
    if path is not None:
        return [Path(path).expanduser()]
    roots = [os.environ.get("UNDERSTUDY_DATA"), _CACHE, "data"]
    found = []
    for root in roots:
        if root:
            base = Path(root).expanduser()
            found += [base / dataset, base / _TORCHVISION[dataset] / "raw"]
    return [*found, Path(_KERAS[dataset]).expanduser()]


def _find(places: list[Path]) -> Path | None:
    """The first place that has the data: a folder of idx files, or Keras' file."""
    for place in places:
        if _file(place, _FILES["train", "images"]) is not None or (place.suffix == ".npz" and place.is_file()):
            return place
    return None


def _file(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _read_folder(folder: Path) -> dict[str, Samples]:
    parts = {}
    for split in ("train", "test"):
        image_file = _file(folder, _FILES[split, "images"])
        label_file = _file(folder, _FILES[split, "labels"])
        if image_file is None or label_file is None:
            missing = _FILES[split, "labels"] if image_file else _FILES[split, "images"]
            raise UserError(f"'{missing}' (or .gz) is missing beside the other files", where=folder)
        images, labels = read_idx(image_file, _IMAGES), read_idx(label_file, _LABELS)
        parts[split] = resident(images, labels, where=label_file, classes=10)
    return parts


def _read_npz(path: Path) -> dict[str, Samples]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"is not Keras' mnist.npz, or is damaged ({error})", where=path) from None
    return {
        split: resident(content[f"x_{split}"], content[f"y_{split}"], where=path, classes=10)
        for split in ("train", "test")
    }


def _download(dataset: str) -> Path:
    folder = Path(_CACHE).expanduser() / dataset
    folder.mkdir(parents=True, exist_ok=True)
    for name, wanted in zip(_FILES.values(), _MD5[dataset], strict=True):
        target = folder / f"{name}.gz"
        if target.is_file():
            continue
        url = f"{_MIRRORS[dataset]}{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 (the two addresses above)
                content = answer.read()
        except OSError as error:
            raise UserError(f"could not be fetched ({error})", where=url) from None
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != wanted:
            raise UserError("what came is not the file that was asked for (its checksum differs)", where=url)
        partial = target.with_suffix(".tmp")
        partial.write_bytes(content)
        partial.replace(target)
    return folder
