"""The one training loop. It reads top to bottom: batch, teacher's answer, each arm's step, evaluation, checkpoint."""

import time
from collections.abc import Sequence

from understudy.train import processes
from understudy.train.arm import Arm
from understudy.train.checkpoint import Checkpoints
from understudy.train.folder import Log, RunFolder
from understudy.train.guard import StopRequest
from understudy.train.progress import Display
from understudy.train.settle import settle
from understudy.train.stage import Answers, Stage, steps
from understudy.train.stepper import Stepper
from understudy.train.views import Views


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
        UserError: it began in a way of taking steps that cannot be had now.
    """
    logs = {arm.label: Log(folder.arm(arm.name, arm.seed) / "metrics.jsonl") for arm in stage.arms}
    step = _restore(stage, folder.checkpoints, logs)
    teams = settle(stage, folder, display)
    keeper = _Keeper(stage, teams, folder.checkpoints, logs, stop)
    meter = display.begin(stage.name, stage.epochs * stage.steps_per_epoch, step)
    for epoch in range(step // stage.steps_per_epoch, stage.epochs):
        active = [team for team in teams if team.arms[0].is_active(epoch)]
        if not active:
            break
        arms = [arm for team in active for arm in team.arms]
        for arm in arms:
            arm.distiller.train()
        for team in active:
            team.begin(epoch)
        started, first = time.perf_counter(), step
        for views, answers in steps(stage, arms, epoch, step):
            train_step(active, views, answers, epoch, step)
            step += 1
            meter.advance()
            keeper.after_step(step)
        seconds = time.perf_counter() - started
        for team in active:
            team.push(step)
        for arm in arms:
            _end_epoch(stage, arm, logs[arm.label], epoch, step)
            timing = Log(logs[arm.label].path.with_name("timing.jsonl"))
            images = (step - first) * stage.feeds[arm.feed].batch_size
            timing.write(
                epoch=epoch + 1,
                seconds=round(seconds, 4),
                images_per_second=round(images / max(seconds, 1e-9)),
            )
        meter.note = "  ".join(f"{name} {score:.4f}" for name, score in _best(arms).items())
        keeper.after_epoch(step)
    keeper.save(step)
    meter.finish(step)
    for arm in stage.arms:
        arm.finish()


def train_step(teams: Sequence[Stepper], views: Views, answers: Answers, epoch: int, step: int) -> None:
    """One step of every arm.

    Args:
        teams: who is still in training.
        views: a batch for each feed in use.
        answers: the teachers', by the arm's label.
        epoch: counted from 0.
        step: counted from 0.
    """
    for team in teams:
        team.step(views, answers, epoch, step)


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


def _best(arms: Sequence[Arm]) -> dict[str, float]:
    """The best score of each name, its mean over the seeds; before the first there is none."""
    scores: dict[str, list[float]] = {}
    for arm in arms:
        if arm.best_score > float("-inf"):
            scores.setdefault(arm.name, []).append(arm.best_score)
    return {name: sum(values) / len(values) for name, values in scores.items()}


class _Keeper:
    """Decides when a checkpoint is due: some time after the last one, at a signal, at the end."""

    def __init__(
        self,
        stage: Stage,
        teams: Sequence[Stepper],
        checkpoints: Checkpoints,
        logs: dict[str, Log],
        stop: StopRequest,
    ) -> None:
        self.stage = stage
        self.teams = teams
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
        for team in self.teams:
            team.push(step)
        self.checkpoints.save(
            {
                "stage": self.stage.name,
                "step": step,
                "logs": {name: log.sync() for name, log in self.logs.items()},
                "arms": {arm.label: arm.state() for arm in self.stage.arms},
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
        arm.load_state(state["arms"][arm.label])
        logs[arm.label].truncate(state["logs"][arm.label])
    return state["step"]
