"""The stages that a diffusion run trains: the classifier, the teacher, its conversion, guidance, and the rounds."""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import nn

from understudy import randomness
from understudy.data import Feed
from understudy.errors import UserError
from understudy.recipe.schema import Train
from understudy.tasks.diffusion.guidance import Guided, learns_guidance
from understudy.tasks.diffusion.judge import Judge, judge_learner, judge_settings
from understudy.tasks.diffusion.learner import Denoising
from understudy.tasks.diffusion.network import Network, StepClock, without_dropout
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.tasks.diffusion.settings import Convert, Method, Updates
from understudy.tasks.diffusion.targets import Consistency, Data, Target, Taught, Tract, TwoSteps
from understudy.tasks.diffusion.task import Diffusion
from understudy.tasks.diffusion.teachers import Teacher, clock_steps, on_our_clock
from understudy.train.arm import Arm, Role
from understudy.train.stage import Scores, Stage

METRIC = "psnr"
# Held-out images that a stage is watched on.
_WATCHED = 256


def judge_stage(task: Diffusion, seed: int) -> Stage:
    """Training of the classifier that samples are judged by."""
    assert task.splits is not None
    described = task.recipe.evaluate.judge
    settings = judge_settings(described, _machine(task))
    learner = judge_learner(described, classes=len(task.splits.classes), shape=task.shape, seed=seed)
    feed = _feed(task, settings.batch_size, seed)
    steps = feed.steps_per_pass
    arm = Arm(
        "judge", "other", learner.to(task.device), settings, **_what_it_sees(task), steps_per_epoch=steps, seed=seed
    )
    evaluate = partial(watch_judge, task)
    return Stage("judge", (arm,), {"images": feed}, steps, evaluate, metric="accuracy", device=task.device)


def base_stage(task: Diffusion, seed: int, teacher: Teacher) -> Stage:
    """Training of the teacher on data, at random times."""
    settings = task.recipe.teacher.train
    assert settings is not None
    condition = task.condition(guided=False, dropout=settings.label_dropout, null=teacher.null)
    learner = Denoising(
        teacher.model,
        Data(teacher.process),
        process=teacher.process,
        weighting=settings.weighting,
        steps=0,
        name="denoising",
        condition=condition,
    )
    return _stage(task, "teacher", "teacher", seed, learner, settings, ema=settings.ema)


def convert_stage(task: Diffusion, seed: int, teacher: Teacher) -> tuple[Stage, Process]:
    """Fine-tuning of a copy of the teacher towards its own images, on our schedule, until it predicts v."""
    settings = task.recipe.convert if isinstance(task.recipe.convert, Convert) else Convert()
    process = Process(teacher.process.logsnr_min, teacher.process.logsnr_max, "v")
    student = _student(task, on_our_clock(teacher, StepClock(clock_steps(task.recipe.steps[0]))))
    learner = Denoising(
        student,
        Taught(teacher.model, teacher.process),
        process=process,
        weighting=settings.weighting,
        steps=0,
        name="convert",
        condition=task.condition(guided=False, dropout=0.1 if teacher.null is not None else 0.0, null=teacher.null),
    )
    return _stage(task, "converted", "other", seed, learner, settings), process


def guidance_stage(task: Diffusion, seed: int, model: nn.Module, process: Process, null: int | None) -> Stage:
    """A student learns guidance of every strength from a teacher that is asked with and without the class.

    Raises:
        UserError: the teacher was never trained without classes.
    """
    settings = task.recipe.guidance
    assert settings is not None
    if null is None or not isinstance(model, Network):
        raise UserError("the teacher has no class number for 'no class': it cannot be guided", where="guidance")
    student = _student(task, model)
    assert isinstance(student, Network)
    randomness.seed_torch(randomness.key("init", "guidance", seed))
    learns_guidance(student).to(task.device)
    learner = Denoising(
        student,
        Taught(Guided(model, null), process),
        process=process,
        weighting=settings.weighting,
        steps=0,
        name="guidance",
        condition=task.condition(guided=True),
    )
    return _stage(task, "guided", "other", seed, learner, settings)


