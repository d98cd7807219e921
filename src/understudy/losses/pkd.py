"""Distillation by Pearson correlation: how features vary, not how large they are."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps
from understudy.losses.functional import check_same_shape

_PLACES = (0, 2, 3)  # of a channel


class PKD(nn.Module):
    """Each channel, brought to mean 0 and deviation 1 over batch and positions, follows the teacher's.

    With x̂ the standardised maps: `mean (x̂_s - x̂_t)² / 2`, which is 1 minus the mean Pearson correlation of the
    channels; summed over taps.

    Reference: Cao, Zhang, Gao, Cheng, Cheng, Cheng, "PKD: General Distillation Framework for Object Detectors via
    Pearson Correlation Coefficient", NeurIPS 2022 (https://arxiv.org/abs/2207.02039), equations 2 to 4; code in
    https://github.com/open-mmlab/mmrazor (Apache 2.0), whose deviation divides by n - 1 and has 1e-6 added.

    Args:
        resize: which side is interpolated to the other's size where they differ.
    """

    def __init__(self, *, resize: Literal["student", "teacher"] = "student") -> None:
        super().__init__()
        self.resize = resize

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps of one tap or of several.
            teacher: as many with the same channels; never a gradient.

        Returns:
            A scalar.
        """
        return torch.stack([self._of_tap(ours, theirs) for ours, theirs in paired_maps(student, teacher)]).sum()

    def _of_tap(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[2:] != teacher.shape[2:]:
            if self.resize == "student":
                student = F.interpolate(student, teacher.shape[2:], mode="bilinear")
            else:
                teacher = F.interpolate(teacher, student.shape[2:], mode="bilinear")
        check_same_shape(student, teacher)
        std, mean = torch.std_mean(teacher, dim=_PLACES, keepdim=True)
        target = (teacher - mean) / (std + 1e-6)
        std = student.std(dim=_PLACES)
        # |x - y|² = |x|² + |y|² - 2 x·y, and y, of mean 0, sees nothing of the mean of x: no student is standardised.
        count = student.numel() // student.shape[1]
        own = (count - 1) * (std / (std + 1e-6)).square()
        both = (student * target).sum(dim=_PLACES) / (std + 1e-6)
        return ((own - 2 * both).sum() + target.square().sum()) / (2 * student.numel())
