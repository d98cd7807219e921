"""Which outputs of two detection heads are held against each other by logit methods."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.tasks.detect.methods import Rows

# Of every image the anchors of which the teacher is surest: the others are background to both.
_SUREST = 64


def compared_logits(rows: Rows, student_outputs: Any, teacher_outputs: Any) -> tuple[Tensor, Tensor]:
    """(M, K) logits of both at the anchors of which the teacher is surest.

    `scores`: each class of each anchor by itself, yes or no as the head has it: logits (z, 0). `classes`: the classes
    of an anchor against each other. `boxes`: how far each side of the box is, over the bins of the head
    (localisation distillation: Zheng, Ye, Wang, Ren, Zuo, Hou, Cheng, CVPR 2022, https://arxiv.org/abs/2102.12252).

    Args:
        rows: which of them.
        student_outputs: what the student's network gave for some images.
        teacher_outputs: what the teacher's gave for the same.

    Raises:
        UserError: there is no detection head, or the two differ in classes, anchors or bins.
    """
    student, teacher = _raw(student_outputs), _raw(teacher_outputs)
    sizes = student["scores"].shape[1:], teacher["scores"].shape[1:]
    if sizes[0] != sizes[1]:
        raise UserError(f"the student gives {sizes[0][0]} classes at {sizes[0][1]} anchors, the teacher {sizes[1][0]} "
                        f"at {sizes[1][1]}: outputs cannot be compared, features can (cwd, mgd)")  # fmt: skip
    certainty = teacher["scores"].amax(1)
    anchors = certainty.topk(min(_SUREST, certainty.shape[1]), dim=1).indices
    both = []
    for side in (student, teacher):
        if rows == "boxes":
            both.append(_sides(_at(side["boxes"], anchors)))
            continue
        logits = _at(side["scores"], anchors)
        if rows == "classes":
            both.append(logits.flatten(0, 1))
        else:
            both.append(torch.stack([logits.flatten(), torch.zeros_like(logits).flatten()], 1))
    if both[0].shape != both[1].shape or both[0].shape[1] < 2:
        raise UserError(
            "the heads divide boxes into other bins" if both[0].shape != both[1].shape
            else f"on: {rows} has one value an anchor here, nothing to compare: take scores"
        )  # fmt: skip
    return both[0], both[1]


def _at(values: Tensor, anchors: Tensor) -> Tensor:
    """(N, A', K) of values (N, K, A)."""
    index = anchors.unsqueeze(1).expand(-1, values.shape[1], -1)
    return values.gather(2, index).transpose(1, 2)


def _sides(boxes: Tensor) -> Tensor:
    """(N · A' · 4, bins) of (N, A', 4 · bins)."""
    return boxes.reshape(-1, boxes.shape[-1] // 4)


def _raw(preds: Any) -> Mapping[str, Tensor]:
    """The head's undecoded outputs, of the branch that is trained on many boxes an object."""
    preds = preds[1] if isinstance(preds, tuple) else preds
    preds = preds.get("one2many", preds) if isinstance(preds, Mapping) else {}
    if not {"scores", "boxes"} <= set(preds):
        raise UserError("logit methods compare the outputs of a detection head, which this model does not have")
    return preds
