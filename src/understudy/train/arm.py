"""One model that is trained in a run, with everything that belongs to its training."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from understudy import randomness
from understudy.data import Batch, Preprocess
from understudy.distill import Answer, Learner, Objective
from understudy.distill.learner import Losses
from understudy.recipe.schema import Train
from understudy.train import processes
from understudy.train.optim import make_optimizer, make_schedule, undecayed
from understudy.train.precision import Scale, autocast
from understudy.train.spread import WholeBatch, norms_of_gradients, spread
from understudy.train.tally import Tally

Role = Literal["teacher", "control", "distilled", "other"]


class Arm:
    """A model in training: its objectives, optimiser, schedule, moving average, and what was best so far.

    Args:
        name: in tables and folders.
        role: what it is in the comparison.
        distiller: the model with what it learns from.
        settings: how it is trained.
        feed: which of the stage's feeds it sees.
        preprocess: from the shared pixels to its input.
        steps_per_epoch: optimiser steps in an epoch of its stage.
        epochs: how long it is trained; by default as its settings say.
        seed: of its draws.
    """

    def __init__(
        self,
        name: str,
        role: Role,
        distiller: Learner,
        settings: Train,
        *,
        feed: str,
        preprocess: Preprocess,
        steps_per_epoch: int,
        epochs: int | None = None,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.seed = seed
        self.role: Role = role
        self.distiller = distiller
        self.settings = settings
        self.feed = feed
        self.preprocess = preprocess
        self.epochs = epochs or settings.epochs
        self.optimizer = make_optimizer(distiller.parameters(), settings, undecayed=undecayed(distiller, settings))
        # Walking the modules for their parameters costs a small student a tenth of its step: done once.
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.steps_per_epoch = steps_per_epoch
        self.schedule = make_schedule(self.optimizer, settings, steps_per_epoch, self.epochs)
        self.average: AveragedModel | None = None
        if settings.ema is not None:
            self.average = AveragedModel(
                distiller.exported, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True
            )
            self.average.n_averaged += 1  # what the model starts from counts, as in timm
        self.best_score = float("-inf")
        self.best_weights: dict[str, Tensor] | None = None
        self.evaluations_since_best = 0
        self.stopped = False
        self.gradients: dict[str, float] = {}  # of each objective, weighted, at the epoch's first step
        fp16 = settings.precision == "fp16"
        self.scale = Scale(self.trained[0].device) if fp16 else None
        self.tally = Tally(name, self.scale)
        # Terms that are means over the labelled samples alone.
        objectives = [module for module in distiller.modules() if isinstance(module, Objective)]
        self.of_labels = frozenset(objective.name for objective in objectives if "labels" in objective.needs)

    @property
    def label(self) -> str:
        """Its name with its seed: no other arm of a stage has it."""
        return f"{self.name}/seed-{self.seed}"

    @property
    def model(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average where there is one."""
        return self.average.module if self.average is not None else self.distiller.exported

    @cached_property
    def _learner(self) -> nn.Module:
        """What is asked in a step; made at the first one, when the weights that it starts from are in place."""
        return spread(self.distiller)

    def is_active(self, epoch: int) -> bool:
        """Whether it is trained in an epoch, counted from 0."""
        return epoch < self.epochs and not self.stopped

    def step(
        self,
        batch: Batch,
        images: Tensor,
        answer: Answer | None,
        *,
        second: Tensor | None = None,
        epoch: int,
        step: int,
    ) -> None:
        """Train on one batch.

        Args:
            batch: what all arms of this feed see.
            images: the batch in this arm's preprocessing.
            answer: the teacher's, shared by the arms; where a second view is given, about both.
            second: the second view of the images, where there is one.
            epoch: counted from 0.
            step: counted from 0.

        Raises:
            RunError: the loss is not finite; nothing was changed.
        """
        # Other processes drop other units out; the first draws what a single one would.
        apart = ("process", processes.rank()) if processes.rank() else ()
        randomness.seed_torch(randomness.key("step", self.seed, step, *apart))
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        measured = step % self.steps_per_epoch != 0
        parts = list(self._micro(batch, images, answer, second))
        for number, (part, inputs, told, other) in enumerate(parts, 1):
            with self._together(last=number == len(parts)):
                with autocast(images.device, self.settings.precision), self._whole(part):
                    losses = self._learner(
                        inputs,
                        part.labels,
                        answer=told,
                        labelled=part.labelled,
                        sample_ids=part.sample_ids,
                        second=other,
                        epoch=epoch,
                        step=step,
                    )
                measure = not measured and len(losses.terms) > 1
                total = self._total(losses, part, epoch, measure=measure)
                measured = measured or measure
                # What is averaged over the processes are parts of one sum.
                loss = total * processes.count() if processes.count() > 1 else total
                (loss if self.scale is None else self.scale.scaler.scale(loss)).backward()
            shares = self._shares(losses.parts, part)
            for name, value in (("loss", total.detach()), *losses.parts.items()):
                value = value * shares[name] if name in shares else value
                means[name] = means[name] + value if name in means else value
        if self.scale is not None:
            self.scale.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self.trained if parameter.grad is not None])
        finite = self.tally.add(processes.summed(means), norm, f"at step {step + 1} (epoch {epoch + 1})")
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.settings.clip, norm)
        if self.scale is not None:
            self.scale.step(self.optimizer, finite)
        else:
            if norm.device.type != "cpu":  # no wait for the device: the fused optimiser skips the step by itself
                self.optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.distiller.exported)

    @cached_property
    def _is_normalised(self) -> bool:
        """Whether its samples depend on those of other processes."""
        return processes.count() > 1 and any(isinstance(module, _BatchNorm) for module in self.distiller.modules())

    def _whole(self, part: Batch) -> AbstractContextManager[Any]:
        return WholeBatch(counts=part.share > 0) if self._is_normalised else nullcontext()

    def _together(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients of several processes are averaged once, with the last micro-batch."""
        return nullcontext() if last or self._learner is self.distiller else self._learner.no_sync()  # pyright: ignore[reportCallIssue]

    def _shares(self, terms: Mapping[str, Tensor], part: Batch) -> dict[str, float]:
        """How much of each term of the whole batch a part of it has: the terms are means over its samples."""
        return {name: part.labelled_share if name in self.of_labels else part.share for name in terms}

    def _total(self, losses: Losses, part: Batch, epoch: int, *, measure: bool) -> Tensor:
        """A part's share of the step's loss, its terms weighed anew where their gradients are measured before."""
        shares = self._shares(losses.terms, part)
        if measure:
            self._measure(losses.terms, shares, epoch)
        if part.labelled_share != part.share and losses.terms:
            terms = {name: term * shares[name] for name, term in losses.terms.items()}
            return self.distiller.weigh(terms, epoch)
        total = self.distiller.weigh(losses.terms, epoch) if measure else losses.total
        return total * part.share

    def _measure(self, terms: dict[str, Tensor], shares: dict[str, float], epoch: int) -> None:
        """Measure each objective's gradient, and let those that hold a share of it be weighed anew."""
        factor = 1.0 if self.scale is None else self.scale.factor
        norms = norms_of_gradients(terms, shares, self.distiller.student, factor)
        if self.scale is None or all(map(math.isfinite, norms.values())):  # else this step is skipped anyway
            self.distiller.hold(norms, epoch)
            weights = self.distiller.weights_at(epoch)
            self.gradients = {name: abs(weights.get(name, 1.0)) * norm for name, norm in norms.items()}

    def _micro(
        self, batch: Batch, images: Tensor, answer: Answer | None, second: Tensor | None
    ) -> Iterator[tuple[Batch, Tensor, Answer | None, Tensor | None]]:
        """The step's batch in as many micro-batches as gradients are accumulated over."""
        if self.settings.accumulate == 1:
            yield batch, images, answer, second
            return
        for rows in torch.arange(len(batch), device=images.device).tensor_split(self.settings.accumulate):
            part = batch.at(rows)
            if not len(rows):
                if processes.count() == 1:
                    continue
                # Every process takes as many turns: one without samples has one that counts nothing.
                rows = rows.new_zeros(1)
                part = replace(batch.at(rows), share=0.0, labelled_share=0.0)
            both = rows if second is None else torch.cat([rows, rows + len(batch)])
            told = None if answer is None else answer.at(both)
            yield part, images[rows], told, None if second is None else second[rows]

    def mean_losses(self, epoch: int) -> dict[str, float]:
        """The means of all losses since the last call, and a check that they were finite.

        Raises:
            RunError: they were not.
        """
        return self.tally.means(f"in epoch {epoch + 1}", self.model.state_dict())

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return self.optimizer.param_groups[0]["lr"]

    def set_rate(self, rate: float, step: int) -> None:
        """Put the schedule to where a number of steps leaves it.

        Args:
            rate: of the next step.
            step: how many were taken.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.schedule is not None:
            rates = [rate] * len(self.optimizer.param_groups)
            self.schedule.load_state_dict({
                **self.schedule.state_dict(), "last_epoch": step, "_step_count": step + 1, "_last_lr": rates,
            })  # fmt: skip

    def judge(self, score: float) -> None:
        """Take note of an evaluation on the selection data: keep the best, stop when it has not improved for long.

        Args:
            score: accuracy, the higher the better.
        """
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(score)
        self.evaluations_since_best += 1
        if score > self.best_score:
            self.best_score, self.evaluations_since_best = score, 0
            if self.settings.early_stop is not None:
                self.best_weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if self.settings.early_stop is not None and self.evaluations_since_best >= self.settings.early_stop:
            self.stopped = True

    def finish(self) -> None:
        """After the last epoch: where early stopping is on, go back to the best weights."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "best_score": self.best_score if self.best_score > float("-inf") else None,
            "best_weights": self.best_weights,
            "evaluations_since_best": self.evaluations_since_best,
            "stopped": self.stopped,
            "scale": self.scale.state() if self.scale is not None else None,
            "tally": self.tally.state(),
            "gradients": self.gradients,
            "held": self.distiller.held(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a saved state, in place: the optimiser keeps the parameters it has."""
        self.distiller.load_state_dict(state["distiller"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])  # a function in it is None there, the recipe gave it again
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.scale is not None:
            self.scale.load_state(state["scale"])
        self.best_score = state["best_score"] if state["best_score"] is not None else float("-inf")
        self.best_weights = state["best_weights"]
        self.evaluations_since_best = state["evaluations_since_best"]
        self.stopped = state["stopped"]
        self.tally.load_state(state["tally"], next(self.distiller.parameters()).device)
        self.gradients = state["gradients"]
        self.distiller.set_held(state["held"])
