"""Wide residual networks (Zagoruyko and Komodakis, 2016), as in RepDistiller (Tian et al., 2020).

Pre-activation blocks in three stages, depth 6n+4, no dropout; wrn-40-2 is depth 40, width 2. The tapped maps
are the sums that leave a stage, before the next BatchNorm. Tensor names are those of RepDistiller's
checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn

from understudy.errors import UserError
from understudy.models.cifar.sequential import TappedSequential, initialise_convolutions


def wide_resnet(*, depth: int, width: int, classes: int, shape: tuple[int, int, int] = (3, 32, 32)) -> TappedSequential:
    """Builds a WideResNet with stages of 16, 32 and 64 times `width` channels.

    Args:
        depth: layers with weights, 6n+4.
        width: the factor on the channels of the three stages.
        classes: number of logits.
        shape: (C, H, W) of an image.

    Returns:
        A model from (N, C, H, W) to logits (N, classes).

    Raises:
        UserError: if the depth is not 6n+4.
    """
    if depth < 10 or (depth - 4) % 6:
        lower = max(depth - (depth - 4) % 6, 10)
        raise UserError(f"a WideResNet has depth 6n+4, not {depth}: use depth {lower} or {lower + 6}")
    blocks = (depth - 4) // 6
    widths = (16 * width, 32 * width, 64 * width)
    head = nn.Linear(widths[2], classes)
    nn.init.zeros_(head.bias)
    model = TappedSequential(
        {
            "conv1": nn.Conv2d(shape[0], 16, kernel_size=3, padding=1, bias=False),
            "block1": _stage(16, widths[0], blocks=blocks, stride=1),
            "block2": _stage(widths[0], widths[1], blocks=blocks, stride=2),
            "block3": _stage(widths[1], widths[2], blocks=blocks, stride=2),
            "bn1": nn.BatchNorm2d(widths[2]),
            "relu": nn.ReLU(),
            "avgpool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": head,
        },
        tap_points=("conv1", "block1", "block2", "block3", "flatten"),
    )
    initialise_convolutions(model)
    return model


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, and a shortcut around both.

    Args:
        in_channels: channels of the input (N, in_channels, H, W).
        out_channels: channels of the output (N, out_channels, H / stride, W / stride).
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.convShortcut = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to the sum of shortcut and residual, without a ReLU after it."""
        activated = self.relu1(self.bn1(features))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        # A shortcut that changes shape starts after the first activation, the identity before it.
        shortcut = features if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + residual


def _stage(in_channels: int, out_channels: int, *, blocks: int, stride: int) -> nn.Module:
    first = PreActivationBlock(in_channels, out_channels, stride=stride)
    rest = [PreActivationBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1)]
    # The extra level is only a name: "block1.layer.0" as in the checkpoints.
    return TappedSequential({"layer": nn.Sequential(first, *rest)})
