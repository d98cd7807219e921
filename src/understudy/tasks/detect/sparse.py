"""Sparse training: an L1 penalty on BatchNorm scales, so that channels that matter little end near zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from understudy.distill import Schedule
from understudy.errors import UserError

_BINS = 40


@dataclass(frozen=True)
class Sparsity:
    """How scales are pulled to zero.

    Each optimiser step moves a scale by at most about its learning rate where the optimiser divides gradients by
    their size (Adam and its kin). So a strength below 1 is a share of that: a scale falls unless its gradient holds
    against it in more than that share of the steps, and a strength of 1 and more pulls all of them down alike.

    Args:
        strength: s; with the learning rate λ, a step pulls a scale by s·λ. Of SGD, whose steps grow with the gradient,
            it is in the gradient's own unit.
        method: `proximal` shrinks after each step and reaches zero exactly; `subgradient` adds s·sign(γ) to the
            gradient before it, as network slimming did.
        schedule: how the strength goes from `strength` to `end` over the training.
        end: the strength at the end, as a share of `strength`.
    """

    strength: float = 0.5
    method: Literal["proximal", "subgradient"] = "proximal"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    end: float = 0.1

    def __post_init__(self) -> None:
        if self.strength <= 0:
            raise UserError(f"strength: is above 0, not {self.strength:g}")
        if self.method not in ("proximal", "subgradient"):
            raise UserError(f"method: is proximal or subgradient, not '{self.method}'")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise UserError(f"schedule: is constant, linear or cosine, not '{self.schedule}'")
        if self.end < 0:
            raise UserError(f"end: is a share of the strength, at least 0, not {self.end:g}")

    def over(self, epochs: int) -> Schedule:
        """The strength in each epoch of a training."""
        if self.schedule == "constant" or epochs < 2:
            return Schedule((self.strength,))
        return Schedule.ramp(self.strength, self.strength * self.end, epochs - 1, self.schedule)


@torch.no_grad()
def shrink(scales: Sequence[Tensor], amount: float) -> None:
    """The proximal step of the L1 norm, in place: `γ ← sign(γ) · max(|γ| - amount, 0)`.

    Reference: Donoho, "De-noising by soft-thresholding", 1995; with the learning rate λ and the penalty s, amount is
    λ·s (proximal gradient, Parikh, Boyd, "Proximal Algorithms", 2014, section 6.5.2).

    Args:
        scales: γ, of any shapes.
        amount: how much nearer to zero.
    """
    for scale in scales:
        scale.copy_(scale.sign() * (scale.abs() - amount).clamp_min(0))


@torch.no_grad()
def add_subgradient(scales: Sequence[Tensor], amount: float) -> None:
    """Add the L1 norm's subgradient to gradients, in place: `∂γ ← ∂γ + amount · sign(γ)`.

    Reference: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017 (https://arxiv.org/abs/1708.06519), equation 1.

    Args:
        scales: γ; those without a gradient are passed over.
        amount: s, times what the gradients are scaled by (mixed precision).
    """
    for scale in scales:
        if scale.grad is not None:
            scale.grad.add_(scale.sign(), alpha=amount)


def learning_rates(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[float]:
    """The learning rate that an optimiser has for each parameter now.

    Args:
        optimizer: the parameters are in its groups.
        parameters: which to look up.
    """
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return [float(rates[id(parameter)]) for parameter in parameters]


def scales_of(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """The scales γ of BatchNorms by path."""
    return [model.get_submodule(name).weight for name in names]  # pyright: ignore[reportReturnType]


def histogram(model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """How the absolute values of scales are spread.

    Args:
        model: the network.
        names: paths of BatchNorms.

    Returns:
        `edges` (bins + 1) and `counts`, with the quantiles `smallest`, `median`, `largest` and the share `zero`.
    """
    values = torch.cat([scale.detach().abs().float().cpu().flatten() for scale in scales_of(model, names)])
    top = max(float(values.max()), 1e-6)
    counts = torch.histc(values, _BINS, 0, top)
    return {
        "edges": torch.linspace(0, top, _BINS + 1).tolist(),
        "counts": counts.int().tolist(),
        "smallest": float(values.min()),
        "median": float(values.median()),
        "largest": float(values.max()),
        "zero": float((values < 1e-3).float().mean()),
    }


def histogram_chart(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The spread of scales before and after sparse training, as a Vega-Lite chart."""
    rows = [
        {"when": when, "from": low, "to": high, "channels": count}
        for when, spread in (("before", before), ("after", after))
        for low, high, count in zip(spread["edges"], spread["edges"][1:], spread["counts"], strict=False)
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": "How the absolute values of BatchNorm scales are spread before and after sparse training.",
        "data": {"values": rows},
        "width": 560,
        "height": 220,
        "mark": {"type": "bar", "opacity": 0.6},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "title": "|γ| of BatchNorm", "bin": {"binned": True}},
            "x2": {"field": "to"},
            "y": {"field": "channels", "type": "quantitative", "stack": None},
            "color": {"field": "when", "type": "nominal", "sort": ["before", "after"], "title": None},
            "tooltip": [{"field": name} for name in ("when", "from", "to", "channels")],
        },
    }
