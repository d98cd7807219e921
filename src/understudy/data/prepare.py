"""From pixels to what a network takes: each model has its own size and normalisation, the pixels are shared."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its input.

    Args:
        size: height and width in pixels; None keeps the images' own.
        mean: per channel, in [0, 1]; None leaves the values there.
        std: per channel; comes with mean.
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare a batch.

        Args:
            images: (N, C, H, W) uint8, or float that is already in the scale of the mean.

        Returns:
            float32 of the model's size.
        """
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        elif images.dtype != torch.float32:
            images = images.float()
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        if self.mean is None or self.std is None:
            return images
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return images.sub(mean).div_(std)


@dataclass(frozen=True)
class ChannelsLast(Preprocess):
    """The same, with the channels of each pixel side by side in memory."""

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare a batch; see `Preprocess`."""
        return channels_last(super().__call__(images))


def channels_last(inputs: Tensor) -> Tensor:
    """Images as most convolutions are fastest on; anything else as it is.

    Args:
        inputs: (N, C, H, W), or of another rank.
    """
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs
