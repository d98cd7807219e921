"""A student with another head on one of its features: what SimKD trains and exports."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from understudy.distill.adapters import tokens_to_map
from understudy.distill.taps import StopForward, tapped
from understudy.losses.simkd import SimKD
from understudy.recipe.schema import Model


class Reheaded(nn.Module):
    """Runs a student up to a tap and turns what is there into logits, as SimKD's projector and teacher's layer do.

    Args:
        student: any module; what lies behind the tap is not run.
        tap: a module path.
        loss: with its projector made.
        teacher_head: the teacher's last linear layer.
    """

    def __init__(self, student: nn.Module, tap: str, loss: SimKD, teacher_head: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.predictor = loss.predictor(teacher_head)
        self.tap = tap
        self.factor, self.map_shape = loss.factor, loss.map_shape

    def forward(self, images: Tensor) -> Tensor:
        """Classify a batch.

        Args:
            images: (N, C, H, W), as the student takes them.

        Returns:
            (N, K) logits.
        """
        with tapped(self.student, (self.tap,), stop=True) as features:
            with suppress(StopForward):
                self.student(images)
            return self.predictor(_as_map(features[self.tap]))

    def described(self, student: dict[str, Any]) -> dict[str, Any]:
        """A recipe's description of this model.

        Args:
            student: that of its student.
        """
        shape = list(self.map_shape)
        return {"name": "reheaded", "student": student, "tap": self.tap, "map": shape, "factor": self.factor}


def classifies_average(layer: nn.Module, features: Tensor, logits: Tensor | None) -> bool:
    """Whether a model's last layer takes the average of a map of its own, so that it can take another's.

    Args:
        layer: the model's last linear layer.
        features: what the model has at the tap for some images.
        logits: what it answers to these.
    """
    if features.ndim != 4 or logits is None:
        return False
    with torch.no_grad():
        again = layer(features.mean(dim=(2, 3)))
    # Up to a constant: a model that returns probabilities has had its logits taken back.
    return again.shape == logits.shape and torch.allclose(again.log_softmax(1), logits.log_softmax(1), 1e-3, 1e-3)


def reheaded(
    *,
    classes: int,
    shape: tuple[int, int, int],
    student: dict[str, Any],
    tap: str,
    map: tuple[int, int, int],
    factor: int = 2,
    given: Any = None,
) -> Reheaded:
    """Build such a model with random weights, to load saved ones into.

    Args:
        classes: number of logits.
        shape: (C, H, W) of the images.
        student: a recipe's description of the student.
        tap: where its feature is taken.
        map: (D, H, W) of the teacher's map.
        factor: of `SimKD`.
        given: for a student `python:...`, the module or the callable that makes one.
    """
    from understudy.models import build

    module = build(Model.model_validate(student), classes=classes, shape=shape, given=given).eval()
    with torch.no_grad(), tapped(module, (tap,)) as features:
        module(torch.zeros(2, *shape))
    loss = SimKD(factor=factor)
    loss.prepare(_as_map(features[tap]), torch.zeros(2, *map))
    return Reheaded(module, tap, loss, nn.Linear(map[0], classes))


def _as_map(feature: Tensor) -> Tensor:
    return tokens_to_map(feature) if feature.ndim == 3 else feature
