"""Regression on features: as they are, or through a regressor (FitNets' hints)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, without_autocast
from understudy.losses.functional import check_same_shape, paired, prepared
from understudy.losses.regressor import Regressor


class FitNet(nn.Module):
    """A regressor on the student's features follows the teacher's: hints for a thinner, deeper net.

    `Σ_taps mean (r(F_s) - F_t)²`, with r a convolution that is trained with the student and dropped after.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    equation 3, which halves and sums where we average; in one stage with the labels instead of before them, and with
    the regressor of https://github.com/HobbitLong/RepDistiller (BSD-2).

    Args:
        relu: the regressor ends with a ReLU, for features tapped after one.
    """

    def __init__(self, *, relu: bool = True) -> None:
        super().__init__()
        self.relu = relu
        self.regressors: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make a regressor for each pair of taps.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        self.regressors = nn.ModuleList(
            Regressor(mine, theirs, relu=self.relu).to(mine) for mine, theirs in paired(student, teacher)
        )

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps or (N, D) vectors, one or several.
            teacher: as many; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        regressors = prepared(self.regressors)
        losses = []
        for regressor, (mine, theirs) in zip(regressors, paired(student, teacher), strict=True):
            regressed = regressor(mine)
            check_same_shape(regressed, theirs)
            losses.append(F.mse_loss(regressed, theirs))
        return torch.stack(losses).sum()


class FeatureRegression(nn.Module):
    """The student's features follow the teacher's of the same shape: `Σ_taps mean (F_s - F_t)²`, or by the angle.

    With `distance="cosine"`: `1 - mean cos(F_s, F_t)` along the last dimension, as for embeddings.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    without the regressor, as in https://github.com/AberHu/Knowledge-Distillation-Zoo; also Keras's
    `FeatureDistillation` (https://keras.io, Apache-2.0), whose cosine loss is ours minus 1.

    Args:
        distance: `mse`, the mean squared difference, or `cosine`.
    """

    def __init__(self, *, distance: Literal["mse", "cosine"] = "mse") -> None:
        super().__init__()
        self.distance = distance

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ...) features, one tensor or several.
            teacher: as many of the same shapes; never a gradient.

        Returns:
            A scalar.
        """
        return torch.stack([self._distance(*features) for features in paired(student, teacher)]).sum()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher)
        if self.distance == "mse":
            return F.mse_loss(student, teacher)
        return 1 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-12).mean()
