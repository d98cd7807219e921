"""The losses on maps, those with weights of their own among them: the recorded cases, whose channels come first."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras

from understudy.keras.losses import AT, CWD, HCL, MGD, CrossEntropy, FitNet, Loss, ReviewKD
from understudy.keras.losses.reviewkd import Fusion
from understudy.keras.operations import ops
from understudy.keras.parity.recorded import Case

Tensor = Any
Inputs = dict[str, Tensor]

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_CONV = {"weight": "kernel", "bias": "bias"}


@dataclass(frozen=True)
class Plan:
    """How a case is computed.

    Args:
        compute: from the inputs to the outputs by name.
        variables: the weight of ours for each recorded one.
    """

    compute: Callable[[Inputs], dict[str, Tensor]]
    variables: dict[str, Any] = field(default_factory=dict)


def attention(case: Case, dtype: str) -> Plan:
    """Attention transfer of all four sources, of one tap or several."""
    settings = case.settings
    epsilon = 1e-6 if case.base_id == "at_zoo" else 1e-12
    loss = AT(p=settings.get("p", 2), epsilon=epsilon, data_format="channels_first")
    return _by_layer(case, lambda *pair: settings.get("loss_weight", 1.0) * loss(*pair))


def channels(case: Case, dtype: str) -> Plan:
    """CWD of mmrazor and of seed 2."""
    loss = CWD(temperature=case.settings["tau"], data_format="channels_first")
    return _by_layer(case, lambda *pair: case.settings.get("loss_weight", 1.0) * loss(*pair))


def channels_of_author(case: Case, dtype: str) -> Plan:
    """The authors' CWD: over positions or over channels."""
    kind = {"channel": "positions", "spatial": "channels"}.get(case.settings["norm_type"])
    if kind is None or case.settings["divergence"] != "kl":
        raise NotImplementedError("the criterion's other combinations are no loss of ours")
    loss = CWD(temperature=case.settings["temperature"], softmax_over=kind, data_format="channels_first")  # pyright: ignore[reportArgumentType]
    return _by_layer(case, loss)


def context(case: Case, dtype: str) -> Plan:
    """The hierarchical context loss, summed over levels."""
    return _by_layer(case, HCL(data_format="channels_first"))


def hint(case: Case, dtype: str) -> Plan:
    """The hint loss with RepDistiller's regressor."""
    loss = _built(FitNet(relu=case.settings["use_relu"], data_format="channels_first", dtype=dtype), case)
    (regressor,) = loss.regressors
    variables = _of_layers(case, {"convreg.conv": (regressor.conv, _CONV), "convreg.bn": (regressor.norm, _NORM)})
    return Plan(lambda inputs: {"loss": loss(*_sides(inputs), training=True)}, variables)


def generated(case: Case, dtype: str) -> Plan:
    """MGD of its authors, of mmrazor and of seed 2, with the masks they drew."""
    settings, by_channels = case.settings, case.base_id == "mgd_author_cls"
    of_channels = by_channels or settings.get("mask_on_channel", False)
    loss = MGD(
        ratio=settings["lam" if case.base_id == "mgd_seed2" else "lambda_mgd"],
        mask="channels" if of_channels else "positions",
        align=case.base_id != "mgd_seed2",
        data_format="channels_first",
        dtype=dtype,
    )
    _built(loss, case)
    layers = {}
    for index, generator in enumerate(loss.generators):
        for name in {key.partition(".")[0] for key in case.arrays["param"]}:
            prefix = f"generation{index}" if case.base_id == "mgd_seed2" else f"{name}.generation"
            layers[f"{prefix}.0"], layers[f"{prefix}.2"] = ((each, _CONV) for each in generator.layers)  # pyright: ignore[reportAttributeAccessIssue]
            layers[f"{name}.align"] = (loss.aligners[0], _CONV)

    def compute(inputs: Inputs) -> dict[str, Tensor]:
        draws = iter(range(len(loss.generators)))

        def recorded(shape: tuple[int, ...]) -> Tensor:
            drawn = ops.transpose(inputs[f"rand_{next(draws)}"], (0, 2, 3, 1))
            # The authors' for classes leave out where a draw is small, ours where it is large.
            return 1 - drawn if by_channels else drawn

        loss._draw = recorded
        scale = settings.get("alpha_mgd", settings.get("alpha"))
        return {"loss": scale * loss(*_sides(inputs))}

    return Plan(compute, _of_layers(case, layers))


