"""Weights that change with the epoch."""

import math
from dataclasses import dataclass
from typing import Literal


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
        shares = [epoch / epochs for epoch in range(epochs + 1)]
        if shape == "cosine":
            shares = [(1 - math.cos(math.pi * share)) / 2 for share in shares]
        if shape == "step":
            shares = [math.floor(share) for share in shares]
        return Schedule(tuple(start + (end - start) * share for share in shares))
