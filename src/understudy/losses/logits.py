"""Regression on the logits, the oldest form of distillation."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import comparable


class LogitMSE(nn.Module):
    """The student's logits follow the teacher's: `mean (z_s - z_t)²` over samples and classes.

    Reference: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (https://arxiv.org/abs/1312.6184),
    equation 2, which halves the square and sums over classes: K/2 times ours.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: logits of the same shape; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher)
        return F.mse_loss(student, teacher)
