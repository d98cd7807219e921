"""Normalised distillation: the other classes are compared after each model's own sum is divided out."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, class_numbers, comparable, others_alone, softened, weighted_sum


class NKD(nn.Module):
    """The target class in the teacher's measure, and the other classes normalised to one on both sides.

    With p the softmax, y the label and q the softmax over the other classes at temperature T:
    `-p_t[y] log p_s[y] - γ · T² · Σ_k q_t[k] log q_s[k]`, averaged over samples. The first term has no temperature.
    It is added to the cross entropy with the labels. Cross entropies both, it does not end at 0.

    Reference: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", ICCV 2023 (https://arxiv.org/abs/2303.13005); code:
    https://github.com/yzd-v/cls_KD (Apache-2.0).

    Args:
        temperature: T of the other classes.
        gamma: γ, their weight.
    """

    def __init__(self, *, temperature: float = 1.0, gamma: float = 1.5) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)
        self.gamma = gamma

    def forward(self, student: Tensor, teacher: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: logits of the same shape; never a gradient.
            labels: (N,) class numbers, or (N, K) probabilities, of which the largest counts.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher)
        classes = class_numbers(labels)
        own = classes.unsqueeze(1)
        target = F.softmax(teacher, dim=1).gather(1, own) * F.log_softmax(student, dim=1).gather(1, own)
        log_student, log_teacher = (
            others_alone(softened(logits, self.temperature), classes) for logits in (student, teacher)
        )
        others = weighted_sum(log_teacher.exp(), log_student)
        return -(target.sum() + self.gamma * self.temperature**2 * others) / len(student)
