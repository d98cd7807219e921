"""Which blocks of a YOLO can lose channels, and how those that split a convolution's output are opened for it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.tasks.detect.guest import C2f, Detect

# The blocks of YOLOv8, 11, 12 and 26 (and of those of YOLOv3, 5 and 6 that are built from the same ones).
_PRUNABLE = frozenset({
    "Conv", "DWConv", "Conv2d", "ConvTranspose2d", "Bottleneck", "C2f", "C3", "C3k", "C3k2", "A2C2f", "C2PSA", "SPPF",
    "Concat", "Upsample", "Classify", "Detect", "Segment", "Segment26", "Pose", "Pose26", "OBB", "OBB26",
})  # fmt: skip
_ATTENTION = frozenset({"PSABlock", "ABlock", "Attention", "AAttn", "PSA", "C2PSA"})


class OpenBlock(nn.Module):
    """A C2f or C3k2 whose first convolution is two, one for each half of what it splits.

    A stock block computes one convolution and takes its output apart. Then no channel can be removed without both
    halves agreeing on where they are parted. Opened, each half has its own convolution; folded, they are one again.

    Args:
        block: the stock block; its other layers are used as they are.
    """

    def __init__(self, block: C2f) -> None:
        super().__init__()
        self.cv0, self.cv1 = _halves(block.cv1)
        self.cv2, self.m = block.cv2, block.m
        for name in ("f", "i", "type", "np"):
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))
        self.__dict__["stock"] = block  # beside the submodules: its first convolution is out of use
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the stock block does.

        Args:
            x: (N, C, H, W).
        """
        parts = [self.cv0(x), self.cv1(x)]
        for layer in cast(Any, self.m):
            parts.append(layer(parts[-1]))
        return cast(Any, self.cv2)(torch.cat(parts, 1))

    def fold(self) -> C2f:
        """The stock block again, of the widths that the halves have now.

        Raises:
            UserError: the halves differ in width.
        """
        block: Any = self.__dict__["stock"]
        first, second = (cast(int, half.conv.out_channels) for half in (self.cv0, self.cv1))
        if first != second:
            raise UserError(f"block {self.i}: halves of {first} and {second} channels do not fold")
        block.cv1, block.c = _joined(self.cv0, self.cv1), second
        return block


@contextmanager
def opened(model: nn.Module) -> Iterator[None]:
    """Open what can be opened inside the block; fold it afterwards, also on errors.

    Args:
        model: a YOLO's network, changed in place.
    """
    open_blocks(model)
    try:
        yield
    finally:
        fold_blocks(model)


def open_blocks(model: nn.Module) -> list[str]:
    """Open every C2f and C3k2 without attention, in place.

    Returns:
        Their paths.
    """
    found = [
        (name, module) for name, module in model.named_modules() if isinstance(module, C2f) and not attends(module)
    ]
    for name, module in found:
        _put(model, name, OpenBlock(module))
    return [name for name, _ in found]


def fold_blocks(model: nn.Module) -> None:
    """Fold every opened block, in place; then the model holds stock classes alone."""
    for name, module in [each for each in model.named_modules() if isinstance(each[1], OpenBlock)]:
        _put(model, name, cast(OpenBlock, module).fold())


def attends(module: nn.Module) -> bool:
    """Whether there is attention in a block: its heads fix its widths."""
    return any(type(part).__name__ in _ATTENTION for part in module.modules())


def check_prunable(model: nn.Module) -> None:
    """Refuse a model with a block that is not known to be prunable.

    Raises:
        UserError: names the block and where it is.
    """
    layers = cast(Any, model).model
    for index, layer in enumerate(layers):
        inner = layer if isinstance(layer, nn.Sequential) else [layer]
        for part in inner:
            if (name := type(part).__name__) not in _PRUNABLE:
                raise UserError(
                    f"model.{index} is a {name}, which cannot be pruned here: YOLOv8, 11, 12 and 26 can be "
                    "(detect, segment, pose, obb, classify)"
                )


def kept_convolutions(model: nn.Module) -> dict[nn.Module, str]:
    """The convolutions whose outputs must keep their number, each with the reason.

    Args:
        model: a YOLO's network, opened.
    """
    kept: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in ("PSABlock", "ABlock"):
            _keep_all(kept, module, f"{name} is attention: its heads fix the width")
        elif kind == "C2PSA":
            _keep_all(kept, cast(Any, module).cv1, f"{name} splits its output for attention")
        elif kind == "A2C2f" and attends(module):
            _keep_all(kept, cast(Any, module).cv1, f"{name} feeds attention, whose heads fix the width")
            if cast(Any, module).gamma is not None:
                _keep_all(kept, cast(Any, module).cv2, f"{name} scales its residual channel by channel")
        elif isinstance(module, C2f):
            _keep_all(kept, cast(Any, module).cv1, f"{name} holds attention and splits its output")
            _keep_all(kept, cast(Any, module).m, f"{name} holds attention, whose heads fix the width")
        elif isinstance(module, Detect):
            _keep_head(kept, module, name)
        elif kind == "Classify":
            kept[cast(Any, module).linear] = f"{name}.linear gives the classes"
    return kept


def _keep_head(kept: dict[nn.Module, str], head: nn.Module, name: str) -> None:
    """Of the box and class branches the last layers, of what a task adds to them everything."""
    for path, child in head.named_children():
        branch = path.removeprefix("one2one_")
        if branch not in ("cv2", "cv3"):
            _keep_all(kept, child, f"{name}.{path} belongs to the task's own outputs")
            continue
        for layers in cast(Any, child):
            _keep_all(kept, layers[-1], f"{name}.{path} ends in the boxes or classes")


def _keep_all(kept: dict[nn.Module, str], module: nn.Module, why: str) -> None:
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            kept.setdefault(part, why)


def _halves(layer: Any) -> tuple[Any, Any]:
    """Two convolutions with their norms, which give the first and the second half of a layer's channels."""
    middle = layer.conv.out_channels // 2
    return _part(layer, slice(0, middle)), _part(layer, slice(middle, None))


def _part(layer: Any, rows: slice) -> Any:
    part = _copied(layer)
    part.conv.weight = nn.Parameter(layer.conv.weight.detach()[rows].clone(), layer.conv.weight.requires_grad)
    part.conv.out_channels = len(part.conv.weight)
    for name in ("weight", "bias"):
        own = getattr(layer.bn, name)
        setattr(part.bn, name, nn.Parameter(own.detach()[rows].clone(), own.requires_grad))
    part.bn.running_mean, part.bn.running_var = layer.bn.running_mean[rows].clone(), layer.bn.running_var[rows].clone()
    part.bn.num_features = part.conv.out_channels
    return part


def _joined(first: Any, second: Any) -> Any:
    layer = _copied(first)
    for owner, others in ((layer.conv, second.conv), (layer.bn, second.bn)):
        for name, value in list(owner.named_parameters(recurse=False)):
            other = getattr(others, name).detach()
            setattr(owner, name, nn.Parameter(torch.cat([value.detach(), other]), value.requires_grad))
    for name in ("running_mean", "running_var"):
        setattr(layer.bn, name, torch.cat([getattr(first.bn, name), getattr(second.bn, name)]))
    layer.conv.out_channels = layer.bn.num_features = len(layer.conv.weight)
    return layer


def _copied(layer: Any) -> Any:
    """A copy that has its activation in common with the original, as all layers of a YOLO have."""
    return copy.deepcopy(layer, {id(layer.act): layer.act})


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if name.isdigit():
        cast(Any, owner)[int(name)] = module
    else:
        setattr(owner, name, module)