def round_stage(
    task: Diffusion,
    seed: int,
    method: Method,
    model: nn.Module,
    process: Process,
    *,
    before: int,
    steps: int,
    guided: bool,
) -> Stage:
    """One round: a student that begins as its teacher learns to take fewer steps.

    Args:
        task: of the run.
        seed: of the run.
        method: that it learns by.
        model: the teacher.
        process: of both.
        before: steps of the teacher.
        steps: of the student.
        guided: whether both take a strength of guidance.
    """
    student = _student(task, model)
    times = before
    target: Target
    if method.name == "progressive":
        target, times = TwoSteps(model, process, steps), steps
    elif method.name == "tract":
        decay = method.self_decay
        target = Tract(model, student, process, teacher_steps=before, steps=steps, decay=decay)
    else:
        target = Consistency(model, student, process, steps=before, decay=method.self_decay)
    name = arm_name(task.recipe, method, steps)
    learner = Denoising(
        student,
        target,
        process=process,
        weighting=method.weighting,
        steps=times,
        name=name,
        condition=task.condition(guided=guided),
    )
    settings = method.model_copy(update={"updates": method.updates_to(steps), "lr": method.lr_to(steps)})
    return _stage(task, name, "distilled", seed, learner, settings)


def arm_name(recipe: DiffusionRecipe, method: Method, steps: int) -> str:
    """What the student of a round is called."""
    way = f"_{method.name}" if len(recipe.method) > 1 else ""
    return f"student{way}" if method.name == "consistency" else f"student{way}_{steps}"


def _student(task: Diffusion, model: nn.Module) -> nn.Module:
    return without_dropout(copy.deepcopy(model)).to(task.device).requires_grad_(True)


def _stage(
    task: Diffusion,
    name: str,
    role: Role,
    seed: int,
    learner: Denoising,
    settings: Updates,
    *,
    ema: float | None = None,
) -> Stage:
    """A stage of one network."""
    chunk = chunk_of(settings.updates, task.recipe.train.evaluate_every)
    train = Train(
        epochs=settings.updates // chunk,
        batch_size=settings.batch_size,
        optimizer="adamw",
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
        warmup_epochs=settings.warmup / chunk,
        clip=settings.clip,
        accumulate=settings.accumulate,
        ema=ema,
        **_machine(task),
    )
    feed = _feed(task, settings.batch_size, seed)
    arm = Arm(name, role, learner, train, **_what_it_sees(task), steps_per_epoch=chunk, seed=seed)
    evaluate = partial(watch, task)
    return Stage(f"{name}-{seed}", (arm,), {"images": feed}, chunk, evaluate, metric=METRIC, device=task.device)


def _what_it_sees(task: Diffusion) -> dict[str, Any]:
    return {"feed": "images", "preprocess": task.canvas}


def _machine(task: Diffusion) -> dict[str, Any]:
    return task.recipe.train.model_dump(exclude={"evaluate_every"})


def _feed(task: Diffusion, batch_size: int, seed: int) -> Feed:
    assert task.splits is not None
    return Feed(
        task.splits.teacher,
        batch_size=batch_size,
        seed=seed,
        settings=task.recipe.data.augment,
        classes=len(task.splits.classes),
    )


@torch.no_grad()
def watch(task: Diffusion, arm: Arm) -> Scores:
    """How near a network comes to its target's images on held-out data, in decibels (the same draws every time)."""
    learner = arm.distiller
    assert isinstance(learner, Denoising)
    images, labels = task.held_out(_WATCHED)
    key = randomness.key("watch", learner.name) & (2**63 - 1)
    generator = torch.Generator(task.device).manual_seed(key)
    found, wanted = learner.compare(arm.model.eval(), images.to(task.device), labels.to(task.device), generator)
    error = float((found.x - wanted.x).square().mean())
    return {"test": {METRIC: 10 * math.log10(4 / max(error, 1e-12))}}


def watch_judge(task: Diffusion, arm: Arm) -> Scores:
    """How often the classifier is right on held-out images."""
    images, labels = task.held_out(2000)
    judge = Judge(arm.model)
    return {"test": {"accuracy": float((judge.classes(judge.features(images)) == labels).double().mean())}}


def chunk_of(updates: int, every: int) -> int:
    """Updates between evaluations: a divisor of all of them, at most `every`; all where only tiny ones divide."""
    if updates <= every:
        return updates
    largest = next(size for size in range(every, 0, -1) if updates % size == 0)
    return largest if 10 * largest >= every else updates
