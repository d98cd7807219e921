"""VkD: an orthogonal projection, which can add nothing that the student does not know."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from understudy.losses.features import without_autocast
from understudy.losses.functional import in_float32, pooled, prepared


class VkD(nn.Module):
    """The student's embedding, turned but not stretched, follows the teacher's normalised one.

    With P a learned matrix of orthonormal rows or columns, h Huber's loss and n the normalisation:
    `mean h(P f_s, n(f_t))`.

    Reference: Miles, Elezi, Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024
    (https://arxiv.org/abs/2403.06213), equations 3 to 8; code https://github.com/roymiles/vkd.

    Args:
        normalize: of the teacher's embedding: `standardize` gives each sample's mean 0 and variance 1 (for
            discriminative tasks), `whiten` makes the channels uncorrelated over the batch (for generative ones).
        distance: `smooth_l1` is the code's, `l1` and `mse` are the others in use.
    """

    def __init__(
        self,
        *,
        normalize: Literal["standardize", "whiten", "none"] = "standardize",
        distance: Literal["smooth_l1", "l1", "mse"] = "smooth_l1",
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.distance = distance
        self.projector: nn.Module | None = None

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the projection.

        Args:
            student: example features.
            teacher: example features.
        """
        width, wanted = pooled(student).shape[1], pooled(teacher).shape[1]
        self.projector = orthogonal(nn.Linear(width, wanted, bias=False, device=student.device))

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embedding, (N, L, D) tokens or (N, D, H, W) map, averaged over its positions.
            teacher: (N, E), (N, L, E) or (N, E, H, W); never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        projected = prepared(self.projector)(pooled(student))
        target = self._normalized(pooled(teacher))
        if self.distance == "mse":
            return F.mse_loss(projected, target)
        return F.l1_loss(projected, target) if self.distance == "l1" else F.smooth_l1_loss(projected, target)

    def _normalized(self, rows: Tensor) -> Tensor:
        if self.normalize == "standardize":
            return F.layer_norm(rows, rows.shape[1:])
        return _whitened(rows) if self.normalize == "whiten" else rows


def _whitened(rows: Tensor) -> Tensor:
    """Rows with uncorrelated columns of variance 1; directions without variance stay near 0."""
    rows = rows - rows.mean(dim=0)
    variances, directions = torch.linalg.eigh(rows.mT @ rows / max(len(rows) - 1, 1))
    floor = 1e-5 * variances[-1].clamp(min=1e-12)
    return rows @ (directions / (variances.clamp(min=0) + floor).sqrt()) @ directions.mT
