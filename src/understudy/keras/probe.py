"""What the Distiller settles before it trains: an example batch, shapes, names; and the weights that masks make."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from understudy.errors import UserError
from understudy.keras.objective import Objective
from understudy.keras.operations import ops
from understudy.keras.taps import shapes_at

Tensor = Any


def example_for(student: keras.Model, given: Any) -> Tensor:
    """A small batch to try the models on."""
    if given is not None:
        return ops.convert_to_tensor(given[:4] if hasattr(given, "__getitem__") else given)
    inputs = getattr(student, "inputs", None)
    if not inputs:
        raise UserError(
            f"the student '{student.name}' has no input shape yet: give example=x[:4], or build it as a Functional or "
            "Sequential model with a keras.Input"
        )
    if len(inputs) > 1:
        raise UserError(f"the student '{student.name}' has {len(inputs)} inputs: one is supported")
    shape = inputs[0].shape[1:]
    if None in shape:
        raise UserError(f"the student '{student.name}' takes inputs of any size {shape}: give example=x[:4]")
    if "int" in inputs[0].dtype:
        return ops.zeros((4, *shape), dtype=inputs[0].dtype)
    random = np.random.default_rng(0).random((4, *shape))
    return ops.convert_to_tensor(random.astype("float32"))


def shapes_to_match(model: keras.Model, paths: Sequence[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes (N, C, H, W) or (N, L, D) of what is tapped, as the matching wants them."""
    found = shapes_at(model, paths, example)
    if keras.config.image_data_format() == "channels_first":
        return {path: found[path] for path in paths}
    shapes = {path: found[path] for path in paths}
    return {path: (s[0], s[3], s[1], s[2]) if len(s) == 4 else s for path, s in shapes.items()}


def labels_like(logits: Tensor) -> Tensor:
    """Class numbers for a trial of the losses."""
    shape = tuple(logits.shape[:-1])
    return ops.convert_to_tensor((np.arange(int(np.prod(shape))) % logits.shape[-1]).reshape(shape).astype("int32"))


def with_mask(sample_weight: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Weights of the positions that count, as Keras makes them: masked ones 0, the others raised to keep the mean."""
    if mask is None:
        return sample_weight
    kept = ops.cast(mask, "float32")
    kept = kept / ops.maximum(ops.mean(kept), 1e-7)
    if sample_weight is None:
        return kept
    weight = ops.cast(sample_weight, "float32")
    if len(weight.shape) > len(kept.shape):
        weight = ops.squeeze(weight, -1)
    return kept * ops.reshape(weight, (*ops.shape(weight), *(1,) * (len(kept.shape) - len(weight.shape))))


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
