"""Every model by its recipe name: where its builder is, and the options that the name fixes. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from understudy.models.cifar.table import MODELS as CIFAR


@dataclass(frozen=True)
class Entry:
    """Where a builder is, the options the name fixes, and one sentence about it."""

    module: str
    function: str
    fixed: dict[str, Any] = field(default_factory=dict)
    about: str = ""


PREFIXES = ("timm/", "torchvision/", "hf/")

MODELS: dict[str, Entry] = {
    "mlp": Entry("understudy.models.mlp", "mlp", about="linear layers with ReLU between them"),
    "cnn": Entry("understudy.models.cnn", "cnn", about="a small convolutional network with BatchNorm"),
    "vit": Entry("understudy.models.vit", "vit", about="a small vision transformer, perhaps with DeiT's token"),
    "reheaded": Entry("understudy.distill.rehead", "reheaded", about="a student with SimKD's head"),
    "strided-cnn": Entry("understudy.models.cnn", "strided_cnn", about="the network of Keras' distillation example"),
    **{name: Entry(*row, about="as the CIFAR distillation papers define it") for name, row in CIFAR.items()},
}

# Filled by `understudy.models.add` in Python, or by a package that the user names with --import.
REGISTERED: dict[str, Callable[..., Any]] = {}
