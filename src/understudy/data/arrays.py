"""Data given as Python objects: arrays, tensors, any torch Dataset, or a source of one's own."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from understudy import randomness
from understudy.data.image import as_mode, pixels
from understudy.data.source import (
    Samples,
    Source,
    as_tensor,
    channels_first,
    check_finite,
    check_labels,
    class_numbers,
    resident,
)
from understudy.errors import UserError, did_you_mean

_IMAGE_KEYS = ("image", "pixel_values", "images", "img", "x")
_LABEL_KEYS = ("label", "labels", "target", "y")
_SPLITS = ("train", "validation", "test")


def from_object(given: Any, *, name: str) -> Source:
    """Turn a data set given in Python into a source.

    Args:
        given: a `Source`; one (images, labels) pair or torch Dataset; a mapping with `train` and perhaps
            `validation`, `test` (each a pair or a Dataset) and `classes` (names, or how many); or a function without
            arguments that gives one of these.
        name: what to call it in messages.

    Raises:
        UserError: none of these, or images and labels that do not fit together.
    """
    if isinstance(given, Source):
        return given
    if callable(given) and not hasattr(given, "__getitem__"):
        return from_object(given(), name=name)
    if not isinstance(given, Mapping):
        given = {"train": given}
    for key in given:
        if key not in (*_SPLITS, "classes"):
            raise UserError(f"data has an unknown part '{key}', {did_you_mean(str(key), (*_SPLITS, 'classes'))}")
    if given.get("train") is None:
        raise UserError(f"data has no 'train' (it has {', '.join(map(str, given))})", where=name)
    given = {key: _as_pair(part) for key, part in given.items() if part is not None}
    labels = {split: _labels(given[split], f"{name}['{split}']") for split in _SPLITS if split in given}
    classes = _class_names(given, max(int(part.max(initial=0)) for part in labels.values()) + 1)
    parts = {
        split: _samples(given[split], numbers, len(classes), f"{name}['{split}']") for split, numbers in labels.items()
    }
    return Source(name, classes, **parts)


def _as_pair(part: Any) -> Any:
    """A TensorDataset is its tensors: no need to read it sample by sample."""
    return part.tensors[:2] if isinstance(part, TensorDataset) and len(part.tensors) >= 2 else part


def _is_pair(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and len(part) == 2 and isinstance(part[0], (np.ndarray, Tensor))


def _class_names(given: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Those that were given, those that a Dataset knows (torchvision's do), or numbers."""
    classes = given.get("classes", getattr(given["train"], "classes", None))
    if isinstance(classes, int):
        classes = range(classes)
    return tuple(map(str, range(count) if classes is None else classes))


def _labels(part: Any, where: str) -> np.ndarray:
    if _is_pair(part):
        return class_numbers(part[1], where=where)
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise UserError("is neither a pair (images, labels) nor a Dataset with a length", where=where)
    if not len(part):
        raise UserError("is empty", where=where)
    targets = getattr(part, "targets", None)
    if targets is None or len(targets) != len(part) or getattr(part, "target_transform", None) is not None:
        targets = [_item(part[index], where)[1] for index in range(len(part))]
    return class_numbers(targets, where=where)


def _samples(part: Any, labels: np.ndarray, classes: int, where: str) -> Samples:
    if _is_pair(part):
        return resident(part[0], labels, where=where, classes=classes)
    check_labels(labels, len(part), classes, where=where)
    reader = FromDataset(part, where)
    first = reader(np.array([0]))
    return Samples(reader, labels, (first.shape[1], first.shape[2], first.shape[3]))


class FromDataset:
    """Reads a torch Dataset sample by sample.

    Its own random transforms draw from the global generators of torch, NumPy and Python, which are set from the
    samples' keys: they too are the same in every arm and after a resume.

    Args:
        dataset: gives tuples of any length, or mappings, with an image and a label.
        where: its name for messages.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        self.dataset = dataset
        self.where = where

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Read images by number."""
        images = []
        for number, key in zip(ids.tolist(), (ids if keys is None else keys).tolist(), strict=True):
            randomness.seed_torch(key)
            random.seed(key)
            np.random.seed(key & 0xFFFF_FFFF)
            images.append(_as_image(_item(self.dataset[number], self.where)[0], f"{self.where}, image {number}"))
        shapes = {tuple(image.shape): number for image, number in zip(images, ids.tolist(), strict=True)}
        if len(shapes) > 1:
            found = " and ".join(f"{shape} (image {number})" for shape, number in list(shapes.items())[:2])
            raise UserError(f"its images differ in size: {found}; resize them in the Dataset", where=self.where)
        batch = torch.stack(images)
        if batch.is_floating_point():
            check_finite(batch, where=self.where, ids=ids)
        return batch


def _item(item: Any, where: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        if image is not None and label is not None:
            return image, label
        raise UserError(f"a sample has the keys {', '.join(map(str, item))}: wanted an image and a label", where=where)
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise UserError(f"a sample is a {type(item).__name__}: wanted (image, label, …) or a mapping", where=where)


def _as_image(value: Any, where: str) -> Tensor:
    """(C, H, W) of an image in any form."""
    if isinstance(value, Image.Image):
        return pixels(as_mode(value, 1 if value.mode in ("1", "L", "LA") or value.mode.startswith("I;16") else 3))
    if not isinstance(value, (np.ndarray, Tensor)):
        raise UserError(f"is a {type(value).__name__}: wanted a tensor, an array or a Pillow image", where=where)
    tensor = as_tensor(value, where=where)
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3:
        raise UserError(f"has shape {tuple(tensor.shape)}: wanted (C, H, W)", where=where)
    return channels_first(tensor)
