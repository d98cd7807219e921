"""Correlation congruence: how the samples of a batch correlate under a Gaussian kernel."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import gram, in_float32


class CC(nn.Module):
    """The correlations between the samples of a batch follow the teacher's.

    With f the embeddings scaled to length 1 and the Gaussian kernel written as its series in their inner products,
    `K = Σ_p≤P exp(-2γ) (2γ)^p / p! · (f_i · f_j)^p`: `‖K_t - K_s‖² / N²`.

    Reference: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1904.01802), equations 4 to 7. The authors' code is not public; the conventions are those
    of https://github.com/AberHu/Knowledge-Distillation-Zoo. The paper's linear embedding to an equal width is left
    out, which the kernel does not need. RepDistiller's loss of this name is another: `CCNeighbours`.

    Args:
        gamma: γ, the kernel's sharpness.
        order: P, where the series ends.
    """

    def __init__(self, *, gamma: float = 0.4, order: int = 2) -> None:
        super().__init__()
        if order < 0:
            raise ValueError(f"order must be 0 or more, not {order}")
        self.gamma = gamma
        self.order = order

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
        return F.mse_loss(self._kernel(student), self._kernel(teacher))

    def _kernel(self, features: Tensor) -> Tensor:
        rows = F.normalize(features.flatten(1), dim=1)
        products = gram(rows)
        scale = math.exp(-2 * self.gamma)
        *others, last = (scale * (2 * self.gamma) ** power / math.factorial(power) for power in range(self.order + 1))
        kernel = torch.full_like(products, last)
        # Horner's scheme, from the last term of the series to the constant one.
        for coefficient in reversed(others):
            kernel = kernel * products + coefficient
        return kernel
