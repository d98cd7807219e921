"""Activation boundaries: which neurons fire, not how strongly."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, without_autocast
from understudy.losses.functional import check_same_shape, paired, prepared
from understudy.losses.regressor import Regressor


class AB(nn.Module):
    """The student's neurons lie on the same side of zero as the teacher's, by a margin.

    `Σ_l 2^(l - L + 1) · Σ max(0, μ - σ_t r(F_s))² / N` for taps l = 0 … L - 1, where σ_t is 1 where the teacher's
    neuron fires (`F_t > 0`) and -1 elsewhere. Taps lie before the activation. r is a convolution with batch norm
    where the shapes differ.

    Reference: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019 (https://arxiv.org/abs/1811.03233); https://github.com/bhheo/AB_distillation scales it by
    3/1000, which belongs to the weight here. The paper trains with it alone first (an init stage of student and r),
    then with the labels; as one objective beside them it works too.

    Args:
        margin: μ, how far from zero a neuron is pushed.
    """

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin
        self.connectors: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make a connector for each pair of taps whose shapes differ.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        self.connectors = nn.ModuleList(
            nn.Identity() if mine.shape[1:] == theirs.shape[1:] else Regressor(mine, theirs, relu=False).to(mine)
            for mine, theirs in paired(student, teacher)
        )

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps or (N, D) vectors before the activation, one or several.
            teacher: as many; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        connectors = prepared(self.connectors)
        total = 0
        for connector, (mine, theirs) in zip(connectors, paired(student, teacher), strict=True):
            connected = connector(mine)
            check_same_shape(connected, theirs)
            # Each tap counts twice the one before: starting from the last, halve what came so far.
            total = total / 2 + self._distance(connected, theirs)
        return torch.as_tensor(total)

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            # The nearest values that lie on the teacher's side: the student's own where it already does.
            side = (teacher > 0).to(student.dtype).mul_(2).sub_(1)
            target = (side * student).clamp_(min=self.margin).mul_(side)
        return F.mse_loss(student, target, reduction="sum") / len(student)
