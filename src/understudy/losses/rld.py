"""Refined logits: what a teacher that errs says is kept where it does not contradict the label."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import (
    above_zero,
    binary_divergence,
    class_numbers,
    comparable,
    softened,
    split_target,
    weighted_sum,
)


class RLD(nn.Module):
    """The student takes over the teacher's confidence for the right class, and its ranking of what it thinks worse.

    `α · T_c² · KL([p_t, 1 - p_t] ‖ [p_s, 1 - p_s]) + β · T² · KL(q_t ‖ q_s)`, averaged over samples. At temperature
    T_c, p_t is the teacher's largest probability and p_s the student's of the label: a confidence, whatever the
    teacher took the image for. At T, q is the softmax over the classes whose teacher logit is below the label's: a
    class that the teacher wrongly puts above the label is not imitated.

    Reference: Sun, Chen, Zhou, Sun, "Knowledge Distillation with Refined Logits", ICCV 2025
    (https://arxiv.org/abs/2408.07703); code: https://github.com/zju-SWJ/RLD (from its formula; ours in logarithms).
    The warm-up over 20 epochs is a schedule of the objective's weight.

    Args:
        temperature: T.
        confidence_temperature: T_c.
        alpha: weight of the confidence.
        beta: weight of the classes below the label.
        standardize: standardise both models' logits first (LSKD, see `KD`).
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        confidence_temperature: float = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)
        self.confidence_temperature = above_zero("confidence_temperature", confidence_temperature)
        self.alpha = alpha
        self.beta = beta
        self.standardize = standardize

    def forward(self, student: Tensor, teacher: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: logits of the same shape; never a gradient.
            labels: (N,) class numbers, or (N, K) probabilities, of which the largest counts.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher, standardize=self.standardize)
        classes = class_numbers(labels)
        *of_student, _ = split_target(softened(student, self.confidence_temperature), classes)
        probabilities = F.softmax(softened(teacher, self.confidence_temperature), dim=1)
        largest, decided = probabilities.max(dim=1, keepdim=True)
        rest = probabilities.scatter(1, decided, 0.0).sum(dim=1, keepdim=True)
        confidence = binary_divergence(of_student, (largest, rest))
        above = teacher >= teacher.gather(1, classes.unsqueeze(1))
        # Finite, unlike -inf: a sample with no class below the label then counts 0 and not NaN.
        log_student, log_teacher = (
            F.log_softmax(softened(logits, self.temperature).masked_fill(above, -1e30), dim=1)
            for logits in (student, teacher)
        )
        below = weighted_sum(log_teacher.exp(), log_teacher - log_student)
        weights = self.alpha * self.confidence_temperature**2, self.beta * self.temperature**2
        return (weights[0] / len(student)) * confidence + (weights[1] / len(student)) * below
