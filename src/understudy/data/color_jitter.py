"""Random brightness, contrast and saturation of uint8 batches, each view a function of its sample's key.

Reference: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks",
NeurIPS 2012, changed the colours of training images first; these three factors in random order are torchvision's
`ColorJitter`.
"""

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from understudy.data.rand_augment import brightness, color, contrast
from understudy.errors import UserError
from understudy.randomness import uniform

_ENHANCING = (brightness, contrast, color)
_ORDERS = np.array(list(permutations(range(len(_ENHANCING)))))


def color_jitter(images: Tensor, sample_keys: np.ndarray, *, strength: float) -> Tensor:
    """Scale brightness, contrast and saturation by factors of their own, in an order of each sample's own.

    Args:
        images: (N, C, H, W) uint8 with 1 or 3 channels; left as it is.
        sample_keys: (N,) uint64, one key for each view.
        strength: factors are even between `max(0, 1 - strength)` and `1 + strength`.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        UserError: another number of channels, or a negative strength.
    """
    if images.shape[1] not in (1, 3):
        raise UserError(f"colour jitter needs images of 1 or 3 channels, not {images.shape[1]}; leave it out")
    if strength < 0:
        raise UserError(f"the strength of colour jitter is 0 or more, not {strength}")
    draws = uniform(sample_keys, 1 + len(_ENHANCING))
    low = max(0.0, 1 - strength)
    factors = low + draws[:, 1:] * (1 + strength - low)
    orders = _ORDERS[(draws[:, 0] * len(_ORDERS)).astype(np.int64)]
    views = images.clone()
    for chosen in orders.T:
        for number, enhance in enumerate(_ENHANCING):
            members = np.flatnonzero(chosen == number)
            if not len(members):
                continue
            where = torch.from_numpy(members).to(images.device)
            views.index_copy_(0, where, enhance(views[where], factors[members, number]))
    return views
