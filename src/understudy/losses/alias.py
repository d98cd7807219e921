"""Draws from any fixed distribution, all at once and on the device they are needed on."""

import torch
from torch import Tensor, nn


class AliasSampler(nn.Module):
    """Draws indices with given weights, each draw in constant time.

    Every index has a threshold and an alias: an index is drawn evenly, and kept with the probability of its
    threshold, else its alias is taken.

    Reference: Walker, "An Efficient Method for Generating Discrete Random Variables with General Distributions",
    ACM TOMS 1977 (https://doi.org/10.1145/355744.355749).

    Args:
        weights: (n,) how often each index comes, of any sum.
    """

    keep: Tensor
    alias: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        keep, alias = _tables(weights)
        self.register_buffer("keep", keep)
        self.register_buffer("alias", alias)

    def draw(self, *shape: int) -> Tensor:
        """Draw independent indices.

        Args:
            shape: of the result.

        Returns:
            int64 indices.
        """
        device = self.keep.device
        evenly = torch.randint(len(self.keep), shape, device=device)
        kept = torch.rand(shape, device=device) < self.keep[evenly]
        return torch.where(kept, evenly, self.alias[evenly])


def _tables(weights: Tensor) -> tuple[Tensor, Tensor]:
    # Plain numbers: the tables are filled one entry at a time, each from what the one before left.
    scaled = (weights.double() / weights.double().sum() * len(weights)).tolist()
    alias = [0] * len(scaled)
    small = [index for index, value in enumerate(scaled) if value < 1]
    large = [index for index, value in enumerate(scaled) if value >= 1]
    while small and large:
        short, long = small.pop(), large.pop()
        alias[short] = long
        scaled[long] = (scaled[long] - 1) + scaled[short]
        (small if scaled[long] < 1 else large).append(long)
    for index in small + large:  # 1 but for rounding
        scaled[index] = 1.0
    return torch.tensor(scaled, dtype=weights.dtype), torch.tensor(alias)
