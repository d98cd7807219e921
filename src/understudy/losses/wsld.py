"""Weighted soft labels: samples that the student knows as well as the teacher count less."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, comparable, softened


class WSLD(nn.Module):
    """Distillation that weighs each sample by how much worse than the teacher the student is at it.

    With H the cross entropy with the labels at temperature 1: `w = 1 - exp(-H_s / H_t)`, without gradient, and
    `T² · mean_i w_i · (-Σ_k softmax(z_t / T)_k log softmax(z_s / T)_k)`. Soft labels act as a regulariser; the weight
    takes it away where it only adds bias.

    Reference: Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge Distillation: A
    Bias-Variance Tradeoff Perspective", ICLR 2021 (https://arxiv.org/abs/2102.00650); code:
    https://github.com/bellymonster/Weighted-Soft-Label-Distillation (it adds 1e-7 to H_t, so do we).

    Args:
        temperature: T; 2 on ImageNet, 4 on CIFAR-100.
    """

    def __init__(self, *, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: logits of the same shape; never a gradient.
            labels: (N,) class numbers, or (N, K) probabilities.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher)
        if labels.is_floating_point():
            labels = labels.to(student.dtype)
        of_student = F.cross_entropy(student.detach(), labels, reduction="none")
        of_teacher = F.cross_entropy(teacher, labels, reduction="none")
        weight = -(-of_student / (of_teacher + 1e-7)).expm1()
        soft_labels = F.softmax(softened(teacher, self.temperature), dim=1)
        distilled = F.cross_entropy(softened(student, self.temperature), soft_labels, reduction="none")
        return self.temperature**2 * (weight * distilled).mean()
