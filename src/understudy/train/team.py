"""Arms of one kind trained as one: their weights are the rows of one tensor, and a step of all is one function.

The seeds of a comparison differ in their weights and in what they see, not in what is computed. So their forward is
mapped over the rows, and one backward of the sum gives each row its own gradient: small students cost less together
than one after the other (benchmarks/RESULTS.md). The function can be compiled, for one arm or for several; torch's
kernel of the optimiser then changes all rows at once.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from understudy import randomness
from understudy.data import Feed
from understudy.distill import Answer, Distiller, Objective, Share
from understudy.train import processes
from understudy.train.arm import Arm
from understudy.train.optim import FUSED, moments_of, rate_factor, update
from understudy.train.pure_step import Form, Inputs, Outcome, PureStep
from understudy.train.views import Views

Function = Callable[..., Outcome]

# How far apart, relative to the largest value, the gradients of a function and of what it was made from may be.
_AGREES, _AGREES_IN_BF16 = 1e-3, 5e-2


class Unfit(Exception):
    """Why arms cannot be stepped as a team."""


class Team:
    """Arms of equal architecture, objectives and settings, stepped by one function.

    Between `push` and the next step the arms are as if each had been stepped alone.

    Args:
        arms: of one or several seeds.
        compiled: whether the function is compiled, for batches of the full size.
        size: images of such a batch.
    """

    def __init__(self, arms: Sequence[Arm], *, compiled: bool, size: int) -> None:
        self.arms = tuple(arms)
        self.compiled = compiled
        self.size = size
        lead = arms[0]
        assert isinstance(lead.distiller, Distiller)
        self.lead, self.distiller, self.settings = lead, lead.distiller, lead.settings
        self.pure = PureStep(lead.distiller, lead.trained, lead.settings, rows=len(arms))
        self.decay = _decay(lead)
        self._factor = rate_factor(lead.settings, lead.steps_per_epoch, lead.epochs)
        self._functions: dict[Form, Function] = {}
        self._epochs: dict[tuple[str, ...], int] = {}
        self._pull()
        of_student = torch.tensor([name.startswith("student.") for name in self.pure.names])
        self._of_student = of_student.repeat_interleave(torch.tensor(self.pure.sizes)).to(self.weights.device)

    # Between the rows and the arms

    @torch.no_grad()
    def _pull(self) -> None:
        """Take weights and optimiser states from the arms."""
        self.weights = torch.stack([_flat(arm.trained) for arm in self.arms])
        self.moments = tuple(
            torch.stack([_flat([_kept(arm, parameter, key) for parameter in arm.trained]) for arm in self.arms])
            for key in moments_of(self.settings)
        )
        averaged = [_averaged(arm) for arm in self.arms]
        self.average = torch.stack([_flat(each) for each in averaged]) if averaged[0] else None
        self._taken = 0  # steps since the arms were last told

    def begin(self, epoch: int) -> None:
        """Go on from where the arms are, at the start of an epoch or within it.

        Args:
            epoch: counted from 0.
        """
        weights = {name: weight for name, weight in self.distiller.weights_at(epoch).items() if weight != 0}
        self._terms = tuple(weights)
        device = self.weights.device
        self._shares = torch.tensor(tuple(weights.values()), dtype=torch.float64, device=device)
        self._sums = self.weights.new_zeros(1 + len(self._terms), len(self.arms))
        for column, arm in enumerate(self.arms):
            for row, name in enumerate(("loss", *self._terms)):
                self._sums[row, column] = arm.tally.sums.get(name, 0.0)

    @torch.no_grad()
    def push(self, step: int) -> None:
        """Tell the arms what the steps since the last time came to.

        Args:
            step: how many were taken since the training began.
        """
        if not self._taken:
            return
        for number, arm in enumerate(self.arms):
            self._write(self.weights[number], arm.trained)
            moments = {
                key: self._parts(moment[number])
                for key, moment in zip(moments_of(self.settings), self.moments, strict=True)
            }
            for place, parameter in enumerate(arm.trained):
                state: dict[str, Any] = {key: parts[place].clone() for key, parts in moments.items()}
                if self.settings.optimizer != "sgd":
                    state["step"] = torch.tensor(float(step))
                arm.optimizer.state[parameter] = state
            if self.average is not None:
                self._write(self.average[number], _averaged(arm))
                arm.average.n_averaged += self._taken  # pyright: ignore[reportOptionalMemberAccess]
            arm.set_rate(self._rate(step), step)
            # Sums go on in one row: added up piecewise, they would tell in their last bits when the arms were told.
            arm.tally.sums = dict(zip(("loss", *self._terms), self._sums[:, number].clone(), strict=True))
            arm.tally.steps += self._taken
        self._taken = 0

    def _rate(self, step: int) -> float:
        return self.settings.scaled_lr * self._factor(step)

    def _parts(self, row: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(row.split(self.pure.sizes), self.pure.shapes, strict=True)]

    def _write(self, row: Tensor, tensors: Sequence[Tensor]) -> None:
        for tensor, part in zip(tensors, self._parts(row), strict=True):
            tensor.copy_(part)

    # Steps

    def try_out(self, views: Views, answers: Mapping[str, Answer | None], epoch: int, step: int) -> None:
        """Take a step and forget it; compiles the function that later steps use.

        Args:
            views: as for `step`.
            answers: likewise.
            epoch: counted from 0.
            step: counted from 0.

        Raises:
            Unfit: what the arms do is no pure function, or cannot be mapped over several, or was not compiled rightly.
        """
        self.begin(epoch)
        try:
            form, inputs = self._given(views, answers, epoch, step)
            self.pure.learn_shapes(form, self.weights, inputs)
            form, inputs = self._given(views, answers, epoch, step)
            self._check(form, inputs, self._function(form, inputs))
        except Unfit:
            raise
        except Exception as error:  # whatever a model or a compiler cannot do: the arms are then stepped one by one
            raise Unfit(str(error).strip().splitlines()[0] if str(error) else type(error).__name__) from error

    def _check(self, form: Form, inputs: Inputs, function: Function) -> None:
        """Hold a function against what it was made from."""
        wanted = self.pure(form, self.weights, inputs).gradient
        found = wanted
        for _ in range(3):  # a CUDA graph is first warmed up for, then recorded, then replayed
            found = function(self.weights, *inputs.tensors()).gradient
        apart = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if apart > (_AGREES if self.settings.precision == "fp32" else _AGREES_IN_BF16):
            raise Unfit(f"a function whose gradient is off by {apart:.0e} of the largest")

    def step(self, views: Views, answers: Mapping[str, Answer | None], epoch: int, step: int) -> None:
        """Train on one batch of each arm's feed.

        Args:
            views: the batches by the name of their feed.
            answers: the teacher's, by the arm's label.
            epoch: counted from 0.
            step: counted from 0.

        Raises:
            RunError: a loss is not finite; that arm was not changed.
        """
        form, inputs = self._given(views, answers, epoch, step)
        if step % self.lead.steps_per_epoch == 0 and len(form.terms) > 1:
            self._measure(form, inputs, epoch)
        function = self._functions.get(form) or self._function(form, inputs)
        finite, losses, norms, gradient = function(self.weights, *inputs.tensors())
        skip = None
        if finite.device.type != "cpu":  # no wait for the device: the optimiser skips the step by itself
            skip = (~finite).float()
        elif not finite:
            self._refuse(form, losses, norms, f"at step {step + 1} (epoch {epoch + 1})")
        rate = self._rate(step)
        update(self.settings, self.weights, gradient, self.moments, step, rate=rate, decay=self.decay, skip=skip)
        if self.average is not None:
            self.average.lerp_(self.weights, 1 - (self.settings.ema or 0.0))
        self._sums += losses
        self._taken += 1

    def _function(self, form: Form, inputs: Inputs) -> Function:
        """The gradient of a form as a function of its tensors, compiled where that is wanted; made once."""

        def whole(weights: Tensor, *tensors: Tensor) -> Outcome:
            return self.pure(form, weights, inputs.of(tensors))

        function: Function = whole
        if form.images[0] == self.size:
            function = _traced(whole, [self.weights, *inputs.tensors()])
            if self.compiled:
                function = _compiled(function, graphs=self.weights.device.type == "cuda")
        self._functions[form] = function
        return function

    def _given(self, views: Views, answers: Mapping[str, Answer | None], epoch: int, step: int) -> tuple[Form, Inputs]:
        mine = [views.batches[arm.feed] for arm in self.arms]
        told = [answers[arm.label] for arm in self.arms]
        columns: dict[str, Any] = {"labels": [batch.labels for batch in mine]}
        if told[0] is not None:
            columns["logits"] = [answer.logits for answer in told if answer is not None]
            columns["members"] = [answer.members for answer in told if answer is not None]
            for path in told[0].features:
                columns[path] = [answer.features[path] for answer in told if answer is not None]
        columns = {name: _stacked(values) for name, values in columns.items() if values[0] is not None}
        pixels = _stacked([batch.images for batch in mine])
        # Here and not in the function: compiled for a processor, bytes become numbers one by one.
        images = self.lead.preprocess(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        like = self._epochs.setdefault(self._terms, epoch)  # they share a function with the first such epoch
        form = Form((*images.shape[1:], images.dtype), tuple(columns), self._terms, like)
        return form, Inputs(self._shares, images, tuple(columns.values()), self._masks(images, step))

    def _masks(self, images: Tensor, step: int) -> tuple[Tensor, ...]:
        """What each dropout layer drops: for each arm the numbers that it would draw if it were stepped alone."""
        layers = [layer for layer in self.pure.dropouts if layer.like is not None]
        if not layers:
            return ()
        rows, size = len(self.arms), images.shape[1]
        masks = [layer.like.new_empty(rows, size, *layer.like.shape[1:]) for layer in layers]  # pyright: ignore[reportOptionalMemberAccess]
        for row, arm in enumerate(self.arms):
            randomness.seed_torch(randomness.key("step", arm.seed, step))
            for layer, mask in zip(layers, masks, strict=True):
                layer.draw(mask[row])
        return tuple(masks)

    def _measure(self, form: Form, inputs: Inputs, epoch: int) -> None:
        """Note the norm of each objective's gradient, weighted, as an arm does alone."""
        weights = self.weights.detach().requires_grad_()
        terms = self.pure.terms(form, weights, inputs)
        shares = self.distiller.weights_at(epoch)
        for place, name in enumerate(form.terms):
            (gradient,) = torch.autograd.grad(terms[:, place].sum(), weights, retain_graph=True)
            norms = (gradient * self._of_student).norm(dim=1) * abs(shares[name])
            for arm, norm in zip(self.arms, norms.tolist(), strict=True):
                arm.gradients[name] = norm

    def _refuse(self, form: Form, losses: Tensor, norms: Tensor, when: str) -> None:
        for arm, norm, (loss, *terms) in zip(self.arms, norms, losses.T, strict=True):
            arm.tally.add({"loss": loss, **dict(zip(form.terms, terms, strict=True))}, norm, when)


