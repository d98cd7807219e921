"""Discriminative and consistent distillation: contrast inside the batch, without a memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import in_float32, pooled, prepared, weighted_sum


class DCD(nn.Module):
    """Each student embedding finds its teacher's in the batch, and is found from it just as surely.

    With the similarities `S = exp(a) ⟨e_s, e_t⟩ + b` (a and b learned), `p` their softmax over the teacher's samples
    and `q` that over the student's: `-mean_i log p_ii + α KL(qᵀ ‖ p)`.

    Reference: Giakoumoglou, Stathaki, "Discriminative and Consistent Representation Distillation", 2024
    (https://arxiv.org/abs/2407.11802); code https://github.com/giakoumoglou/distillers (CC BY-NC 4.0). Where the
    scale is capped its gradient stops, as there.

    Args:
        alpha: α, the weight of the consistency.
        width: of the embeddings.
        max_scale: the largest exp(a).
    """

    def __init__(self, *, alpha: float = 0.5, width: int = 128, max_scale: float = 10.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.width = width
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.embed_student: nn.Linear | None = None
        self.embed_teacher: nn.Linear | None = None

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the embeddings.

        Args:
            student: example features.
            teacher: example features.
        """
        self.embed_student = nn.Linear(pooled(student).shape[1], self.width, device=student.device)
        self.embed_teacher = nn.Linear(pooled(teacher).shape[1], self.width, device=student.device)
        self.to(student.device)

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or (N, D, H, W) maps that are averaged.
            teacher: (N, E) or (N, E, H, W); it gets no gradient, but its embedding learns.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        student = F.normalize(prepared(self.embed_student)(pooled(student)), dim=1)
        teacher = F.normalize(prepared(self.embed_teacher)(pooled(teacher)), dim=1)
        scores = student @ teacher.mT * self.log_scale.exp().clamp(max=self.max_scale) + self.bias
        found, finds = F.log_softmax(scores, dim=0).mT, F.log_softmax(scores, dim=1)
        consistency = weighted_sum(found.exp(), found - finds) / len(scores)
        return -finds.diagonal().mean() + self.alpha * consistency
