"""Repeated augmentation: an epoch holds each of its samples several times, every time as another view.

References:
    [1] Hoffer, Ben-Nun, Hubara, Giladi, Hoefler and Soudry, "Augment your batch: improving generalization through
        instance repetition", CVPR 2020, arXiv:1901.09335.
    [2] Berman, Jégou, Vedaldi, Kokkinos and Douze, "MultiGrain: a unified image embedding for classes and
        instances", 2019, arXiv:1902.05509.
    [3] Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
        arXiv:2012.12877, whose sampler `deit_order` reproduces.
"""

import math

import numpy as np
import torch

from understudy.errors import UserError

# An epoch is cut to a multiple of this many samples, as in [3].
ROUND = 256


def repeat(order: np.ndarray, repeats: float, *, replicas: int = 1, rank: int = 0) -> np.ndarray:
    """The places of an epoch in which each sample comes several times in a row; so an epoch sees fewer samples.

    The epoch is as long as one without repeats, cut to a multiple of 256. Process r of R takes every R-th place from
    r on, so that a step of all processes together is a stretch of the list of one process, and the copies of a
    sample fall on different processes.

    Args:
        order: (n,) the samples in the order of the epoch.
        repeats: how often each comes; 2.5 alternates between three times and twice.
        replicas: number of processes R.
        rank: of this one, r.

    Returns:
        (epoch_length(n, replicas),) int64 places in `order`; where n is below 256 nothing is cut.

    Raises:
        UserError: fewer than one repeat.
    """
    if repeats < 1:
        raise UserError(f"every sample comes at least once: repeats is 1 or more, not {repeats:g}")
    repeated = math.ceil(len(order) * repeats)
    places = rank + replicas * np.arange(epoch_length(len(order), replicas))
    # Where the processes do not share the repeated list evenly, its start follows its end.
    return (places % repeated // repeats).astype(np.int64)


def epoch_length(samples: int, replicas: int = 1) -> int:
    """How many places of an epoch each process takes.

    Args:
        samples: of the data set. Fewer than 256 are all kept; DeiT's own sampler then gives an empty epoch.
        replicas: number of processes.
    """
    if samples < ROUND:
        return math.ceil(samples / replicas)
    return samples // ROUND * ROUND // replicas


def deit_order(
    samples: int, epoch: int, *, repeats: float = 3, replicas: int = 1, rank: int = 0, shuffle: bool = True
) -> np.ndarray:
    """The sample numbers of an epoch exactly as DeiT's `RASampler` gives them, on any number of processes.

    Its order depends on the epoch alone, so that all runs share it; a run of ours uses `repeat` on its own order.

    Args:
        samples: of the data set.
        epoch: counted from 0; seeds the order.
        repeats: how often a sample comes.
        replicas: number of processes.
        rank: of this one.
        shuffle: False for the order of the data set.

    Returns:
        int64 sample numbers.
    """
    order = torch.arange(samples)
    if shuffle:
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))
    return order.numpy()[repeat(order.numpy(), repeats, replicas=replicas, rank=rank)]
