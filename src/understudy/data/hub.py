"""Hugging Face data sets, by hub name or from local parquet files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from understudy.data.folder import SPLITS
from understudy.data.image import DEFAULT_SCALE, Scale, cut, decode, open_image
from understudy.data.source import Samples, Source, check_labels, resident
from understudy.errors import UserError, did_you_mean

# Images of up to this many pixels a side are decoded once and kept in memory.
_SMALL = 64
_CHUNK = 1000
# Bytes of an encoded image.
_LARGE = 10_000


def hub(
    *,
    path: str,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    scale: tuple[float, float] = DEFAULT_SCALE,
    config: str | None = None,
) -> Source:
    """Read a data set of the hub, or a folder of parquet files named `train-*` and `test-*` or `validation-*`.

    Args:
        path: hub name such as `uoft-cs/cifar10`, or a folder.
        image: column of the images; by default the only image column.
        label: column of the labels; by default the only class column.
        size: height and width of what the models see; needed where the images differ in size or are large.
        channels: 3, or 1 to turn images grey.
        scale: share of a large image's area that a random training crop keeps, smallest and largest.
        config: the data set's configuration, where it has several.

    Raises:
        UserError: cannot be read, no such column, no training split.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError("needs the package datasets: pip install 'understudy[hub]'", where="data.path") from None
    found = _load(datasets, path, config)
    splits = {ours: found[name] for ours, names in SPLITS.items() for name in names if name in found}
    if "train" not in splits:
        raise UserError(f"has no split 'train' (it has {', '.join(found)})", where=path)
    features = splits["train"].features
    image = _column(image, features, datasets.Image, "image", path)
    label = _column(label, features, datasets.ClassLabel, "label", path)
    columns = {split: rows.with_format("numpy")[label][:] for split, rows in splits.items()}
    names = getattr(features[label], "names", None)
    if names is None:  # plain numbers or words: the classes are those of the training images
        names = sorted(set(columns["train"].tolist()))
        columns = {split: _numbered(values, names, f"{path} ({split})") for split, values in columns.items()}
    parts = {}
    for split, rows in splits.items():
        where = f"{path} ({split})"
        labels = columns[split].astype(np.int64)
        check_labels(labels, len(rows), len(names), where=where)
        encoded = rows.select_columns(image).cast_column(image, datasets.Image(decode=False))
        parts[split] = _samples(Encoded(encoded, image, size, channels, scale, where), labels, len(names))
    return Source(Path(path).name, tuple(str(name) for name in names), **parts)


def _load(datasets: Any, path: str, config: str | None) -> Any:
    from datasets.utils import logging

    logging.disable_progress_bar()
    folder = Path(path).expanduser()
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
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(f"cannot be read as a data set ({reason})", where=path) from error


def _column(given: str | None, features: Any, kind: type, what: str, path: str) -> str:
    """The column that was named, or the only one of its kind."""
    if given is not None:
        if given not in features:
            raise UserError(f"has no column '{given}', {did_you_mean(given, features)}", where=path)
        return given
    columns = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(columns) == 1:
        return columns[0]
    found = f"several ({', '.join(columns)})" if columns else f"none among {', '.join(features)}"
    raise UserError(f"which column is the {what}? found {found}: set data.{what}", where=path)


def _numbered(values: np.ndarray, names: list[Any], where: str) -> np.ndarray:
    numbers = {name: index for index, name in enumerate(names)}
    unknown = next((value for value in values.tolist() if value not in numbers), None)
    if unknown is not None:
        raise UserError(
            f"no training image has the label '{unknown}', {did_you_mean(str(unknown), names)}", where=where
        )
    return np.array([numbers[value] for value in values.tolist()])


def _samples(reader: "Encoded", labels: np.ndarray, classes: int) -> Samples:
    original = Encoded(reader.rows, reader.column, None, reader.channels, reader.scale, reader.where)
    height, width = original(np.array([0])).shape[-2:]
    if max(height, width) <= _SMALL:
        chunks = [np.arange(start, min(start + _CHUNK, len(labels))) for start in range(0, len(labels), _CHUNK)]
        images = torch.cat([reader(ids) for ids in chunks])
        return resident(images, labels, where=reader.where, classes=classes)
    if reader.size is None:
        raise UserError("its images may differ in size: set data.size in pixels", where=reader.where)
    return Samples(reader, labels, (reader.channels, reader.size, reader.size))


@dataclass(frozen=True)
class Encoded:
    """Decodes the images of a table when they are asked for."""

    rows: Any
    column: str
    size: int | None
    channels: int
    scale: Scale
    where: str

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        """Decode images by number, cropped at random where keys are given and a size is set."""
        # A slice of a table is read ten times faster than a list of rows.
        in_order = len(ids) > 1 and (np.diff(ids) == 1).all()
        rows = self.rows[int(ids[0]) : int(ids[-1]) + 1] if in_order else self.rows[ids]
        cells: Sequence[Any] = rows[self.column]
        # Threads pay for photographs; for tiny images they only fight over the interpreter.
        threads = any(cell and len(cell["bytes"] or b"") > _LARGE for cell in cells)
        images = decode(self._decode, zip(cells, ids, strict=True), keys, threads=threads)
        if len({image.shape for image in images}) > 1:
            raise UserError("its images differ in size: set data.size in pixels", where=self.where)
        return torch.stack(images)

    def _decode(self, cell_and_number: tuple[Any, int], draw: np.ndarray | None) -> Tensor:
        cell, number = cell_and_number
        where = f"{self.where}, image {number}"
        if cell is None:
            raise UserError("is missing", where=where)
        file = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])
        return cut(open_image(file, self.channels, where=where), self.size, draw, self.scale)
