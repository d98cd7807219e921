"""Curriculum temperature: the temperature is learned against the student, harder from epoch to epoch."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import check_same_shape, comparable, prepared


class CTKD(nn.Module):
    """Hinton's divergence at a temperature that is learned to make it larger, while the student makes it smaller.

    With `T = T_min + R · sigmoid(θ)`: `T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))`, averaged over samples. θ is one
    number (`global`) or what a small network reads from both models' probabilities (`instance`, one T a sample). On
    the way back its gradient is multiplied by -λ, which grows along a cosine from 0 to 1 in the first epochs.

    Reference: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation", AAAI 2023
    (https://arxiv.org/abs/2211.16231); code: https://github.com/zhengli97/CTKD.

    Args:
        temperature: `global` or `instance`.
        lowest: T_min.
        span: R, the width of the range of T.
        epochs: in which λ reaches 1.
        width: of the hidden layer of the instance network.
    """

    def __init__(
        self,
        *,
        temperature: Literal["global", "instance"] = "global",
        lowest: float = 1.0,
        span: float = 20.0,
        epochs: int = 10,
        width: int = 256,
    ) -> None:
        super().__init__()
        if lowest <= 0 or span < 0:
            raise ValueError(f"the lowest temperature must be above 0 and the span not negative: {lowest}, {span}")
        self.temperature = temperature
        self.lowest = lowest
        self.span = span
        self.epochs = epochs
        self.width = width
        self.learned: nn.Module | None = None

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make what learns the temperature.

        Args:
            student: (N, K) example logits.
            teacher: logits of the same shape.
        """
        check_same_shape(student, teacher)
        self.learned = _Global() if self.temperature == "global" else _Instance(student.shape[1], self.width)

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor, *, epoch: int) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: logits of the same shape; never a gradient.
            epoch: counted from 0.

        Returns:
            A scalar.
        """
        learned = prepared(self.learned)
        student, teacher = comparable(student, teacher)
        parameter = _reversed(learned(student.detach(), teacher), self._strength(epoch))
        temperature = self.lowest + self.span * parameter.to(student.dtype).sigmoid()
        divergence = F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="none",
            log_target=True,
        )
        return (divergence * temperature**2).sum() / len(student)

    def _strength(self, epoch: int) -> float:
        progress = min((epoch + 1) / self.epochs, 1.0) if self.epochs else 1.0
        return (1 - math.cos(math.pi * progress)) / 2


class _Global(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.ones(1, 1))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.parameter


class _Instance(nn.Module):
    """The teacher's probabilities from the largest down, and the student's in the same order, to one number."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(2 * classes, width), nn.BatchNorm1d(width), nn.ReLU(), last)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        of_teacher, order = teacher.softmax(dim=1).sort(dim=1, descending=True)
        of_student = student.softmax(dim=1).gather(1, order)
        return self.layers(torch.cat([of_teacher, of_student], dim=1))


def _reversed(value: Tensor, strength: float) -> Tensor:
    """The value itself, its gradient multiplied by minus `strength`."""
    return value.detach() - strength * (value - value.detach())
