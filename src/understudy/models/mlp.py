"""Multilayer perceptrons, such as the 784-1200-1200-10 teacher of the first distillation articles."""

from collections import OrderedDict
from math import prod

from torch import nn


def mlp(*, classes: int, shape: tuple[int, int, int], hidden: tuple[int, ...], dropout: float = 0.0) -> nn.Sequential:
    """Build linear layers with ReLU between them, a plain `nn.Sequential` with named layers.

    Args:
        classes: number of logits.
        shape: (C, H, W) of one image.
        hidden: widths of the hidden layers.
        dropout: probability of dropping a hidden value; at 0 there are no dropout layers.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = prod(shape)
    for index, units in enumerate(hidden, start=1):
        layers[f"fc{index}"] = nn.Linear(width, units)
        layers[f"relu{index}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
        width = units
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(width, classes)
    return nn.Sequential(layers)
