"""MNIST and Fashion-MNIST from idx files, wherever torchvision, Keras or a person put them."""

import gzip
import hashlib
import os
import urllib.request
import zlib
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
_KERAS = {"mnist": "mnist.npz", "fashion-mnist": "fashion-mnist"}
_MIRRORS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
# MD5 of the unpacked files, which all mirrors agree on.
_MD5 = {
    ("mnist", "train-images-idx3-ubyte"): "6bbc9ace898e44ae57da46a324031adb",
    ("mnist", "train-labels-idx1-ubyte"): "a25bea736e30d166cdddb491f175f624",
    ("mnist", "t10k-images-idx3-ubyte"): "2646ac647ad5339dbf082846283269ea",
    ("mnist", "t10k-labels-idx1-ubyte"): "27ae3e4e09519cfbb04c329615203637",
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
        path: the folder that holds the four files; when absent, `$UNDERSTUDY_DATA/NAME` and the caches of
            torchvision and Keras are searched.
        download: fetch the files into the cache when they are nowhere, and check them.

    Raises:
        UserError: not found, cut short, or images and labels that do not fit together.
    """
    keras = Path.home() / ".keras" / "datasets" / "mnist.npz"
    folder = _find(dataset, path)
    if folder is None and dataset == "mnist" and keras.is_file():
        return _from_npz(keras)
    if folder is None and download:
        folder = _download(dataset)
    if folder is None:
        looked = ", ".join(str(place) for place in _places(dataset, path))
        hint = "" if path else "; set UNDERSTUDY_DATA or data.path, or data.download=true to fetch it"
        raise UserError(f"no idx files of {dataset} (looked in {looked}){hint}", where="data.path" if path else "data")
    parts = {}
    for split in ("train", "test"):
        image_file = _file(folder, _FILES[split, "images"])
        label_file = _file(folder, _FILES[split, "labels"])
        if image_file is None or label_file is None:
            missing = _FILES[split, "labels"] if image_file else _FILES[split, "images"]
            raise UserError(f"'{missing}' (or .gz) is missing beside the other files", where=folder)
        images, labels = read_idx(image_file, _IMAGES), read_idx(label_file, _LABELS)
        parts[split] = resident(images, labels, where=label_file, classes=10)
    return Source(dataset, _CLASSES[dataset], train=parts["train"], test=parts["test"])


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
    axes = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))
    start, wanted = 4 + 4 * axes, int(np.prod(shape, dtype=np.int64))
    if len(content) - start != wanted:
        raise UserError(f"its header promises {wanted:,} bytes, it holds {len(content) - start:,}", where=path)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _places(dataset: str, path: str | None) -> list[Path]:
    if path is not None:
        return [Path(path)]
    roots = [os.environ.get("UNDERSTUDY_DATA"), os.environ.get("TORCH_HOME"), "~/.cache/understudy", "data"]
    found = []
    for root in roots:
        if root:
            base = Path(root).expanduser()
            found += [base / dataset, base / _TORCHVISION[dataset] / "raw"]
    return [*found, Path.home() / ".keras" / "datasets" / _KERAS[dataset]]


def _find(dataset: str, path: str | None) -> Path | None:
    for place in _places(dataset, path):
        if _file(place, _FILES["train", "images"]) is not None:
            return place
    return None


def _file(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _from_npz(path: Path) -> Source:
    with np.load(path, allow_pickle=False) as arrays:
        parts: list[Samples] = [
            resident(arrays[f"x_{split}"], arrays[f"y_{split}"], where=path, classes=10) for split in ("train", "test")
        ]
    return Source("mnist", _CLASSES["mnist"], train=parts[0], test=parts[1])


def _download(dataset: str) -> Path:
    folder = Path("~/.cache/understudy").expanduser() / dataset
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES.values():
        target = folder / f"{name}.gz"
        url = f"{_MIRRORS[dataset]}{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 (the two addresses above)
                content = answer.read()
        except OSError as error:
            raise UserError(f"could not be fetched ({error})", where=url) from None
        digest = hashlib.md5(gzip.decompress(content), usedforsecurity=False).hexdigest()
        if digest != _MD5.get((dataset, name), digest):
            raise UserError("what came is not the file that was asked for (its checksum differs)", where=url)
        partial = target.with_suffix(".tmp")
        partial.write_bytes(content)
        partial.replace(target)
    return folder
