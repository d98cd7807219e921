"""A comprehensive overhaul of feature distillation: before the activation, with a margin, and only where it matters."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, without_autocast
from understudy.losses.functional import check_same_shape, prepared
from understudy.losses.regressor import channel_regressor


class OFD(nn.Module):
    """The student's features follow the teacher's before the activation, except where both are shut.

    `Σ_l 2^(l - L + 1) · Σ d(r(F_s), max(F_t, m)) / N` for taps l = 0 … L - 1, where `d(s, t) = 0` for `s ≤ t ≤ 0`
    and `(s - t)²` elsewhere. The margin m of a channel is its mean while below zero, `E[F_t | F_t < 0]`: that of the
    batch, or after `margins_from` that of the teacher's batch norms.

    Reference: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019
    (https://arxiv.org/abs/1904.01866), and https://github.com/clovaai/overhaul-distillation
    (MIT), where the teacher's batch norms normalise by the batch; with us the teacher is in evaluation mode.

    Args:
        kernel_size: of the connectors r, a convolution and batch norm.
    """

    def __init__(self, *, kernel_size: int = 1) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        self.kernel_size = kernel_size
        self.connectors: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make a connector for each pair of taps.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        self.connectors = nn.ModuleList(
            channel_regressor(mine.shape[1], theirs.shape[1], kernel_size=self.kernel_size).to(mine)
            for mine, theirs in paired_maps(student, teacher)
        )

    def margins_from(self, tapped: Sequence[nn.Module]) -> None:
        """Take the margins from the teacher's batch norms, for taps that are one or end in one.

        Args:
            tapped: the teacher's tapped modules, in the order of the taps; where what one gives is not the outcome of
                a batch norm, the margin stays that of the batch.
        """
        for index, module in enumerate(tapped):
            norm = _last(module)
            if isinstance(norm, nn.BatchNorm2d) and norm.affine:
                self.register_buffer(f"margin_{index}", margin_of_norm(norm.weight, norm.bias))

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps before the activation, one or several.
            teacher: as many, average-pooled to the student's sizes; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        connectors = prepared(self.connectors)
        total = 0
        for index, (mine, theirs) in enumerate(paired_maps(student, teacher)):
            margin = cast(Tensor | None, getattr(self, f"margin_{index}", None))
            if margin is None:
                margin = margin_of_batch(theirs)
            connected = connectors[index](mine)
            if connected.shape[-2:] != theirs.shape[-2:]:
                theirs = F.adaptive_avg_pool2d(theirs, connected.shape[-2:])
            # Each tap counts twice the one before: starting from the last, halve what came so far.
            total = total / 2 + partial_distance(connected, theirs.maximum(margin.to(theirs))) / len(mine)
        return torch.as_tensor(total)


def _last(module: nn.Module) -> nn.Module:
    """The last layer of a sequence, of sequences in it too; any other module itself."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return module


def partial_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum the squared differences, leaving out where the student lies below a teacher who is at most 0.

    Args:
        student: features before the activation.
        teacher: of the same shape.

    Returns:
        A scalar.
    """
    check_same_shape(student, teacher)
    with torch.no_grad():
        # The student's own values where both are shut (by lerp: torch.where takes several times as long).
        shut = ((student <= teacher) & (teacher <= 0)).to(student.dtype)
        target = torch.lerp(teacher, student, shut)
    return F.mse_loss(student, target, reduction="sum")


def margin_of_batch(teacher: Tensor) -> Tensor:
    """The mean of each channel's negative values.

    Args:
        teacher: (N, C, H, W) maps before the activation.

    Returns:
        (1, C, 1, 1), at most 0.
    """
    # In float32, as KD-Zoo counts; a channel without negative values has the margin 0.
    count = (teacher < 0).sum(dim=(0, 2, 3), keepdim=True).float() + 1e-6
    return teacher.clamp(max=0).sum(dim=(0, 2, 3), keepdim=True) / count


@torch.no_grad()
def margin_of_norm(weight: Tensor, bias: Tensor) -> Tensor:
    """The mean of what a batch norm gives, while it is below zero, if it gives a Gaussian N(bias, weight²).

    Args:
        weight: (C,) of the batch norm.
        bias: (C,) of the batch norm.

    Returns:
        (1, C, 1, 1) in float32, as in the authors' code; three deviations below 0 for channels that are almost never
        negative (one time in a thousand).
    """
    deviation, mean = weight.double().abs().clamp_min(torch.finfo(torch.float64).tiny), bias.double()
    ratio = mean / deviation
    below = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / (2 * torch.pi) ** 0.5
    rarely = below <= 0.001
    margin = mean - deviation * density / torch.where(rarely, torch.ones_like(below), below)
    return torch.where(rarely, -3 * deviation, margin).float()[None, :, None, None]
