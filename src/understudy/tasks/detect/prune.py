"""Structural pruning: by ratio or to a target, local or global; the result is a smaller stock YOLO."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.run.measure import latency, multiply_adds, parameter_count
from understudy.tasks.detect.channels import ChannelGraph, Group, example_images

Target = Literal["parameters", "macs", "latency"]


@dataclass(frozen=True)
class Pruning:
    """How much is pruned, and where.

    Args:
        ratio: the share of channels to remove, above 0 and below 1.
        parameters: instead of a ratio, how much is to be left: a share of the original, or a number above 1.
        macs: likewise for the multiply-adds at the image size.
        latency: likewise for the milliseconds of a forward here, at batch 1 (always a share).
        scope: `local` removes the same share everywhere; `global` ranks all channels together (network slimming).
        round_to: widths become a multiple of this where they are larger.
        most: no layer loses more than this share.
        limits: for layers by glob, the most that they may lose, as a share.
        keep: layers by glob that stay as they are.
        imgsz: the image size at which multiply-adds and latency count.
    """

    ratio: float | None = None
    parameters: float | None = None
    macs: float | None = None
    latency: float | None = None
    scope: Literal["local", "global"] = "local"
    round_to: int = 8
    most: float = 0.9
    limits: Mapping[str, float] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    imgsz: int = 640

    def __post_init__(self) -> None:
        asked = {name: getattr(self, name) for name in ("ratio", "parameters", "macs", "latency")}
        given = {name: value for name, value in asked.items() if value is not None}
        if len(given) != 1:
            raise UserError(f"prune by one of ratio, parameters, macs, latency; {len(given)} are given")
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{name}: is a number, not '{value}'")
        if self.scope not in ("local", "global"):
            raise UserError(f"scope: is local or global, not '{self.scope}'")
        if name in ("ratio", "latency") and not 0 < value < 1:
            what = "the share of channels to remove" if name == "ratio" else "the share of the time to be left"
            raise UserError(f"{name}: is {what}, above 0 and below 1, not {value:g}")
        if value <= 0 or value == 1:
            raise UserError(f"{name}: how much is to be left: a share above 0 and below 1, or a number above 1, "
                            f"not {value:g}")  # fmt: skip
        if not 0 < self.most < 1:
            raise UserError(f"most: is a share above 0 and below 1, not {self.most:g}")
        if self.round_to < 1:
            raise UserError(f"round_to: is a number of channels, at least 1, not {self.round_to}")
        if wrong := [name for name, share in self.limits.items() if not 0 <= share < 1]:
            raise UserError(f"limits: '{wrong[0]}' is a share from 0 to below 1, not {self.limits[wrong[0]]:g}")

    @property
    def target(self) -> tuple[Target, float] | None:
        """What is to be reached by search, and how much of it is to be left; None where a ratio is given."""
        names: tuple[Target, ...] = ("parameters", "macs", "latency")
        return next(((name, value) for name in names if (value := getattr(self, name)) is not None), None)


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning came to.

    Args:
        model: a network of stock classes, in evaluation mode.
        ratio: the ratio used, given or found.
        widths: for each layer its channels before and after.
        kept: layers whose width stayed because of what they are, with the reason.
        before: parameters and multiply-adds of the original.
        after: those of the pruned network.
    """

    model: nn.Module
    ratio: float
    widths: dict[str, tuple[int, int]]
    kept: dict[str, str]
    before: dict[str, float]
    after: dict[str, float]

    def in_words(self) -> str:
        """One sentence."""
        kept = dict.fromkeys(".".join(layer.split(".")[:2]) for layer, why in self.kept.items() if "attention" in why)
        widths = f"; widths inside {', '.join(kept)} stay: they hold attention" if kept else ""
        return (
            f"ratio {self.ratio:.3f}: {self.before['parameters']:,.0f} -> {self.after['parameters']:,.0f} parameters "
            f"({self.after['parameters'] / self.before['parameters'] - 1:+.1%}), multiply-adds "
            f"{self.after['macs'] / self.before['macs'] - 1:+.1%}{widths}"
        )


def prune(model: nn.Module, pruning: Pruning) -> Pruned:
    """Remove the channels with the smallest BatchNorm scales.

    Args:
        model: a YOLO's network; it is left as it is.
        pruning: how much, and where.

    Raises:
        UserError: a block cannot be pruned, a glob means no layer, or the target cannot be reached.
    """
    if pruning.target is None:
        assert pruning.ratio is not None
        return _prune_by(model, pruning, pruning.ratio)
    return _search(model, pruning, *pruning.target)


