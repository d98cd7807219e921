"""A training step as a pure function of tensors: the forward of one arm or of several at once, backward and update."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from understudy.data import Preprocess
from understudy.distill import Answer, Distiller
from understudy.recipe.schema import Train
from understudy.train.precision import autocast


@dataclass(frozen=True)
class Form:
    """What a step's function is made for; of another form there is another function.

    Args:
        images: shape (N, C, H, W) of a batch, and its type.
        given: what stands beside the images, in order: `labels`, `logits`, `members`, or a path of the teacher's.
        terms: the objectives that have a weight.
        epoch: an epoch in which just these have one.
    """

    images: tuple[Any, ...]
    given: tuple[str, ...]
    terms: tuple[str, ...]
    epoch: int


class PureStep:
    """The step of a distiller, or of several of one kind, over the rows of one tensor.

    What a step changes are its tensors `weights`, `moments`, `average` and `sums`, in place; what it draws at random
    is given to it. A row whose loss or gradient is not finite keeps what it had.

    Args:
        distiller: one of them; it is copied, but for its teacher.
        trained: its parameters in the order of a row.
        settings: how it is trained.
        decay: weight decay, of all or of each number in a row.
        preprocess: from pixels to its input.
        rows: how many are trained at once.
    """

    def __init__(
        self,
        distiller: Distiller,
        trained: Sequence[nn.Parameter],
        settings: Train,
        *,
        decay: float | Tensor,
        preprocess: Preprocess,
        rows: int,
    ) -> None:
        names = {id(parameter): name for name, parameter in distiller.named_parameters()}
        self.names = [names[id(parameter)] for parameter in trained]
        self.shapes = [parameter.shape for parameter in trained]
        self.sizes = [parameter.numel() for parameter in trained]
        self.settings = settings
        self.decay = decay
        self.preprocess = preprocess
        self.rows = rows
        self.distiller = copy.deepcopy(distiller, {id(distiller.teacher): distiller.teacher}).train()
        self.distiller._optimizer_checked = True  # there is none
        self.dropouts = _give_masks(self.distiller)

    def __call__(self, form: Form, state: "State", step: "Inputs") -> tuple[Tensor, Tensor]:
        """Take a step.

        Args:
            form: of this step.
            state: what is changed.
            step: what is given.

        Returns:
            Scalar: whether every row was finite; (2 + T, R) each row's loss, norm of the gradient, and terms.
        """
        weights = state.weights.detach().requires_grad_()
        terms = self.terms(form, weights, step)
        loss = (terms * step.shares.to(terms.dtype)).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        with torch.no_grad():
            return self._update(state, gradient, loss, terms.detach(), step)

    def terms(self, form: Form, weights: Tensor, step: "Inputs") -> Tensor:
        """(R, T) each row's objectives, unweighted, with their graph.

        Args:
            form: of this step.
            weights: (R, D).
            step: what is given.
        """
        images = self.preprocess(step.images.flatten(0, 1)).unflatten(0, step.images.shape[:2])

        def of_row(row: Tensor, images: Tensor, *given: Tensor) -> Tensor:
            for layer, mask in zip(self.dropouts, given[len(form.given) :] or [None] * len(self.dropouts), strict=True):
                layer.mask = mask
            named = dict(zip(form.given, given, strict=False))
            labels, logits, members = (named.pop(name, None) for name in ("labels", "logits", "members"))
            answer = Answer(logits, named, members) if logits is not None or named else None
            parts = zip(self.names, row.split(self.sizes), self.shapes, strict=True)
            parameters = {name: part.view(shape) for name, part, shape in parts}
            losses = functional_call(
                self.distiller, parameters, (images, labels), {"answer": answer, "epoch": form.epoch}
            )
            return torch.stack([losses.terms[name] for name in form.terms])

        with autocast(images.device, self.settings.precision):
            if self.rows > 1:
                return vmap(of_row)(weights, images, *step.given, *step.masks)
            return of_row(weights[0], images[0], *(given[0] for given in (*step.given, *step.masks)))[None]

    @torch.no_grad()
    def learn_shapes(self, form: Form, weights: Tensor, step: "Inputs") -> None:
        """Let each dropout layer see what it gets, so that it knows the shape of its masks.

        Args:
            form: of a step.
            weights: (R, D).
            step: without masks.
        """
        rows, self.rows = self.rows, 1
        try:
            self.terms(form, weights, step)
        finally:
            self.rows = rows

    def _update(
        self, state: "State", gradient: Tensor, loss: Tensor, terms: Tensor, step: "Inputs"
    ) -> tuple[Tensor, Tensor]:
        loss = loss.detach()
        norm = gradient.square().sum(1).sqrt()
        fine = torch.isfinite(loss + norm * 0.0)
        if self.settings.clip is not None:
            gradient = gradient * (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)[:, None]
        weights, moments = updated(self.settings, state.weights, gradient, state.moments, self.decay, step.scalars)
        for old, new in zip((state.weights, *state.moments), (weights, *moments), strict=True):
            old.copy_(torch.where(fine[:, None], new, old))
        if state.average is not None:
            state.average.lerp_(state.weights, 1 - (self.settings.ema or 0.0))
        losses = torch.cat([loss[None], terms.T])
        state.sums.add_(losses)
        return fine.all(), torch.cat([losses[:1], norm[None], losses[1:]])


@dataclass(frozen=True)
class State:
    """What a step changes, for R arms with D trained numbers each.

    Args:
        weights: (R, D).
        moments: of the optimiser, each (R, D).
        average: (R, D) moving averages, where there are any.
        sums: (1 + T, R) losses since they were last read.
    """

    weights: Tensor
    moments: tuple[Tensor, ...]
    average: Tensor | None
    sums: Tensor

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [self.weights, *self.moments, *([] if self.average is None else [self.average]), self.sums]

    def of(self, tensors: Sequence[Tensor]) -> "State":
        """A state with other tensors, in the same order."""
        weights, *rest = tensors[: len(self.tensors())]
        moments = tuple(rest[: len(self.moments)])
        return State(weights, moments, None if self.average is None else rest[-2], rest[-1])

    def copy(self) -> "State":
        """A state that may be changed without changing this one."""
        return self.of([tensor.clone() for tensor in self.tensors()])


@dataclass(frozen=True)
class Inputs:
    """What a step is given.

    Args:
        scalars: the optimiser's numbers of this step, in float64: see `scalars`.
        shares: (T,) the objectives' weights, in float64.
        images: (R, N, C, H, W) pixels.
        given: what the form names, each (R, N, ...).
        masks: of each dropout layer, (R, N, ...).
    """

    scalars: Tensor
    shares: Tensor
    images: Tensor
    given: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [self.scalars, self.shares, self.images, *self.given, *self.masks]

    def of(self, tensors: Sequence[Tensor]) -> "Inputs":
        """Inputs of other tensors, in the same order."""
        scalars, shares, images, *rest = tensors
        return Inputs(scalars, shares, images, tuple(rest[: len(self.given)]), tuple(rest[len(self.given) :]))


def moments_of(settings: Train) -> tuple[str, ...]:
    """What torch's optimiser keeps of each parameter, by its names, but for the number of steps."""
    if settings.optimizer != "sgd":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if settings.momentum else ()


