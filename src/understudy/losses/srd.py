"""Simple recipe distillation: a linear projector, batch norm, and the logarithm of a high power."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import in_float32, pooled, prepared


class SRD(nn.Module):
    """The student's projected embedding follows the teacher's, both standardised over the batch.

    With W a linear layer, x̂ the channels with mean 0 and variance 1 over the batch:
    `log Σ |x̂(W f_s) - x̂(f_t)|^p`. The logarithm takes the size of the power out of the gradient.

    Reference: Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024
    (https://arxiv.org/abs/2303.11098), equations 6 and 7; code https://github.com/roymiles/Simple-Recipe-Distillation.
    The published ImageNet run adds the divergence of the logits: `srd+kd` with temperature 1.

    Args:
        exponent: p.
    """

    def __init__(self, *, exponent: float = 4.0) -> None:
        super().__init__()
        self.exponent = exponent
        self.projector: nn.Linear | None = None

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the projector.

        Args:
            student: example features.
            teacher: example features.
        """
        width, wanted = pooled(student).shape[1], pooled(teacher).shape[1]
        self.projector = nn.Linear(width, wanted, bias=False, device=student.device)

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embedding, (N, L, D) tokens or (N, D, H, W) map, averaged over its positions; N at least 2.
            teacher: (N, E), (N, L, E) or (N, E, H, W); never a gradient.

        Returns:
            A scalar, below 0 where the sum is below 1.
        """
        student, teacher = in_float32(student, teacher.detach())
        projected = prepared(self.projector)(pooled(student))
        difference = _standardized(projected) - _standardized(pooled(teacher))
        # The square of a square is taken in a fraction of the time of a fourth power; below 2 it has no gradient at 0.
        squared = self.exponent >= 2
        powers = difference.square().pow(self.exponent / 2) if squared else difference.abs().pow(self.exponent)
        total = powers.sum()
        return total.clamp(min=torch.finfo(total.dtype).tiny).log()


def _standardized(rows: Tensor) -> Tensor:
    return F.batch_norm(rows, None, None, training=True, eps=1e-4)
