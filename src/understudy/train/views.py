"""What a step's batches look like to each model: the pixels are prepared once for each preprocessing."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from understudy.data import Batch, Preprocess


class Views:
    """A step's batches, by the name of their feed.

    Args:
        batches: one for each feed in use.
    """

    def __init__(self, batches: Mapping[str, Batch]) -> None:
        self.batches = batches
        self._prepared: dict[Any, Tensor] = {}

    def first(self, feed: str, preprocess: Preprocess) -> Tensor:
        """A batch's images as a model takes them."""
        return self._view(feed, preprocess, self.batches[feed].images, "first")

    def second(self, feed: str, preprocess: Preprocess) -> Tensor | None:
        """Their second view, where there is one."""
        pixels = self.batches[feed].second
        return None if pixels is None else self._view(feed, preprocess, pixels, "second")

    def _view(self, feed: str, preprocess: Preprocess, pixels: Tensor, which: str) -> Tensor:
        place = (feed, preprocess, which)
        if place not in self._prepared:
            self._prepared[place] = preprocess(pixels)
        return self._prepared[place]
