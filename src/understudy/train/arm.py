"""One model that is trained in a run, with everything that belongs to its training."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from understudy import randomness
from understudy.data import Batch, Preprocess
from understudy.distill import Answer, Learner
from understudy.distill.learner import gradient_norms
from understudy.errors import RunError
from understudy.recipe.schema import Train
from understudy.train.checkpoint import all_finite
from understudy.train.optim import make_optimizer, make_schedule, undecayed

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
    ) -> None:
        self.name = name
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
        self.sums: dict[str, Tensor] = {}
        self.steps_summed = 0
        self.gradients: dict[str, float] = {}  # of each objective, weighted, at the epoch's first step

    @property
    def model(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average where there is one."""
        return self.average.module if self.average is not None else self.distiller.exported

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
        seed: int,
        epoch: int,
        step: int,
    ) -> None:
        """Train on one batch.

        Args:
            batch: what all arms of this feed see.
            images: the batch in this arm's preprocessing.
            answer: the teacher's, shared by the arms; where a second view is given, about both.
            second: the second view of the images, where there is one.
            seed: of the run.
            epoch: counted from 0.
            step: counted from 0.

        Raises:
            RunError: the loss is not finite; nothing was changed.
        """
        randomness.seed_torch(randomness.key("step", seed, step))
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        measured = step % self.steps_per_epoch != 0
        for part, inputs, told, other in self._micro(batch, images, answer, second):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                losses = self.distiller(
                    inputs,
                    part.labels,
                    answer=told,
                    labelled=part.labelled,
                    sample_ids=part.sample_ids,
                    second=other,
                    epoch=epoch,
                    step=step,
                )
            total = losses.total
            if not measured and len(losses.terms) > 1:
                total, measured = self._measure(losses.terms, epoch), True
            share = len(part) / len(batch)
            (total * share).backward()
            for name, value in (("loss", total.detach()), *losses.parts.items()):
                means[name] = means[name] + value * share if name in means else value * share
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self.trained if parameter.grad is not None])
        self._guard(means, norm, epoch, step)
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.settings.clip, norm)
        self.optimizer.step()
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.distiller.exported)

    def _measure(self, terms: dict[str, Tensor], epoch: int) -> Tensor:
        """Measure each objective's gradient, let those that hold a share of it be weighed anew, and add up."""
        norms = gradient_norms(terms, self.distiller.student.parameters())
        self.distiller.hold(norms, epoch)
        weights = self.distiller.weights_at(epoch)
        self.gradients = {name: abs(weights.get(name, 1.0)) * norm for name, norm in norms.items()}
        return self.distiller.weigh(terms, epoch)

    def _micro(
        self, batch: Batch, images: Tensor, answer: Answer | None, second: Tensor | None
    ) -> Iterator[tuple[Batch, Tensor, Answer | None, Tensor | None]]:
        """The step's batch in as many micro-batches as gradients are accumulated over."""
        if self.settings.accumulate == 1:
            yield batch, images, answer, second
            return
        for rows in torch.arange(len(batch), device=images.device).chunk(self.settings.accumulate):
            both = rows if second is None else torch.cat([rows, rows + len(batch)])
            told = None if answer is None else answer.at(both)
            yield batch.at(rows), images[rows], told, None if second is None else second[rows]

    def _guard(self, means: dict[str, Tensor], norm: Tensor, epoch: int, step: int) -> None:
        """Add the step's losses to the epoch's; a step that is not finite changes neither weights nor optimiser."""
        # A gradient can overflow where the loss did not: zero times its norm is NaN then, so one test sees both.
        means["loss"] = total = means["loss"] + norm * 0.0
        if total.device.type != "cpu":
            # No wait for the device: the fused optimiser skips the step by itself, `mean_losses` reports it.
            self.optimizer.found_inf = (~torch.isfinite(total)).float()  # pyright: ignore[reportAttributeAccessIssue]
        elif not torch.isfinite(total):
            raise RunError(self._not_finite(means, f"at step {step + 1} (epoch {epoch + 1})"))
        for name, value in means.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps_summed += 1

    def _not_finite(self, parts: dict[str, Tensor], when: str) -> str:
        culprits = [f"loss '{name}'" for name, value in parts.items() if name != "loss" and not torch.isfinite(value)]
        what = culprits[0] if culprits else "gradient"
        return (
            f"{self.name}: the {what} is not finite {when}; the last checkpoint is kept. "
            "A smaller train.lr, or train.clip, often helps"
        )

    def mean_losses(self, epoch: int) -> dict[str, float]:
        """The means of all losses since the last call, and a check that they were finite.

        Raises:
            RunError: they were not.
        """
        means = {name: (total / self.steps_summed).item() for name, total in self.sums.items()} if self.sums else {}
        sums, self.sums, self.steps_summed = self.sums, {}, 0
        if not all_finite(sums) or not all_finite(self.model.state_dict()):
            raise RunError(self._not_finite(sums, f"in epoch {epoch + 1}"))
        return means

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return self.optimizer.param_groups[0]["lr"]

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
            "sums": self.sums,
            "steps_summed": self.steps_summed,
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
        self.best_score = state["best_score"] if state["best_score"] is not None else float("-inf")
        self.best_weights = state["best_weights"]
        self.evaluations_since_best = state["evaluations_since_best"]
        self.stopped = state["stopped"]
        device = next(self.distiller.parameters()).device
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.steps_summed = state["steps_summed"]
        self.gradients = state["gradients"]
        self.distiller.set_held(state["held"])