def scalars(settings: Train, rates: Sequence[float], start: int) -> Tensor:
    """The numbers of an optimiser's steps that change: rate, and of Adam its two corrections.

    In float64, as torch's optimisers have them: in float32 the correction of the first step is off by 5e-5.

    Args:
        settings: the recipe's `train`.
        rates: of learning, for each step.
        start: the first step, counted from 0.

    Returns:
        (steps, 3).
    """
    first, second = settings.betas
    rows = [[rate, 1 - first**step, (1 - second**step) ** 0.5] for step, rate in enumerate(rates, start + 1)]
    return torch.tensor(rows, dtype=torch.float64)


def updated(
    settings: Train,
    weights: Tensor,
    gradient: Tensor,
    moments: Sequence[Tensor],
    decay: float | Tensor,
    numbers: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Weights and moments after a step of torch's SGD, Adam or AdamW.

    Args:
        settings: the recipe's `train`.
        weights: of any shape.
        gradient: likewise.
        moments: as `moments_of` names them.
        decay: weight decay.
        numbers: see `scalars`.
    """
    rate, first_correction, second_correction = numbers.unbind()
    decays = isinstance(decay, Tensor) or decay != 0
    if decays and settings.optimizer == "adamw":
        weights = weights * (1 - rate * decay)
    elif decays:
        gradient = gradient + decay * weights
    if settings.optimizer == "sgd":
        if not moments:
            return weights - rate * gradient, []
        velocity = settings.momentum * moments[0] + gradient
        direction = gradient + settings.momentum * velocity if settings.nesterov else velocity
        return weights - rate * direction, [velocity]
    first, second = settings.betas
    mean = moments[0].lerp(gradient, 1 - first)
    square = second * moments[1] + (1 - second) * gradient * gradient
    return weights - (rate / first_correction) * mean / (square.sqrt() / second_correction + 1e-8), [mean, square]


class Masked(nn.Module):
    """Dropout by a mask that is given to it.

    Args:
        rate: probability of dropping a value.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.mask: Tensor | None = None
        self.like: Tensor | None = None  # what a mask is about, known after a forward without one

    def forward(self, values: Tensor) -> Tensor:
        """Drop what the mask says."""
        if self.mask is None:
            self.like = values.detach()
            return values
        return values * self.mask.div(1 - self.rate)

    def draw(self, mask: Tensor) -> None:
        """Fill a mask with ones and zeros as `torch.nn.Dropout` draws them, from torch's global generator."""
        mask.bernoulli_(1 - self.rate)


def _give_masks(module: nn.Module) -> list[Masked]:
    """Put `Masked` in the place of each dropout layer, and return them in the module's order."""
    found: list[Masked] = []
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                found.append(Masked(child.p))
                setattr(parent, name, found[-1])
    return found
