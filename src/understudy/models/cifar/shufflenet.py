"""ShuffleNet (Zhang et al., 2018) and ShuffleNetV2 (Ma et al., 2018), as in RepDistiller (Tian et al., 2020).

For 32x32 images the stem is a 1x1 convolution to 24 channels without pooling, and three stages halve the
size. Convolutions keep torch's default start, as there: the papers' figures were made with it. Tensor names
are those of RepDistiller's checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.models.cifar.sequential import TappedSequential

STEM = 24


def shufflenet_v1(
    *,
    groups: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    classes: int,
    shape: tuple[int, int, int] = (3, 32, 32),
) -> TappedSequential:
    """Builds a ShuffleNet: the papers' ShuffleV1 has 3 groups, widths (240, 480, 960), blocks (4, 8, 4).

    Args:
        groups: groups of the 1x1 convolutions.
        widths: channels that leave each of the three stages.
        blocks: blocks of each of the three stages.
        classes: number of logits.
        shape: (C, H, W) of an image.

    Returns:
        A model from (N, C, H, W) to logits (N, classes).

    Raises:
        UserError: if there are not three widths and numbers of blocks, or the groups do not divide them.
    """
    if len(widths) != 3 or len(blocks) != 3:
        raise UserError("ShuffleNet has three stages: use widths like (240, 480, 960), blocks like (4, 8, 4)")
    in_channels = (STEM, *widths)
    stages = []
    for before, width, count in zip(in_channels, widths, blocks, strict=False):
        # The stem is too narrow for groups: its first convolution sees all channels.
        first_groups = 1 if before == STEM else groups
        inner = ((width - before) // 4, width // 4)
        if any(channels % groups for channels in (width, width - before, *inner)):
            raise UserError(f"{groups} groups do not divide ShuffleNet's widths {widths}: use 3 and (240, 480, 960)")
        first = ShuffleUnit(before, width - before, stride=2, groups=groups, first_groups=first_groups)
        rest = [ShuffleUnit(width, width, stride=1, groups=groups, first_groups=groups) for _ in range(count - 1)]
        stages.append(nn.Sequential(first, *rest))
    return TappedSequential(
        {
            "conv1": nn.Conv2d(shape[0], STEM, kernel_size=1, bias=False),
            "bn1": nn.BatchNorm2d(STEM),
            "relu": nn.ReLU(),
            "layer1": stages[0],
            "layer2": stages[1],
            "layer3": stages[2],
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(widths[2], classes),
        },
        tap_points=("relu", "layer1", "layer2", "layer3", "flatten"),
    )


def shufflenet_v2(
    *,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    classes: int,
    shape: tuple[int, int, int] = (3, 32, 32),
) -> TappedSequential:
    """Builds a ShuffleNetV2: the papers' ShuffleV2 has widths (116, 232, 464, 1024), blocks (4, 8, 4).

    Args:
        widths: channels that leave each of the three stages (even), then of the last convolution.
        blocks: blocks of each of the three stages, the one that halves the size included.
        classes: number of logits.
        shape: (C, H, W) of an image.

    Returns:
        A model from (N, C, H, W) to logits (N, classes).

    Raises:
        UserError: if there are not four widths, the first three even, and three numbers of blocks.
    """
    if len(widths) != 4 or len(blocks) != 3 or any(width % 2 for width in widths[:3]):
        raise UserError(
            "ShuffleNetV2 has three even widths and a last one: use (116, 232, 464, 1024), blocks (4, 8, 4)"
        )
    in_channels = (STEM, *widths)
    stages = []
    for before, width, count in zip(in_channels, widths[:3], blocks, strict=False):
        rest = [SplitUnit(width) for _ in range(count - 1)]
        stages.append(nn.Sequential(DownUnit(before, width), *rest))
    return TappedSequential(
        {
            "conv1": nn.Conv2d(shape[0], STEM, kernel_size=1, bias=False),
            "bn1": nn.BatchNorm2d(STEM),
            "relu1": nn.ReLU(),
            "layer1": stages[0],
            "layer2": stages[1],
            "layer3": stages[2],
            "conv2": nn.Conv2d(widths[2], widths[3], kernel_size=1, bias=False),
            "bn2": nn.BatchNorm2d(widths[3]),
            "relu2": nn.ReLU(),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(widths[3], classes),
        },
        tap_points=("relu1", "layer1", "layer2", "layer3", "flatten"),
    )


class ShuffleUnit(nn.Module):
    """ShuffleNet's unit: at stride 1 the input is added, at stride 2 its average pooling is concatenated.

    Args:
        in_channels: channels of the input (N, in_channels, H, W).
        out_channels: channels that the unit computes; at stride 2 the output has in_channels more.
        stride: stride of the depthwise convolution, 1 or 2.
        groups: groups of the last 1x1 convolution.
        first_groups: groups of the first 1x1 convolution and of the shuffle after it.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, kernel_size=1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.shuffle1 = nn.ChannelShuffle(first_groups)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, out_channels, kernel_size=1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to the unit's output after its last ReLU."""
        hidden = self.shuffle1(self.relu1(self.bn1(self.conv1(features))))
        hidden = self.relu2(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        if self.shortcut is None:
            return self.relu3(hidden + features)
        return self.relu3(torch.cat((hidden, self.shortcut(features)), dim=1))


class SplitUnit(nn.Module):
    """ShuffleNetV2's unit of stride 1: half of the channels pass unchanged, then all are shuffled.

    Args:
        channels: channels of input and output (N, channels, H, W), even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, kernel_size=3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, channels, H, W) to the same shape."""
        passed, changed = features.chunk(2, dim=1)
        hidden = self.relu1(self.bn1(self.conv1(changed)))
        hidden = self.bn2(self.conv2(hidden))
        hidden = self.relu3(self.bn3(self.conv3(hidden)))
        return self.shuffle(torch.cat((passed, hidden), dim=1))


class DownUnit(nn.Module):
    """ShuffleNetV2's unit of stride 2: two branches see all channels and give half of the output each.

    Args:
        in_channels: channels of the input (N, in_channels, H, W).
        out_channels: channels of the output (N, out_channels, H / 2, W / 2), even.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(
            in_channels, in_channels, kernel_size=3, stride=2, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(in_channels, half, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, kernel_size=3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, kernel_size=1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / 2, W / 2)."""
        left = self.bn1(self.conv1(features))
        left = self.relu2(self.bn2(self.conv2(left)))
        right = self.relu3(self.bn3(self.conv3(features)))
        right = self.bn4(self.conv4(right))
        right = self.relu5(self.bn5(self.conv5(right)))
        return self.shuffle(torch.cat((left, right), dim=1))
