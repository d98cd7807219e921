"""Weights that change while a student learns: by the epoch, or with the gradients."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """A weight that changes with the epoch.

    Args:
        values: one weight an epoch; the last one is kept.
    """

    values: tuple[float, ...]

    def at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        return self.values[min(epoch, len(self.values) - 1)]

    @staticmethod
    def ramp(
        start: float, end: float, epochs: int, shape: Literal["linear", "cosine", "step"] = "linear"
    ) -> "Schedule":
        """From `start` to `end`, which is reached after `epochs` epochs: gradually, or at once by a step."""
        share = np.arange(epochs + 1) / epochs
        if shape == "cosine":
            share = (1 - np.cos(np.pi * share)) / 2
        if shape == "step":
            share = np.floor(share)
        return Schedule(tuple((start + (end - start) * share).tolist()))


@dataclass(frozen=True)
class Share:
    """A weight that is set so that the objective holds a share of the gradient.

    Once an epoch the norms of all objectives' gradients are measured, and the weight becomes what gives this one the
    share `s`: `w = s / (1 - Σ s) · G / ‖g‖`, where g is its own gradient, G the weighted norms of those with fixed
    weights together, and Σ s the shares of all that are held. The values are recorded: given as a list of weights
    they replay the run.

    Args:
        value: between 0 and 1.
    """

    value: float
