"""The flow between two layers: how the maps of one go with those of the next."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, check_map, pool_to_smaller, several, without_autocast
from understudy.losses.functional import check_same_shape


class FSP(nn.Module):
    """The products of successive layers' maps, what is done between them, follow the teacher's.

    `Σ_pairs mean (G_s - G_t)²` over each pair of successive taps, `G_ij = Σ_hw F1_i F2_j / HW`. Layer by layer,
    student and teacher have the same number of channels; sizes are free.

    Reference: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017
    (https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html), equations 1 and 2.
    The larger map of a pair is average-pooled, as in all published PyTorch code (the paper: max-pooled), and the
    loss is one objective beside the labels' where the paper trains it in a stage before.
    """

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: two or more (N, C, H, W) maps, from the input on.
            teacher: as many, with the same channels; never a gradient.

        Returns:
            A scalar.

        Raises:
            ValueError: fewer than two taps, or other channels than the teacher's.
        """
        of_student, of_teacher = several(student), tuple(features.detach() for features in several(teacher))
        if len(of_student) != len(of_teacher) or len(of_student) < 2:
            raise ValueError(
                f"FSP compares what happens between taps: it takes two or more of each model and as many, "
                f"not {len(of_student)} and {len(of_teacher)}"
            )
        losses = []
        for mine, theirs in zip(pairwise(of_student), pairwise(of_teacher), strict=True):
            flow_of_student, flow_of_teacher = _flow(*mine), _flow(*theirs)
            check_same_shape(flow_of_student, flow_of_teacher)
            losses.append(F.mse_loss(flow_of_student, flow_of_teacher))
        return torch.stack(losses).sum()


def _flow(first: Tensor, second: Tensor) -> Tensor:
    check_map(first)
    check_map(second)
    first, second = pool_to_smaller(first, second)
    return first.flatten(2) @ second.flatten(2).mT / first[0, 0].numel()
