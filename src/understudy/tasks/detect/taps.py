"""Where a YOLO is tapped: the neck, the backbone, or the layers of the article, found in any family."""

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from understudy.distill import find
from understudy.errors import UserError
from understudy.tasks.detect.guest import Detect

Taps = str | Sequence[int | str]

# The blocks that end a stage: what the article's layers 6, 8, 12, 15, 18 and 21 of YOLOv8 are.
_STAGE_BLOCKS = frozenset({"C2f", "C3k2", "C3", "A2C2f", "C2fCIB", "RepNCSPELAN4", "C2fAttn", "ELAN1"})


def tap_paths(model: nn.Module, taps: Taps) -> tuple[str, ...]:
    """Module paths of the places that taps mean.

    Args:
        model: a YOLO's network.
        taps: `neck` (what the head reads), `backbone` (the stage ends that the neck reads), `article` (the last six
            stage ends: layers 6, 8, 12, 15, 18 and 21 of YOLOv8), layer numbers, or module paths with globs.

    Raises:
        UserError: the model has no such place.
    """
    layers = cast(Any, model).model
    if taps == "neck":
        return tuple(f"model.{index}" for index in _detect(model).f)
    if taps == "backbone":
        return tuple(f"model.{index}" for index in _read_by_neck(layers))
    if taps == "article":
        ends = [index for index, layer in enumerate(layers) if type(layer).__name__ in _STAGE_BLOCKS]
        if len(ends) < 6:
            raise UserError(f"layers: 'article' means six stage ends, this model has {len(ends)}: name the layers")
        return tuple(f"model.{index}" for index in ends[-6:])
    named = [taps] if isinstance(taps, str) else [f"model.{tap}" if isinstance(tap, int) else tap for tap in taps]
    return find(model, named)


def check_pairs(
    student: dict[str, tuple[int, ...]], teacher: dict[str, tuple[int, ...]]
) -> None:  # fmt: skip
    """Refuse taps that do not belong together.

    Args:
        student: for each tap, in order, the shape (N, C, H, W) of an example.
        teacher: likewise.

    Raises:
        UserError: they differ in number, or a pair in height and width.
    """
    if len(student) != len(teacher):
        raise UserError(
            f"the student is tapped at {len(student)} places ({', '.join(student)}), the teacher at {len(teacher)} "
            f"({', '.join(teacher)}): name as many (teacher_layers)"
        )
    for (own, shape), (other, wanted) in zip(student.items(), teacher.items(), strict=True):
        if shape[2:] != wanted[2:]:
            raise UserError(
                f"the student's {own} gives maps of {shape[2]}x{shape[3]}, the teacher's {other} of "
                f"{wanted[2]}x{wanted[3]}: name layers of one resolution (teacher_layers)"
            )


def _detect(model: nn.Module) -> Any:
    head = cast(Any, model).model[-1]
    if not isinstance(head, Detect):
        raise UserError(f"the model ends in {type(head).__name__}, not in a detection head: it has no neck to tap")
    return head


def _read_by_neck(layers: Any) -> list[int]:
    """The layers before the first upsampling that a later concatenation or the head reads, and the last of them."""
    first = next((index for index, layer in enumerate(layers) if type(layer).__name__ == "Upsample"), None)
    if first is None:
        raise UserError("the model has no neck: name the layers to tap")
    sources = {index for layer in list(layers)[first:] if isinstance(layer.f, list) for index in layer.f}
    return sorted({index for index in sources if 0 <= index < first} | {first - 1})
