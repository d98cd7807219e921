"""Draws numbered images from a network: image k is the same whichever others are drawn with it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from understudy import randomness
from understudy.tasks.diffusion.noise import normal
from understudy.tasks.diffusion.process import Model, Process
from understudy.tasks.diffusion.steps import Sampler, trajectory

# Images a forward. One size for all, the last padded, because outputs change in their last bits with it.
CHUNK = 100


def starting_noise(seed: int, ids: Sequence[int] | np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """The noise that images start from, the same for every model and number of steps.

    Args:
        seed: of the samples.
        ids: (N,) numbers of the images.
        shape: of one.
    """
    return normal(randomness.key("sample", seed), ids, shape)


def balanced(count: int, classes: int) -> Tensor:
    """Class numbers for `count` images, each as often as the others."""
    return torch.arange(count) % classes


@torch.no_grad()
def draw(
    model: Model,
    *,
    process: Process,
    shape: tuple[int, ...],
    count: int,
    steps: int,
    labels: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    sampler: Sampler = "ddim",
    variance: float = 1.0,
    device: torch.device | str = "cpu",
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Draw images.

    Args:
        model: called as `model(z, t, y)`.
        process: the schedule and the model's prediction.
        shape: of one image.
        count: how many.
        steps: from noise to image.
        labels: (count,) what each is conditioned on; None for an unconditional model.
        seed: of the noise.
        first: number of the first image.
        sampler: `ddim`, `noisy` or `consistency`.
        variance: of the noisy one.
        device: of the model.
        advance: called after each step of each chunk, for a progress bar.

    Returns:
        (count, *shape) on the CPU, in [-1, 1] but for what the model overshoots.
    """
    parts = []
    for places in _chunks(count):
        y = None if labels is None else labels[torch.from_numpy(places % count)].to(device)
        ids = places + first
        noise = starting_noise(seed, ids, shape).to(device)

        def fresh(step: int, ids: np.ndarray = ids) -> Tensor:
            return normal(randomness.key("sample", seed, sampler, steps, step), ids, shape).to(device)

        path = trajectory(model, noise, steps, y, process=process, sampler=sampler, variance=variance, draw=fresh)
        parts.append(deque(_told(path, advance), maxlen=1).pop().cpu())
    return torch.cat(parts)[:count]


def _told(path: Iterator[Tensor], advance: Callable[[], None]) -> Iterator[Tensor]:
    for images in path:
        advance()
        yield images


def _chunks(count: int) -> Iterator[np.ndarray]:
    size = min(CHUNK, count)
    for start in range(0, count, size):
        yield np.arange(start, start + size)


def forwards(count: int, steps: int) -> int:
    """How often `draw` calls `advance`."""
    return -(-count // min(CHUNK, count)) * steps
