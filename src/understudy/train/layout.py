"""How a network's images lie in memory: convolutions are faster where the channels come last."""

from collections.abc import Iterable
from dataclasses import astuple

import torch
from torch import Tensor, nn

from understudy.data import Preprocess
from understudy.data.prepare import ChannelsLast, channels_last
from understudy.distill.taps import evaluating


def laid_out(preprocess: Preprocess, networks: Iterable[nn.Module], example: Tensor, *, half: bool) -> Preprocess:
    """The preprocessing that has the channels last, where that is faster and all networks take it.

    On a processor it is (benchmarks/RESULTS.md); a GPU's tensor cores want it of half precision.

    Args:
        preprocess: how they want their input.
        networks: that see it.
        example: (N, C, H, W) a small batch of it.
        half: whether they are trained in bf16 or fp16.
    """
    networks = list(networks)
    convolve = any(isinstance(part, nn.Conv2d) for network in networks for part in network.modules())
    if not convolve or not (half or example.device.type == "cpu"):
        return preprocess
    return ChannelsLast(*astuple(preprocess)) if all(_takes(each, example) for each in networks) else preprocess


@torch.no_grad()
def _takes(network: nn.Module, example: Tensor) -> bool:
    """Whether a network can do with channels last: one that calls `view` on its maps cannot."""
    try:
        with evaluating(network):
            network(channels_last(example))
    except Exception:  # whatever it is: without it is as right
        return False
    return True
