"""Activation boundaries and the overhaul of feature distillation: the recorded cases computed with ours.

Every function is a `Compute` (see `recorded.py`).
"""

import copy

import torch
from torch import Tensor, nn

from understudy.losses import AB, OFD
from understudy.losses.ofd import margin_of_batch, partial_distance
from understudy.parity.recorded import Inputs, Settings, Weights, load
from understudy.parity.taps import Outputs, below, both, only, ready, renamed, sides


def ab_sum(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The authors' plain sum."""
    return {"loss": _ab(inputs, settings) * len(inputs["student_feat"])}


def ab_mean(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The mean over all elements."""
    return {"loss": _ab(inputs, settings) / inputs["student_feat"][0].numel()}


def ab_mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """With the factor 3/1000 of the authors' script."""
    return {"loss": _ab(inputs, settings) * settings["loss_weight"] * 3 / 1000}


def ab_layers(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """Several taps, with RepDistiller's connectors where they were recorded, and the factor 3/1000."""
    student, teacher = sides(inputs)
    loss = ready(AB(margin=settings.get("margin", 1.0)), student, teacher)
    connectors = loss.connectors
    assert connectors is not None
    for index, connector in enumerate(connectors):
        of_connector = below(weights.get("connector", {}), f"connectors.{index}.")
        load(connector, renamed(of_connector, {r"bn\.": "norm."}))
    # On copies: a second call would move the statistics of the connectors once more.
    single, spare = AB(margin=loss.margin), copy.deepcopy(connectors)
    layers = []
    for index, pair in enumerate(zip(student, teacher, strict=True)):
        single.connectors = spare[index : index + 1]
        layers.append(single(*pair) * 2.0 ** (index - len(student) + 1) * 3 / 1000)
    return {"loss": loss(student, teacher) * 3 / 1000, "per_layer": torch.stack(layers)}


def _ab(inputs: Inputs, settings: Settings) -> Tensor:
    return ready(AB(margin=settings["margin"]), *both(inputs))(*both(inputs))


def ofd_author(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The authors' sum, with the margins of the teacher's batch norm."""
    loss = ready(OFD(), *both(inputs))
    load(only(loss.connectors), weights["connector"])
    loss.margins_from([_norm(inputs, "teacher_bn")])
    return {"loss": loss(*both(inputs)) * len(inputs["student_feat"]), "margin": loss.get_buffer("margin_0")}


def ofd_layers(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The overhaul as in mdistiller, over several taps."""
    student, teacher = sides(inputs)
    loss = ready(OFD(kernel_size=settings["kernel_size"]), student, teacher)
    assert loss.connectors is not None
    for index, connector in enumerate(loss.connectors):
        load(connector, below(weights["connectors"], f"connectors.{index}."))
    loss.margins_from([_norm(inputs, f"teacher_bn{index}") for index in range(len(student))])
    margins = {f"margin_{index}": loss.get_buffer(f"margin_{index}") for index in range(len(student))}
    return {"loss": loss(student, teacher), **margins}


def ofd_batch(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """KD-Zoo's, with the margins of the batch and the mean over all elements."""
    loss = ready(OFD(), *both(inputs))
    load(only(loss.connectors), below(weights["ofd"], "connector."))
    teacher = inputs["teacher_feat"]
    return {"loss": loss(*both(inputs)) / teacher[0].numel(), "margin": margin_of_batch(teacher)}


def ofd_distance(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The distance of mmrazor, after connectors and margins."""
    distance = partial_distance(*both(inputs)) / len(inputs["student_feat"])
    return {"loss": settings["loss_weight"] * distance / settings["mul_factor"]}


def _norm(inputs: Inputs, name: str) -> nn.BatchNorm2d:
    weight, bias = inputs[f"{name}_weight"], inputs[f"{name}_bias"]
    norm = nn.BatchNorm2d(len(weight), dtype=weight.dtype)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    return norm
