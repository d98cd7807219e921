"""Optimisers and learning-rate schedules, from torch."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from understudy.recipe.schema import Train

# Devices for which torch has each optimiser as one kernel.
FUSED = ("cpu", "cuda")


def make_optimizer(
    parameters: Iterable[nn.Parameter], settings: Train, *, undecayed: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser that a recipe names, fused into one kernel where torch has one.

    Args:
        parameters: those to train.
        settings: the recipe's `train`.
        undecayed: those of them without weight decay.
    """
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(parameter.device.type in FUSED for parameter in chosen)
    spared = {id(parameter) for parameter in undecayed}
    groups = [
        {"params": [parameter for parameter in chosen if id(parameter) not in spared]},
        {"params": [parameter for parameter in chosen if id(parameter) in spared], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    common = {"lr": settings.scaled_lr, "weight_decay": settings.weight_decay, "fused": fused}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **common)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, betas=settings.betas, **common)


def moments_of(settings: Train) -> tuple[str, ...]:
    """What torch's optimiser keeps of each parameter, by its names, but for the number of steps.

    Args:
        settings: the recipe's `train`.
    """
    if settings.optimizer != "sgd":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if settings.momentum else ()


@torch.no_grad()
def update(
    settings: Train,
    weights: Tensor,
    gradient: Tensor,
    moments: Sequence[Tensor],
    step: int,
    *,
    rate: float,
    decay: float | Tensor,
    skip: Tensor | None = None,
) -> None:
    """Change weights that are one tensor by the kernel that the optimiser of `make_optimizer` calls.

    What the optimiser does around that kernel would be felt in the compiled step of a small student.

    Args:
        settings: the recipe's `train`.
        weights: of any shape.
        gradient: likewise; may be changed.
        moments: as `moments_of` names them.
        step: counted from 0.
        rate: of learning, in this step.
        decay: of all weights, or of each.
        skip: scalar; where it is not zero nothing is changed, and no device is waited for.
    """
    adamw = settings.optimizer == "adamw"
    if isinstance(decay, Tensor):  # the kernels know one number for all
        if adamw:
            weights.mul_(1 - rate * (decay if skip is None else decay * (1 - skip)))
        else:
            gradient.addcmul_(decay, weights)
        decay = 0.0
    common = {"lr": rate, "weight_decay": decay, "maximize": False, "found_inf": skip}
    if settings.optimizer == "sgd":
        torch.ops.aten._fused_sgd_.default(
            [weights],
            [gradient],
            [*moments],
            momentum=settings.momentum,
            dampening=0.0,
            nesterov=settings.nesterov,
            is_first_step=False,  # a velocity of zero is none
            **common,
        )
        return
    beta1, beta2 = settings.betas
    kernel = torch.ops.aten._fused_adamw_.default if adamw else torch.ops.aten._fused_adam_.default
    means, squares = ([moment] for moment in moments)
    steps = torch.full((), step + 1.0, device=weights.device)
    kernel(
        [weights], [gradient], means, squares, [], [steps], beta1=beta1, beta2=beta2, eps=1e-8, amsgrad=False, **common
    )


def undecayed(module: nn.Module, settings: Train) -> list[nn.Parameter]:
    """The parameters that `decay: weights` spares: biases, norms, and what a model itself names.

    Args:
        module: of timm's vision transformers, `no_weight_decay()` names tokens and position embeddings.
        settings: the recipe's `train`.
    """
    if settings.decay == "all":
        return []
    named = dict(module.named_parameters())
    spared = {name for name, parameter in named.items() if parameter.ndim <= 1 or name.endswith(".bias")}
    for path, part in module.named_modules():
        names = getattr(part, "no_weight_decay", None)
        if callable(names):
            spared |= {f"{path}.{name}" if path else name for name in names()}  # pyright: ignore[reportGeneralTypeIssues]
    return [parameter for name, parameter in named.items() if name in spared]


def rate_factor(settings: Train, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """The learning rate at each step as a share of the recipe's: a closed form, so resuming needs no history.

    Linear warm-up, then constant, linear or cosine down to `min_lr`, or times gamma after each milestone. With
    `schedule_per: epoch` the rate is held during an epoch. `timm-cosine` falls from the first epoch on, and the
    warm-up, from `warmup_lr`, takes the place of its beginning: so do timm and DeiT's code.

    Args:
        settings: the recipe's `train`.
        steps_per_epoch: optimiser steps in an epoch.
        epochs: of this arm.

    Returns:
        A function from the number of steps done to the factor.
    """
    floor, start = settings.min_lr / settings.scaled_lr, settings.warmup_lr / settings.scaled_lr

    def factor(step: int) -> float:
        if settings.schedule_per == "epoch":
            step = step // steps_per_epoch * steps_per_epoch
        epoch = step / steps_per_epoch
        if epoch < settings.warmup_epochs:
            # From 0 the first step already moves: (step + 1), not step.
            moved = 0 if start else 1
            return start + (1 - start) * (step + moved) / (settings.warmup_epochs * steps_per_epoch + moved)
        first = 0.0 if settings.schedule == "timm-cosine" else settings.warmup_epochs
        done = min(1.0, (epoch - first) / max(epochs - first, 1e-12))
        if settings.schedule == "linear":
            return floor + (1 - floor) * (1 - done)
        if settings.schedule in ("cosine", "timm-cosine"):
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        if settings.schedule == "step":
            return max(floor, settings.gamma ** sum(epoch >= milestone for milestone in settings.milestones))
        return 1.0

    return factor


def make_schedule(
    optimizer: torch.optim.Optimizer, settings: Train, steps_per_epoch: int, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Build the schedule that a recipe names; None where the rate never changes.

    `plateau` is stepped with the validation accuracy after each evaluation, the others after each step.
    """
    if settings.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=settings.gamma, patience=settings.patience, min_lr=settings.min_lr
        )
    if settings.schedule == "constant" and not settings.warmup_epochs:
        return None
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(settings, steps_per_epoch, epochs))
