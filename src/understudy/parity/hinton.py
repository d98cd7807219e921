"""Hinton's distillation, DeiT's and the regression on logits: the recorded cases computed with our losses.

Every function is a `Compute` (see `recorded.py`).
"""

from torch import Tensor

from understudy.losses import KD, CrossEntropy, HardLabel, LogitMSE
from understudy.parity.recorded import Inputs, Settings, Weights


def soft_target(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """T² · KL, averaged over samples: Knowledge-Distillation-Zoo, RepDistiller, mdistiller."""
    return {"loss": _kd(inputs, temperature=settings["T"])}


def soft_and_hard(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Zagoruyko's total, in which alpha weighs the soft part."""
    alpha = settings["alpha"]
    return {"loss": alpha * _kd(inputs, temperature=settings["T"]) + (1 - alpha) * _cross_entropy(inputs)}


def mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The KLDivergence of mmrazor, with its reduction; also for maps."""
    loss = _kd(inputs, temperature=settings["tau"], reduction=settings["reduction"])
    return {"loss": settings["loss_weight"] * loss}


def cross_entropy_form(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """cls_KD's soft part as a cross entropy, and the weight it leaves to the labels."""
    loss = settings["alpha"] * _kd(inputs, temperature=settings["temp"], cross_entropy=True)
    return {"loss": loss, "hard_weight": loss.new_tensor(1 - settings["alpha"])}


def seed_0_function(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The printed function: mean over all elements, doubled, alpha on the soft part."""
    alpha = settings["alpha"]
    soft = _kd(inputs, temperature=settings["temp"], reduction="mean")
    return {"loss": 2 * alpha * soft + (1 - alpha) * _cross_entropy(inputs)}


def seed_0_loop(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The printed loop: no T², alpha on the hard part."""
    alpha = settings["alpha"]
    soft = _kd(inputs, temperature=settings["temp"], t_squared=False)
    return {"loss": alpha * _cross_entropy(inputs) + (1 - alpha) * soft}


def seed_1_loop(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The printed loop with T², alpha on the hard part."""
    alpha = settings["alpha"]
    return {"loss": alpha * _cross_entropy(inputs) + (1 - alpha) * _kd(inputs, temperature=settings["temp"])}


def keras_example(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The Distiller of the Keras example, alpha on the hard part."""
    return _keras_example(inputs, settings, soft=_kd(inputs, temperature=settings["temperature"]))


def keras_example_clipped(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The same with Keras's own divergence."""
    return _keras_example(inputs, settings, soft=_keras_kd(inputs, settings))


def keras_logits(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """`keras.distillation.LogitsDistillation` given an instance of its loss."""
    return {"loss": _kd(inputs, temperature=settings["temperature"])}


def keras_logits_clipped(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The same with Keras's own divergence."""
    return {"loss": _keras_kd(inputs, settings)}


def keras_distiller(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """`keras.distillation.Distiller` with a soft loss and a mean squared error on the logits."""
    return _keras_distiller(inputs, settings, soft=_kd(inputs, temperature=settings["temperature"]))


def keras_distiller_clipped(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The same with Keras's own divergence."""
    return _keras_distiller(inputs, settings, soft=_keras_kd(inputs, settings))


def keras_raw_logits(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The defect of Keras's default: its divergence of logits over T as if they were probabilities, without T²."""
    temperature = settings["temperature"]
    return {"loss": _keras_divergence(inputs["student_logits"] / temperature, inputs["teacher_logits"] / temperature)}


def logit_mse(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The mean squared difference of the logits."""
    return {"loss": LogitMSE()(inputs["student_logits"], inputs["teacher_logits"])}


def deit_soft(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """DeiT with the teacher's probabilities for the distillation head, averaged over all elements."""
    return _deit(inputs, settings, kind="soft")


def deit_hard(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """DeiT with the teacher's decision as the label of the distillation head."""
    return _deit(inputs, settings, kind="hard")


def deit_of_kind(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """DeiT's loss as printed, `kind` being `soft`, `hard` or `none`."""
    return _deit(inputs, settings, kind=settings["kind"])


def _deit(inputs: Inputs, settings: Settings, *, kind: str) -> dict[str, Tensor]:
    base = _deit_base(inputs, settings)
    if kind == "none":
        return {"loss": base}
    student, teacher = inputs["student_dist_logits"], inputs["teacher_logits"]
    if kind == "soft":
        distilled = KD(temperature=settings["tau"], reduction="mean")(student, teacher)
    elif kind == "hard":
        distilled = HardLabel()(student, teacher)
    else:
        raise ValueError(f"unknown kind of DeiT distillation '{kind}'")
    return {"loss": (1 - settings["alpha"]) * base + settings["alpha"] * distilled}


def _deit_base(inputs: Inputs, settings: Settings) -> Tensor:
    base = settings.get("base", "ce")
    if base not in ("ce", "soft", "smooth"):
        raise ValueError(f"unknown base loss of DeiT '{base}'")
    # 0.1 is timm's default, and the manifests name the smoothing only in words.
    smoothing = settings.get("smoothing", 0.1) if base == "smooth" else 0.0
    labels = inputs["soft_labels"] if "soft_labels" in inputs else inputs["labels"]
    return CrossEntropy(label_smoothing=smoothing)(inputs["student_cls_logits"], labels=labels)


def _keras_example(inputs: Inputs, settings: Settings, *, soft: Tensor) -> dict[str, Tensor]:
    return {"loss": settings["alpha"] * _cross_entropy(inputs) + (1 - settings["alpha"]) * soft}


def _keras_distiller(inputs: Inputs, settings: Settings, *, soft: Tensor) -> dict[str, Tensor]:
    share, (of_soft, of_regression) = settings["student_loss_weight"], settings["weights"]
    regression = LogitMSE()(inputs["student_logits"], inputs["teacher_logits"])
    return {"loss": share * _cross_entropy(inputs) + (1 - share) * (of_soft * soft + of_regression * regression)}


def _keras_kd(inputs: Inputs, settings: Settings) -> Tensor:
    temperature = settings["temperature"]
    student, teacher = ((inputs[name] / temperature).softmax(-1) for name in ("student_logits", "teacher_logits"))
    return _keras_divergence(student, teacher) * temperature**2


def _keras_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    keras_epsilon = 1e-7
    student, teacher = student.clamp(keras_epsilon, 1), teacher.clamp(keras_epsilon, 1)
    return (teacher * (teacher / student).log()).sum(-1).mean()


def _kd(inputs: Inputs, **options: object) -> Tensor:
    return KD(**options)(inputs["student_logits"], inputs["teacher_logits"])  # pyright: ignore[reportArgumentType]


def _cross_entropy(inputs: Inputs) -> Tensor:
    return CrossEntropy()(inputs["student_logits"], labels=inputs["labels"])
