"""Attention transfer: where the teacher looks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, pool_to_smaller


class AT(nn.Module):
    """The student's maps of activation follow the teacher's, place by place.

    `Σ_taps mean (Q_s/‖Q_s‖ - Q_t/‖Q_t‖)²` with `Q = Σ_c |F_c|^p`, the norm over all places of a sample. Student and
    teacher may differ in their channels; of maps of two sizes the larger is average-pooled.

    Reference: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017
    (https://arxiv.org/abs/1612.03928), equation 2 with the mean in place of norm and β/2, as in the authors' code
    (https://github.com/szagoruyko/attention-transfer).

    Args:
        p: the exponent; larger ones weigh the strongest places more.
        epsilon: added to the norms, so that a map of zeros stays finite.
    """

    def __init__(self, *, p: float = 2.0, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.p = p
        self.epsilon = epsilon

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, one or several.
            teacher: as many, of any number of channels; never a gradient.

        Returns:
            A scalar.
        """
        losses = []
        for maps in paired_maps(student, teacher):
            mine, theirs = (self._attention(each) for each in pool_to_smaller(*maps))
            losses.append(F.mse_loss(mine, theirs))
        return torch.stack(losses).sum()

    def _attention(self, maps: Tensor) -> Tensor:
        attention = (maps.square() if self.p == 2 else maps.abs().pow(self.p)).sum(dim=1).flatten(1)
        return attention / (attention.norm(dim=1, keepdim=True) + self.epsilon)
