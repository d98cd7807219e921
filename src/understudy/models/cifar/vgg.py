"""VGG with BatchNorm (Simonyan and Zisserman, 2015), as in RepDistiller (Tian et al., 2020).

Five blocks of 3x3 convolutions with bias and one linear layer on the 512 pooled channels. The fourth block is
followed by a max-pooling only from 64 pixels on, so that a 32x32 image still has 4x4 places at the end.
Tensor names are those of RepDistiller's checkpoints.
"""

from __future__ import annotations

from torch import nn

from understudy.errors import UserError
from understudy.models.cifar.sequential import TappedSequential, initialise_convolutions

CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(*, depth: int, classes: int, shape: tuple[int, int, int] = (3, 32, 32)) -> TappedSequential:
    """Builds a VGG with BatchNorm.

    Args:
        depth: 8, 11, 13, 16 or 19, the name of the paper's model (or of its smallest descendant, 8).
        classes: number of logits.
        shape: (C, H, W) of an image.

    Returns:
        A model from (N, C, H, W) to logits (N, classes).

    Raises:
        UserError: if the depth is none of the five.
    """
    if depth not in CONVOLUTIONS:
        raise UserError(f"VGG has no depth {depth}: use 8, 11, 13, 16 or 19")
    counts = CONVOLUTIONS[depth]
    head = nn.Linear(512, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    model = TappedSequential(
        {
            "block0": _block(shape[0], 64, convolutions=counts[0]),
            "pool0": nn.MaxPool2d(2),
            "block1": _block(64, 128, convolutions=counts[1]),
            "pool1": nn.MaxPool2d(2),
            "block2": _block(128, 256, convolutions=counts[2]),
            "pool2": nn.MaxPool2d(2),
            "block3": _block(256, 512, convolutions=counts[3]),
            "pool3": nn.MaxPool2d(2) if shape[1] >= 64 else nn.Identity(),
            "block4": _block(512, 512, convolutions=counts[4]),
            "pool4": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "classifier": head,
        },
        tap_points=("block0", "block1", "block2", "block3", "block4", "flatten"),
    )
    initialise_convolutions(model)
    return model


def _block(in_channels: int, out_channels: int, *, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        channels = in_channels if index == 0 else out_channels
        layers += [
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
