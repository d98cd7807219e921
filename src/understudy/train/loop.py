"""The one training loop. It reads top to bottom: batch, teacher's answer, each arm's step, evaluation, checkpoint."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.data import Batch, Feed
from understudy.distill import Answer, Teacher
from understudy.train.arm import Arm
from understudy.train.checkpoint import Checkpoints
from understudy.train.folder import Log, RunFolder
from understudy.train.guard import StopRequest
from understudy.train.progress import Display

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Stage:
    """Arms that are trained together: they see the same batches and share the teacher's answers.

    Args:
        name: of the stage, for checkpoints and the progress bar.
        seed: of this stage's draws.
        arms: what is trained.
        feeds: where batches come from, by name.
        steps_per_epoch: steps of one epoch, the same for all feeds.
        teacher: answers for the arms that need it.
        evaluate: scores of an arm's model, by `validation` and `test`.
        metric: the score that epochs are chosen by.
        device: where it is trained.
    """

    name: str
    seed: int
    arms: tuple[Arm, ...]
    feeds: Mapping[str, Feed]
    steps_per_epoch: int
    teacher: Teacher | None
    evaluate: Callable[[Arm], Scores]
    metric: str
    device: torch.device

    @property
    def epochs(self) -> int:
        """Of the arm that is trained longest."""
        return max(arm.epochs for arm in self.arms)


def fit(stage: Stage, folder: RunFolder, display: Display, stop: StopRequest) -> None:
    """Train a stage to its end, from its checkpoint where there is one.

    Args:
        stage: what to train; its arms hold the result.
        folder: where metrics and checkpoints go.
        display: shows progress.
        stop: says when a signal came.

    Raises:
        RunError: a loss or a weight was not finite.
        Interrupted: a signal came; a checkpoint was written.
    """
    logs = {arm.name: Log(folder.arm(arm.name, stage.seed) / "metrics.jsonl") for arm in stage.arms}
    step = _restore(stage, folder.checkpoints, logs)
    keeper = _Keeper(stage, folder.checkpoints, logs, stop)
    meter = display.begin(stage.name, stage.epochs * stage.steps_per_epoch, step)
    for epoch in range(step // stage.steps_per_epoch, stage.epochs):
        active = [arm for arm in stage.arms if arm.is_active(epoch)]
        if not active:
            break
        for arm in active:
            arm.distiller.train()
        started, first = time.perf_counter(), step
        for batches in _batches(stage, active, step, (epoch + 1) * stage.steps_per_epoch):
            train_step(stage, active, batches, epoch, step)
            step += 1
            meter.advance()
            keeper.after_step(step)
        seconds = time.perf_counter() - started
        for arm in active:
            _end_epoch(stage, arm, logs[arm.name], epoch, step)
            timing = Log(logs[arm.name].path.with_name("timing.jsonl"))
            images = (step - first) * stage.feeds[arm.feed].batch_size
            timing.write(
                epoch=epoch + 1,
                seconds=round(seconds, 4),
                images_per_second=round(images / max(seconds, 1e-9)),
            )
        meter.note = "  ".join(f"{arm.name} {arm.best_score:.4f}" for arm in active)
        keeper.after_epoch(step)
    keeper.save(step)
    meter.finish(step)
    for arm in stage.arms:
        arm.finish()


def train_step(stage: Stage, arms: list[Arm], batches: Mapping[str, Batch], epoch: int, step: int) -> None:
    """One step of every arm: the pixels are prepared once for each preprocessing, the teacher is asked once a feed.

    Args:
        stage: what is trained.
        arms: those still in training.
        batches: one for each feed in use.
        epoch: counted from 0.
        step: counted from 0.
    """
    prepared: dict[Any, Tensor] = {}
    answers: dict[str, Answer | None] = {}
    for arm in arms:
        batch = batches[arm.feed]
        view = (arm.feed, arm.preprocess)
        if view not in prepared:
            prepared[view] = arm.preprocess(batch.images)
        if arm.feed not in answers:
            answers[arm.feed] = _ask(stage.teacher, batch, [other for other in arms if other.feed == arm.feed], epoch)
        answer = answers[arm.feed] if arm.distiller.teacher is not None else None
        arm.step(batch, prepared[view], answer, seed=stage.seed, epoch=epoch, step=step)


def _ask(teacher: Teacher | None, batch: Batch, arms: list[Arm], epoch: int) -> Answer | None:
    """One teacher pass with all that the arms of a feed need of it."""
    distillers = [arm.distiller for arm in arms if arm.distiller.asks_teacher(epoch)]
    if teacher is None or not distillers:
        return None
    taps = dict.fromkeys(path for distiller in distillers for path in distiller.teacher_taps)
    logits = any(distiller.needs_teacher_logits for distiller in distillers)
    precision = next(arm.settings.precision for arm in arms if arm.distiller in distillers)
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return teacher(batch.images, taps=taps, logits=logits)


def _batches(stage: Stage, arms: list[Arm], start: int, end: int) -> Iterator[dict[str, Batch]]:
    workers = max(arm.settings.workers for arm in arms)
    sources = {name: stage.feeds[name].batches(start, end, workers) for name in {arm.feed: None for arm in arms}}
    for _ in range(start, end):
        yield {name: next(source).to(stage.device) for name, source in sources.items()}


def _end_epoch(stage: Stage, arm: Arm, log: Log, epoch: int, step: int) -> None:
    means = arm.mean_losses(epoch)
    total = means.pop("loss")
    log.write(kind="train", epoch=epoch + 1, step=step, lr=arm.rate, loss=total, losses=means)
    last = epoch + 1 == arm.epochs
    if not last and (epoch + 1) % arm.settings.evaluate_every and epoch + 1 not in arm.settings.read_at:
        return
    scores = stage.evaluate(arm)
    log.write(kind="eval", epoch=epoch + 1, step=step, **scores)
    arm.judge(scores.get("validation", scores["test"])[stage.metric])


class _Keeper:
    """Decides when a checkpoint is due: some time after the last one, at a signal, at the end."""

    def __init__(self, stage: Stage, checkpoints: Checkpoints, logs: dict[str, Log], stop: StopRequest) -> None:
        self.stage = stage
        self.checkpoints = checkpoints
        self.logs = logs
        self.stop = stop
        self.interval = min(arm.settings.checkpoint_seconds for arm in stage.arms)
        self.saved = time.monotonic()
        self.saved_step = -1

    def after_step(self, step: int) -> None:
        # At an epoch's end its evaluation belongs to the checkpoint: `after_epoch` takes that one.
        if step % self.stage.steps_per_epoch:
            self.after_epoch(step)

    def after_epoch(self, step: int) -> None:
        if self.stop.signal is not None or time.monotonic() - self.saved >= self.interval:
            self.save(step)
        self.stop.raise_if_asked()

    def save(self, step: int) -> None:
        if step == self.saved_step:
            return
        self.checkpoints.save(
            {
                "stage": self.stage.name,
                "step": step,
                "logs": {name: log.sync() for name, log in self.logs.items()},
                "arms": {arm.name: arm.state() for arm in self.stage.arms},
            }
        )
        self.saved, self.saved_step = time.monotonic(), step


def _restore(stage: Stage, checkpoints: Checkpoints, logs: dict[str, Log]) -> int:
    """Put a stage back to where its newest whole checkpoint was written; to its start where there is none."""
    state = checkpoints.latest()
    if state is None or state["stage"] != stage.name:
        for log in logs.values():
            log.truncate(0)
        return 0
    for arm in stage.arms:
        arm.load_state(state["arms"][arm.name])
        logs[arm.name].truncate(state["logs"][arm.name])
    return state["step"]
