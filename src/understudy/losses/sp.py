"""Similarity-preserving distillation: inputs alike for the teacher are alike for the student."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, without_autocast
from understudy.losses.functional import gram, paired


class SP(nn.Module):
    """The similarities between the samples of a batch follow the teacher's.

    With A the flattened maps, one row a sample, and G = rows of A Aᵀ scaled to length 1:
    `‖G_t - G_s‖² / N²`, summed over taps.

    Reference: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1907.09682), equations 1 to 4. The authors' code is not public; RepDistiller's
    (https://github.com/HobbitLong/RepDistiller, BSD-2) computes the same.
    """

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ...) features of one tap or of several.
            teacher: as many, of any width and size; never a gradient.

        Returns:
            A scalar.
        """
        losses = [F.mse_loss(_similarities(ours), _similarities(theirs)) for ours, theirs in paired(student, teacher)]
        return torch.stack(losses).sum()


def _similarities(features: Tensor) -> Tensor:
    return F.normalize(gram(features.flatten(1)), dim=1)