def _prune_by(model: nn.Module, pruning: Pruning, ratio: float) -> Pruned:
    small = cast(Any, copy.deepcopy(model)).float().cpu().eval()
    if hasattr(small, "criterion"):
        small.criterion = None
    before = {"parameters": float(parameter_count(small)), "macs": _macs(small, pruning.imgsz)}
    graph = ChannelGraph(small)
    graph.check_patterns([*pruning.limits, *pruning.keep])
    importances = [group.importance() for group in graph.groups]
    widths = _widths(graph.groups, importances, pruning, ratio)
    changed: dict[str, tuple[int, int]] = {}
    for group, importance, width in zip(graph.groups, importances, widths, strict=True):
        order = torch.argsort(importance, stable=True)
        graph.remove(group, sorted(order[: group.size - width].tolist()))
        changed |= _told(changed, group, width)
    graph.fold()
    after = {"parameters": float(parameter_count(small)), "macs": _macs(small, pruning.imgsz)}
    return Pruned(small, ratio, changed, graph.kept_layers, before, after)


def _told(so_far: Mapping[str, tuple[int, int]], group: Group, width: int) -> dict[str, tuple[int, int]]:
    """The widths of a group's layers before and after; the two halves of an opened block add up to one layer."""
    told = {}
    for layer in group.layers:
        before, after = so_far.get(layer, (0, 0))
        told[layer] = (before + group.size, after + width)
    return told


def _widths(groups: Sequence[Group], importances: Sequence[Tensor], pruning: Pruning, ratio: float) -> list[int]:
    """How many channels each group keeps; both halves of an opened block keep the larger number of the two."""
    together = torch.cat(list(importances))
    stays = torch.ones(len(together))
    stays[torch.argsort(together, stable=True)[: int(ratio * len(together))]] = 0
    of_group = stays.split([group.size for group in groups])
    widths = []
    for group, left in zip(groups, of_group, strict=True):
        wanted = group.size * (1 - ratio) if pruning.scope == "local" else float(left.sum())
        limits = [share for pattern, share in pruning.limits.items() if group.matches(pattern)]
        if any(group.matches(pattern) for pattern in pruning.keep):
            limits.append(0.0)
        least = math.ceil(round(group.size * (1 - min([pruning.most, *limits])), 6))
        widths.append(_rounded(wanted, group.size, least, pruning.round_to))
    halves: dict[str, int] = {}
    for group, width in zip(groups, widths, strict=True):
        if group.halves_of:
            halves[group.halves_of] = max(width, halves.get(group.halves_of, 0))
    return [halves[group.halves_of] if group.halves_of else width for group, width in zip(groups, widths, strict=True)]


def _rounded(wanted: float, size: int, least: int, multiple: int) -> int:
    """The nearest multiple that is neither more than there is nor less than must stay."""
    width = max(round(wanted / multiple) * multiple, math.ceil(least / multiple) * multiple, multiple)
    return min(width, size)


def _search(model: nn.Module, pruning: Pruning, target: Target, wanted: float) -> Pruned:
    """The smallest ratio that reaches a target, by halving the interval."""
    measure = _measures(pruning)[target]
    whole = measure(cast(Any, copy.deepcopy(model)).float().cpu().eval())
    goal = wanted * whole if wanted < 1 else wanted
    if goal >= whole:
        raise UserError(f"{target}: {goal:,.0f} is no less than the model has ({whole:,.0f})")
    low, high = 0.0, 0.99
    best = _prune_by(model, pruning, high)
    if measure(best.model) > goal:
        raise UserError(
            f"{target}: {goal:,.4g} cannot be reached, {measure(best.model):,.4g} is the least within "
            f"most={pruning.most:g}{', limits and keep' if pruning.limits or pruning.keep else ''}"
        )
    for _ in range(8):
        ratio = (low + high) / 2
        tried = _prune_by(model, pruning, ratio)
        if measure(tried.model) <= goal:
            best, high = tried, ratio
        else:
            low = ratio
    return best


def _measures(pruning: Pruning) -> dict[Target, Callable[[nn.Module], float]]:
    return {
        "parameters": lambda model: float(parameter_count(model)),
        "macs": lambda model: _macs(model, pruning.imgsz),
        "latency": lambda model: latency(model, example_images(model, pruning.imgsz)),
    }


def _macs(model: nn.Module, size: int) -> float:
    return float(multiply_adds(model, example_images(model, size)))
