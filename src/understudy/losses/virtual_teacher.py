"""Tf-KD: a teacher that does not exist, sure of the label and even about the rest."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, class_numbers, in_float32, softened


class VirtualTeacher(nn.Module):
    """Distillation from a teacher made by hand: probability a for the label, the rest evenly for the others.

    With u that distribution and temperature T: `T² · KL(softmax(log u / T) ‖ softmax(z_s / T))`, averaged over
    samples. Label smoothing is the case T = 1 with a low a.

    Reference: Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR
    2020 (https://arxiv.org/abs/1909.11723), section 5 (Tf-KD_reg); code:
    https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation (MIT), which computes something else,
    `KL(softmax(u / T) ‖ softmax(z_s))`: it softens probabilities as if they were logits, which leaves next to nothing
    of them at T = 20, and not the student. That is `variant="release"`; its numbers were made with it.

    Args:
        correct: a, the probability of the labelled class.
        temperature: T.
        variant: `paper`, or `release` for what the authors' code computes.
    """

    def __init__(
        self, *, correct: float = 0.99, temperature: float = 20.0, variant: Literal["paper", "release"] = "paper"
    ) -> None:
        super().__init__()
        if not 0 < correct < 1:
            raise ValueError(f"correct must lie between 0 and 1, not {correct}")
        self.correct = correct
        self.temperature = above_zero("temperature", temperature)
        self.variant = variant

    def forward(self, student: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            labels: (N,) class numbers, or (N, K) probabilities, of which the largest counts.

        Returns:
            A scalar.
        """
        (student,) = in_float32(student)
        own = class_numbers(labels).unsqueeze(1)
        others = (1 - self.correct) / (student.shape[1] - 1)
        if self.variant == "release":
            teacher = torch.full_like(student, others).scatter(1, own, self.correct)
            log_student, scale = F.log_softmax(student, dim=1), 1.0
        else:
            teacher = torch.full_like(student, math.log(others)).scatter(1, own, math.log(self.correct))
            log_student, scale = F.log_softmax(softened(student, self.temperature), dim=1), self.temperature**2
        log_teacher = F.log_softmax(softened(teacher, self.temperature), dim=1)
        return scale * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
