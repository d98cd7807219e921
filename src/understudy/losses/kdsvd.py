"""Knowledge distillation by singular vectors: the main directions of a layer, and how they go on to the next."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, without_autocast
from understudy.losses.functional import ShapeMismatch, gram

# How many more directions the student may choose from than the teacher gives.
_SPARE = 3
# A step's width of the Gaussian between two layers, 2σ².
_WIDTH = 8.0


class KDSVD(nn.Module):
    """The radial basis functions between the main directions of successive taps follow the teacher's.

    `Σ_pairs Σ (exp(-(v_s - v_s')² / 8) - exp(-(v_t - v_t')² / 8))² / N` over every entry of V and of V', the first
    `rank` right singular vectors of the H·W × C maps of a tap and of the next one, times the teacher's singular
    values (scaled to length 1). Those of the student are the ones nearest to the teacher's, with their signs. Tap by
    tap, student and teacher have the same number of channels; sizes are free.

    Reference: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018
    (https://arxiv.org/abs/1807.06819), section 3, by https://github.com/HobbitLong/RepDistiller (BSD-2). Two
    differences: we settle the teacher's signs, which a decomposition leaves open and the value depends on, so that
    the entries sum to 0 or more; and the gradient leaves out directions that are equally strong, where theirs is
    infinite.

    Args:
        rank: how many directions of the teacher are followed.
    """

    def __init__(self, *, rank: int = 1) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be 1 or more, not {rank}")
        self.rank = rank

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
        taps = paired_maps(student, teacher)
        if len(taps) < 2:
            raise ValueError("KDSVD compares what happens between taps: it takes two or more of each model")
        losses = []
        for taps_of_one, taps_of_next in pairwise([self._directions(*maps) for maps in taps]):
            flow_of_student, flow_of_teacher = (
                (-(after[:, :, None] - before[:, None]).square() / _WIDTH).exp()
                for before, after in zip(taps_of_one, taps_of_next, strict=True)
            )
            losses.append((flow_of_student - flow_of_teacher).square().sum() / len(flow_of_student))
        return torch.stack(losses).sum()

    def _directions(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if student.shape[1] != teacher.shape[1]:
            raise ShapeMismatch(
                f"the student has {student.shape[1]} channels where the teacher has {teacher.shape[1]}: "
                "tap equal ones, or add an adapter"
            )
        with torch.no_grad():
            of_teacher, strengths = _singular(teacher, self.rank)
            of_teacher = of_teacher * torch.where(of_teacher.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
            strengths = F.normalize(strengths, dim=1)[:, None]
        of_student, _ = _singular(student, self.rank + _SPARE)
        cosines = of_student.detach().mT @ of_teacher
        nearest = cosines.abs().argmax(dim=1, keepdim=True)
        sign = cosines.gather(1, nearest).sign()
        of_student = of_student.gather(2, nearest.expand(-1, of_student.shape[1], -1)) * sign
        return of_student * strengths, of_teacher * strengths


def _singular(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors (N, C, count) of (N, H·W, C), and their values (N, count)."""
    rows = maps.flatten(2)
    products = gram(rows)
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(products)
        values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
        count = min(count, *rows.shape[1:])
        gaps = values[:, None, :count] - values[:, :, None]
        negligible = gaps.abs() <= torch.finfo(gaps.dtype).eps * values.shape[1] * values[:, :1, None]
        inverse = torch.where(negligible, 0.0, 1 / torch.where(negligible, 1.0, gaps))
    first = vectors[:, :, :count]
    # Of the value 0, with the gradient that the vectors have: each turns towards the others by the change of the
    # Gram matrix between the two over the gap of their values.
    change = vectors.mT @ (products - products.detach()) @ first
    return first + vectors @ (inverse * change), values[:, :count].sqrt()
