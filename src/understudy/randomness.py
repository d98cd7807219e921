"""Every random draw is a function of what it is for, never of what was drawn before it.

A key is a 64-bit hash of (seed, stream, epoch, sample or step). The same key gives the same numbers whichever
worker, arm or resumed process asks, so no generator state is ever saved, and a whole batch is drawn at once:
counter hashes over arrays, not one generator per sample.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), applied to a running state; it passes the tests in `tests/test_randomness.py`.
"""

import hashlib
from operator import index

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def key(*parts: int | str) -> int:
    """One 64-bit key for a draw, from what the draw is for.

    Args:
        parts: integers and words in a fixed order, for instance `(seed, "order", epoch)`. An integer counts
            by its value: NumPy's 3 is Python's 3, or a step read from an array would draw other numbers.

    Raises:
        TypeError: a part that is neither (1.0 and 1 would be two keys for one thing).
    """
    text = "\x1f".join(f"str:{part}" if isinstance(part, str) else f"int:{int(index(part))}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def keys(parent: int, ids: np.ndarray) -> np.ndarray:
    """One key for each id under a parent key.

    Args:
        parent: a key made by `key`.
        ids: integers, any shape.

    Returns:
        uint64 array of the shape of `ids`.
    """
    with np.errstate(over="ignore"):
        return _mix(_mix(ids.astype(np.uint64) * _GOLDEN + np.uint64(parent)) + _GOLDEN)


def uniform(sample_keys: np.ndarray, count: int = 1) -> np.ndarray:
    """Uniform numbers in [0, 1), `count` for each key.

    Args:
        sample_keys: (N,) uint64 keys.
        count: how many numbers a key gives.

    Returns:
        (N, count) float64.
    """
    with np.errstate(over="ignore"):
        counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(_mix(sample_keys[:, None] + counters[None, :]))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(parent: int, count: int) -> np.ndarray:
    """A random order of `count` things: the ids sorted by their keys.

    Returns:
        (count,) int64 holding every number below `count` once.
    """
    return np.argsort(keys(parent, np.arange(count)), kind="stable")


def generator(parent: int) -> np.random.Generator:
    """A NumPy generator for draws that are not uniform (beta, normal) and happen once a batch."""
    return np.random.default_rng(parent)


def seed_torch(parent: int) -> None:
    """Set torch's global generators from a key: what dropout and other layers draw from.

    The CPU generator is set directly because `torch.manual_seed` costs 80 times more (it visits every
    backend), which a step of a small student would feel. It keeps only the low 32 bits of a seed: among
    100,000 steps one pair can be expected to share its masks, which does no harm.
    """
    seed = int(parent) & 0x7FFF_FFFF_FFFF_FFFF
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # else nothing has been drawn there
        torch.cuda.manual_seed_all(seed)
