"""What all families share: a model that is its layers in order, and the usual start of its convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class TappedSequential(nn.Sequential):
    """A model whose named layers run one after the other, and which knows the places that papers tap.

    Args:
        layers: the layers by name, in the order in which they run, the last giving logits (N, classes).
        tap_points: module paths of the tapped feature maps, shallow to deep; the last is the pooled
            embedding (N, D).
    """

    # The default lets `model[:3]` work: nn.Sequential rebuilds a slice from its layers alone.
    def __init__(self, layers: dict[str, nn.Module], tap_points: tuple[str, ...] = ()) -> None:
        super().__init__(OrderedDict(layers))
        self.tap_points = tap_points


def initialise_convolutions(model: nn.Module) -> None:
    """Draws every convolution from He's normal by fan-out, biases zero (BatchNorm starts at 1 and 0 anyway).

    Args:
        model: changed in place.
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
