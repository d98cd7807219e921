"""Noise that belongs to an image's number: the same whatever the batch, the device, or what was drawn before."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from understudy import randomness


def normal(parent: int, ids: Sequence[int] | np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers for numbered images.

    Two uniform numbers give two normal ones (Box and Muller, "A note on the generation of random normal deviates",
    1958).

    Args:
        parent: a key made by `randomness.key`.
        ids: (N,) numbers of the images.
        shape: of one image.

    Returns:
        (N, *shape) float32.
    """
    count = int(np.prod(shape))
    half = -(-count // 2)
    uniform = randomness.uniform(randomness.keys(parent, np.asarray(ids)), 2 * half)
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :half]))
    angle = 2 * np.pi * uniform[:, half:]
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]
    return torch.from_numpy(numbers.astype(np.float32)).reshape(-1, *shape)
