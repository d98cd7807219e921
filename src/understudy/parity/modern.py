"""Distillation of maps and tokens: the recorded cases computed with our losses.

Every function is a `Compute` (see `recorded.py`).
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.distill.objective import Schedule
from understudy.losses import CATKD, CWD, MGD, PKD, SRRL, CrossEntropy, LogitMSE, ReviewKD, SimKD, ViTKD
from understudy.losses.features import pool_to_smaller
from understudy.losses.functional import pooled
from understudy.losses.reviewkd import Fusion, hierarchical_context
from understudy.losses.srrl import regression
from understudy.parity.recorded import Inputs, Settings, Weights, load, recorded_draws


def context(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The hierarchical context loss, summed over levels."""
    pairs = zip(_all(inputs, "student_feat"), _all(inputs, "teacher_feat"), strict=True)
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
    student = (*_all(inputs, "student_feat"), inputs["student_pooled"])
    teacher = (*_all(inputs, "teacher_preact"), inputs["teacher_pooled"])
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
    of_maps = settings["weight"] * loss(inputs["student_cam"], inputs["teacher_cam"])
    hard = CrossEntropy()(pooled(inputs["student_cam"]), labels=inputs["labels"])
    return {"loss": hard + of_maps, "loss_CE": hard, "loss_CAT": of_maps}


