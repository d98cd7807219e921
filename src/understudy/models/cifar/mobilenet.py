"""MobileNetV2 (Sandler et al., 2018) for 32x32 images, as in RepDistiller (Tian et al., 2020).

A stem of stride 2, seven groups of inverted residuals of which the third, fourth and sixth halve the size,
and a last 1x1 convolution to 1280 channels. The papers' student has width 0.5, and ReLU where the original
has ReLU6. Tensor names are those of RepDistiller's checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn

from understudy.errors import UserError
from understudy.models.cifar.sequential import TappedSequential, initialise_convolutions

# Channels at width 1, number of blocks, stride of the first; the first group is never expanded.
GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def mobilenet_v2(
    *, width: float, expansion: int, classes: int, shape: tuple[int, int, int] = (3, 32, 32)
) -> TappedSequential:
    """Builds a MobileNetV2 for small images.

    Args:
        width: the factor on all channels; the last convolution keeps at least 1280.
        expansion: how many times wider a block is inside than outside, 6 in the papers.
        classes: number of logits.
        shape: (C, H, W) of an image.

    Returns:
        A model from (N, C, H, W) to logits (N, classes).

    Raises:
        UserError: if width or expansion leave no channels.
    """
    if int(16 * width) < 1 or expansion < 1:
        raise UserError(f"MobileNetV2 cannot have width {width}, expansion {expansion}: use 0.5 and 6, as papers do")
    stem = int(32 * width)
    last = int(1280 * max(width, 1.0))
    groups: list[nn.Module] = []
    in_channels = stem
    for index, (channels, blocks, stride) in enumerate(GROUPS):
        out_channels = int(channels * width)
        factor = 1 if index == 0 else expansion
        first = InvertedResidual(in_channels, out_channels, stride=stride, expansion=factor)
        rest = [InvertedResidual(out_channels, out_channels, stride=1, expansion=factor) for _ in range(blocks - 1)]
        groups.append(nn.Sequential(first, *rest))
        in_channels = out_channels
    head = nn.Linear(last, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    model = TappedSequential(
        {
            "conv1": nn.Sequential(
                nn.Conv2d(shape[0], stem, kernel_size=3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(stem),
                nn.ReLU(),
            ),
            "blocks": nn.Sequential(*groups),
            "conv2": nn.Sequential(
                nn.Conv2d(in_channels, last, kernel_size=1, bias=False), nn.BatchNorm2d(last), nn.ReLU()
            ),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            # Alone in a sequence only for its name in the checkpoints, "classifier.0".
            "classifier": nn.Sequential(head),
        },
        tap_points=("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6", "flatten"),
    )
    initialise_convolutions(model)
    return model


class InvertedResidual(nn.Module):
    """A block wide inside and narrow outside: (N, in_channels, H, W) to (N, out_channels, H', W').

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, which has no activation.
        stride: stride of the depthwise convolution; the input is added only at stride 1 and equal channels.
        expansion: channels inside for each channel of the input.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.adds_input = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, inner, kernel_size=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, out_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to the block's linear output."""
        hidden = self.conv(features)
        return features + hidden if self.adds_input else hidden
