"""What a data set is to the rest of understudy: numbered images, their labels, and a function that reads a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy.errors import UserError

UNLABELLED = -1


@dataclass(frozen=True)
class Samples:
    """Numbered images with labels.

    Args:
        read: from ids (N,) and, while training, their keys (N,) to images (N, C, H, W), uint8 or float. Crops that
            change the size are drawn from the keys; readers of images of one size ignore them.
        labels: (n,) int64 class numbers, -1 where unlabelled.
        shape: (C, H, W) of what `read` returns.
        paths: of their files below the data set's folder, where they have some.
    """

    read: Callable[[np.ndarray, np.ndarray | None], Tensor]
    labels: np.ndarray
    shape: tuple[int, int, int]
    paths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set: samples to train on, to test on, perhaps to validate on, and the names of its classes.

    Raises:
        UserError: its parts have images of different shapes.
    """

    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples | None = None
    validation: Samples | None = None

    def __post_init__(self) -> None:
        for split in ("test", "validation"):
            part = getattr(self, split)
            if part is not None and part.shape != self.train.shape:
                raise UserError(
                    f"images (C, H, W) are {self.train.shape} in train and {part.shape} in {split}", where=self.name
                )


class Resident:
    """Reads images that live in memory: an index into one tensor."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Read images by number; they have one size, so the keys are not needed."""
        return self.images.index_select(0, torch.from_numpy(ids))


def resident(images: np.ndarray | Tensor, labels: Any, *, where: object, classes: int) -> Samples:
    """Make samples of arrays in memory, after looking at every value once.

    Args:
        images: (n, H, W), (n, H, W, C) or (n, C, H, W); uint8, or float, which is passed to the model as it is;
            or (n, F), a table of numbers, which becomes one row of pixels.
        labels: (n,) class numbers.
        where: file or argument, for messages.
        classes: number of classes.

    Raises:
        UserError: shapes that are no images, a pixel that is not finite, a label out of range.
    """
    tensor = as_tensor(images, where=where)
    if tensor.ndim == 2:
        tensor = tensor[:, None, None]
    elif tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim == 4:
        tensor = channels_first(tensor)
    if tensor.ndim != 4 or not tensor.numel():
        raise UserError(f"images have shape {tuple(tensor.shape)}: wanted (n, C, H, W), n above 0", where=where)
    if tensor.is_floating_point():
        check_finite(tensor, where=where)
    numbers = class_numbers(labels, where=where)
    check_labels(numbers, len(tensor), classes, where=where)
    return Samples(Resident(tensor.contiguous()), numbers, (tensor.shape[1], tensor.shape[2], tensor.shape[3]))


def as_tensor(images: np.ndarray | Tensor, *, where: object) -> Tensor:
    """Pixels as a tensor on the CPU: uint8, or float of at most 32 bits.

    Raises:
        UserError: values that are no pixels.
    """
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "uifb":
            raise UserError(f"images are {images.dtype}: wanted uint8 or float", where=where)
        # torch takes neither read-only memory, nor negative strides, nor the other byte order.
        native = images.astype(images.dtype.newbyteorder("="), copy=False)
        images = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    tensor = images.detach().cpu()
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    if tensor.dtype not in (torch.uint8, torch.float32, torch.float16, torch.bfloat16):
        hint = " (convert pixels from 0 to 255 with .astype('uint8') or .to(torch.uint8))"
        raise UserError(f"images are {tensor.dtype}: wanted uint8 or float{hint}", where=where)
    return tensor


def channels_first(images: Tensor) -> Tensor:
    """(…, C, H, W) of images that may have their channels last; 1, 3 or 4 of them are taken for channels."""
    first, last = images.shape[-3], images.shape[-1]
    if first in (1, 3) or first == last or last not in (1, 3, 4):
        return images
    return images.movedim(-1, -3)


def class_numbers(labels: Any, *, where: object) -> np.ndarray:
    """Labels as int64.

    Raises:
        UserError: they are no whole numbers, or several for one image.
    """
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:  # as Keras has them
        values = values[:, 0]
    if values.ndim != 1:
        raise UserError(
            f"labels have shape {values.shape}: wanted one class number an image (of one-hot rows: labels.argmax(1))",
            where=where,
        )
    if values.dtype.kind not in "uifb" or (values.dtype.kind == "f" and not (values == np.rint(values)).all()):
        example = values[0] if len(values) else ""
        raise UserError(f"labels such as '{example}' are no class numbers: wanted 0, 1, 2, …", where=where)
    return values.astype(np.int64)


def check_finite(images: Tensor, *, where: object, ids: np.ndarray | None = None) -> None:
    """Refuse images with a NaN or an infinite pixel, naming the first.

    Raises:
        UserError: there is one.
    """
    finite = torch.isfinite(images).flatten(1).all(1)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        number = index if ids is None else int(ids[index])
        raise UserError(f"image {number} has a pixel that is not a finite number", where=where)


def check_labels(labels: np.ndarray, count: int, classes: int, *, where: object) -> None:
    """Refuse labels that are too many, too few or out of range, naming the first.

    Raises:
        UserError: there is one.
    """
    if len(labels) != count:
        raise UserError(f"{len(labels)} labels for {count} images", where=where)
    wrong = np.flatnonzero((labels < UNLABELLED) | (labels >= classes))
    if len(wrong):
        first = wrong[0]
        raise UserError(
            f"image {first} has label {labels[first]}, but there are {classes} classes (0 to {classes - 1})",
            where=where,
        )
