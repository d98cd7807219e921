"""Inter-channel correlation: which channels are alike."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, without_autocast
from understudy.losses.functional import gram, prepared
from understudy.losses.regressor import channel_regressor


class ICKD(nn.Module):
    """The correlations between the channels of a sample follow the teacher's.

    `Σ_taps ‖G_s - G_t‖² / (N C)` with G = F Fᵀ over the places, its rows scaled to length 1, and F_s brought to the
    teacher's C channels by a 1×1 convolution with batch norm. Sizes are free.

    Reference: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV
    2021 (https://arxiv.org/abs/2202.03680), with rows scaled as in the authors' code,
    https://github.com/ADLab-AutoDrive/ICKD.
    """

    def __init__(self) -> None:
        super().__init__()
        self.regressors: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make a regressor for each pair of taps.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        self.regressors = nn.ModuleList(
            channel_regressor(mine.shape[1], theirs.shape[1]).to(mine) for mine, theirs in paired_maps(student, teacher)
        )

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, one or several.
            teacher: as many; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        losses = []
        for regressor, (mine, theirs) in zip(prepared(self.regressors), paired_maps(student, teacher), strict=True):
            difference = _correlations(regressor(mine)) - _correlations(theirs)
            losses.append(difference.square().sum(dim=(1, 2)).mean() / theirs.shape[1])
        return torch.stack(losses).sum()


def _correlations(maps: Tensor) -> Tensor:
    return F.normalize(gram(maps.flatten(2)), dim=2)
