"""Hugging Face data sets, by hub name or from local parquet files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from understudy import randomness
from understudy.data.folder import cut
from understudy.data.source import Samples, Source, check_labels, resident
from understudy.errors import UserError

# Images of up to this many pixels a side are decoded once and kept in memory.
_SMALL = 64


def hub(
    *,
    path: str,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: int = 3,
    config: str | None = None,
) -> Source:
    """Read a data set of the hub, or a folder of parquet files named `train-*` and `test-*` or `validation-*`.

    Args:
        path: hub name such as `uoft-cs/cifar10`, or a folder.
        image: column of the images; by default the only image column.
        label: column of the labels; by default the only class column.
        size: height and width of what the models see; needed where the images differ in size.
        channels: 3, or 1 to turn images grey.
        config: the data set's configuration, where it has several.

    Raises:
        UserError: cannot be read, no such column, no training split.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError("needs the package datasets: pip install 'understudy[hub]'", where="data.path") from None
    splits = _load(datasets, path, config)
    if "train" not in splits:
        raise UserError(f"has no split 'train' (it has {', '.join(splits)})", where=path)
    features = splits["train"].features
    image = image or _only(features, datasets.Image, "image", path)
    label = label or _only(features, datasets.ClassLabel, "label", path)
    for column in (image, label):
        if column not in features:
            raise UserError(f"has no column '{column}' (it has {', '.join(features)})", where=path)
    names = getattr(features[label], "names", None)
    if names is None:
        names = [str(value) for value in sorted(set(splits["train"][label]))]
    parts = {}
    for split, ours in (("train", "train"), ("validation", "validation"), ("test", "test")):
        if split in splits:
            parts[ours] = _samples(
                splits[split], datasets, image, label, size, channels, len(names), f"{path} ({split})"
            )
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return Source(Path(path).name, tuple(str(name) for name in names), **parts)


def _load(datasets: Any, path: str, config: str | None) -> Any:
    from datasets.utils import logging

    logging.disable_progress_bar()
    folder = Path(path)
    try:
        if not folder.is_dir():
            return datasets.load_dataset(path, config)
        files: dict[str, list[str]] = {}
        for file in sorted(folder.rglob("*.parquet")):
            files.setdefault(file.name.split("-")[0].split(".")[0], []).append(str(file))
        if not files:
            raise UserError("holds no parquet files", where=path)
        return {name: datasets.Dataset.from_parquet(paths) for name, paths in files.items()}
    except UserError:
        raise
    except Exception as error:  # the library wraps its reasons in dozens of types
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"cannot be read as a data set ({reason})", where=path) from error


def _only(features: Any, kind: type, what: str, path: str) -> str:
    columns = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(columns) == 1:
        return columns[0]
    found = f"several ({', '.join(columns)})" if columns else f"none among {', '.join(features)}"
    raise UserError(f"which column is the {what}? found {found}: set data.{what}", where=path)


def _samples(
    rows: Any,
    datasets: Any,
    image: str,
    label: str,
    size: int | None,
    channels: int,
    classes: int,
    where: str,
) -> Samples:
    labels = np.array(rows[label], dtype=np.int64)
    check_labels(labels, len(rows), classes, where=where)
    encoded = rows.cast_column(image, datasets.Image(decode=False))
    reader = Encoded(encoded, image, size, channels, where)
    first = reader(np.array([0]))
    height, width = first.shape[-2:]
    if size is None and max(height, width) > _SMALL:
        raise UserError("its images may differ in size: set data.size in pixels", where=where)
    if max(height, width) <= _SMALL:
        return resident(reader(np.arange(len(labels))), labels, where=where, classes=classes)
    return Samples(reader, labels, (channels, height, width))


@dataclass(frozen=True)
class Encoded:
    """Decodes the images of a table when they are asked for."""

    rows: Any
    column: str
    size: int | None
    channels: int
    where: str

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Decode images by number, cropped at random where keys are given and a size is set."""
        draws = randomness.uniform(keys, 4) if keys is not None and self.size else [None] * len(ids)
        cells: Sequence[Any] = self.rows[ids][self.column]
        images = [self._decode(cell, number, draw) for cell, number, draw in zip(cells, ids, draws, strict=True)]
        if len({image.shape for image in images}) > 1:
            raise UserError("its images differ in size: set data.size in pixels", where=self.where)
        return torch.stack(images)

    def _decode(self, cell: Any, number: int, draw: np.ndarray | None) -> Tensor:
        try:
            content = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
            with Image.open(io.BytesIO(content)) as opened:
                image = opened.convert("L" if self.channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, TypeError, ValueError) as error:
            raise UserError(f"image {number} cannot be read ({str(error).splitlines()[0]})", where=self.where) from None
        return cut(image, self.size, draw)
