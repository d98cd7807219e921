"""ImageNet and data sets laid out like it: folders of images, labels in a file, names of classes, images by URL."""

import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from understudy.data import Subset
from understudy.data.folder import Files, image_files
from understudy.data.image import open_image
from understudy.data.source import UNLABELLED, Samples
from understudy.errors import UserError, did_you_mean

_URL = re.compile(r"(https?|file)://", re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}")
_SECONDS = 30
_LARGEST = 100_000_000  # bytes of an image that is fetched


def read_folder(
    folder: Path, classes: Sequence[str], *, shape: tuple[int, int, int], labels: str | Path | None = None
) -> tuple[Subset, Tensor | None]:
    """Read a folder of images that a model of certain classes is to be scored on.

    Without `labels` it holds a folder for each class. A folder is called as the class, of which a part may be there;
    or all are numbers, the number of the class (ImageNet-V2: 0 to 999, in the order of numbers, not of words); or,
    where the model has numbers in place of names, there are as many folders as classes, in their order.

    References: Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019
    (https://arxiv.org/abs/1902.10811); Beyer et al., "Are we done with ImageNet?", 2020
    (https://arxiv.org/abs/2006.07159).

    Args:
        folder: of the images.
        classes: names of the model's classes, one a logit.
        shape: (C, H, W) of what the model sees; the middle of each image, as ImageNet is evaluated.
        labels: a JSON list with a list for each image, in the order of file names, of the numbers of its right
            classes (ImageNet-ReaL). Images whose list is empty are left out.

    Returns:
        The images with their labels; and (N, K) bool, which classes are right, where `labels` says so.

    Raises:
        UserError: no such folder or images, a folder that is no class, a file of labels that does not fit.
    """
    if not folder.is_dir():
        raise UserError("there is no such folder", where=folder)
    if labels is not None:
        return _with_labels(folder, Path(labels), len(classes), shape)
    places = sorted(place for place in folder.iterdir() if place.is_dir())
    if not places:
        raise UserError("holds no folders: wanted one of images for each class, or --labels", where=folder)
    numbers = class_numbers([place.name for place in places], classes, where=folder)
    files, found = [], []
    for place, number in zip(places, numbers, strict=True):
        images = image_files(place)
        files += images
        found += [number] * len(images)
    return _part(files, np.array(found, np.int64), shape, folder), None


def class_numbers(names: Sequence[str], classes: Sequence[str], *, where: object) -> list[int]:
    """The number of the class that each folder stands for, by its name, its number or its place.

    Args:
        names: of the folders, in order.
        classes: of the model.
        where: the folder that holds them, for messages.

    Raises:
        UserError: a folder is no class of the model.
    """
    known = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in names if name not in known]
    if not unknown:
        return [known[name] for name in names]
    if all(re.fullmatch(r"\d{1,9}", name) for name in names):
        return [_class_of_number(int(name), known, where) for name in names]
    if len(names) == len(classes) and all(map(str.isdecimal, classes)):  # the model has numbers in place of names
        return list(range(len(names)))
    raise UserError(
        f"its folder '{unknown[0]}' is no class of the model, which knows {len(classes):,}: "
        f"{did_you_mean(unknown[0], classes)}",
        where=where,
    )


def _class_of_number(number: int, known: dict[str, int], where: object) -> int:
    """A class by its number: of ImageNet's a model may know a part, or have them in another order."""
    synsets = _synsets() if all(map(_SYNSET.fullmatch, known)) else ()
    if number < len(synsets) and synsets[number] in known:
        return known[synsets[number]]
    if synsets or number >= len(known):
        raise UserError(f"its folder '{number}' is no class of the model, which knows {len(known):,}", where=where)
    return number


def _with_labels(folder: Path, file: Path, classes: int, shape: tuple[int, int, int]) -> tuple[Subset, Tensor]:
    files = sorted(image_files(folder), key=lambda path: path.name)
    rows = _read_labels(file)
    if len(rows) != len(files):
        raise UserError(f"has labels for {len(rows):,} images, {folder} holds {len(files):,}", where=file)
    accepted = torch.zeros(len(rows), classes, dtype=torch.bool)
    for number, row in enumerate(rows):
        for label in row:
            if not 0 <= label < classes:
                raise UserError(
                    f"image {number} has label {label}, the model has {classes:,} classes (0 to {classes - 1})",
                    where=file,
                )
            accepted[number, label] = True
    kept = accepted.any(1)
    part = _part(files, np.full(len(files), UNLABELLED), shape, folder)
    if not kept.any():
        raise UserError("has a label for no image", where=file)
    return part.only(kept.numpy()), accepted[kept]