def unfit(arm: Arm, feed: Feed) -> str | None:
    """Why an arm cannot be stepped by a function of tensors; None where nothing speaks against trying.

    Args:
        arm: any.
        feed: the batches that it sees.
    """
    learner, settings = arm.distiller, arm.settings
    if type(learner) is not Distiller:
        return f"a {type(learner).__name__} trains several models"
    objectives = learner.objective_list()
    needed = {need for objective in objectives for need in objective.needs} - {"labels"}
    return next(
        (
            reason
            for reason, holds in (
                ("several processes", processes.count() > 1),
                ("a device without fused optimisers", arm.trained[0].device.type not in FUSED),
                ("micro-batches", settings.accumulate > 1),
                ("fp16", settings.precision == "fp16"),
                ("a plateau schedule", settings.schedule == "plateau"),
                ("early stopping", settings.early_stop is not None),
                ("running statistics", any(True for _ in learner.buffers())),
                ("frozen weights", len(arm.trained) < len(list(learner.parameters()))),
                ("a loss that needs " + ", ".join(sorted(needed)), bool(needed)),
                ("input gradients", learner.needs_input_gradients),
                ("second views", learner.takes_second_view),
                (
                    "epochs without an objective",
                    not all(any(learner.weights_at(e).values()) for e in range(arm.epochs)),
                ),
                ("held gradient shares", any(isinstance(objective.weight, Share) for objective in objectives)),
                (
                    "missing labels",
                    not feed.all_labelled and (feed.mixes or not all(map(_skips_unlabelled, objectives))),
                ),
            )
            if holds
        ),
        None,
    )


