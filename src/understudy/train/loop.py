"""The one training loop. It reads top to bottom: batch, teacher's answer, each arm's step, evaluation, checkpoint."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.data import Batch, Feed
from understudy.distill import Answer
from understudy.distill.cache import Place
from understudy.train import processes
from understudy.train.arm import Arm
from understudy.train.checkpoint import Checkpoints
from understudy.train.folder import Log, RunFolder
from understudy.train.guard import StopRequest
from understudy.train.precision import autocast
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
        evaluate: scores of an arm's model, by `validation` and `test`; None where there is nothing to score yet.
        metric: the score that epochs are chosen by.
        device: where it is trained.
        ahead: how many steps' batches the teachers answer at once.
    """

    name: str
    seed: int
    arms: tuple[Arm, ...]
    feeds: Mapping[str, Feed]
    steps_per_epoch: int
    evaluate: Callable[[Arm], Scores] | None
    metric: str
    device: torch.device
    ahead: int = 1

    @property
    def epochs(self) -> int:
        """Of the arm that is trained longest."""
        return max(arm.epochs for arm in self.arms)


def fit(stage: Stage, folder: RunFolder, display: Display, stop: StopRequest) -> None:
    """Train a stage to its end, from its checkpoint where there is one; every process of the run must call it.

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
        for batches, answers in steps(stage, active, epoch, step):
            train_step(stage, active, batches, epoch, step, answers)
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


Batches = Mapping[str, Batch]
# Of each arm, by its name.
Answers = Mapping[str, Answer | None]


def train_step(
    stage: Stage, arms: list[Arm], batches: Batches, epoch: int, step: int, answers: Answers | None = None
) -> None:
    """One step of every arm: the pixels are prepared once for each preprocessing, a teacher is asked once a feed.

    Args:
        stage: what is trained.
        arms: those still in training.
        batches: one for each feed in use.
        epoch: counted from 0.
        step: counted from 0.
        answers: the teachers' for each arm; by default they are asked here.
    """
    prepared: dict[Any, Tensor] = {}
    answers = answers if answers is not None else _ask(arms, [batches], epoch)[0]

    def view(arm: Arm, images: Tensor, which: str) -> Tensor:
        place = (arm.feed, arm.preprocess, which)
        if place not in prepared:
            prepared[place] = arm.preprocess(images)
        return prepared[place]

    for arm in arms:
        batch = batches[arm.feed]
        second = view(arm, batch.second, "second") if _sees_second(arm, batch) else None  # pyright: ignore[reportArgumentType]
        arm.step(
            batch,
            view(arm, batch.images, "first"),
            answers[arm.name],
            second=second,
            seed=stage.seed,
            epoch=epoch,
            step=step,
        )


def steps(stage: Stage, arms: list[Arm], epoch: int, start: int) -> Iterator[tuple[Batches, Answers]]:
    """The batches of an epoch from a step on, with the teachers' answers to them.

    Of small images a teacher is asked about several steps' batches at once: a large teacher's weights then pass
    through the processor's caches once for all of them, and leave the students' steps between undisturbed.

    Args:
        stage: what is trained.
        arms: those still in training.
        epoch: counted from 0.
        start: the first step wanted; steps are asked about in the same groups wherever it lies.
    """
    first, end = epoch * stage.steps_per_epoch, (epoch + 1) * stage.steps_per_epoch
    group_start = start - (start - first) % stage.ahead
    workers = max(arm.settings.workers for arm in arms)
    feeds = dict.fromkeys(arm.feed for arm in arms)
    sources = {name: stage.feeds[name].batches(group_start, end, workers) for name in feeds}
    for here in range(group_start, end, stage.ahead):
        group = [
            {name: next(source).to(stage.device) for name, source in sources.items()}
            for _ in range(min(stage.ahead, end - here))
        ]
        answers = _ask(arms, group, epoch)
        skipped = max(0, start - here)
        yield from zip(group[skipped:], answers[skipped:], strict=True)


def _ask(arms: list[Arm], group: Sequence[Batches], epoch: int) -> list[Answers]:
    """One pass of each teacher over a group of batches, with all that the arms it teaches need of it."""
    answers: list[dict[str, Answer | None]] = [dict.fromkeys(arm.name for arm in arms) for _ in group]
    classes: dict[tuple[str, int], list[Arm]] = {}
    for arm in arms:
        if arm.distiller.teacher is not None and arm.distiller.asks_teacher(epoch):
            classes.setdefault((arm.feed, id(arm.distiller.teacher)), []).append(arm)
    for (feed, _), taught in classes.items():
        batches = [batches[feed] for batches in group]
        for mine, batch, answer in zip(answers, batches, _answers(batches, taught), strict=True):
            for arm in taught:
                mine[arm.name] = answer if _sees_second(arm, batch) else answer.at(slice(len(batch)))
    return list(answers)


def _answers(batches: list[Batch], taught: list[Arm]) -> Sequence[Answer]:
    """What a teacher says to some batches, a second view after the first where an arm sees one."""
    teacher = taught[0].distiller.teacher
    assert teacher is not None
    taps = dict.fromkeys(path for arm in taught for path in arm.distiller.teacher_taps)
    logits = any(arm.distiller.needs_teacher_logits for arm in taught)
    second = any(_sees_second(arm, batches[0]) for arm in taught)
    parts = [view for batch in batches for view in ((batch.images, batch.second) if second else (batch.images,))]
    images = parts[0] if len(parts) == 1 else torch.cat(parts)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert images is not None
    # One view of a source's samples is a place in the cache; two views, or batches of several passes, are none.
    views = {batch.view for batch in batches}
    place = Place("" if second or len(views) > 1 else views.pop(), torch.cat([batch.sample_ids for batch in batches]))
    with autocast(images.device, taught[0].settings.precision):
        if teacher.cache is None:
            answer = teacher(images, taps=taps, logits=logits)
        else:
            answer = teacher.cache.answer(teacher, images, place, taps=tuple(taps), logits=logits)
    if len(batches) == 1:
        return [answer]
    sizes = [len(batch) * (1 + second) for batch in batches]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [answer.at(slice(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def _sees_second(arm: Arm, batch: Batch) -> bool:
    return batch.second is not None and arm.distiller.takes_second_view


def _end_epoch(stage: Stage, arm: Arm, log: Log, epoch: int, step: int) -> None:
    means = arm.mean_losses(epoch)
    total = means.pop("loss")
    log.write(kind="train", epoch=epoch + 1, step=step, lr=arm.rate, loss=total, losses=means)
    if arm.gradients:
        weights = arm.distiller.weights_at(epoch)
        log.write(kind="gradients", epoch=epoch + 1, step=step, norms=arm.gradients, weights=weights)
    if stage.evaluate is None:
        return
    last = epoch + 1 == arm.epochs
    if not last and (epoch + 1) % arm.settings.evaluate_every and epoch + 1 not in arm.settings.read_at:
        return
    evaluate = stage.evaluate
    scores = processes.on_first(lambda: evaluate(arm))
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
        asked = self.stop.is_asked()
        if asked or time.monotonic() - self.saved >= self.interval:
            self.save(step)
        if asked:
            processes.barrier()  # none ends before the checkpoint is written
        self.stop.raise_if_asked()

    def save(self, step: int) -> None:
        if step == self.saved_step or not processes.is_first():
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
