"""Reading the records of losses that compare taps: features by number, modules by name."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from understudy.parity.recorded import Inputs

Outputs = dict[str, Tensor]


def both(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Student and teacher, also where a single tap is numbered."""
    student, teacher = (inputs.get(name, inputs.get(f"{name}_0")) for name in ("student_feat", "teacher_feat"))
    assert student is not None
    assert teacher is not None
    return student, teacher


def sides(inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The taps of student and of teacher."""
    return numbered(inputs, "student_feat"), numbered(inputs, "teacher_feat")


def by_layer(inputs: Inputs, loss: Callable[[Tensor, Tensor], Tensor]) -> Outputs:
    """A loss tap by tap, and their sum."""
    layers = torch.stack([loss(*pair) for pair in zip(*sides(inputs), strict=True)])
    return {"loss": layers.sum(), "per_layer": layers}


def ready(loss: Any, student: Any, teacher: Any) -> Any:
    """The loss with weights for these features, in their precision."""
    loss.prepare(student, teacher)
    dtype = (student[0] if isinstance(student, tuple) else student).dtype
    return loss.to(dtype).train()


def only(modules: nn.ModuleList | None) -> nn.Module:
    """The module of the single tap."""
    assert modules is not None
    (module,) = modules
    return module


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose keys begin with a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def renamed(weights: dict[str, Tensor], renames: dict[str, str]) -> dict[str, Tensor]:
    """The weights under our keys, each rename a regular expression and what takes its place."""
    ours = {}
    for key, tensor in weights.items():
        for pattern, replacement in renames.items():
            key = re.sub(pattern, replacement, key)
        ours[key] = tensor
    return ours


def numbered(inputs: Inputs, name: str) -> tuple[Tensor, ...]:
    """`name_0`, `name_1`, … in order, or the one without a number."""
    if name in inputs:
        return (inputs[name],)
    numbers = sorted(int(found[1]) for key in inputs if (found := re.fullmatch(rf"{name}_(\d+)", key)))
    return tuple(inputs[f"{name}_{number}"] for number in numbers)
