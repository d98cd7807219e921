"""What a data set is to the rest of understudy: numbered images, their labels, and a function that reads a batch."""

from collections.abc import Callable
from dataclasses import dataclass

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
    """

    read: Callable[[np.ndarray, np.ndarray | None], Tensor]
    labels: np.ndarray
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set: samples to train on, to test on, perhaps to validate on, and the names of its classes."""

    name: str
    classes: tuple[str, ...]
    train: Samples
    test: Samples | None = None
    validation: Samples | None = None


class Resident:
    """Reads images that live in memory: an index into one tensor."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Read images by number; they have one size, so the keys are not needed."""
        return self.images[torch.from_numpy(ids)]


def resident(images: np.ndarray | Tensor, labels: np.ndarray, *, where: object, classes: int) -> Samples:
    """Make samples of arrays in memory, after looking at every value once.

    Args:
        images: (n, H, W), (n, H, W, C) or (n, C, H, W); uint8, or float, which is passed to the model as it is.
        labels: (n,) class numbers.
        where: file or argument, for messages.
        classes: number of classes.

    Raises:
        UserError: shapes that are no images, a pixel that is not finite, a label out of range.
    """
    tensor = torch.as_tensor(images)
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim == 4 and tensor.shape[1] not in (1, 3, 4) and tensor.shape[3] in (1, 3, 4):
        tensor = tensor.permute(0, 3, 1, 2)
    elif tensor.ndim == 2:  # a table of numbers: one row of pixels with one channel
        tensor = tensor[:, None, None]
    if tensor.ndim != 4 or not len(tensor):
        raise UserError(f"images have shape {tuple(tensor.shape)}: wanted (n, C, H, W), n above 0", where=where)
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    if tensor.dtype not in (torch.uint8, torch.float32, torch.float16, torch.bfloat16):
        raise UserError(f"images are {tensor.dtype}: wanted uint8 or float", where=where)
    if tensor.is_floating_point():
        check_finite(tensor, where=where)
    labels = np.asarray(labels).astype(np.int64).ravel()
    check_labels(labels, len(tensor), classes, where=where)
    return Samples(Resident(tensor.contiguous()), labels, (tensor.shape[1], tensor.shape[2], tensor.shape[3]))


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
