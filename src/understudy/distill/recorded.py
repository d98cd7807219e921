"""Answers that were given elsewhere: by an API, in another framework, by an ensemble; a table in a parquet file.

Its columns are `id` (the number of a training image) or `path` (of its file below the data set's folder), and `logits`
or `probabilities`, a list with a number for each class.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.distill.teacher import Answer, Place, Teacher
from understudy.errors import UserError


class RecordedTeacher(Teacher):
    """A teacher of whom there are only answers: it knows samples by their number, and no others.

    Args:
        logits: (n, K) one row for each sample of the source; NaN where there is no answer.
        name: of its file, for messages.
    """

    def __init__(self, logits: Tensor, name: str) -> None:
        super().__init__(nn.Module())
        self.logits = logits
        self.name = name

    def __call__(self, images: Tensor, *, taps: Iterable[str] = (), logits: bool = True, graph: bool = False) -> Answer:
        """Answers belong to samples, so pixels alone cannot be answered.

        Raises:
            UserError: always.
        """
        raise UserError("holds answers to its own samples, and cannot be asked about other images", where=self.name)

    def answer(
        self, images: Tensor, places: Sequence[Place], *, taps: tuple[str, ...] = (), logits: bool = True
    ) -> Answer:
        """The recorded answers to some samples, whatever view of them is shown."""
        return Answer(self.logits[torch.cat([place.ids.cpu() for place in places])].to(images.device), {})

    def probe(self, example: Tensor, *, taps: Iterable[str] = (), graph: bool = False) -> Answer:
        """Zeros of the shape of its answers."""
        return Answer(self.logits.new_zeros((len(example), self.logits.shape[1])).to(example.device), {})

    def freeze(self, images: Tensor, **_: Any) -> list[str]:
        """There is no network to freeze."""
        return []


def read_answers(file: Path, *, samples: int, classes: int, paths: Sequence[str] | None = None) -> Tensor:
    """Read a table of answers.

    Args:
        file: a parquet file.
        samples: of the source.
        classes: that an answer has a number for.
        paths: of the samples' files, in their order, where they have some.

    Returns:
        (samples, classes) float32 logits; NaN for samples that it does not answer.

    Raises:
        UserError: it cannot be read, lacks a column, or holds something else than one answer a sample.
    """
    table = _read(file)
    ids = _numbers(table, file, samples, paths)
    values, are_logits = _values(table, file, classes)
    known = ids >= 0  # rows about files that are no training images stand for nothing
    twice = np.flatnonzero(np.bincount(ids[known], minlength=1) > 1)
    if len(twice):
        raise UserError(f"answers {_named(int(twice[0]), paths)} more than once", where=file)
    wrong = ~np.isfinite(values).all(1)
    if not are_logits:
        wrong |= (values < 0).any(1) | (np.abs(values.sum(1) - 1) > 1e-3)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        what = "a logit that is not finite" if are_logits else "probabilities that are none, or do not sum to 1"
        raise UserError(f"row {row} has {what}", where=file)
    if not are_logits:
        values = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    answers = torch.full((samples, classes), float("nan"))
    answers[torch.from_numpy(ids[known])] = torch.from_numpy(values[known])
    return answers


def check_complete(answers: Tensor, wanted: np.ndarray, paths: Sequence[str] | None, *, where: object) -> None:
    """Refuse answers that lack one.

    Args:
        answers: (n, K), NaN where there is none.
        wanted: numbers of the samples that will be asked about.
        paths: of the samples' files, where they have some.
        where: for the message.

    Raises:
        UserError: a sample has none.
    """
    missing = wanted[answers[torch.from_numpy(wanted), 0].isnan().numpy()]
    if len(missing):
        raise UserError(
            f"has no answer to {len(missing):,} of {len(wanted):,} training images, such as "
            f"{_named(int(missing[0]), paths)}",
            where=where,
        )


def write_answers(file: Path, ids: np.ndarray, logits: Tensor, paths: Sequence[str] | None = None) -> None:
    """Write a table of answers, as `read_answers` reads it.

    Args:
        file: a parquet file, replaced where it exists.
        ids: (N,) numbers of the samples.
        logits: (N, K).
        paths: of all samples' files, where they have some: these are then what is written.
    """
    pyarrow = _arrow("pyarrow", file)
    key = {"id": ids} if paths is None else {"path": [paths[number] for number in ids]}
    flat = pyarrow.array(logits.float().cpu().flatten().numpy())
    rows = pyarrow.FixedSizeListArray.from_arrays(flat, logits.shape[1]).cast(pyarrow.list_(pyarrow.float32()))
    partial = file.with_name(f".{file.name}.tmp")
    _arrow("pyarrow.parquet", file).write_table(pyarrow.table({**key, "logits": rows}), partial)
    partial.replace(file)


def _read(file: Path) -> Any:
    parquet = _arrow("pyarrow.parquet", file)
    try:
        return parquet.read_table(file)
    except Exception as error:  # of pyarrow's own kinds, and of the system's
        raise UserError(f"cannot be read as a parquet file ({str(error).splitlines()[0]})", where=file) from None


def _arrow(module: str, file: Path) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise UserError("needs the package pyarrow: pip install 'understudy[hub]'", where=file) from None


def _numbers(table: Any, file: Path, samples: int, paths: Sequence[str] | None) -> np.ndarray:
    """The number of the sample that each row is about; -1 for files that are not among the samples."""
    columns = table.column_names
    key = "path" if "path" in columns and (paths is not None or "id" not in columns) else "id"
    if key not in columns:
        raise UserError(f"has no column id or path (it has {', '.join(columns)})", where=file)
    given = table[key].to_pylist()
    if None in given:
        raise UserError(f"row {given.index(None)} has no {key}", where=file)
    if key == "path":
        if paths is None:
            raise UserError("names its answers by path, but the data set has no files: give the column id", where=file)
        numbers = {path: number for number, path in enumerate(paths)}
        return np.array([numbers.get(str(Path(path)), -1) for path in given], np.int64)
    if not all(isinstance(number, int) for number in given):
        raise UserError("its column id is no whole number", where=file)
    ids = np.array(given, np.int64)
    outside = np.flatnonzero((ids < 0) | (ids >= samples))
    if len(outside):
        raise UserError(f"id {ids[outside[0]]} is no training image: they go from 0 to {samples - 1:,}", where=file)
    return ids


def _values(table: Any, file: Path, classes: int) -> tuple[np.ndarray, bool]:
    """The numbers of each row, and whether they are logits."""
    name = next((name for name in ("logits", "probabilities") if name in table.column_names), None)
    if name is None:
        raise UserError(f"has no column logits or probabilities (it has {', '.join(table.column_names)})", where=file)
    types, compute = _arrow("pyarrow.types", file), _arrow("pyarrow.compute", file)
    column = table[name].combine_chunks()
    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        raise UserError(f"its column {name} is no list of numbers but {kind}", where=file)
    lengths = compute.fill_null(compute.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != classes)
    if len(wrong):
        raise UserError(f"row {wrong[0]} has {lengths[wrong[0]]} {name}, the data has {classes} classes", where=file)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.array(flat, np.float32).reshape(-1, classes), name == "logits"


def _named(number: int, paths: Sequence[str] | None) -> str:
    return f"id {number}" if paths is None else f"'{paths[number]}'"
