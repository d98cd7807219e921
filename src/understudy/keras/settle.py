"""What the Distiller settles before it trains: labels for a trial, losses that fit logits, names and paths."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from understudy.errors import UserError
from understudy.keras.objective import Objective
from understudy.keras.operations import ops

Tensor = Any


def labels_like(logits: Tensor) -> Tensor:
    """Class numbers for a trial of the losses."""
    shape = tuple(logits.shape[:-1])
    return ops.convert_to_tensor((np.arange(int(np.prod(shape))) % logits.shape[-1]).reshape(shape).astype("int32"))


def check_from_logits(loss: Any) -> None:
    """Refuse a cross entropy that takes the student's logits for probabilities."""
    name = loss if isinstance(loss, str) else type(loss).__name__
    known = {"sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
             "categorical_crossentropy": "CategoricalCrossentropy"}  # fmt: skip
    name = known.get(name, name)
    if name not in known.values():
        return
    if isinstance(loss, str) or loss.get_config().get("from_logits") is False:
        raise UserError(f"the student gives logits: compile loss=keras.losses.{name}(from_logits=True)")


def distinct_names(objectives: Sequence[Objective]) -> list[str]:
    """The objectives' names, numbered where two have the same."""
    names: list[str] = []
    for objective in objectives:
        again = (objective.name, *(f"{objective.name}_{number}" for number in range(2, len(objectives) + 1)))
        names.append(next(name for name in again if name not in names))
    return names


def union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The paths of all groups, each once, in order."""
    return tuple(dict.fromkeys(path for group in groups for path in group))
