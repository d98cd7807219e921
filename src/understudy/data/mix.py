"""Mixup [1] and CutMix [2]: pairs inside the global batch, planned from the batch's key before sharding.

The plan is numbers only, so that every process can make its own share of the pairs, and one function makes
the pixels: a teacher and a student given its result see the same image.

References:
    [1] Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018,
        arXiv:1710.09412.
    [2] Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: regularization strategy to train strong classifiers with
        localizable features", ICCV 2019, arXiv:1905.04899, https://github.com/clovaai/CutMix-PyTorch.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.randomness import generator, key, permutation

_RATIO_BITS = 22  # 255 x 2^22 fits in int32


@dataclass(frozen=True)
class Mix:
    """How the samples of one global batch are paired.

    Args:
        partner: (size,) int64, for each sample the place of the one it is mixed with.
        ratio: share of a sample's own label, from 0 to 1.
        box: top, left, height and width in pixels of what CutMix takes from the partner; None for mixup.
    """

    partner: np.ndarray
    ratio: float
    box: tuple[int, int, int, int] | None = None

    @property
    def is_none(self) -> bool:
        """Whether it leaves the pixels as they are: the draw, or an empty box, gave the partner no share."""
        return round(self.ratio * 2**_RATIO_BITS) == 2**_RATIO_BITS


def plan(batch_key: int, size: int, *, mixup: float = 0.0, cutmix: float = 0.0, height: int, width: int) -> Mix:
    """Draw the partners and the ratio of one batch; when both methods are on, a coin toss picks one.

    Args:
        batch_key: key of the batch, from `randomness.key`.
        size: samples in the global batch.
        mixup: parameter of mixup's Beta(a, a) distribution; 0 switches it off.
        cutmix: the same for CutMix.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        The plan; with both parameters 0 every sample is its own partner.

    Raises:
        UserError: a negative parameter.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if not alpha >= 0:
            raise UserError(f"the parameter of the beta distribution is 0 (off) or more, not {alpha}", where=name)
    if mixup == 0 and cutmix == 0:
        return Mix(partner=np.arange(size), ratio=1.0)

    draws = generator(batch_key)
    partner = permutation(key("mix", "partner", batch_key), size)
    heads = draws.random() < 0.5
    if mixup > 0 and (cutmix == 0 or heads):
        return Mix(partner=partner, ratio=float(draws.beta(mixup, mixup)))

    ratio = float(draws.beta(cutmix, cutmix))
    row, column = int(draws.integers(height)), int(draws.integers(width))
    # Around a uniform centre and clipped at the border, as the authors do: the clipping changes the area.
    half_height = int(height * math.sqrt(1 - ratio)) // 2
    half_width = int(width * math.sqrt(1 - ratio)) // 2
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    area = (bottom - top) * (right - left)
    return Mix(
        partner=partner,
        ratio=1 - area / (height * width),
        box=(top, left, bottom - top, right - left),
    )


def mix_images(own: Tensor, partner: Tensor, mix: Mix) -> Tensor:
    """Mix images with those of their partners.

    Args:
        own: (N, C, H, W), uint8 or floating point; left as it is. N may be a shard of the global batch.
        partner: the same shape and type: the images at `mix.partner`.
        mix: the plan of the batch.

    Returns:
        The shape and type of `own`; mixed uint8 levels are rounded to the nearest.

    Raises:
        UserError: images of two shapes or types, or of integers other than uint8.
    """
    if own.shape != partner.shape or own.dtype != partner.dtype:
        raise UserError(
            f"images and partners differ: {own.dtype} {tuple(own.shape)} and {partner.dtype} {tuple(partner.shape)}"
        )
    if own.dtype != torch.uint8 and not own.is_floating_point():
        raise UserError(f"images to mix are uint8 or floating point, not {own.dtype}")

    if mix.box is not None:
        top, left, height, width = mix.box
        inside = (..., slice(top, top + height), slice(left, left + width))
        mixed = own.clone()
        mixed[inside] = partner[inside]
        return mixed
    if mix.is_none:
        return own.clone()
    if own.is_floating_point():
        # Two products and a sum: a fused form could round differently at the end of a buffer.
        return (own * mix.ratio).add_(partner * (1 - mix.ratio))
    share = round(mix.ratio * 2**_RATIO_BITS)
    weighted = own.to(torch.int32).mul_(share)
    weighted.add_(partner.to(torch.int32), alpha=2**_RATIO_BITS - share).add_(2 ** (_RATIO_BITS - 1))
    return weighted.bitwise_right_shift_(_RATIO_BITS).to(torch.uint8)


def mix_labels(own: Tensor, partner: Tensor, mix: Mix, classes: int) -> Tensor:
    """Mix labels with those of their partners into one soft label a sample.

    Args:
        own: (N,) int64 classes from 0 to `classes` - 1, or -1 for a sample without label.
        partner: (N,) int64, the labels at `mix.partner`.
        mix: the plan of the batch.
        classes: number of classes.

    Returns:
        (N, classes) float32 whose rows sum to 1. A row of zeros is an unlabelled sample: one whose own label
        or whose partner's label is -1.

    Raises:
        UserError: labels of two shapes, or that are not integers.
    """
    if own.shape != partner.shape or own.ndim != 1:
        raise UserError(f"labels and partners are vectors: {tuple(own.shape)} and {tuple(partner.shape)}")
    if own.dtype != torch.int64 or partner.dtype != torch.int64:
        raise UserError(f"labels to mix are int64 classes, not {own.dtype} and {partner.dtype}")

    labelled = ((own >= 0) & (partner >= 0)).to(torch.float32)
    soft = torch.zeros(len(own), classes, device=own.device)
    soft.scatter_add_(1, own.clamp(min=0).unsqueeze(1), (labelled * mix.ratio).unsqueeze(1))
    soft.scatter_add_(1, partner.clamp(min=0).unsqueeze(1), (labelled * (1 - mix.ratio)).unsqueeze(1))
    return soft
