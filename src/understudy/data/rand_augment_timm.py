"""RandAugment as timm has it, and with it DeiT: `rand-m9-mstd0.5-inc1` is magnitude 9, std 0.5, two operations.

Fifteen operations, all of which grow with the magnitude; each that is drawn is applied with probability 1/2, and what
a geometric one leaves empty is filled with ImageNet's mean colour [1]. Geometric operations read the nearest pixel
where timm interpolates.

References:
    [1] Wightman, "PyTorch Image Models", 2019, https://github.com/huggingface/pytorch-image-models (Apache-2.0),
        `timm/data/auto_augment.py`.
    [2] Cubuk, Zoph, Shlens and Le, "RandAugment: practical automated data augmentation with a reduced search
        space", CVPR Workshops 2020, arXiv:1909.13719.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from understudy.data import rand_augment
from understudy.data.rand_augment import Operation

PROBABILITY = 0.5
_MEAN_COLOUR = (124, 116, 104)
_MEAN_GREY = 118
_WEAKEST_FACTOR = 0.1


def invert(images: Tensor) -> Tensor:
    """Turn each level into its distance from white.

    Args:
        images: (N, C, H, W) uint8.
    """
    return 255 - images


def solarize_add(images: Tensor, additions: np.ndarray) -> Tensor:
    """Brighten the darker half of the levels.

    Args:
        images: (N, C, H, W) uint8.
        additions: (N,) whole levels from 0 to 127.
    """
    add = torch.from_numpy(additions.astype(np.uint8)).to(images.device).view(-1, 1, 1, 1)
    return torch.where(images < 128, images + add, images)  # at most 127 + 127: no overflow


def _filled(move: Callable[[Tensor, np.ndarray], Tensor]) -> Callable[[Tensor, np.ndarray], Tensor]:
    """A geometric operation that fills with the mean colour instead of 0."""

    def apply(images: Tensor, values: np.ndarray) -> Tensor:
        colour = _MEAN_COLOUR if images.shape[1] == 3 else (_MEAN_GREY,)
        fill = images.new_tensor(colour).view(1, -1, 1, 1)
        # Levels are moved, not computed with: taking the colour off and adding it again, modulo 256, changes only
        # the zeros that come in from outside.
        return move(images - fill, values) + fill

    return apply


def _geometric(move: Callable[[Tensor, np.ndarray], Tensor], largest: float, of: str = "") -> Operation:
    """An operation whose value is a share of the image's `of`, or a plain number."""

    def value(strength: np.ndarray, height: int, width: int) -> np.ndarray:
        return largest * strength * {"": 1, "height": height, "width": width}[of]

    return Operation(_filled(move), value, signed=True)


def _enhancing(blend: Callable[[Tensor, np.ndarray], Tensor]) -> Operation:
    return Operation(
        lambda images, factors: blend(images, np.maximum(factors, _WEAKEST_FACTOR)),
        lambda strength, height, width: 0.9 * strength,
        signed=True,
        base=1.0,
    )


def _whole(most: int) -> Callable[[np.ndarray, int, int], np.ndarray]:
    """A share of a number of levels or bits, cut to whole ones."""
    return lambda strength, height, width: np.trunc(strength * most)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": Operation(lambda images, values: rand_augment.auto_contrast(images)),
    "equalize": Operation(lambda images, values: rand_augment.equalize(images)),
    "invert": Operation(lambda images, values: invert(images)),
    "rotate": _geometric(rand_augment.rotate, 30.0),
    "posterize": Operation(lambda images, cut: rand_augment.posterize(images, 4 - cut), _whole(4)),
    "solarize": Operation(lambda images, below: rand_augment.solarize(images, 256 - below), _whole(256)),
    "solarize_add": Operation(solarize_add, _whole(110)),
    "color": _enhancing(rand_augment.color),
    "contrast": _enhancing(rand_augment.contrast),
    "brightness": _enhancing(rand_augment.brightness),
    "sharpness": _enhancing(rand_augment.sharpness),
    "shear_x": _geometric(rand_augment.shear_x, 0.3),
    "shear_y": _geometric(rand_augment.shear_y, 0.3),
    "translate_x": _geometric(rand_augment.translate_x, 0.45, of="width"),
    "translate_y": _geometric(rand_augment.translate_y, 0.45, of="height"),
}
