"""How large a network of timm or torchvision is, by its name alone: nothing is downloaded, no weights are made."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.models.build import extra
from understudy.recipe.schema import Machine
from understudy.train.machine import device

# Images a forward while timing: what fills a graphics processor, and what keeps the cores of others busy.
_BATCH = {"cuda": 256}
_OTHER_BATCH = 16


@dataclass(frozen=True)
class Size:
    """The columns of DeiT's table 1.

    Args:
        parameters: of the network with its classifier.
        width: of a token, or of the features in front of the classifier.
        heads: of the first block's attention; None where it has no blocks.
        layers: number of blocks; None likewise.
        resolution: height and width of its images.
    """

    parameters: int
    width: int | None
    heads: int | None
    layers: int | None
    resolution: int


def describe(name: str) -> Size:
    """Read the sizes of a network.

    Args:
        name: `timm/NAME` or `torchvision/NAME`.
    """
    with torch.device("meta"):
        module = _made(name)
    blocks = getattr(module, "blocks", None)
    layers = list(blocks) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) else []
    attention = getattr(layers[0], "attn", None) if layers else None
    width = getattr(module, "embed_dim", None)
    return Size(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        width=width if isinstance(width, int) else getattr(module, "num_features", None),
        heads=getattr(attention, "num_heads", None),
        layers=len(layers) if attention is not None else None,
        resolution=_resolution(module),
    )


def images_per_second(name: str, resolution: int) -> float:
    """Throughput of a network with random weights on the best device.

    Args:
        name: as for `describe`.
        resolution: height and width of the images.
    """
    place = device(Machine())
    return throughput(_made(name).to(place), torch.randn(batch(place), 3, resolution, resolution, device=place))


def batch(place: torch.device) -> int:
    """How many images are timed at once on a device."""
    return _BATCH.get(place.type, _OTHER_BATCH)


@torch.inference_mode()
def throughput(module: nn.Module, images: Tensor, seconds: float = 2.0) -> float:
    """Images per second of a network: the median of several forwards in evaluation mode.

    Args:
        module: any classifier, on the device of the images.
        images: (N, C, H, W) as it takes them.
        seconds: how long to measure at least; three forwards at least.
    """
    module.eval()
    module(images)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        module(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return len(images) / statistics.median(times)


def where() -> str:
    """The device that throughput is measured on, in words."""
    place = device(Machine())
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{place.type} with {torch.get_num_threads()} threads"


def _made(name: str) -> Any:
    library, _, bare = name.partition("/")
    if library == "timm":
        return extra("timm", "vit").create_model(bare)
    from torchvision import models

    return models.get_model(bare)


def _resolution(module: Any) -> int:
    config = getattr(module, "pretrained_cfg", None) or {}
    size = config.get("input_size") or (3, getattr(module, "image_size", 224), 224)
    return int(size[1])
