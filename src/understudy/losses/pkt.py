"""Probabilistic knowledge transfer: how probable it is that one sample takes another for its neighbour."""

import torch
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import gram, in_float32, weighted_sum


class PKT(nn.Module):
    """Each sample's similarities to the batch, as probabilities, follow the teacher's.

    With s = (1 + cos) / 2 and P = s with rows that add up to 1: `mean_ij P_t log((P_t + ε) / (P_s + ε))`.

    Reference: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018
    (https://arxiv.org/abs/1803.10837); code https://github.com/passalis/probabilistic_kt (MIT). As there, a sample's
    similarity to itself is counted and the mean is over all N² pairs, N times smaller than a KL divergence.

    Args:
        eps: keeps the logarithm finite; Knowledge-Distillation-Zoo has 1e-6.
    """

    def __init__(self, *, eps: float = 1e-7) -> None:
        super().__init__()
        self.eps = eps

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or maps that are flattened.
            teacher: (N, E), with another width where it likes; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        return _divergence(_similarities(student, self.eps), _similarities(teacher, self.eps), self.eps)


class SupervisedPKT(nn.Module):
    """Each sample's similarities to the batch, as probabilities, follow the labels: `P_t` is even over its class.

    `mean_ij P_t log((P_t + ε) / (P_s + ε))` as in `PKT`, with similarity 1 within a class and 0 between classes.

    Reference: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018
    (https://arxiv.org/abs/1803.10837); the supervised loss of https://github.com/passalis/probabilistic_kt (MIT).

    Args:
        eps: keeps the logarithm finite.
    """

    def __init__(self, *, eps: float = 1e-7) -> None:
        super().__init__()
        self.eps = eps

    @without_autocast
    def forward(self, student: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or maps that are flattened.
            labels: (N,) class numbers.

        Returns:
            A scalar.
        """
        (student,) = in_float32(student)
        same = (labels[:, None] == labels[None, :]).to(student.dtype)
        return _divergence(_similarities(student, self.eps), same, self.eps)


def _similarities(features: Tensor, eps: float) -> Tensor:
    rows = features.flatten(1)
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + eps)
    return gram(rows) + 1  # twice (1 + cos) / 2, which the sums of the rows divide out


def _divergence(student: Tensor, teacher: Tensor, eps: float) -> Tensor:
    of_student = student / student.sum(dim=1, keepdim=True)
    of_teacher = teacher / teacher.sum(dim=1, keepdim=True)
    return weighted_sum(of_teacher, (of_teacher + eps).log() - (of_student + eps).log()) / student.numel()
