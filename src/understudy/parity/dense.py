"""Distillation of dense maps and of tokens: the recorded cases computed with our losses.

Every function is a `Compute` (see `recorded.py`).
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.distill.schedule import Schedule
from understudy.losses import CWD, MGD, PKD, LogitMSE, ViTKD
from understudy.losses.functional import pooled
from understudy.parity.recorded import Inputs, Settings, Weights, load, recorded_draws
from understudy.parity.taps import both, sides


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
    return {"loss": settings["loss_weight"] * CWD(temperature=settings["tau"])(*both(inputs))}


def cwd_seed_2(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Seed 2's for several taps."""
    loss = CWD(temperature=settings["tau"])
    return {"loss": loss(*sides(inputs))}


def cwd_author(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The authors' criterion: over positions or channels, or the mean of each channel alone."""
    kind, student, teacher = settings["norm_type"], *both(inputs)
    if kind == "channel_mean" and settings["divergence"] == "mse":
        return {"loss": LogitMSE()(pooled(student), pooled(teacher))}
    if kind not in ("channel", "spatial") or settings["divergence"] != "kl":
        raise ValueError(f"no loss of ours is {kind} with {settings['divergence']}")
    over = "positions" if kind == "channel" else "channels"
    return {"loss": CWD(temperature=settings["temperature"], softmax_over=over)(student, teacher)}


def cwd_author_rest(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The criterion's other combinations, as it computes them."""
    kind, divergence, (student, teacher) = settings["norm_type"], settings["divergence"], both(inputs)
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
    return {"loss": settings["loss_weight"] * loss(*both(inputs))}


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
    student, teacher = sides(inputs)
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


def _mgd(inputs: Inputs, group: dict[str, Tensor], ratio: float, *, channels: bool = False) -> Tensor:
    student, teacher = both(inputs)
    loss = MGD(mask="channels" if channels else "positions", ratio=ratio)
    loss.prepare(student, teacher)
    rename = {key: re.sub(r"^generation\.", "generators.0.", re.sub(r"^align\.", "aligners.0.", key)) for key in group}
    load(loss, group, rename=rename)
    with recorded_draws(inputs):
        return loss(student, teacher)


def _seed_2_mgd(inputs: Inputs, weights: Weights, *, ratio: float, standardize: bool = False) -> Tensor:
    student, teacher = sides(inputs)
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


def _remember(norm: dict[str, Tensor], *batches: Tensor) -> None:
    """Update a batch norm's buffers, which ours has no use for: it only ever standardises by the batch."""
    for batch in batches:
        F.batch_norm(batch, norm["running_mean"], norm["running_var"], training=True)
        norm["num_batches_tracked"] += 1
