"""Which channels of a network come and go together, how much each matters, and how they are removed."""

import copy
import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from understudy.errors import UserError, did_you_mean
from understudy.tasks.detect.blocks import OpenBlock, check_prunable, fold_blocks, kept_convolutions, open_blocks


@dataclass(frozen=True, eq=False)
class Scale:
    """A BatchNorm over some channels of a group.

    Args:
        name: its path in the stock model.
        norm: the module.
        own: (n,) its channels.
        places: (n,) the group's channels that they belong to.
    """

    name: str
    norm: nn.BatchNorm2d
    own: Tensor
    places: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of one place in the network: those of a convolution and of all that are added to it.

    Args:
        root: the convolution they are named after.
        size: how many there are.
        layers: the stock paths of the layers that make them.
        scales: the norms over them.
        halves_of: the opened block of which this is a half; both halves keep one width.
    """

    root: nn.Module
    size: int
    layers: tuple[str, ...]
    scales: tuple[Scale, ...]
    halves_of: str | None = None

    @property
    def name(self) -> str:
        """The path of the first layer that makes these channels."""
        return self.layers[0]

    def importance(self) -> Tensor:
        """(size,) how much each channel matters: the mean of its BatchNorm scales' absolute values.

        Reference: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network
        Slimming", ICCV 2017 (https://arxiv.org/abs/1708.06519). Without a norm it is the norm of its filter.
        """
        if not self.scales:
            return cast(Tensor, self.root.weight).detach().flatten(1).norm(dim=1)
        total, count = torch.zeros(self.size), torch.zeros(self.size)
        for scale in self.scales:
            total.index_add_(0, scale.places, scale.norm.weight.detach().abs().cpu()[scale.own])
            count.index_add_(0, scale.places, torch.ones(len(scale.places)))
        return total / count.clamp_min(1)

    def matches(self, pattern: str) -> bool:
        """Whether a glob means one of its layers, or a block that one of them is in."""
        return any(means(pattern, layer) for layer in self.layers)


class ChannelGraph:
    """The prunable channels of an opened network, found by tracing it once.

    Args:
        model: a YOLO's network on the CPU; it is opened here, in place, and pruned by `remove`.

    Raises:
        UserError: a block of it cannot be pruned; the message names it.
    """

    def __init__(self, model: nn.Module) -> None:
        import torch_pruning

        check_prunable(model)
        self.model = model.eval()
        open_blocks(model)
        self.kept = kept_convolutions(model)
        self._half_of = {
            half.conv: name
            for name, block in model.named_modules()
            if isinstance(block, OpenBlock)
            for half in cast(Any, (block.cv0, block.cv1))
        }
        self._names = {module: _stock_name(model, name) for name, module in model.named_modules()}
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(True)  # the tracer follows gradients
        place = {name: index for index, name in enumerate(self._names.values())}
        with _without_its_warning():
            self._graph = torch_pruning.DependencyGraph().build_dependency(model, example_images(model))
            found = [self._group(each, place) for each in self._graph.get_all_groups(ignored_layers=list(self.kept))]
        self.groups = sorted(found, key=lambda group: place[group.name])
        model.requires_grad_(False)
        for parameter in learned:
            parameter.requires_grad_(True)
        if not self.groups:
            raise UserError("nothing in this model can be pruned")

    @property
    def kept_layers(self) -> dict[str, str]:
        """The layers whose width stays, with the reason."""
        return {self._names[module]: reason for module, reason in self.kept.items()}

    def scale_names(self) -> list[str]:
        """The stock paths of all norms over prunable channels."""
        return list(dict.fromkeys(scale.name for group in self.groups for scale in group.scales))

    def fold(self) -> None:
        """Fold the opened blocks: the model holds stock classes alone again."""
        fold_blocks(self.model)

    def remove(self, group: Group, channels: Iterable[int]) -> None:
        """Take channels of a group out of every layer that makes or reads them."""
        channels = list(channels)
        if not channels:
            return
        handler = cast(Any, self._graph.get_pruner_of_module(group.root)).prune_out_channels
        with _without_its_warning():
            self._graph.get_pruning_group(group.root, handler, channels).prune()

    def check_patterns(self, patterns: Iterable[str]) -> None:
        """Refuse a glob that means no layer, or only such as cannot be pruned.

        Raises:
            UserError: the message lists the near ones, or says why.
        """
        layers = [layer for group in self.groups for layer in group.layers]
        for pattern in patterns:
            if any(means(pattern, layer) for layer in layers):
                continue
            reason = next((why for layer, why in self.kept_layers.items() if means(pattern, layer)), None)
            if reason is not None:
                raise UserError(f"layer '{pattern}' cannot be pruned: {reason}")
            raise UserError(f"there is no layer '{pattern}', {did_you_mean(pattern, layers)}")

    def _group(self, found: Any, place: Mapping[str, int]) -> Group:
        root = found[0].dep.target.module
        layers: list[str] = []
        scales: list[Scale] = []
        halves: list[str] = []
        for item in found:
            module = item.dep.target.module
            if isinstance(module, nn.BatchNorm2d):
                places = torch.tensor(item.root_idxs if item.root_idxs is not None else item.idxs)
                scales.append(Scale(self._names[module], module, torch.tensor(item.idxs), places))
            elif self._graph.is_out_channel_pruning_fn(item.dep.handler) and isinstance(
                module, (nn.Conv2d, nn.ConvTranspose2d)
            ):
                # What makes these channels; the layers that only read them are in the group too.
                layers.append(self._names[module])
                halves += [self._half_of[module]] if module in self._half_of else []
        size = cast(Any, root).out_channels
        layers = sorted(set(layers), key=lambda layer: place[layer])
        return Group(root, size, tuple(layers), tuple(scales), halves[0] if halves else None)


@contextmanager
def _without_its_warning() -> Iterator[None]:
    """The tracer warns of sizes it cannot guess inside heads of -obb; those layers are kept, nothing of it is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Maximum recursive depth", UserWarning)
        yield


def means(pattern: str, layer: str) -> bool:
    """Whether a glob means a layer or a block that it is in."""
    return fnmatch.fnmatchcase(layer, pattern) or fnmatch.fnmatchcase(layer, f"{pattern}.*")


def example_images(model: nn.Module, size: int = 64) -> Tensor:
    """(1, C, size, size) zeros that a YOLO's network takes."""
    described = cast(Any, getattr(model, "yaml", {}))
    parameter = next(model.parameters())
    return torch.zeros(1, int(described.get("channels", 3)), size, size, device=parameter.device, dtype=parameter.dtype)


def _stock_name(model: nn.Module, name: str) -> str:
    """A layer's path once blocks are folded; a Conv's inner convolution goes by the name of the Conv."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if parts[end] == "cv0" and isinstance(model.get_submodule(".".join(parts[:end])), OpenBlock):
            parts[end] = "cv1"
    return ".".join(parts[:-1] if parts[-1] == "conv" else parts)


def prunable_scales(model: nn.Module) -> list[str]:
    """The paths of the BatchNorms over channels that `prune` may remove.

    Args:
        model: a YOLO's network; it is left as it is.

    Raises:
        UserError: a block of it cannot be pruned.
    """
    return ChannelGraph(cast(Any, copy.deepcopy(model)).float().cpu()).scale_names()
