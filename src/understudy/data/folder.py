"""Image files: one folder a class, or a CSV that says which image is what."""

import csv as csv_format
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from understudy import randomness
from understudy.data.source import UNLABELLED, Samples, Source, check_labels
from understudy.errors import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


def folder(*, path: str, size: int, channels: int = 3, scale: tuple[float, float] = (0.35, 1.0)) -> Source:
    """Read `train/CLASS/*.jpg` with `val` or `test` folders of the same classes beside it.

    Images in `train/unlabelled` have no label. With `val` but no `test` (as in ImageNet), `val` is the test set.

    Args:
        path: the folder that holds `train`.
        size: height and width of what the models see, in pixels.
        channels: 3, or 1 to turn images grey.
        scale: share of the image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: no such folder, no images, a class that only one split has.
    """
    root = Path(path)
    found = {split: _first_folder(root, names) for split, names in _SPLITS.items()}
    if found["train"] is None:
        raise UserError("has no folder 'train' with one folder for each class", where=root)
    names = sorted(entry.name for entry in found["train"].iterdir() if entry.is_dir() and entry.name != "unlabelled")
    if not names:
        raise UserError("is empty: wanted one folder of images for each class", where=found["train"])
    parts: dict[str, Samples] = {}
    for split, place in found.items():
        if place is None:
            continue
        files, labels = _walk(place, names)
        if not files:
            raise UserError("holds no images (" + ", ".join(sorted(_SUFFIXES)) + ")", where=place)
        parts[split] = _samples(files, np.array(labels), size, channels, scale)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return Source(root.name, tuple(names), **parts)


def csv(*, path: str, size: int, channels: int = 3, scale: tuple[float, float] = (0.35, 1.0)) -> Source:
    """Read a CSV with the columns `path` and `label`, and perhaps `split` (train, validation or test).

    Paths are relative to the CSV; an empty label means none. Without `split`, a tenth of the rows, drawn by key, is
    the test set.

    Args:
        path: the CSV file.
        size: height and width of what the models see, in pixels.
        channels: 3, or 1 to turn images grey.
        scale: share of the image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: a missing column, file or label.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("no such file", where=file)
    with file.open(newline="") as stream:
        reader = csv_format.DictReader(stream)
        if not {"path", "label"} <= set(reader.fieldnames or []):
            raise UserError("its first line must name the columns path and label", where=f"{file}:1")
        rows = list(reader)
    if not rows:
        raise UserError("has no rows below its first line", where=file)
    files = [file.parent / row["path"] for row in rows]
    for number, image in enumerate(files, start=2):
        if not image.is_file():
            raise UserError(f"no such image '{image}'", where=f"{file}:{number}")
    names = sorted({row["label"] for row in rows if row["label"]})
    numbers = {name: index for index, name in enumerate(names)}
    labels = np.array([numbers.get(row["label"], UNLABELLED) for row in rows])
    splits = np.array([_split_of(row.get("split"), f"{file}:{line}") for line, row in enumerate(rows, start=2)])
    if (splits == "train").all():
        order = randomness.permutation(randomness.key("csv", "split"), len(rows))
        splits[order[: max(1, len(rows) // 10)]] = "test"
    parts = {}
    for split in ("train", "validation", "test"):
        ids = np.flatnonzero(splits == split)
        if len(ids):
            parts[split] = _samples([files[index] for index in ids], labels[ids], size, channels, scale)
    if "train" not in parts:
        raise UserError("no row has the split 'train'", where=file)
    return Source(file.stem, tuple(names), **parts)


@dataclass(frozen=True)
class Files:
    """Reads image files: the whole image in the middle, or, given keys, a random part of it."""

    files: list[Path]
    size: int
    channels: int
    scale: tuple[float, float]

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Decode images by number.

        Args:
            ids: (N,) numbers.
            keys: (N,) one key an image; where given, a random resized crop is drawn from each.
        """
        draws = randomness.uniform(keys, 4) if keys is not None else [None] * len(ids)
        return torch.stack([self._read(self.files[index], draw) for index, draw in zip(ids, draws, strict=True)])

    def _read(self, path: Path, draw: np.ndarray | None) -> Tensor:
        return cut(open_image(path, self.channels), self.size, draw, self.scale)


def cut(
    image: Image.Image, size: int | None, draw: np.ndarray | None, scale: tuple[float, float] = (0.35, 1.0)
) -> Tensor:
    """Turn an opened image into pixels of one size.

    Args:
        image: of any size.
        size: height and width wanted, in pixels; None keeps the image as it is.
        draw: (4,) uniform numbers to take a random part by; None takes the middle, or the whole of an image that
            has the size already.
        scale: smallest and largest share of the area that a random part has.

    Returns:
        (C, size, size) uint8.
    """
    if size is None:
        return _pixels(image)
    if draw is not None:
        image = _resize(image, size, random_box(*image.size, draw, scale))
    elif image.size != (size, size):
        image = _resize(image, size, center_box(*image.size))
    return _pixels(image)


def _pixels(image: Image.Image) -> Tensor:
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _resize(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)


def open_image(path: Path, channels: int) -> Image.Image:
    """Open an image file as RGB or grey.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise UserError("no such image", where=path) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"is no image that can be read ({str(error).splitlines()[0]})", where=path) from None


def center_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The middle square that holds 7/8 of the shorter side, as ImageNet is evaluated (resize 256, crop 224)."""
    side = min(width, height) * 0.875
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(
    width: int, height: int, draw: np.ndarray, scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """A random part of an image (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015), from four numbers.

    Unlike torchvision's, a part that does not fit is shrunk into the image instead of drawn again: a view then
    always costs four numbers of its key.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        draw: (4,) uniform numbers: area, aspect, left, top.
        scale: smallest and largest share of the area.
    """
    area = width * height * (scale[0] + (scale[1] - scale[0]) * draw[0])
    aspect = np.exp(np.log(4 / 3) * (2 * draw[1] - 1))
    box_width, box_height = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
    left, top = (width - box_width) * draw[2], (height - box_height) * draw[3]
    return left, top, left + box_width, top + box_height


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _walk(place: Path, names: list[str]) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for entry in sorted(place.iterdir()):
        if not entry.is_dir():
            continue
        if entry.name not in names and entry.name != "unlabelled":
            raise UserError(f"is a class that 'train' does not have (it has {', '.join(names[:5])}…)", where=entry)
        images = sorted(file for file in entry.rglob("*") if file.suffix.lower() in _SUFFIXES)
        files += images
        labels += [UNLABELLED if entry.name == "unlabelled" else names.index(entry.name)] * len(images)
    return files, labels


def _samples(files: list[Path], labels: np.ndarray, size: int, channels: int, scale: tuple[float, float]) -> Samples:
    check_labels(labels, len(files), int(labels.max(initial=0)) + 1, where=files[0].parent)
    return Samples(Files(files, size, channels, scale), labels.astype(np.int64), (channels, size, size))


def _split_of(word: str | None, where: str) -> str:
    for split, names in _SPLITS.items():
        if not word or word in names:
            return split if word else "train"
    raise UserError(f"unknown split '{word}': wanted train, validation or test", where=where)
