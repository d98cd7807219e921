"""Other distances between two distributions than Hinton's: reverse KL, generalised Jensen-Shannon, total variation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, comparable, softened, weighted_sum


class ReverseKL(nn.Module):
    """The divergence the other way round, which lets the student leave out what it cannot follow.

    With temperature T: `T² · KL(softmax(z_s / T) ‖ softmax(z_t / T))`, averaged over samples. Hinton's direction
    punishes missing a class the teacher gives weight to; this one punishes giving weight where the teacher has none.

    Reference: Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024
    (https://arxiv.org/abs/2306.08543), for sequences; here for one prediction.

    Args:
        temperature: T.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K, ...) logits.
            teacher: logits of the same shape; never a gradient.

        Returns:
            A scalar.
        """
        log_student, log_teacher = _log_probabilities(student, teacher, self.temperature)
        total = weighted_sum(log_student.exp(), log_student - log_teacher)
        return total * (self.temperature**2 / len(student))


class JSD(nn.Module):
    """The generalised Jensen-Shannon divergence: both models against their mixture.

    With p the softmax at temperature T and `m = β p_t + (1 - β) p_s`:
    `T² · [β · KL(p_t ‖ m) + (1 - β) · KL(p_s ‖ m)]`, averaged over samples. Divided by β it tends to Hinton's
    divergence for β to 0, divided by 1 - β to the reverse one for β to 1; β = 1/2 is the symmetric, bounded one.

    Reference: Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem, "On-Policy Distillation of Language Models:
    Learning from Self-Generated Mistakes" (GKD), ICLR 2024 (https://arxiv.org/abs/2306.13649), equation 1. The mixture
    is taken in logarithms, where it cannot underflow.

    Args:
        beta: β, between 0 and 1: the teacher's share of the mixture.
        temperature: T.
    """

    def __init__(self, *, beta: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < beta < 1:
            raise ValueError(f"beta must lie between 0 and 1, not {beta}: its ends are KD and ReverseKL")
        self.beta = beta
        self.temperature = above_zero("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K, ...) logits.
            teacher: logits of the same shape; never a gradient.

        Returns:
            A scalar.
        """
        log_student, log_teacher = _log_probabilities(student, teacher, self.temperature)
        log_mixture = torch.logaddexp(log_teacher + math.log(self.beta), log_student + math.log1p(-self.beta))
        of_teacher = weighted_sum(log_teacher.exp(), log_teacher - log_mixture)
        of_student = weighted_sum(log_student.exp(), log_student - log_mixture)
        return (self.beta * of_teacher + (1 - self.beta) * of_student) * (self.temperature**2 / len(student))


class TotalVariation(nn.Module):
    """The total variation distance: the probability that student and teacher would have to move.

    With temperature T: `½ Σ_k |softmax(z_t / T)_k - softmax(z_s / T)_k|`, averaged over samples; at most 1. Its
    gradient is bounded however far apart the two are.

    Reference: Wen, Li, Du, Mou, "f-Divergence Minimization for Sequence-Level Knowledge Distillation", ACL 2023
    (https://arxiv.org/abs/2307.15190), for sequences; here for one prediction.

    Args:
        temperature: T.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K, ...) logits.
            teacher: logits of the same shape; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher)
        of_student, of_teacher = (F.softmax(softened(logits, self.temperature), dim=1) for logits in (student, teacher))
        return F.l1_loss(of_student, of_teacher, reduction="sum") / (2 * len(student))


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student, teacher = comparable(student, teacher)
    return F.log_softmax(softened(student, temperature), dim=1), F.log_softmax(softened(teacher, temperature), dim=1)
