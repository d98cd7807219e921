"""Neuron selectivity transfer: the distribution of the channels' patterns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, pool_to_smaller, without_autocast
from understudy.losses.functional import gram


class NST(nn.Module):
    """The student's channels, as a set of patterns over the places, are distributed like the teacher's.

    The squared maximum mean discrepancy with the kernel `k(x, y) = (x·y)²` of L2-normalised channels:
    `Σ_taps mean k(t, t) + mean k(s, s) - 2 mean k(s, t)`, averaged over samples. With G_s = F_sᵀF_s, its H·W × H·W
    Gram matrix, that equals `‖G_s / C_s - G_t / C_t‖²`, which we compute where it is the smaller of the two.

    Reference: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017
    (https://arxiv.org/abs/1707.01219), with the polynomial kernel; no code by the authors.
    """

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, one or several; the larger of two sizes is average-pooled.
            teacher: as many, of any number of channels; never a gradient.

        Returns:
            A scalar.
        """
        losses = []
        for maps in paired_maps(student, teacher):
            mine, theirs = (F.normalize(each.flatten(2), dim=2) for each in pool_to_smaller(*maps))
            losses.append(_discrepancy(mine, theirs))
        return torch.stack(losses).sum()


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape[2] <= max(student.shape[1], teacher.shape[1]):
        mine, theirs = (gram(patterns.mT) / patterns.shape[1] for patterns in (student, teacher))
        return (mine - theirs).square().sum(dim=(1, 2)).mean()
    within = gram(teacher).square().mean() + gram(student).square().mean()
    return within - 2 * (student @ teacher.mT).square().mean()
