"""Attentive feature distillation: channels weighted by what the teacher's say of themselves."""

import torch
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, pool_to_smaller, without_autocast
from understudy.losses.functional import above_zero, prepared
from understudy.losses.regressor import channel_regressor

_EPSILON = 1e-6


class AFDS(nn.Module):
    """The student's maps follow the teacher's, each channel with a learned weight.

    `Σ_taps mean_n Σ_c ρ_c · mean_hw (F_s/‖F_s‖ - F_t/‖F_t‖)²`, the norms of each channel over its places, with
    weights `ρ(F_t)` from a squeeze-and-excitation block on the teacher's channels, scaled to the sum 1. A student of
    other channels gets a 1×1 convolution with batch norm; of two sizes the larger is averaged.

    Reference: Wang, Gao, et al., "Pay Attention to Features, Transfer Learn Faster CNNs", ICLR 2020
    (https://openreview.net/forum?id=ryxyCeHtPB), its distillation without the selection of channels; the paper's own
    attention was found unstable and replaced by this block in
    https://github.com/AberHu/Knowledge-Distillation-Zoo, which we follow. Not the method of the same name that is
    `AFD` here.

    Args:
        squeeze: hidden channels of the block over those of the teacher.
    """

    def __init__(self, *, squeeze: float = 1.0) -> None:
        super().__init__()
        self.squeeze = above_zero("squeeze", squeeze)
        self.attentions: nn.ModuleList | None = None
        self.regressors: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make an attention for each pair of taps, and a regressor where their channels differ.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        pairs = paired_maps(student, teacher)
        self.attentions = nn.ModuleList(self._attention(theirs.shape[1]).to(theirs) for _, theirs in pairs)
        self.regressors = nn.ModuleList(
            nn.Identity()
            if mine.shape[1] == theirs.shape[1]
            else channel_regressor(mine.shape[1], theirs.shape[1]).to(mine)
            for mine, theirs in pairs
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
        parts = zip(prepared(self.attentions), prepared(self.regressors), paired_maps(student, teacher), strict=True)
        for attention, regressor, (mine, theirs) in parts:
            weights = attention(theirs.mean(dim=(2, 3), keepdim=True)).sigmoid().flatten(1)
            weights = weights / weights.sum(dim=1, keepdim=True)
            mine, theirs = (each.flatten(2) for each in pool_to_smaller(regressor(mine), theirs))
            # Of the scaled maps: |a - b|² = |a|² + |b|² - 2 a·b, none of which needs them.
            norms = [each.norm(dim=2) for each in (mine, theirs)]
            own, other = ((norm / (norm + _EPSILON)).square() for norm in norms)
            product = torch.linalg.vecdot(mine, theirs) / ((norms[0] + _EPSILON) * (norms[1] + _EPSILON))
            squares = (own + other - 2 * product) / mine.shape[2]
            losses.append((weights * squares).sum(dim=1).mean())
        return torch.stack(losses).sum()

    def _attention(self, channels: int) -> nn.Sequential:
        hidden = max(1, int(channels * self.squeeze))
        layers = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
        for layer in (layers[0], layers[2]):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        return layers
