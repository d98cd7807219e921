"""What the benchmarks of steps share: pairs of the CIFAR papers, images of that shape, steps of our loop in turns."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from understudy.distill import Teacher
from understudy.recipe.reader import Source, build_recipe
from understudy.tasks.classify.answers import freeze, remember
from understudy.tasks.classify.run import prepare
from understudy.tasks.classify.stages import student_stage
from understudy.tasks.classify.task import Classify
from understudy.train.arm import Arm
from understudy.train.loop import train_step
from understudy.train.settle import form_teams
from understudy.train.stage import Stage, steps

BATCH, CLASSES = 64, 100
# Of an epoch, in groups of four: the warm-up takes its first step, in which objectives' gradients are measured, and
# five rounds the others. In training that is one step of hundreds.
STEPS = 4 * 6
RESNETS = ("cifar/resnet32x4", "cifar/resnet8x4")
KD = {"name": "kd", "temperature": 4, "labels": 0.1, "weight": 0.9}


def task_of(
    teacher: str, student: str, *, images: int = STEPS * BATCH, classes: int = CLASSES, **changes: Any
) -> Classify:
    """A recipe for a pair, its data random images of CIFAR's shape; `changes` are laid over it."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images + classes, 3, 32, 32), dtype=torch.uint8, generator=random)
    labels = torch.arange(len(pixels)) % classes
    parts = {"train": (pixels[:images], labels[:images]), "test": (pixels[images:], labels[images:])}
    described = {
        "name": "pair",
        "data": {"name": "python:images", "validation": "none", "mean": [0.5] * 3, "std": [0.25] * 3},
        "teacher": teacher,
        "student": student,
        "method": KD,
        "train": {"batch_size": BATCH, "optimizer": "sgd", "lr": 0.01, "threads": torch.get_num_threads()},
        **changes,
    }
    given = {"data": {**parts, "classes": [f"class {number}" for number in range(classes)]}}
    return prepare(build_recipe(Source("benchmark", described)), given).task


def teacher_of(task: Classify, root: Path | None = None) -> Teacher:
    """The pair's teacher, untrained, built for answering; with a folder its answers are kept there."""
    teacher = task.as_teacher(task.build("teacher", 0))
    freeze(task, teacher)
    if root is not None:
        remember(task, teacher, root)
    return teacher


def stage_of(task: Classify, teacher: Teacher) -> tuple[Stage, list[Arm], list[Arm]]:
    """A seed's stage, with its control and its distilled arms."""
    stage = student_stage(task, 0, {"teacher": teacher})
    kinds = [[arm for arm in stage.arms if arm.role == role] for role in ("control", "distilled")]
    return stage, *kinds


def training(stage: Stage, arms: list[Arm]) -> Iterator[None]:
    """Steps of our loop without end, one each time."""
    for arm in arms:
        arm.distiller.train()
    teams = [team for formed, _ in form_teams(replace(stage, arms=tuple(arms))) for team in formed]
    step = 0
    for epoch in itertools.count():
        for team in teams:
            team.begin(epoch)
        for views, answers in steps(stage, arms, epoch, step):
            train_step(teams, views, answers, epoch, step)
            step += 1
            yield


def in_turns(sides: Mapping[str, Callable[[], Any]], *, rounds: int, count: int) -> dict[str, list[float]]:
    """Seconds of the processor a step of each side takes in each round; they take turns, the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, step in sides.items():
            began = time.process_time()
            for _ in range(count):
                step()
            if number:
                seconds[name].append((time.process_time() - began) / count)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The median of the rounds' ratios, with the smallest and the largest."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def milliseconds(seconds: Sequence[float]) -> str:
    """The median of the rounds."""
    return f"{1000 * statistics.median(seconds):,.3g}"


def stepping(made: Iterator[None]) -> Callable[[], None]:
    """A side of `in_turns` that takes the next step of a training."""
    return lambda: next(made)
