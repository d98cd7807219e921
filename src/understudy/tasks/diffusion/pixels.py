"""Where images come from for diffusion, and how pixels become what a network sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from understudy import randomness
from understudy.data import Source, Splits, load_source, resident, split
from understudy.data.folder import Files, image_files
from understudy.data.source import Samples
from understudy.data.split import Subset
from understudy.errors import UserError
from understudy.tasks.diffusion.settings import FLAT_FOLDER, DiffusionData

# Images that are read at once.
_AT_ONCE = 500


@dataclass(frozen=True)
class Canvas:
    """From pixels to [-1, 1] at the size that networks see.

    Args:
        resize: height and width to scale to; None keeps the images' own.
        size: height and width to pad to with the darkest value; None pads nothing.
    """

    resize: int | None = None
    size: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare a batch.

        Args:
            images: (N, C, H, W) uint8; or float, already in [-1, 1] (or latents).

        Returns:
            float32.
        """
        images = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
        if self.resize is not None and images.shape[-2:] != (self.resize, self.resize):
            size = (self.resize, self.resize)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        if self.size is None or images.shape[-2:] == (self.size, self.size):
            return images
        down, right = self.size - images.shape[-2], self.size - images.shape[-1]
        return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2), value=-1.0)

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) after it.

        Raises:
            UserError: the images are larger.
        """
        channels, height, width = shape
        if self.resize is not None:
            height = width = self.resize
        if self.size is None:
            return channels, height, width
        if max(height, width) > self.size:
            raise UserError(f"images of {height}x{width} cannot be padded to {self.size}", where="data.pad_to")
        return channels, self.size, self.size


def read_images(data: DiffusionData, given: Any = None, *, shape: tuple[int, ...] | None = None) -> Splits:
    """Read the data of a recipe; images without classes get one in common.

    Args:
        data: the recipe's description.
        given: for a name `python:...`, the object: as for every task, or images or a Dataset without labels.
        shape: (C, H, W) that a teacher wants, for images in a folder, where the recipe does not say.

    Raises:
        UserError: it cannot be read.
    """
    if data.name == FLAT_FOLDER:
        wanted: dict[str, Any] = {} if shape is None else {"channels": shape[0], "size": shape[-1]}
        if "size" not in wanted | data.options:
            raise UserError("say how large its images shall be: there is no teacher that says so", where="data.size")
        source = flat_folder(**wanted | data.options)
    elif data.name.startswith("python:") and given is not None:
        source = load_source(data, _with_labels(given))
    else:
        source = load_source(data, given)
    if (source.train.labels < 0).all():
        source = _one_class(source)
    return split(source, data)


def flat_folder(*, path: str, size: int, channels: int = 3) -> Source:
    """Read all images in a folder and below it; they have no classes.

    Args:
        path: the folder.
        size: height and width in pixels: the middle of each image is taken.
        channels: 3, or 1 to turn images grey.

    Raises:
        UserError: it holds no images.
    """
    files = image_files(Path(path).expanduser())
    if not files:
        raise UserError("holds no images", where=path)
    whole = Files(files, size, 3 if channels != 1 else 1)

    def read(ids: np.ndarray, _keys: np.ndarray | None) -> Tensor:
        return whole(ids, None)  # without keys: no random part of it, the whole picture is what is learnt

    samples = Samples(read, np.zeros(len(files), np.int64), (whole.channels, size, size))
    return Source(Path(path).name, ("image",), samples)


def from_samples(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Splits:
    """A model's own samples as data: a tenth is held out for watching the training."""
    names = classes or ("image",)
    train = resident(images, labels, where="the teacher's samples", classes=len(names))
    return split(Source("the teacher's samples", names, train), DiffusionData(name="teacher", validation="none"))


def _with_labels(given: Any) -> Any:
    """Images alone, or a Dataset that gives images alone, with one label for all."""
    if isinstance(given, Mapping):
        return {key: part if key == "classes" else _with_labels(part) for key, part in given.items()}
    if isinstance(given, (np.ndarray, Tensor)):
        return given, np.zeros(len(given), np.int64)
    if isinstance(given, (Source, tuple, list)) or not hasattr(given, "__getitem__"):
        return given
    first = given[0]
    is_alone = not isinstance(first, (tuple, list, Mapping)) or (isinstance(first, (tuple, list)) and len(first) == 1)
    return _Labelled(given) if is_alone else given


class _Labelled(Dataset[tuple[Any, int]]):
    """A Dataset of images with the label 0 beside each."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return (image[0] if isinstance(image, (tuple, list)) else image), 0


def _one_class(source: Source) -> Source:
    def zero(part: Samples | None) -> Samples | None:
        return None if part is None else Samples(part.read, np.zeros(len(part), np.int64), part.shape)

    train = zero(source.train)
    assert train is not None
    return Source(source.name, ("image",), train, zero(source.test), zero(source.validation))


def some_of(parts: Sequence[Subset], canvas: Canvas, most: int, name: str) -> tuple[Tensor, Tensor]:
    """Images as networks see them, with their labels, from parts of the data one after the other.

    Args:
        parts: of the data.
        canvas: what prepares them.
        most: how many images at most.
        name: of this use; the order within a part is drawn by it.
    """
    images, labels = [], []
    for place, part in enumerate(parts):
        order = randomness.permutation(randomness.key(name, place), len(part))[:most]
        for some in np.array_split(order, -(-len(order) // _AT_ONCE) or 1):
            images.append(canvas(part.read(some)))
            labels.append(torch.from_numpy(part.labels[some]))
        most -= len(order)
        if most <= 0:
            break
    return torch.cat(images), torch.cat(labels)
