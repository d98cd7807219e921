"""ResNets for 32x32 images (He, Zhang, Ren and Sun, 2016), as in RepDistiller (Tian et al., 2020).

The basic family has a stem and three stages of n blocks, depth 6n+2, all shortcuts that change shape being a
1x1 convolution with BatchNorm. The bottleneck family is the ImageNet one with a 3x3 stem and no max-pooling.
Tensor names are those of RepDistiller's checkpoints.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from understudy.errors import UserError
from understudy.models.cifar.sequential import TappedSequential, initialise_convolutions

BOTTLENECK_STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(
    *, depth: int, widths: tuple[int, ...], classes: int, shape: tuple[int, int, int] = (3, 32, 32)
) -> TappedSequential:
    """Builds a CIFAR ResNet of basic blocks: resnet20 is depth 20, widths (16, 16, 32, 64).

    Args:
        depth: layers with weights, 6n+2; a third of 6n for each stage.
        widths: channels of the stem and of the three stages.
        classes: number of logits.
        shape: (C, H, W) of an image.

    Returns:
        A model from (N, C, H, W) to logits (N, classes).

    Raises:
        UserError: if the depth is not 6n+2, or there are not four widths.
    """
    if depth < 8 or (depth - 2) % 6:
        lower = max(depth - (depth - 2) % 6, 8)
        raise UserError(f"a CIFAR ResNet has depth 6n+2, not {depth}: use depth {lower} or {lower + 6}")
    if len(widths) != 4:
        raise UserError(f"a CIFAR ResNet has 4 widths, stem and 3 stages, not {len(widths)}: like (16, 16, 32, 64)")
    blocks = (depth - 2) // 6
    stem, *stages = widths
    model = TappedSequential(
        {
            "conv1": nn.Conv2d(shape[0], stem, kernel_size=3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(stem),
            "relu": nn.ReLU(),
            "layer1": _stage(BasicBlock, stem, stages[0], blocks=blocks, stride=1),
            "layer2": _stage(BasicBlock, stages[0], stages[1], blocks=blocks, stride=2),
            "layer3": _stage(BasicBlock, stages[1], stages[2], blocks=blocks, stride=2),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(stages[2], classes),
        },
        tap_points=("relu", "layer1", "layer2", "layer3", "flatten"),
    )
    initialise_convolutions(model)
    return model


def bottleneck_resnet(*, depth: int, classes: int, shape: tuple[int, int, int] = (3, 32, 32)) -> TappedSequential:
    """Builds a CIFAR ResNet of bottleneck blocks, the ResNet50 of the papers' teacher-student pairs.

    Args:
        depth: 50, 101 or 152.
        classes: number of logits.
        shape: (C, H, W) of an image.

    Returns:
        A model from (N, C, H, W) to logits (N, classes).

    Raises:
        UserError: if the depth is none of the three.
    """
    if depth not in BOTTLENECK_STAGES:
        raise UserError(f"a bottleneck ResNet has no depth {depth}: use 50, 101 or 152")
    blocks = BOTTLENECK_STAGES[depth]
    model = TappedSequential(
        {
            "conv1": nn.Conv2d(shape[0], 64, kernel_size=3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(64),
            "relu": nn.ReLU(),
            "layer1": _stage(Bottleneck, 64, 64, blocks=blocks[0], stride=1),
            "layer2": _stage(Bottleneck, 256, 128, blocks=blocks[1], stride=2),
            "layer3": _stage(Bottleneck, 512, 256, blocks=blocks[2], stride=2),
            "layer4": _stage(Bottleneck, 1024, 512, blocks=blocks[3], stride=2),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(2048, classes),
        },
        tap_points=("relu", "layer1", "layer2", "layer3", "layer4", "flatten"),
    )
    initialise_convolutions(model)
    return model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in_channels, H, W) to (N, width, H / stride, W / stride).

    Args:
        in_channels: channels of the input.
        width: channels of the output.
        stride: stride of the first convolution and of the shortcut.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.downsample = _shortcut(in_channels, width, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to the block's output after its last ReLU."""
        hidden = self.relu1(self.bn1(self.conv1(features)))
        return self.relu2(self.bn2(self.conv2(hidden)) + self.downsample(features))


class Bottleneck(nn.Module):
    """A 1x1, 3x3, 1x1 block: (N, in_channels, H, W) to (N, 4 width, H / stride, W / stride).

    Args:
        in_channels: channels of the input.
        width: channels of the inner convolutions.
        stride: stride of the 3x3 convolution and of the shortcut.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU()
        self.shortcut = _shortcut(in_channels, out_channels, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to the block's output after its last ReLU."""
        hidden = self.relu1(self.bn1(self.conv1(features)))
        hidden = self.relu2(self.bn2(self.conv2(hidden)))
        return self.relu3(self.bn3(self.conv3(hidden)) + self.shortcut(features))


def _shortcut(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, *, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride=stride)
    rest = [block(width * block.expansion, width, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
