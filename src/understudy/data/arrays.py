"""Data given as Python objects: arrays, tensors, any torch Dataset, or a source of one's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from understudy.data.source import Samples, Source, check_finite, check_labels, resident
from understudy.errors import UserError

_IMAGE_KEYS = ("image", "pixel_values", "images", "img", "x")
_LABEL_KEYS = ("label", "labels", "target", "y")


def from_object(given: Any, *, name: str) -> Source:
    """Turn a data set given in Python into a source.

    Args:
        given: a `Source`; one (images, labels) pair or torch Dataset, a fifth of which becomes the test set; or a
            mapping with `train` and perhaps `validation`, `test` (each a pair or a Dataset) and `classes`.
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
    if "train" not in given:
        raise UserError(f"data has no 'train' (it has {', '.join(map(str, given))})", where=name)
    arrays = {split: given[split] for split in ("train", "validation", "test") if given.get(split) is not None}
    labels = {split: _labels(part, f"{name}['{split}']") for split, part in arrays.items()}
    highest = max(int(part.max(initial=0)) for part in labels.values())
    classes = tuple(str(word) for word in given.get("classes", range(highest + 1)))
    parts = {split: _samples(arrays[split], labels[split], len(classes), f"{name}['{split}']") for split in arrays}
    return Source(name, classes, **parts)


def _is_pair(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and len(part) == 2 and all(isinstance(x, (np.ndarray, Tensor)) for x in part)


def _labels(part: Any, where: str) -> np.ndarray:
    if _is_pair(part):
        return np.asarray(part[1])
    targets = getattr(part, "targets", None)
    if targets is not None and len(targets) == len(part):
        return np.asarray(targets)
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise UserError("is neither a pair (images, labels) nor a Dataset with a length", where=where)
    return np.array([int(_item(part[index], where)[1]) for index in range(len(part))])


def _samples(part: Any, labels: np.ndarray, classes: int, where: str) -> Samples:
    if _is_pair(part):
        return resident(part[0], labels, where=where, classes=classes)
    labels = labels.astype(np.int64)
    if not len(labels):
        raise UserError("is empty", where=where)
    check_labels(labels, len(part), classes, where=where)
    reader = FromDataset(part, where)
    first = reader(np.array([0]))
    return Samples(reader, labels, (first.shape[1], first.shape[2], first.shape[3]))


class FromDataset:
    """Reads a torch Dataset sample by sample.

    Its own random transforms draw from torch's global generator, which is set from the samples' keys: they too are
    the same in every arm and after a resume.

    Args:
        dataset: gives tuples of any length, or mappings, with an image and a label.
        where: its name for messages.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        self.dataset = dataset
        self.where = where

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Read images by number."""
        from understudy import randomness

        images = []
        for position, number in enumerate(ids):
            randomness.seed_torch(int(number if keys is None else keys[position]))
            images.append(_as_image(_item(self.dataset[int(number)], self.where)[0]))
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


def _as_image(value: Any) -> Tensor:
    if isinstance(value, Image.Image):
        array = np.array(value)
        value = torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    tensor = torch.as_tensor(value)
    if tensor.ndim == 2:
        tensor = tensor[None]
    return tensor.float() if tensor.dtype == torch.float64 else tensor
