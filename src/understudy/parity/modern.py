"""Review, classifiers reused and class maps: the recorded cases computed with our losses.

Every function is a `Compute` (see `recorded.py`).
"""

import re

import torch
from torch import Tensor, nn

from understudy.distill.schedule import Schedule
from understudy.losses import CATKD, SRRL, CrossEntropy, ReviewKD, SimKD
from understudy.losses.features import pool_to_smaller
from understudy.losses.functional import pooled
from understudy.losses.reviewkd import Fusion, hierarchical_context
from understudy.losses.srrl import regression
from understudy.parity.recorded import Inputs, Settings, Weights, load
from understudy.parity.taps import numbered


def context(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The hierarchical context loss, summed over levels."""
    pairs = zip(numbered(inputs, "student_feat"), numbered(inputs, "teacher_feat"), strict=True)
    return {"loss": torch.stack([hierarchical_context(*pair) for pair in pairs]).sum()}


def fusion(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """One attention-based fusion; the recorded loss is a probe of its two results."""
    level, below = inputs["student_feat"], inputs.get("student_residual")
    module = Fusion(
        channels=level.shape[1], width=settings["mid"], wanted=settings["out"], fuses=settings["res"] is not None
    )
    load(module, weights["abf"], rename=_fusion_names(weights["abf"]))
    output, fused = module(level, below, size=(settings["out_shape"],) * 2)
    probe = (inputs["probe_y"] * output).sum() + (inputs["probe_fused"] * fused).sum()
    return {"loss": probe, "y": output, "fused": fused}


def reviewkd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The whole of mdistiller: cross entropy, and the review with its weight raised over the warm-up."""
    student = (*numbered(inputs, "student_feat"), inputs["student_pooled"])
    teacher = (*numbered(inputs, "teacher_preact"), inputs["teacher_pooled"])
    loss = ReviewKD()
    loss.prepare(student, teacher)
    rename = {
        key: "fusions." + re.sub(r"^(\d+)\.(.*)", lambda found: f"{found[1]}.{_fusion_name(found[2])}", key)
        for key in weights["abfs"]
    }
    load(loss, weights["abfs"], rename=rename)
    warm = Schedule.ramp(0.0, 1.0, settings["warmup"]).at(settings["epoch"])
    distilled = settings["weight"] * warm * loss(student, teacher)
    hard = CrossEntropy()(inputs["student_logits"], labels=inputs["labels"])
    return {"loss": hard + distilled, "loss_ce": hard, "loss_kd": distilled}


def srrl_author(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Both parts of the authors', and their sum."""
    student, teacher, head = _srrl_inputs(inputs, weights)
    connector = {key.removeprefix("Connectors."): tensor for key, tensor in weights["connector"].items()}
    statistics, read = SRRL(features=1, logits=0), SRRL(features=0, logits=settings["weight"])
    # The second call would change the batch norm's buffers again.
    of_features, of_logits = (
        _with_weights(loss, group, student, teacher)(student, teacher, teacher_head=head)
        for loss, group in ((statistics, connector), (read, _cloned_buffers(connector)))
    )
    return {"loss": of_features + of_logits, "stat": of_features, "sr": of_logits / settings["weight"]}


def srrl_simkd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """SimKD's version on embeddings, and what the teacher's layer reads."""
    student, teacher, head = _srrl_inputs(inputs, weights)
    group = {key.removeprefix("transfer."): tensor for key, tensor in weights["srrl"].items()}
    loss = _with_weights(SRRL(), group, student, teacher)
    read = _with_weights(SRRL(), _cloned_buffers(group), student, teacher).connector
    assert read is not None
    return {
        "loss": loss(student, teacher, teacher_head=head),
        "pred": head(pooled(read(student[0][:, :, None, None]))),
    }


def srrl_clskd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """cls_KD's, which is given features behind the connector and logits behind the teacher's layer."""
    of_features, of_logits = regression(
        inputs["student_feat"],
        inputs["teacher_feat"],
        inputs["student_logits_via_teacher_head"],
        inputs["teacher_logits"],
    )
    return {"loss": settings["alpha"] * of_features + settings["beta"] * of_logits}


def simkd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The loss, the teacher's map it compares with, and the prediction by the teacher's layer."""
    student, teacher = inputs["student_feat"], inputs["teacher_feat"]
    loss = SimKD(factor=settings["factor"])
    loss.prepare(student, teacher)
    group = weights["simkd"]
    rename = {key: key.replace("transfer.", "projector.1.") for key in group}
    head = _linear(weights["cls_t"])
    predictor = load(loss, _cloned_buffers(group), rename=rename).predictor(head)
    prediction = predictor(student)
    assert loss.projector is not None
    with torch.no_grad():
        _, target = pool_to_smaller(loss.projector(student), teacher)
    value = load(loss, group, rename=rename)(student, teacher)
    return {"loss": value, "pred": prediction, "trans_t": target}


def catkd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The loss with its weight, and cross entropy of the means of the maps."""
    partial = settings["partial"]
    loss = CATKD(
        resolution=settings["res"],
        normalize=settings["norm"],
        binarize=settings["binar"],
        # What lies strictly above the n-th largest are n - 1 classes.
        classes=0 if partial is None else partial - 1,
    )
    of_maps = settings["weight"] * loss.of_class_maps(inputs["student_cam"], inputs["teacher_cam"])
    hard = CrossEntropy()(pooled(inputs["student_cam"]), labels=inputs["labels"])
    return {"loss": hard + of_maps, "loss_CE": hard, "loss_CAT": of_maps}


def _fusion_name(key: str) -> str:
    return key.replace("conv1.", "reduce.").replace("conv2.", "widen.").replace("att_conv.", "attend.")


def _fusion_names(group: dict[str, Tensor]) -> dict[str, str]:
    return {key: _fusion_name(key) for key in group}


def _linear(group: dict[str, Tensor]) -> nn.Linear:
    classes, width = group["weight"].shape
    return load(nn.Linear(width, classes), group)


def _cloned_buffers(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with copies of the buffers, for a call that must leave no trace."""
    return {key: tensor if isinstance(tensor, nn.Parameter) else tensor.clone() for key, tensor in group.items()}


def _srrl_inputs(inputs: Inputs, weights: Weights) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], nn.Linear]:
    logits = inputs["teacher_logits"]
    # The student's logits play no part.
    return (inputs["student_feat"], logits), (inputs["teacher_feat"], logits), _linear(weights["cls_t"])


def _with_weights(
    loss: SRRL, group: dict[str, Tensor], student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
) -> SRRL:
    loss.prepare(student, teacher)
    return load(loss, group, rename={key: f"connector.{key}" for key in group})
