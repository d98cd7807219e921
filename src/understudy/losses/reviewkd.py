"""Knowledge review: every level of the student learns from the teacher's level and, through the deeper ones, more."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import check_map, without_autocast
from understudy.losses.functional import as_map, check_same_shape, paired, prepared


class ReviewKD(nn.Module):
    """From the deepest level up, each student map is fused with those below it and follows the teacher's.

    `Σ_levels HCL(ABF(F_s, fused below), F_t)`: the fusion weighs both by attention; the context loss compares them at
    full size and averaged to 4, 2 and 1 positions a side, with weights 1, 1/2, 1/4, 1/8 over their sum.

    Reference: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021
    (https://arxiv.org/abs/2104.09044); code https://github.com/dvlab-research/ReviewKD. The published runs raise the
    weight over the first 20 epochs.

    Args:
        width: the fused maps have as many channels as the student's deepest level, at most this many.
    """

    def __init__(self, *, width: int = 512) -> None:
        super().__init__()
        self.width = width
        self.fusions: nn.ModuleList | None = None

    def prepare(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> None:
        """Make the fusions.

        Args:
            student: example maps, from shallow to deep.
            teacher: as many example maps.
        """
        pairs = paired(student, teacher)
        for pair in pairs:
            for features in pair:
                check_map(as_map(features))
        width = min(self.width, pairs[-1][0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(channels=ours.shape[1], width=width, wanted=theirs.shape[1], fuses=depth > 0)
            for depth, (ours, theirs) in enumerate(reversed(pairs))
        ).to(pairs[0][0].device)

    @without_autocast
    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps from shallow to deep, the last one often an embedding (N, C).
            teacher: as many, with any channels and sizes; never a gradient.

        Returns:
            A scalar.
        """
        fused: Tensor | None = None
        losses = []
        for (ours, theirs), fusion in zip(reversed(paired(student, teacher)), prepared(self.fusions), strict=True):
            target = as_map(theirs)
            output, fused = fusion(as_map(ours), fused, size=tuple(target.shape[2:]))
            losses.append(hierarchical_context(output, target))
        return torch.stack(losses).sum()


class Fusion(nn.Module):
    """Attention-based fusion: a level with what was fused below it.

    Args:
        channels: of the level.
        width: of the fused map.
        wanted: channels of the teacher's level.
        fuses: there is something below.
    """

    def __init__(self, *, channels: int, width: int, wanted: int, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.widen = nn.Sequential(nn.Conv2d(width, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted))
        self.attend = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuses else None
        for convolution in (self.reduce[0], self.widen[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # pyright: ignore[reportArgumentType]

    def forward(self, level: Tensor, below: Tensor | None = None, *, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            level: (N, C, H, W) the student's map.
            below: (N, width, h, w) the fused map of the level below.
            size: (H, W) of the teacher's map.

        Returns:
            The map to compare with the teacher's, and the fused one, both of that size.
        """
        fused = self.reduce(level)
        if self.attend is not None:
            assert below is not None
            below = F.interpolate(below, tuple(level.shape[2:]), mode="nearest")
            attention = self.attend(torch.cat([fused, below], dim=1))
            fused = fused * attention[:, :1] + below * attention[:, 1:]
        if tuple(fused.shape[2:]) != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.widen(fused), fused


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared errors of two maps (N, C, H, W) at full size and at 4, 2, 1 positions a side, weighted."""
    check_same_shape(student, teacher)
    total, weights, weight = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= student.shape[2]:
            continue
        weight /= 2
        total = total + weight * F.mse_loss(F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side))
        weights += weight
    return total / weights