def compiler() -> str | None:
    """The C++ compiler that compiled steps need on a processor; None where there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), None)


def _skips_unlabelled(objective: Objective) -> bool:
    return "labels" not in objective.needs or getattr(objective.loss, "skips_unlabelled", False)


def _traced(function: Function, tensors: list[Tensor]) -> Function:
    """The function as the sequence of its operations: neither modules nor autograd are gone through again."""
    graph = make_fx(function)(*tensors)
    if any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.graph.nodes):
        raise Unfit("random numbers drawn in the forward")
    return graph.forward


def _compiled(function: Function, *, graphs: bool) -> Function:
    """The function compiled, on a GPU as a CUDA graph: what it gives is used up before it is called again."""
    # Its inputs have one form, so nothing need be looked at again before each call.
    return torch.compile(
        function,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "triton.cudagraphs": graphs},
    )


def _decay(arm: Arm) -> float | Tensor:
    """The weight decay: one number, or where norms and biases are spared one for each weight."""
    groups = arm.optimizer.param_groups
    if len(groups) == 1:
        return groups[0]["weight_decay"]
    pairs = [(parameter, group["weight_decay"]) for group in groups for parameter in group["params"]]
    return torch.cat([parameter.new_full((parameter.numel(),), decay) for parameter, decay in pairs])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _kept(arm: Arm, parameter: Tensor, key: str) -> Tensor:
    """What the optimiser keeps of a parameter; zeros before its first step."""
    kept = arm.optimizer.state.get(parameter, {}).get(key)
    return torch.zeros_like(parameter) if kept is None else kept


def _averaged(arm: Arm) -> list[Tensor]:
    """The moving averages, in the order of the trained weights; of adapters, which have none, a copy."""
    if arm.average is None:
        return []
    names = {id(parameter): name for name, parameter in arm.distiller.exported.named_parameters()}
    averages = dict(arm.average.module.named_parameters())
    kept: list[Tensor] = []
    for parameter in arm.trained:
        name = names.get(id(parameter))
        kept.append(parameter.detach().clone() if name is None else averages[name])
    return kept


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
