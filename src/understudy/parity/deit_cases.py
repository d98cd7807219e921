"""What DeiT's code computed: each group of recorded cases, those of timm among them, computed with our parts."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from understudy.data.mix import Mix, mix_labels
from understudy.data.repeated import deit_order
from understudy.losses import KD, CrossEntropy, HardLabel
from understudy.losses.deit import BinaryCrossEntropy, submodels_agree
from understudy.models.build import extra
from understudy.models.resolution import interpolate_positions
from understudy.models.vit import as_timm
from understudy.parity.timm_cases import Arrays, Computed, Settings, gradients, leaf, timm_task
from understudy.recipe.schema import Train
from understudy.train.optim import rate_factor


@dataclass(frozen=True)
class Group:
    """How the cases of a group are computed.

    Args:
        method: in words.
        compute: from the arrays and conventions of a case to every recorded output by name.
        inputs: pattern of the arrays that are given, not computed.
        difference: why ours may be another, where it is on purpose.
        original: what the original does instead, rewritten.
    """

    method: str
    compute: Callable[[Arrays, Settings], Computed]
    inputs: str
    difference: str = ""
    original: Callable[[Arrays, Settings], Computed] | None = None


# The losses of the original


def _distillation(arrays: Arrays, settings: Settings) -> Computed:
    outputs, outputs_kd = leaf(arrays["outputs"]), leaf(arrays["outputs_kd"])
    loss = _distillation_loss(outputs, outputs_kd, arrays, settings)
    return {"loss": loss, **gradients(loss, grad_outputs=outputs, grad_outputs_kd=outputs_kd)}


def _distillation_loss(of_class: Tensor, of_teacher: Tensor, arrays: Arrays, settings: Settings) -> Tensor:
    base = _base_loss(settings["base"])(of_class, labels=torch.tensor(arrays["labels"]))
    if settings["type"] == "none":
        return base
    kd = KD(temperature=settings["tau"], reduction="mean") if settings["type"] == "soft" else HardLabel()
    alpha = settings["alpha"]
    return (1 - alpha) * base + alpha * kd(of_teacher, torch.tensor(arrays["teacher"]))


def _base_loss(name: str) -> nn.Module:
    if name == "bce":
        return BinaryCrossEntropy()
    smoothing = re.fullmatch(r"ls([\d.]+)", name)
    if name not in ("ce", "soft_target") and smoothing is None:
        raise ValueError(f"unknown base loss '{name}'")
    return CrossEntropy(label_smoothing=float(smoothing[1]) if smoothing else 0.0)


def _cosub(arrays: Arrays, settings: Settings) -> Computed:
    outputs = leaf(arrays["outputs"])
    loss = submodels_agree(*outputs.chunk(2), labels=torch.tensor(arrays["soft_targets"]))
    return {"loss": loss, **gradients(loss, grad=outputs)}


# Models and position embeddings


def _positions(arrays: Arrays, settings: Settings) -> Computed:
    extra_tokens = settings["extra_tokens_first"] if "extra_tokens_first" in settings else settings["num_prefix_tokens"]
    side = math.isqrt(arrays["new_pos_embed"].shape[1] - extra_tokens)
    embedding = torch.tensor(arrays["pos_embed"])
    made = interpolate_positions(embedding, (side, side), extra=extra_tokens, antialias=settings["antialias"])
    return {"new_pos_embed": made}


def _distilled_vit(arrays: Arrays, settings: Settings) -> Computed:
    network = settings["ctor"]
    size = network["img_size"]
    architecture, arguments = as_timm(
        shape=(network["in_chans"], size, size),
        patch=network["patch_size"],
        width=network["embed_dim"],
        depth=network["depth"],
        heads=network["num_heads"],
        tokens=2,
        mlp_ratio=network["mlp_ratio"],
    )
    timm = extra("timm", "vit")
    module = timm.create_model(
        architecture, num_classes=network["num_classes"], qkv_bias=network["qkv_bias"], **arguments
    ).double()
    module.set_distilled_training(True)
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = network["ln_eps"]
    weights = {name.removeprefix("sd."): value for name, value in arrays.items() if name.startswith("sd.")}
    module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    images = leaf(arrays["x"])
    of_class, of_teacher = module.train()(images)
    loss = _distillation_loss(of_class, of_teacher, arrays, _in_keys(settings["loss"]))
    named = dict(module.named_parameters())
    wanted = {name: named[name.removeprefix("grad.")] for name in arrays if name.startswith("grad.")}
    found = gradients(loss, grad_x=images, **wanted)
    tokens = module.eval().forward_features(images)
    return {
        "train_head": of_class,
        "train_head_dist": of_teacher,
        "feat_cls": tokens[:, 0],
        "feat_dist": tokens[:, 1],
        "eval_logits": module(images),
        "loss": loss,
        **found,
    }


def _in_keys(words: str) -> Settings:
    """The settings of a loss that a manifest describes in words, such as `soft, alpha .5, tau 3, ls0.1 base`."""
    kind, alpha, tau, base = (
        re.search(pattern, words.lower())
        for pattern in (r"(none|soft|hard)", r"alpha[\s=]*([\d.]+)", r"tau[\s=]*([\d.]+)", r"(\S+) base")
    )
    if kind is None or alpha is None or base is None:
        raise ValueError(f"the loss '{words}' is not understood")
    return {"type": kind[1], "alpha": float(alpha[1]), "tau": float(tau[1]) if tau else 1.0, "base": base[1]}


# Data


def _sampler(arrays: Arrays, settings: Settings) -> Computed:
    return {case["key"]: torch.from_numpy(_order(case)) for case in settings["cases"]}


def _empty_sampler(arrays: Arrays, settings: Settings) -> Computed:
    """The original: fewer than 256 samples are cut to none."""
    return {
        case["key"]: torch.from_numpy(_order(case)[: len(_order(case)) if case["len"] >= 256 else 0])
        for case in settings["cases"]
    }


def _order(case: Settings) -> NDArray[np.int64]:
    return deit_order(
        case["len"],
        case["epoch"],
        repeats=case["num_repeats"],
        replicas=case["num_replicas"],
        rank=case["rank"],
        shuffle=case["shuffle"],
    )


def _mixed_labels(arrays: Arrays, settings: Settings) -> Computed:
    labels = torch.tensor(arrays["y"])
    partner = np.arange(len(labels))[::-1].copy()
    computed = {}
    for case in settings["cases"]:
        classes = case["num_classes"]
        mixed = mix_labels(labels, labels[torch.from_numpy(partner)], Mix(partner, ratio=case["lam"]), classes)
        # The smoothing is the loss's: what it takes for the label shows in its gradient, (softmax - label) / N.
        logits = torch.zeros(len(labels), classes, dtype=torch.float64, requires_grad=True)
        loss = CrossEntropy(label_smoothing=case["smoothing"])(logits, labels=mixed)
        (gradient,) = torch.autograd.grad(loss, logits)
        computed[case["key"]] = 1 / classes - len(labels) * gradient
    return computed


# Training


def _late_rates(arrays: Arrays, settings: Settings) -> Computed:
    """The original: its schedule is stepped after each epoch, so that the first two share a rate and all are late."""
    rates = [_rate(max(epoch - 1, 0), settings) for epoch in range(settings["epochs"])]
    return {"applied_lr": torch.tensor(rates, dtype=torch.float64)}


def _rates(arrays: Arrays, settings: Settings) -> Computed:
    rates = [_rate(epoch, settings) for epoch in range(settings["epochs"])]
    return {"applied_lr": torch.tensor(rates, dtype=torch.float64)}


def _rate(epoch: int, settings: Settings) -> float:
    keys = ("epochs", "warmup_epochs", "lr", "warmup_lr", "min_lr")
    train = Train.model_validate({"schedule": "timm-cosine", **{key: settings[key] for key in keys}})
    return train.lr * rate_factor(train, steps_per_epoch=1, epochs=train.epochs)(epoch)


def _moving_average(arrays: Arrays, settings: Settings) -> Computed:
    model = _small_network(arrays, "init")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings["decay"]), use_buffers=True)
    average.n_averaged += 1  # what it starts from counts
    for update in range(settings["updates"]):
        average.update_parameters(_small_network(arrays, f"model{update}"))
    return {f"ema.{name}": value for name, value in average.module.state_dict().items()}


def _small_network(arrays: Arrays, prefix: str) -> nn.Module:
    """A linear layer with BatchNorm, with the recorded weights."""
    recorded = {
        name.removeprefix(f"{prefix}."): value for name, value in arrays.items() if name.startswith(f"{prefix}.")
    }
    weights = {name: torch.tensor(value) for name, value in recorded.items()}
    out_features, in_features = weights["0.weight"].shape
    network = nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features)).double()
    network.load_state_dict(weights)
    return network


_LOSS = r"outputs|outputs_kd|teacher|labels|soft_targets"
_TASK = r"x|student_logits|labels|teacher_w|student_dist_logits|student_feat|teacher_feat|proj_weight|proj_bias"
_SMALL = "fewer than 256 samples give the original's sampler an empty epoch; ours keeps them all, as timm's does"
_LATE = (
    "the original steps its schedule after each epoch, so that the first two epochs share a rate and all others have "
    "that of the epoch before; ours has no such delay"
)

# By how an id begins, the longer beginnings first.
GROUPS: dict[str, Group] = {
    "distloss": Group("DeiT's DistillationLoss", _distillation, _LOSS),
    "cosub": Group("submodel co-training", _cosub, _LOSS),
    "timm_posembed": Group("timm's position embedding at another resolution", _positions, "pos_embed"),
    "posembed": Group("position embedding at another resolution", _positions, "pos_embed"),
    "distilled_vit": Group("DeiT with two heads", _distilled_vit, r"x|labels|teacher|sd\..*"),
    "rasampler": Group("repeated augmentation", _sampler, "", _SMALL, _empty_sampler),
    "timm_repeataug": Group("timm's repeated augmentation", _sampler, ""),
    "mixup_target": Group("mixed and smoothed labels", _mixed_labels, "y"),
    "lr_cosine": Group("learning rate by epoch", _rates, "", _LATE, _late_rates),
    "model_ema": Group("moving average of the weights", _moving_average, r"init\..*|model\d+\..*"),
    "timm_logit": Group("timm's LogitDistillationTask", timm_task, _TASK),
    "timm_token": Group("timm's TokenDistillationTask", timm_task, _TASK),
    "timm_feature": Group("timm's FeatureDistillationTask", timm_task, _TASK),
}
