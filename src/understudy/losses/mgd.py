"""Masked generative distillation: rebuild the teacher's features from part of one's own."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, without_autocast
from understudy.losses.functional import check_same_shape, prepared, standardized_channels


class MGD(nn.Module):
    """From a student map with holes, a small network generates the teacher's whole one.

    With M a random mask, r a 1×1 convolution where channels differ and G two 3×3 convolutions:
    `‖F_t - G(M · r(F_s))‖² / N`, summed over taps.

    Reference: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022
    (https://arxiv.org/abs/2205.01529), equations 2 to 4; code https://github.com/yzd-v/MGD (Apache 2.0): its
    detection masks positions, its classification channels.

    Args:
        mask: what is left out, `positions` of the map (in all channels) or `channels`.
        ratio: the share that is left out, λ.
        align: r; without it G maps the student's channels to the teacher's.
        standardize: give each channel mean 0 and variance 1 over the batch first, on both sides.
    """

    def __init__(
        self,
        *,
        mask: Literal["positions", "channels"] = "positions",
        ratio: float = 0.65,
        align: bool = True,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must lie in [0, 1), not {ratio}")
        self.mask = mask
        self.ratio = ratio
        self.align = align
        self.standardize = standardize
        self.aligners: nn.ModuleList | None = None
        self.generators: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make the aligning convolutions and the generators.

        Args:
            student: example maps.
            teacher: example maps.
        """
        self.aligners, self.generators = nn.ModuleList(), nn.ModuleList()
        for ours, theirs in paired_maps(student, teacher):
            channels, wanted = ours.shape[1], theirs.shape[1]
            aligned = self.align and channels != wanted
            self.aligners.append(nn.Conv2d(channels, wanted, 1) if aligned else nn.Identity())
            self.generators.append(
                nn.Sequential(
                    nn.Conv2d(wanted if aligned else channels, wanted, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(wanted, wanted, 3, padding=1),
                )
            )
            self.to(ours.device)

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps of one tap or of several.
            teacher: as many maps of the same sizes, with any channels; never a gradient.

        Returns:
            A scalar.
        """
        parts = zip(paired_maps(student, teacher), prepared(self.aligners), prepared(self.generators), strict=True)
        losses = [self._of_tap(ours, theirs, align, generate) for (ours, theirs), align, generate in parts]
        return torch.stack(losses).sum()

    def _of_tap(self, student: Tensor, teacher: Tensor, align: nn.Module, generate: nn.Module) -> Tensor:
        if self.standardize:
            student, teacher = standardized_channels(student), standardized_channels(teacher)
        student = align(student)
        samples, channels, height, width = student.shape
        shape = (samples, 1, height, width) if self.mask == "positions" else (samples, channels, 1, 1)
        kept = torch.rand(shape, device=student.device) <= 1 - self.ratio
        generated = generate(student * kept)
        check_same_shape(generated, teacher)
        return F.mse_loss(generated, teacher, reduction="sum") / samples
