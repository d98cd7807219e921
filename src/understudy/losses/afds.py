"""Attentive feature distillation: channels weighted by what the teacher's say of themselves."""

import torch
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, without_autocast
from understudy.losses.functional import check_same_shape, prepared

_EPSILON = 1e-6


class AFDS(nn.Module):
    """The student's maps follow the teacher's, each channel with a learned weight.

    `Σ_taps mean_n Σ_c ρ_c · mean_hw (F_s/‖F_s‖ - F_t/‖F_t‖)²`, the norms of each channel over its places, with
    weights `ρ(F_t)` from a squeeze-and-excitation block on the teacher's channels, scaled to the sum 1.

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
        if squeeze <= 0:
            raise ValueError(f"squeeze must be above 0, not {squeeze}")
        self.squeeze = squeeze
        self.attentions: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make an attention for each pair of taps.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        self.attentions = nn.ModuleList(
            self._attention(theirs.shape[1]).to(theirs) for _, theirs in paired_maps(student, teacher)
        )

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, one or several.
            teacher: as many of the same shapes; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        losses = []
        for attention, maps in zip(prepared(self.attentions), paired_maps(student, teacher), strict=True):
            check_same_shape(*maps)
            weights = attention(maps[1].mean(dim=(2, 3), keepdim=True)).sigmoid().flatten(1)
            weights = weights / weights.sum(dim=1, keepdim=True)
            mine, theirs = (each / (each.norm(dim=(2, 3), keepdim=True) + _EPSILON) for each in maps)
            losses.append((weights * (mine - theirs).square().mean(dim=(2, 3))).sum(dim=1).mean())
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
