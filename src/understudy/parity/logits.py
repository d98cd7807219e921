"""What came after Hinton's loss and compares logits: the recorded cases computed with our losses.

Every function is a `Compute` (see `recorded.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.distill.schedule import Schedule
from understudy.losses import DIST, DKD, KD, MLKD, NKD, WSLD, CrossEntropy
from understudy.losses.table import LOSSES
from understudy.parity.recorded import Inputs, Settings, Weights


def mutual(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Deep mutual learning: two networks, each with the labels and the other's prediction as it stands."""
    first, second, labels = inputs["net1_logits"], inputs["net2_logits"], inputs["labels"]
    soft = [KD(temperature=1.0)(own, other) for own, other in ((first, second), (second, first))]
    losses = [
        CrossEntropy()(own, labels=labels) + settings["lambda_kd"] * part
        for own, part in zip((first, second), soft, strict=True)
    ]
    return {
        "loss": losses[0] + losses[1],
        "net1_loss": losses[0],
        "net2_loss": losses[1],
        "kd1": soft[0],
        "kd2": soft[1],
    }


def decoupled(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The DKD function of mdistiller, with its two parts."""
    temperature = settings["temperature"]
    return {
        "loss": _dkd(inputs, temperature=temperature, alpha=settings["alpha"], beta=settings["beta"]),
        "tckd": _dkd(inputs, temperature=temperature, alpha=1.0, beta=0.0),
        "nckd": _dkd(inputs, temperature=temperature, alpha=0.0, beta=1.0),
    }


def decoupled_with_labels(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The DKD distiller of mdistiller: the labels, and the warm-up as the schedule of the weight."""
    hard = CrossEntropy()(inputs["student_logits"], labels=inputs["labels"])
    weight = Schedule.ramp(0, 1, settings["warmup"]).at(settings["epoch"])
    soft = weight * _dkd(inputs, temperature=settings["T"], alpha=settings["alpha"], beta=settings["beta"])
    return {"loss": hard + soft, "loss_ce": hard, "loss_kd": soft}


def decoupled_mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The DKD of mmrazor: the mean over the batch, or its sum where that is asked for."""
    scale = len(inputs["student_logits"]) if settings["reduction"] == "sum" else 1
    return {"loss": scale * _dkd_mmrazor(inputs, settings)}


def decoupled_mmrazor_summed(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Its defect: every reduction but the batch's mean is the sum."""
    scale = 1 if settings["reduction"] == "batchmean" else len(inputs["student_logits"])
    return {"loss": scale * _dkd_mmrazor(inputs, settings)}


def decoupled_cls_kd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The DKD of cls_KD."""
    return {"loss": _dkd(inputs, temperature=settings["temp"], alpha=settings["alpha"], beta=settings["beta"])}


def normalised(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The NKD of cls_KD, with class numbers or with the probabilities that mixup makes."""
    loss = NKD(temperature=settings["temp"], gamma=settings["gamma"])
    return {"loss": loss(inputs["student_logits"], inputs["teacher_logits"], labels=_labels(inputs))}


def correlated(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The DIST of its authors, for classes with its two parts, or for maps."""
    temperature = settings.get("tau", 1.0)
    return {
        "loss": _dist(inputs, beta=settings["beta"], gamma=settings["gamma"], temperature=temperature),
        "inter": _dist(inputs, beta=1.0, gamma=0.0, temperature=temperature),
        "intra": _dist(inputs, beta=0.0, gamma=1.0, temperature=temperature),
    }


def correlated_mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The DIST of mmrazor."""
    loss = _dist(inputs, beta=settings["inter"], gamma=settings["intra"], temperature=settings["tau"])
    return {"loss": settings["loss_weight"] * loss}


def weighted_mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The WSLD of mmrazor."""
    return {"loss": settings["loss_weight"] * _wsld(inputs, temperature=settings["tau"])}


def weighted_original(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The authors' WSLD with the labels; its settings are constants there, and our preset."""
    preset = LOSSES["wsld"].presets["default"]
    hard = CrossEntropy()(inputs["student_logits"], labels=inputs["labels"])
    return {"loss": preset["labels"] * hard + preset["weight"] * _wsld(inputs, temperature=preset["temperature"])}


def weighted_cls_kd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The WSLD of cls_KD."""
    return {"loss": settings["alpha"] * _wsld(inputs, temperature=settings["temp"])}


def standardized_kd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Hinton's loss on standardised logits, or on the logits as they are."""
    loss = KD(temperature=settings["temperature"], standardize=settings["logit_stand"])
    return {"loss": loss(inputs["student_logits"], inputs["teacher_logits"])}


def standardized_dkd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """DKD on standardised logits."""
    options = {name: settings[name] for name in ("temperature", "alpha", "beta")}
    return {"loss": _dkd(inputs, **options, standardize=True)}


def multi_level(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """MLKD as its authors released it."""
    return _mlkd(inputs, settings, standardize=False)


def multi_level_standardized(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The same with logit standardisation, which works on the samples' level only."""
    return _mlkd(inputs, settings, standardize=True)


def multi_level_parts(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """MLKD's three levels at one temperature, and each before it is summed."""
    student, teacher, temperature = inputs["student_logits"], inputs["teacher_logits"], settings["T"]
    samples, classes, batch = MLKD(temperatures=(temperature,)).levels(student, teacher)
    of_student, of_teacher = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    per_sample = [KD(temperature=temperature)(*pair) for pair in zip(student.split(1), teacher.split(1), strict=True)]
    return {
        "loss": samples + classes + batch,
        "kd": samples,
        "cc": classes,
        "bc": batch,
        "kd_none": torch.stack(per_sample),
        "cc_none": (of_teacher.mT @ of_teacher - of_student.mT @ of_student) ** 2 / student.shape[1],
        "bc_none": (of_teacher @ of_teacher.mT - of_student @ of_student.mT) ** 2 / len(student),
    }


def _mlkd(inputs: Inputs, settings: Settings, *, standardize: bool) -> dict[str, Tensor]:
    student = inputs["student_weak"], inputs["student_strong"]
    teacher = inputs["teacher_weak"], inputs["teacher_strong"]
    # The first temperature is the configured one, the others are constants in the authors' code.
    loss = MLKD(temperatures=(settings["T"], 3.0, 5.0, 2.0, 6.0), variant="release", standardize=standardize)
    samples, classes, batch = (settings["kd_weight"] * part for part in loss.levels(student, teacher))
    weak, strong = (CrossEntropy()(view, labels=inputs["labels"]) for view in student)
    hard = weak + strong
    return {
        "loss": hard + samples + classes + batch,
        "loss_ce": hard,
        "loss_kd": samples,
        "loss_cc": classes,
        "loss_bc": batch,
    }


def _dkd_mmrazor(inputs: Inputs, settings: Settings) -> Tensor:
    return _dkd(inputs, temperature=settings["tau"], alpha=settings["alpha"], beta=settings["beta"])


def _dkd(inputs: Inputs, **options: float) -> Tensor:
    loss = DKD(**options)  # pyright: ignore[reportArgumentType]
    return loss(inputs["student_logits"], inputs["teacher_logits"], labels=_labels(inputs))


def _dist(inputs: Inputs, **options: float) -> Tensor:
    return DIST(**options)(inputs["student_logits"], inputs["teacher_logits"])


def _wsld(inputs: Inputs, *, temperature: float) -> Tensor:
    loss = WSLD(temperature=temperature)
    return loss(inputs["student_logits"], inputs["teacher_logits"], labels=_labels(inputs))


def _labels(inputs: Inputs) -> Tensor:
    return inputs["soft_labels"] if "soft_labels" in inputs else inputs["labels"]
