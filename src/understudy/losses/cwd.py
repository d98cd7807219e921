"""Channel-wise distillation: where in the picture each channel looks."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps
from understudy.losses.functional import above_zero, check_same_shape, softened, standardized_channels, weighted_sum


class CWD(nn.Module):
    """Each channel's distribution over the positions of the map follows the teacher's.

    With p the softmax of a channel over its H·W positions at temperature T, C channels and N samples:
    `T² / (N C) · Σ p_t log(p_t / p_s)`, summed over taps.

    Reference: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021
    (https://arxiv.org/abs/2011.13256), equations 3 and 4; code https://github.com/irfanICMLL/TorchDistiller.

    Args:
        temperature: T; the paper's for logits of segmentation, 1 is common for features.
        softmax_over: `positions` compares where each channel looks; `channels` what each position holds (the
            sum is then divided by N·H·W).
        standardize: give each channel mean 0 and variance 1 over the batch first, on both sides.
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        softmax_over: Literal["positions", "channels"] = "positions",
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)
        self.softmax_over = softmax_over
        self.standardize = standardize

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps of one tap or of several.
            teacher: as many of the same shapes; never a gradient.

        Returns:
            A scalar.
        """
        return torch.stack([self._of_tap(ours, theirs) for ours, theirs in paired_maps(student, teacher)]).sum()

    def _of_tap(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher)
        if self.standardize:
            student, teacher = standardized_channels(student), standardized_channels(teacher)
        student, teacher = student.flatten(2), teacher.flatten(2)
        axis = 2 if self.softmax_over == "positions" else 1
        log_student = F.log_softmax(softened(student, self.temperature), dim=axis)
        log_teacher = F.log_softmax(softened(teacher, self.temperature), dim=axis)
        total = weighted_sum(log_teacher.exp(), log_teacher - log_student)
        return total * (self.temperature**2 * student.shape[axis] / student.numel())
