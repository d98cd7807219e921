"""A training step as a pure function of tensors: the forward of one arm or of several at once, and the backward."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

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
    """The forward and backward of a distiller, or of several of one kind, over the rows of one tensor.

    What a step draws at random is given to it.

    Args:
        distiller: one of them; it is copied, but for its teacher.
        trained: its parameters in the order of a row.
        settings: how it is trained.
        rows: how many are trained at once.
    """

    def __init__(self, distiller: Distiller, trained: Sequence[nn.Parameter], settings: Train, *, rows: int) -> None:
        names = {id(parameter): name for name, parameter in distiller.named_parameters()}
        self.names = [names[id(parameter)] for parameter in trained]
        self.shapes = [parameter.shape for parameter in trained]
        self.sizes = [parameter.numel() for parameter in trained]
        self.settings = settings
        self.rows = rows
        self.distiller = copy.deepcopy(distiller, {id(distiller.teacher): distiller.teacher}).train()
        self.distiller._optimizer_checked = True  # there is none
        self.dropouts = _give_masks(self.distiller)
        for module in self.distiller.modules():
            if rows > 1 and type(module) is nn.Linear:
                module.__class__ = Turned

    def __call__(self, form: Form, weights: Tensor, step: "Inputs") -> "Outcome":
        """Compute a step's gradient.

        Args:
            form: of this step.
            weights: (R, D).
            step: what is given.
        """
        weights = weights.detach().requires_grad_()
        terms = self.terms(form, weights, step)
        loss = (terms * step.shares.to(terms.dtype)).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        with torch.no_grad():
            loss, terms = loss.detach(), terms.detach()
            norm = gradient.square().sum(1).sqrt()
            if self.settings.clip is not None:
                gradient = gradient * (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)[:, None]
            finite = torch.isfinite(loss + norm * 0.0).all()
            return Outcome(finite, torch.cat([loss[None], terms.T]), norm, gradient)

    def terms(self, form: Form, weights: Tensor, step: "Inputs") -> Tensor:
        """(R, T) each row's objectives, unweighted, with their graph.

        Args:
            form: of this step.
            weights: (R, D).
            step: what is given.
        """

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

        with autocast(weights.device, self.settings.precision):
            if self.rows > 1:
                return vmap(of_row)(weights, step.images, *step.given, *step.masks)
            return of_row(weights[0], step.images[0], *(given[0] for given in (*step.given, *step.masks)))[None]

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


@dataclass(frozen=True)
class Inputs:
    """What a step is given.

    Args:
        shares: (T,) the objectives' weights, in float64.
        images: (R, N, C, H, W), as the student takes them.
        given: what the form names, each (R, N, ...).
        masks: of each dropout layer, (R, N, ...).
    """

    shares: Tensor
    images: Tensor
    given: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [self.shares, self.images, *self.given, *self.masks]

    def of(self, tensors: Sequence[Tensor]) -> "Inputs":
        """Inputs of other tensors, in the same order."""
        shares, images, *rest = tensors
        return Inputs(shares, images, tuple(rest[: len(self.given)]), tuple(rest[len(self.given) :]))


class Outcome(NamedTuple):
    """What a step comes to.

    Args:
        finite: scalar, whether every loss and gradient is.
        losses: (1 + T, R) each row's loss and terms.
        norms: (R,) of the gradients.
        gradient: (R, D), clipped where the recipe says so.
    """

    finite: Tensor
    losses: Tensor
    norms: Tensor
    gradient: Tensor


class Turned(nn.Linear):
    """A linear layer that multiplies by its weights from the left.

    Of several rows their gradient then comes in the order of the weights; torch's own has to be turned round.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in) to (N, out)."""
        if input.ndim != 2 or self.bias is None:
            return super().forward(input)
        return torch.addmm(self.bias[:, None], self.weight, input.T).T.contiguous()


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