def fusion(case: Case, dtype: str) -> Plan:
    """One attention-based fusion; the recorded loss is a probe of its two results."""
    settings = case.settings
    module = Fusion(
        channels=case.arrays["input"]["student_feat"].shape[1], width=settings["mid"], wanted=settings["out"],
        fuses=settings["res"] is not None, dtype=dtype,
    )  # fmt: skip

    def compute(inputs: Inputs) -> dict[str, Tensor]:
        level = ops.transpose(inputs["student_feat"], (0, 2, 3, 1))
        below = inputs.get("student_residual")
        below = None if below is None else ops.transpose(below, (0, 2, 3, 1))
        results = module(level, below=below, size=(settings["out_shape"],) * 2, training=True)
        output, fused = (ops.transpose(maps, (0, 3, 1, 2)) for maps in results)
        probe = ops.sum(inputs["probe_y"] * output) + ops.sum(inputs["probe_fused"] * fused)
        return {"loss": probe, "y": output, "fused": fused}

    return Plan(compute, _of_layers(case, _fusion_layers("abf", module)))


def review(case: Case, dtype: str) -> Plan:
    """The whole of mdistiller: cross entropy, and the review with its weight raised over the warm-up."""
    loss = ReviewKD(data_format="channels_first", dtype=dtype)
    loss.build(*(tuple(each.shape for each in side) for side in _review_sides(case.arrays["input"])))
    layers = {}
    for index, module in enumerate(loss.fusions):
        layers |= _fusion_layers(f"abfs.{index}", module)

    def compute(inputs: Inputs) -> dict[str, Tensor]:
        warm = min(case.settings["epoch"] / case.settings["warmup"], 1.0)
        distilled = case.settings["weight"] * warm * loss(*_review_sides(inputs), training=True)
        hard = CrossEntropy()(inputs["student_logits"], labels=inputs["labels"])
        return {"loss": hard + distilled, "loss_ce": hard, "loss_kd": distilled}

    return Plan(compute, _of_layers(case, layers))


def _by_layer(case: Case, loss: Callable[..., Tensor]) -> Plan:
    def compute(inputs: Inputs) -> dict[str, Tensor]:
        student, teacher = (_several(side) for side in _sides(inputs))
        losses = [loss(*pair) for pair in zip(student, teacher, strict=True)]
        return {"loss": sum(losses), "per_layer": ops.stack(losses)}

    return Plan(compute)


def _several(side: Any) -> tuple[Any, ...]:
    return side if isinstance(side, tuple) else (side,)


def _sides(inputs: dict[str, Any]) -> tuple[Any, Any]:
    if "student_feat" in inputs:
        return inputs["student_feat"], inputs["teacher_feat"]
    return _all(inputs, "student_feat"), _all(inputs, "teacher_feat")


def _review_sides(inputs: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    student = (*_all(inputs, "student_feat"), inputs["student_pooled"])
    return student, (*_all(inputs, "teacher_preact"), inputs["teacher_pooled"])


def _all(inputs: dict[str, Any], prefix: str) -> tuple[Any, ...]:
    count = sum(bool(re.fullmatch(rf"{prefix}_\d+", name)) for name in inputs)
    return tuple(inputs[f"{prefix}_{index}"] for index in range(count))


def _built(loss: Loss, case: Case) -> Any:
    shapes = (
        tuple(each.shape for each in side) if isinstance(side, tuple) else side.shape
        for side in _sides(case.arrays["input"])
    )
    loss.build(*shapes)
    return loss


def _fusion_layers(prefix: str, module: Fusion) -> dict[str, tuple[Any, dict[str, str]]]:
    return {
        f"{prefix}.conv1.0": (module.reduce, _CONV),
        f"{prefix}.conv1.1": (module.reduce_norm, _NORM),
        f"{prefix}.conv2.0": (module.widen, _CONV),
        f"{prefix}.conv2.1": (module.widen_norm, _NORM),
        f"{prefix}.att_conv.0": (module.attend, _CONV),
    }


def _of_layers(case: Case, layers: dict[str, tuple[Any, dict[str, str]]]) -> dict[str, keras.Variable]:
    """The variable of ours for each recorded weight that takes part in the call."""
    found = {}
    for key in case.arrays["param"]:
        place, _, name = key.rpartition(".")
        if name == "num_batches_tracked":
            continue
        layer, names = layers[place]
        found[key] = getattr(layer, names[name])
    return found


PLANS: dict[str, Callable[[Case, str], Plan]] = {
    "at_zoo": attention,
    "at_rep": attention,
    "at_szagoruyko": attention,
    "at_mmrazor": attention,
    "cwd_mmrazor": channels,
    "cwd_seed2": channels,
    "cwd_author": channels_of_author,
    "reviewkd_hcl": context,
    "reviewkd_abf": fusion,
    "reviewkd_mdistiller": review,
    "hint_rep_convreg": hint,
    "mgd_author_det": generated,
    "mgd_author_cls": generated,
    "mgd_mmrazor": generated,
    "mgd_seed2": generated,
}
