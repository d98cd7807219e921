"""Variational information distillation: as much of the teacher's information as can be."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, pool_to_smaller, without_autocast
from understudy.losses.functional import prepared


class VID(nn.Module):
    """A Gaussian whose mean is regressed from the student's features explains the teacher's.

    `Σ_taps ½ mean [log σ_c² + (F_t - μ(F_s))² / σ_c²]`, with a learned variance `σ_c² = log(1 + exp a_c) + ε` for
    each channel of the teacher: a lower bound of the mutual information, but for a constant.

    Reference: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019
    (https://arxiv.org/abs/1904.05835); μ without batch norm and with the mean over all elements,
    as in https://github.com/HobbitLong/RepDistiller (BSD-2).

    Args:
        hidden: channels between the three 1×1 convolutions of μ; 0 takes as many as the teacher has.
        initial_variance: σ² at the start.
        epsilon: ε, the least variance.
    """

    def __init__(self, *, hidden: int = 0, initial_variance: float = 5.0, epsilon: float = 1e-5) -> None:
        super().__init__()
        if initial_variance <= epsilon:
            raise ValueError(f"initial_variance must be above epsilon, {epsilon}, not {initial_variance}")
        self.hidden = hidden
        self.initial_variance = initial_variance
        self.epsilon = epsilon
        self.gaussians: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make μ and σ for each pair of taps.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        self.gaussians = nn.ModuleList(
            _Gaussian(
                mine.shape[1],
                theirs.shape[1],
                hidden=self.hidden or theirs.shape[1],
                variance=self.initial_variance,
                epsilon=self.epsilon,
            ).to(mine)
            for mine, theirs in paired_maps(student, teacher)
        )

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, one or several; the larger of two sizes is average-pooled.
            teacher: as many; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        gaussians = prepared(self.gaussians)
        layers = zip(gaussians, paired_maps(student, teacher), strict=True)
        return torch.stack([gaussian(*pool_to_smaller(*maps)) for gaussian, maps in layers]).sum()


class _Gaussian(nn.Module):
    def __init__(self, student: int, teacher: int, *, hidden: int, variance: float, epsilon: float) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(student, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, teacher, 1, bias=False),
        )
        # The softplus of `raw` is the variance.
        self.raw = nn.Parameter(torch.full((teacher,), math.log(math.expm1(variance - epsilon))))
        self.epsilon = epsilon

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        variance = F.softplus(self.raw) + self.epsilon
        squared = (self.regressor(student) - teacher).square().mean(dim=(0, 2, 3))
        return (variance.log() + squared / variance).mean() / 2