def _read_labels(file: Path) -> list[list[int]]:
    try:
        rows = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError("there is no such file", where=file) from None
    except (OSError, ValueError) as error:
        raise UserError(f"is no JSON that can be read ({str(error).splitlines()[0]})", where=file) from None
    wanted = isinstance(rows, list) and all(
        isinstance(row, list) and all(type(label) is int for label in row) for row in rows
    )
    if not wanted:
        raise UserError("is no list of lists of class numbers, one list for each image", where=file)
    return rows


def _part(files: list[Path], labels: np.ndarray, shape: tuple[int, int, int], folder: Path) -> Subset:
    if not files:
        raise UserError("holds no images", where=folder)
    samples = Samples(Files(files, shape[1], shape[0]), labels, shape)
    return Subset(samples, np.arange(len(files)), labels)


# Names of classes


def read_names(source: Path, count: int) -> list[str]:
    """Names of classes, one a logit.

    Args:
        source: a text file with a name on each line, or a folder with a folder for each class (`train` in it, perhaps).
        count: how many classes the model has.

    Raises:
        UserError: no such file, or another number of names.
    """
    if source.is_dir():
        root = source / "train" if (source / "train").is_dir() else source
        names = sorted(place.name for place in root.iterdir() if place.is_dir() and place.name != "unlabelled")
    else:
        try:
            names = source.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            raise UserError("there is no such file or folder of class names", where=source) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"is no text that can be read ({error})", where=source) from None
        while names and not names[-1].strip():
            names.pop()
        names = [name.strip() for name in names]
    if len(names) != count:
        raise UserError(f"names {len(names):,} classes, the model has {count:,}", where=source)
    return names


def imagenet_names(module: Any, classes: int) -> tuple[str, ...]:
    """The classes of a model of timm that brings weights but no names: ImageNet's, where it has as many; else none.

    Args:
        module: any model.
        classes: number of its logits.
    """
    if not getattr(module, "pretrained_cfg", None):
        return ()
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(module)
    return () if subset is None else tuple(ImageNetInfo(subset).label_names())


@cache
def _synsets() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet in their order; empty without timm."""
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ModuleNotFoundError:
        return ()
    return tuple(ImageNetInfo().label_names())


def in_words(classes: Sequence[str]) -> list[str]:
    """Class names for a person: where they are WordNet's numbers, as ImageNet's folders are called, their words."""
    if not classes or not all(map(_SYNSET.fullmatch, classes)):
        return list(classes)
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ModuleNotFoundError:
        return list(classes)
    info: Any = ImageNetInfo("imagenet-21k" if set(classes) - set(_synsets()) else "imagenet-1k")
    known = set(info.label_names())
    return [info.label_name_to_description(name) if name in known else name for name in classes]


# Images


def is_url(place: str | Path) -> bool:
    """Whether an image is to be fetched."""
    return isinstance(place, str) and _URL.match(place) is not None


def open_any(place: str | Path, channels: int) -> Image.Image:
    """Open an image file, or fetch one by its URL.

    Args:
        place: a path, or a URL of http, https or file.
        channels: 3 for RGB, 1 for grey.

    Raises:
        UserError: it cannot be fetched or read.
    """
    if not is_url(place):
        return open_image(Path(place), channels)
    try:
        request = urllib.request.Request(str(place), headers={"User-Agent": "understudy"})  # noqa: S310 (three schemes)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310 (likewise)
            content = answer.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # urllib's own errors are OSErrors
        reason = getattr(error, "reason", None) or error
        raise UserError(f"could not be fetched ({str(reason).splitlines()[0]})", where=place) from None
    if len(content) > _LARGEST:
        raise UserError(f"is larger than {_LARGEST // 1_000_000} MB", where=place)
    return open_image(io.BytesIO(content), channels, where=place)
