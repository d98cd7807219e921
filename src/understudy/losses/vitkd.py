"""ViTKD: imitate the first blocks of a vision transformer, generate the last one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import check_same_shape, paired, prepared


class ViTKD(nn.Module):
    """Shallow tokens follow the teacher's; of the last block, tokens are masked and generated from the rest.

    With r linear layers where widths differ, M the masked tokens and G two 3×3 convolutions on the grid of tokens:
    `α Σ_shallow ‖r(F_s) - F_t‖² / N + β Σ_M ‖G(r(F_s) masked) - F_t‖² / (λ N)`.

    Reference: Yang, Li, Zeng, Li, Yuan, Li, "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation",
    2022 (https://arxiv.org/abs/2209.02432), equations 1 to 5; code https://github.com/yzd-v/cls_KD (Apache 2.0).
    As there the generation is divided by λ and not by the share that was masked. Class tokens at the front, up to
    three, are left out: as many as a square number of patches leaves over.

    Args:
        shallow: α.
        deep: β.
        ratio: λ, the share of the last block's tokens that is masked.
    """

    def __init__(self, *, shallow: float = 3e-5, deep: float = 3e-6, ratio: float = 0.5) -> None:
        super().__init__()
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, not {ratio}")
        self.shallow = shallow
        self.deep = deep
        self.ratio = ratio
        self.mask_token: nn.Parameter | None = None
        self.aligners: nn.ModuleList | None = None
        self.generator: nn.Sequential | None = None

    def prepare(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> None:
        """Make the linear layers, the generator and what stands for a masked token.

        Args:
            student: example tokens of the shallow blocks, then of the last one.
            teacher: likewise.
        """
        pairs = [(ours.shape[-1], theirs.shape[-1]) for ours, theirs in paired(student, teacher)]
        self.aligners = nn.ModuleList(
            nn.Identity() if width == wanted else nn.Linear(width, wanted) for width, wanted in pairs
        )
        wanted = pairs[-1][1]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, wanted))
        self.generator = nn.Sequential(
            nn.Conv2d(wanted, wanted, 3, padding=1), nn.ReLU(), nn.Conv2d(wanted, wanted, 3, padding=1)
        )
        self.to(student[0].device)

    @without_autocast
    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, L, D) tokens of the shallow blocks (the paper: the first two), then of the last one.
            teacher: as many of the same length, of any width; never a gradient.

        Returns:
            A scalar.
        """
        aligners = prepared(self.aligners)
        pairs = [
            (align(_patches(ours)), _patches(theirs))
            for (ours, theirs), align in zip(paired(student, teacher), aligners, strict=True)
        ]
        for ours, theirs in pairs:
            check_same_shape(ours, theirs)
        *shallow, (last, target) = pairs
        samples, length, width = last.shape
        imitation = sum((F.mse_loss(*pair, reduction="sum") for pair in shallow), start=last.new_zeros(()))

        # The tokens with the largest draws are masked.
        rank = torch.rand(samples, length, device=last.device).argsort(dim=1).argsort(dim=1)
        masked = (rank >= int(length * (1 - self.ratio)))[:, :, None]
        tokens = torch.where(masked, prepared(self.mask_token), last)
        side = math.isqrt(length)
        grid = tokens.mT.reshape(samples, width, side, side)
        generated = prepared(self.generator)(grid).flatten(2).mT
        generation = ((generated - target).square() * masked).sum()
        return (self.shallow * imitation + self.deep / self.ratio * generation) / samples


def _patches(tokens: Tensor) -> Tensor:
    """The tokens of a square of patches, without what stands before them."""
    if tokens.ndim != 3:
        raise ValueError(f"ViTKD compares the tokens (N, L, D) of two transformers, not {tuple(tokens.shape)}")
    extra = tokens.shape[1] - math.isqrt(tokens.shape[1]) ** 2
    if extra > 3:
        raise ValueError(f"{tokens.shape[1]} tokens are no square of patches with at most three tokens before them")
    return tokens[:, extra:]