def mgd_author(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The authors' for detection, which masks positions."""
    return {"loss": settings["alpha_mgd"] * _mgd(inputs, weights["mgd"], settings["lambda_mgd"])}


def mgd_author_channels(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The authors' for classification, which masks channels: where a draw is small, ours where it is large."""
    mirrored = {key: 1 - tensor if key.startswith("rand_") else tensor for key, tensor in inputs.items()}
    return {"loss": settings["alpha_mgd"] * _mgd(mirrored, weights["mgd"], settings["lambda_mgd"], channels=True)}


def mgd_mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """mmrazor's, with either mask."""
    channels = settings["mask_on_channel"]
    loss = _mgd(inputs, weights["connector"], settings["lambda_mgd"], channels=channels)
    return {"loss": settings["alpha_mgd"] * loss}


def mgd_seed_2(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Seed 2's for several taps, without alignment."""
    return {"loss": settings["alpha"] * _seed_2_mgd(inputs, weights, ratio=settings["lam"])}


def cwd_mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """mmrazor's, with its weight."""
    return {"loss": settings["loss_weight"] * CWD(temperature=settings["tau"])(*_features(inputs))}


def cwd_seed_2(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Seed 2's for several taps."""
    loss = CWD(temperature=settings["tau"])
    return {"loss": loss(_all(inputs, "student_feat"), _all(inputs, "teacher_feat"))}


def cwd_author(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The authors' criterion: over positions or channels, or the mean of each channel alone."""
    kind, student, teacher = settings["norm_type"], *_features(inputs)
    if kind == "channel_mean" and settings["divergence"] == "mse":
        return {"loss": LogitMSE()(pooled(student), pooled(teacher))}
    if kind not in ("channel", "spatial") or settings["divergence"] != "kl":
        raise ValueError(f"no loss of ours is {kind} with {settings['divergence']}")
    over = "positions" if kind == "channel" else "channels"
    return {"loss": CWD(temperature=settings["temperature"], softmax_over=over)(student, teacher)}


def cwd_author_rest(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The criterion's other combinations, as it computes them."""
    kind, divergence, (student, teacher) = settings["norm_type"], settings["divergence"], _features(inputs)
    samples, channels = student.shape[:2]
    # Squared differences ignore the temperature.
    temperature = settings["temperature"] if divergence == "kl" else 1.0

    def normalized(features: Tensor) -> Tensor:
        if kind == "channel":
            return F.softmax(features.flatten(2) / temperature, dim=2)
        if kind == "spatial":
            return F.softmax(features / temperature, dim=1)
        return pooled(features) if kind == "channel_mean" else features[0]

    ours, theirs = normalized(student), normalized(teacher)
    terms = theirs * (theirs.log() - ours.log()) if divergence == "kl" else (ours - theirs).square()
    divisor = samples * channels if kind in ("channel", "channel_mean") else student.numel() // channels
    return {"loss": terms.sum() * temperature**2 / divisor}


def pkd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """mmrazor's, with its weight."""
    loss = PKD(resize="student" if settings["resize_stu"] else "teacher")
    return {"loss": settings["loss_weight"] * loss(*_features(inputs))}


def vitkd(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """cls_KD's, with the mask that it drew."""
    student, teacher = ((*inputs[f"{side}_low"].unbind(1), inputs[f"{side}_high"]) for side in ("student", "teacher"))
    loss = ViTKD(shallow=settings["alpha"], deep=settings["beta"], ratio=settings["lam"])
    loss.prepare(student, teacher)
    last = len(student) - 1
    rename = {}
    for key in weights["vitkd"]:
        ours = re.sub(r"^align2\.", "aligners.", key)
        ours = re.sub(r"^align\.", f"aligners.{last}.", ours)
        rename[key] = re.sub(r"^generation\.", "generator.", ours)
    load(loss, weights["vitkd"], rename=rename)
    with recorded_draws(inputs):
        return {"loss": loss(student, teacher)}


def feature_loss_seed_2(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Seed 2's `FeatureLoss`: standardised channels, then either loss; 0.3 of the generative one is trained on."""
    student, teacher = _all(inputs, "student_feat"), _all(inputs, "teacher_feat")
    if settings["distiller"] == "cwd":
        align = weights["align_module"]
        student = tuple(
            F.conv2d(features, align[f"{index}.weight"], align[f"{index}.bias"])
            for index, features in enumerate(student)
        )
        loss = CWD(temperature=1.0, standardize=True)(student, teacher)
        for index, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
            _remember(weights[f"norm{index}"], ours, theirs)
    else:
        # The class's defaults, no setting of the case.
        loss = 2e-5 * _seed_2_mgd(inputs, weights, ratio=0.65, standardize=True)
        for index, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
            _remember(weights[f"norm1_{index}"], ours)
            _remember(weights[f"norm{index}"], theirs)
    return {"loss": loss, "scaled_for_training": loss * (1.0 if settings["distiller"] == "cwd" else 0.3)}


def weight_schedule_seed_2(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Seed 2's weight over the batches of an epoch: the cosine ramp from 1 to 0.1."""
    count = settings["n"]
    values = Schedule.ramp(1.0, 0.1, count, shape="cosine").values[:count]
    return {"weights": torch.tensor(values, dtype=torch.float64)}


def _features(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["student_feat"], inputs["teacher_feat"]


def _all(inputs: Inputs, prefix: str) -> tuple[Tensor, ...]:
    """The inputs `prefix_0`, `prefix_1`, … in order."""
    count = sum(bool(re.fullmatch(rf"{prefix}_\d+", name)) for name in inputs)
    return tuple(inputs[f"{prefix}_{index}"] for index in range(count))


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


def _mgd(inputs: Inputs, group: dict[str, Tensor], ratio: float, *, channels: bool = False) -> Tensor:
    student, teacher = _features(inputs)
    loss = MGD(mask="channels" if channels else "positions", ratio=ratio)
    loss.prepare(student, teacher)
    rename = {key: re.sub(r"^generation\.", "generators.0.", re.sub(r"^align\.", "aligners.0.", key)) for key in group}
    load(loss, group, rename=rename)
    with recorded_draws(inputs):
        return loss(student, teacher)


def _seed_2_mgd(inputs: Inputs, weights: Weights, *, ratio: float, standardize: bool = False) -> Tensor:
    student, teacher = _all(inputs, "student_feat"), _all(inputs, "teacher_feat")
    loss = MGD(ratio=ratio, align=False, standardize=standardize)
    loss.prepare(student, teacher)
    merged = {
        f"generators.{index}.{key}": tensor
        for index in range(len(student))
        for key, tensor in weights[f"generation{index}"].items()
    }
    load(loss, merged)
    with recorded_draws(inputs):
        return loss(student, teacher)


@torch.no_grad()
def _remember(norm: dict[str, Tensor], *batches: Tensor) -> None:
    """Update a batch norm's buffers, which ours has no use for: it only ever standardises by the batch."""
    for batch in batches:
        F.batch_norm(batch, norm["running_mean"], norm["running_var"], training=True)
        norm["num_batches_tracked"] += 1
