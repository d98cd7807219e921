"""The losses on logits and on relations: the recorded cases computed with those of the Keras front."""

from collections.abc import Callable
from typing import Any

import keras

from understudy.keras.losses import (
    CC,
    DIST,
    DKD,
    KD,
    NKD,
    PKT,
    RKD,
    SP,
    WSLD,
    CrossEntropy,
    FeatureRegression,
    HardLabel,
    KerasLoss,
    LogitMSE,
    SoftTargets,
)
from understudy.keras.operations import ops
from understudy.losses.table import LOSSES

Tensor = Any
Inputs = dict[str, Tensor]
Settings = dict[str, Any]
Compute = Callable[[Inputs, Settings], dict[str, Tensor]]


def _kd(temperature: str, **options: Any) -> Compute:
    """T² · KL, with the name that the original gives its temperature."""
    return lambda inputs, settings: {"loss": KD(temperature=settings[temperature], **options)(*_logits(inputs))}


def _with_labels(soft: Callable[[Inputs, Settings], Tensor], *, alpha_on_labels: bool) -> Compute:
    """A sum with the labels, alpha on one of the two."""

    def compute(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
        share = settings["alpha"] if alpha_on_labels else 1 - settings["alpha"]
        return {"loss": share * _hard(inputs) + (1 - share) * soft(inputs, settings)}

    return compute


def mmrazor(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The KLDivergence of mmrazor, with its reduction; also for maps."""
    loss = KD(temperature=settings["tau"], reduction=settings["reduction"])(*_logits(inputs))
    return {"loss": settings["loss_weight"] * loss}


def cross_entropy_form(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """cls_KD's soft part as a cross entropy, and the weight it leaves to the labels."""
    loss = KD(temperature=settings["temp"], cross_entropy=True)(*_logits(inputs))
    return {"loss": settings["alpha"] * loss, "hard_weight": ops.convert_to_tensor(1 - settings["alpha"])}


def seed_0_function(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The printed function: mean over all elements, doubled, alpha on the soft part."""
    soft = KD(temperature=settings["temp"], reduction="mean")(*_logits(inputs))
    return {"loss": 2 * settings["alpha"] * soft + (1 - settings["alpha"]) * _hard(inputs)}


def keras_example(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The Distiller of seed 4 with the losses it is given there."""
    hard = KerasLoss(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student, _ = _logits(inputs)
    share = settings["alpha"]
    return {"loss": share * hard(student, labels=inputs["labels"]) + (1 - share) * _keras_soft(inputs, settings)}


def keras_distiller(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """`keras.distillation.Distiller` with a soft loss and a mean squared error on the logits."""
    share, (of_soft, of_regression) = settings["student_loss_weight"], settings["weights"]
    soft = of_soft * _keras_soft(inputs, settings) + of_regression * LogitMSE()(*_logits(inputs))
    return {"loss": share * _hard(inputs) + (1 - share) * soft}


def keras_default(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """Keras' own class with its default string: a divergence of raw logits."""
    student, teacher = _logits(inputs)
    return {"loss": keras.distillation.LogitsDistillation(settings["temperature"]).compute_loss(teacher, student)}


def keras_features(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """`keras.distillation.FeatureDistillation`; its cosine loss is the negative cosine."""
    distance = "cosine" if settings["loss"] == "cosine_similarity" else "mse"
    loss = FeatureRegression(distance=distance)(*_features(inputs))
    return {"loss": loss - 1 if distance == "cosine" else loss}


def deit(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """DeiT's loss: a base on the class head, the teacher's distribution or decision on the distillation head."""
    smoothing = settings.get("smoothing", 0.1) if settings.get("base") == "smooth" else 0.0
    labels = inputs["soft_labels"] if "soft_labels" in inputs else inputs["labels"]
    base = CrossEntropy(label_smoothing=smoothing)(inputs["student_cls_logits"], labels=labels)
    kind = settings.get("kind", "soft" if "tau" in settings else "hard")
    if kind == "none":
        return {"loss": base}
    loss = KD(temperature=settings["tau"], reduction="mean") if kind == "soft" else HardLabel()
    distilled = loss(inputs["student_dist_logits"], inputs["teacher_logits"])
    return {"loss": (1 - settings["alpha"]) * base + settings["alpha"] * distilled}


def decoupled(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The DKD function of mdistiller, with its two parts."""
    options = {name: settings[name] for name in ("temperature", "alpha", "beta")}
    return {
        "loss": _dkd(inputs, **options),
        "tckd": _dkd(inputs, **{**options, "alpha": 1.0, "beta": 0.0}),
        "nckd": _dkd(inputs, **{**options, "alpha": 0.0, "beta": 1.0}),
    }


def decoupled_with_labels(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The DKD distiller of mdistiller: the labels, and the weight's warm-up."""
    weight = min(settings["epoch"] / settings["warmup"], 1.0)
    soft = weight * _dkd(inputs, temperature=settings["T"], alpha=settings["alpha"], beta=settings["beta"])
    hard = _hard(inputs)
    return {"loss": hard + soft, "loss_ce": hard, "loss_kd": soft}


def decoupled_mmrazor(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """mmrazor's, whose every reduction but the batch's mean is the sum."""
    scale = 1 if settings["reduction"] == "batchmean" else inputs["student_logits"].shape[0]
    options = {"temperature": settings["tau"], "alpha": settings["alpha"], "beta": settings["beta"]}
    return {"loss": scale * _dkd(inputs, **options)}


def normalised(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The NKD of cls_KD, with class numbers or with the probabilities that mixup makes."""
    loss = NKD(temperature=settings["temp"], gamma=settings["gamma"])
    return {"loss": loss(*_logits(inputs), labels=_labels(inputs))}


def correlated(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The DIST of its authors, for classes with its two parts, or for maps."""
    temperature = settings.get("tau", 1.0)
    parts = {"loss": (settings["beta"], settings["gamma"]), "inter": (1.0, 0.0), "intra": (0.0, 1.0)}
    return {
        name: DIST(beta=beta, gamma=gamma, temperature=temperature)(*_logits(inputs))
        for name, (beta, gamma) in parts.items()
    }


def correlated_mmrazor(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The DIST of mmrazor."""
    loss = DIST(beta=settings["inter"], gamma=settings["intra"], temperature=settings["tau"])
    return {"loss": settings["loss_weight"] * loss(*_logits(inputs))}


def _wsld(temperature: str, weight: str) -> Compute:
    return lambda inputs, settings: {"loss": settings[weight] * _weighted(inputs, settings[temperature])}


def weighted_original(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The authors' WSLD with the labels; its settings are constants there, and our preset."""
    preset = LOSSES["wsld"].presets["default"]
    hard = preset["labels"] * _hard(inputs)
    return {"loss": hard + preset["weight"] * _weighted(inputs, preset["temperature"])}


def standardized_kd(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """Hinton's loss on standardised logits, or on the logits as they are."""
    loss = KD(temperature=settings["temperature"], standardize=settings["logit_stand"])
    return {"loss": loss(*_logits(inputs))}


def standardized_dkd(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """DKD on standardised logits."""
    options = {name: settings[name] for name in ("temperature", "alpha", "beta")}
    return {"loss": _dkd(inputs, **options, standardize=True)}


def rkd_zoo(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """The weighted sum, and both parts before weighting."""
    return {
        "loss": RKD(distance=settings["w_dist"], angle=settings["w_angle"])(*_features(inputs)),
        "dist": RKD(distance=1, angle=0)(*_features(inputs)),
        "angle": RKD(distance=0, angle=1)(*_features(inputs)),
    }


def rkd_mmrazor(inputs: Inputs, settings: Settings) -> dict[str, Tensor]:
    """Both losses of mmrazor with their default weights, and their sum."""
    normalize = settings["with_l2_norm"]
    distance = RKD(angle=0, normalize=normalize)(*_features(inputs))
    angle = RKD(distance=0, normalize=normalize)(*_features(inputs))
    return {"loss": distance + angle, "dist": distance, "angle": angle}


def _of_features(make: Callable[[Settings], Any]) -> Compute:
    return lambda inputs, settings: {"loss": make(settings)(*_features(inputs))}


def _logits(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Student's and teacher's, classes last."""
    student, teacher = (
        ops.moveaxis(logits, 1, -1) if len(logits.shape) > 2 else logits
        for logits in (inputs["student_logits"], inputs["teacher_logits"])
    )
    return student, teacher


def _features(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["student_feat"], inputs["teacher_feat"]


def _labels(inputs: Inputs) -> Tensor:
    return inputs["soft_labels"] if "soft_labels" in inputs else inputs["labels"]


def _hard(inputs: Inputs) -> Tensor:
    return CrossEntropy()(inputs["student_logits"], labels=inputs["labels"])


def _keras_soft(inputs: Inputs, settings: Settings) -> Tensor:
    loss = SoftTargets(loss=keras.losses.KLDivergence(), temperature=settings["temperature"])
    return loss(*_logits(inputs))


def _dkd(inputs: Inputs, **options: Any) -> Tensor:
    return DKD(**options)(*_logits(inputs), labels=_labels(inputs))


def _weighted(inputs: Inputs, temperature: float) -> Tensor:
    return WSLD(temperature=temperature)(*_logits(inputs), labels=_labels(inputs))


CASES: dict[str, Compute] = {
    "kd_zoo_softtarget": _kd("T"),
    "kd_rep_distillkl": _kd("T"),
    "kd_mdistiller": _kd("T"),
    "kd_szagoruyko": _with_labels(lambda i, s: _kd("T")(i, s)["loss"], alpha_on_labels=False),
    "kd_mmrazor_kl": mmrazor,
    "kd_clskd_ce": cross_entropy_form,
    "kd_seed0_function": seed_0_function,
    "kd_seed0_loop": _with_labels(lambda i, s: _kd("temp", t_squared=False)(i, s)["loss"], alpha_on_labels=True),
    "kd_seed1_loop": _with_labels(lambda i, s: _kd("temp")(i, s)["loss"], alpha_on_labels=True),
    "kd_seed4_keras_distiller": keras_example,
    "kd_keras_logitsdistillation_instance": lambda i, s: {"loss": _keras_soft(i, s)},
    "kd_keras_logitsdistillation_default": keras_default,
    "kd_keras_distiller": keras_distiller,
    "deit_soft": deit,
    "deit_hard": deit,
    "deit_seed3": deit,
    "logits_zoo": lambda i, s: {"loss": LogitMSE()(*_logits(i))},
    "dkd_mdistiller": decoupled,
    "dkd_mdistiller_forward": decoupled_with_labels,
    "dkd_mmrazor": decoupled_mmrazor,
    "dkd_clskd": lambda i, s: {"loss": _dkd(i, temperature=s["temp"], alpha=s["alpha"], beta=s["beta"])},
    "nkd_clskd": normalised,
    "dist_hunto_cls": correlated,
    "dist_hunto_seg": correlated,
    "dist_mmrazor": correlated_mmrazor,
    "wsld_mmrazor": _wsld("tau", "loss_weight"),
    "wsld_original": weighted_original,
    "wsld_clskd": _wsld("temp", "alpha"),
    "lskd_kd": standardized_kd,
    "lskd_dkd": standardized_dkd,
    "pkt_zoo": _of_features(lambda s: PKT(eps=1e-6)),
    "pkt_rep": _of_features(lambda s: PKT()),
    "pkt_author": _of_features(lambda s: PKT()),
    "sp_zoo": _of_features(lambda s: SP()),
    "sp_rep": _of_features(lambda s: SP()),
    "rkd_zoo": rkd_zoo,
    "rkd_author_distance": _of_features(lambda s: RKD(distance=1, angle=0)),
    "rkd_author_angle": _of_features(lambda s: RKD(distance=0, angle=1)),
    "rkd_rep": _of_features(lambda s: RKD(distance=s["w_d"], angle=s["w_a"])),
    "rkd_mmrazor": rkd_mmrazor,
    "cc_zoo": _of_features(lambda s: CC(gamma=s["gamma"], order=s["P_order"])),
    "feat_keras_featuredistillation": keras_features,
    "hint_zoo": _of_features(lambda s: FeatureRegression()),
}
