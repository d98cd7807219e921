"""Image files: one folder a class, or a CSV that says which image is what."""

import csv as csv_format
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from understudy.data.image import DEFAULT_SCALE, Scale, cut, decode, open_image
from understudy.data.source import UNLABELLED, Samples, Source
from understudy.errors import UserError, did_you_mean

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
# Names that people give to the parts of a data set.
SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


def folder(*, path: str, size: int, channels: Literal[1, 3] = 3, scale: tuple[float, float] = DEFAULT_SCALE) -> Source:
    """Read `train/CLASS/*.jpg` with `val` or `test` folders of the same classes beside it.

    Images in `train/unlabelled` have no label.

    Args:
        path: the folder that holds `train`.
        size: height and width of what the models see, in pixels.
        channels: 3, or 1 to turn images grey.
        scale: share of the image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: no such folder, no images, a class that 'train' does not have.
    """
    root = Path(path).expanduser()
    found = {split: _first_folder(root, names) for split, names in SPLITS.items()}
    if found["train"] is None:
        raise UserError("has no folder 'train' with one folder for each class", where=root)
    names = sorted(entry.name for entry in found["train"].iterdir() if entry.is_dir() and entry.name != "unlabelled")
    if not names:
        raise UserError("is empty: wanted one folder of images for each class", where=found["train"])
    parts: dict[str, Samples] = {}
    for split, place in found.items():
        if place is not None:
            files, labels = _walk(place, names)
            parts[split] = files_as_samples(files, labels, size, scale, channels, root=root)
    for number, name in enumerate(names):
        if not (parts["train"].labels == number).any():
            raise UserError("holds no images (" + ", ".join(sorted(SUFFIXES)) + ")", where=found["train"] / name)
    return Source(root.name, tuple(names), **parts)


def csv(*, path: str, size: int, channels: Literal[1, 3] = 3, scale: tuple[float, float] = DEFAULT_SCALE) -> Source:
    """Read a CSV with the columns `path` and `label`, and perhaps `split` (train, validation or test).

    Paths are relative to the CSV; an empty label means none.

    Args:
        path: the CSV file.
        size: height and width of what the models see, in pixels.
        channels: 3, or 1 to turn images grey.
        scale: share of the image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: a missing column, file or label.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError("no such file", where=file)
    with file.open(newline="", encoding="utf-8-sig") as stream:  # Excel puts a mark at the beginning
        reader = csv_format.DictReader(stream)
        if not {"path", "label"} <= set(reader.fieldnames or []):
            raise UserError("its first line must name the columns path and label", where=f"{file}:1")
        rows = [(reader.line_num, row) for row in reader]
    images: dict[str, list[Path]] = {split: [] for split in SPLITS}
    words: dict[str, list[tuple[int, str]]] = {split: [] for split in SPLITS}
    for line, row in rows:
        image = file.parent / (row["path"] or "")
        if not image.is_file():
            raise UserError(f"no such image '{image}'", where=f"{file}:{line}")
        split = _split_of(row.get("split"), f"{file}:{line}")
        images[split].append(image)
        words[split].append((line, row["label"] or ""))
    if not images["train"]:
        raise UserError("no row has the split 'train'" if rows else "has no rows below its first line", where=file)
    names = sorted({word for _, word in words["train"] if word})
    numbers = {"": UNLABELLED, **{name: index for index, name in enumerate(names)}}
    parts = {}
    for split, labels in words.items():
        for line, word in labels:
            if word not in numbers:
                near = did_you_mean(word, names)
                raise UserError(f"no training row has the label '{word}', {near}", where=f"{file}:{line}")
        if labels:
            known = [numbers[word] for _, word in labels]
            parts[split] = files_as_samples(images[split], known, size, scale, channels, root=file.parent)
    return Source(file.stem, tuple(names), **parts)


@dataclass(frozen=True)
class Files:
    """Reads image files: the whole image in the middle, or, given keys, a random part of it."""

    files: list[Path]
    size: int
    channels: int
    scale: Scale = DEFAULT_SCALE

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Decode images by number.

        Args:
            ids: (N,) numbers.
            keys: (N,) one key an image; where given, a random resized crop is drawn from each.
        """
        return torch.stack(decode(self._read, (self.files[index] for index in ids), keys))

    def _read(self, path: Path, draw: np.ndarray | None) -> Tensor:
        return cut(open_image(path, self.channels), self.size, draw, self.scale)


def image_files(place: Path) -> list[Path]:
    """The image files in a folder and below, in order."""
    return sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _walk(place: Path, names: list[str]) -> tuple[list[Path], list[int]]:
    numbers = {"unlabelled": UNLABELLED, **{name: index for index, name in enumerate(names)}}
    files, labels = [], []
    for entry in sorted(place.iterdir()):
        if not entry.is_dir():
            continue
        if entry.name not in numbers:
            near = did_you_mean(entry.name, names)
            raise UserError(f"is a class that 'train' does not have, {near}", where=entry)
        images = image_files(entry)
        files += images
        labels += [numbers[entry.name]] * len(images)
    if not files:
        raise UserError("holds no images (" + ", ".join(sorted(SUFFIXES)) + ")", where=place)
    return files, labels


def files_as_samples(
    files: list[Path],
    labels: Sequence[int] | np.ndarray,
    size: int,
    scale: Scale,
    channels: int = 3,
    *,
    root: Path | None = None,
) -> Samples:
    """Make samples of image files.

    Args:
        files: (n,) the images; they are opened when they are read.
        labels: (n,) class numbers.
        size: height and width of what the models see, in pixels.
        scale: share of the image's area that a random training crop keeps, smallest and largest.
        channels: 3, or 1 to turn images grey.
        root: what the files are named relative to, where somebody may ask for them by name.
    """
    paths = None if root is None else tuple(os.path.relpath(file, root) for file in files)
    return Samples(Files(files, size, channels, scale), np.array(labels, np.int64), (channels, size, size), paths)


def _split_of(word: str | None, where: str) -> str:
    if not word:
        return "train"
    for split, names in SPLITS.items():
        if word in names:
            return split
    raise UserError(f"unknown split '{word}': wanted train, validation or test", where=where)
