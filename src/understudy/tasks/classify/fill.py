"""The cache filled ahead of a run: the teacher is asked whatever the recipe's students will ask it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy.distill import Teacher
from understudy.distill.recorded import write_answers
from understudy.distill.teacher import Place
from understudy.errors import Interrupted, UserError
from understudy.tasks.classify.answers import caches_of, remember
from understudy.tasks.classify.stages import assistant_stage, init_stage, student_stage
from understudy.tasks.classify.task import Classify
from understudy.tasks.classify.teacher import ready_teacher
from understudy.train.arm import Arm
from understudy.train.folder import RunFolder, runs_root
from understudy.train.guard import StopRequest
from understudy.train.progress import Display
from understudy.train.stage import Stage, steps

_KEPT = "every answer so far was kept: the same command goes on"


def check_fillable(task: Classify, *, export: bool) -> None:
    """Refuse a recipe whose run would not look at what is kept.

    Args:
        task: with its data read.
        export: whether a table of answers is wanted too, which can be had without a cache.

    Raises:
        UserError: the cache is off, or no view is seen twice.
    """
    recipe, feed = task.recipe, task.feed("students", task.recipe.seed)
    if recipe.teacher.is_recorded:
        raise UserError(f"'{recipe.teacher.name}' is a table of answers: there is nothing to ask", where="teacher")
    if export or recipe.cache.when == "on":
        return
    if recipe.cache.when == "off":
        raise UserError("is off, a run would not look at what is kept: set it to on", where="cache")
    if feed.mixes or not feed.has_few_views:
        raise UserError(
            "random views are new in each pass: a run looks them up only with cache=on, for the same seeds, or draws "
            "them from a fixed set with data.views=16",
            where="cache",
        )


def fill(
    task: Classify, folder: RunFolder, display: Display, stop: StopRequest, export: Path | None
) -> list[dict[str, Any]]:
    """Ask the teacher about every pass that the recipe will make, and keep its answers.

    Args:
        task: with its data read.
        folder: where the teacher is, or is put.
        display: shows progress.
        stop: says when a signal came.
        export: where a table of the answers to the images as they are is written too.

    Returns:
        What each teacher's cache came to.

    Raises:
        Interrupted: a signal came; what was answered is kept.
    """
    recipe = task.recipe
    count = recipe.teacher_seeds if recipe.teacher.is_trained else 1
    teachers = [ready_teacher(task, folder, recipe.seed + number, display, stop) for number in range(count)]
    asked: list[tuple[Stage, list[Arm], int]] = []
    seen: set[tuple[Any, ...]] = set()
    for index, seed in enumerate(recipe.all_seeds):
        teacher = teachers[index % len(teachers)]
        task.start_students_from(teacher)
        remember(task, teacher, runs_root().resolve() / ".answers")
        if teacher.cache is not None:
            asked += [found for stage in _stages(task, seed, teacher) for found in _passes(stage, teacher, seen)]
    if recipe.cache.when == "auto" and any(arm.distiller.teacher_taps for _, arms, _ in asked for arm in arms):
        raise UserError("a method compares features, which are kept only with cache=on", where="cache")
    meter = display.begin("cache", sum(stage.steps_per_epoch for stage, _, _ in asked), 0)
    for stage, arms, epoch in asked:
        for _ in steps(stage, arms, epoch, epoch * stage.steps_per_epoch):
            meter.advance()
            if stop.is_asked():
                assert stop.signal is not None
                raise Interrupted(stop.signal, _KEPT)
    meter.finish(meter.total)
    if export is not None:
        _export(task, teachers[0], export)
    return caches_of(teachers)


def _stages(task: Classify, seed: int, teacher: Teacher) -> Iterator[Stage]:
    """The stages of a seed in which the teacher may be asked; assistants that are trained there stand in untrained."""
    teachers = {"teacher": teacher}
    for name, section in task.recipe.all_assistants.items():
        if section.is_trained and seed == task.recipe.seed:
            yield assistant_stage(task, name, next(reversed(teachers.values())))
        teachers[name] = task.as_teacher(task.build(name, seed), name)
    before = init_stage(task, seed, teachers, 1)
    if before is not None:
        yield before
    yield student_stage(task, seed, teachers)


def _passes(stage: Stage, teacher: Teacher, seen: set[tuple[Any, ...]]) -> Iterator[tuple[Stage, list[Arm], int]]:
    """The epochs in which some arms ask the teacher about what was not asked before."""
    feed = stage.feeds["students"]
    for epoch in range(stage.epochs):
        arms = [
            arm
            for arm in stage.arms
            if arm.distiller.teacher is teacher and arm.is_active(epoch) and arm.distiller.asks_teacher(epoch)
        ]
        if not arms:
            continue
        taps = tuple(sorted({path for arm in arms for path in arm.distiller.teacher_taps}))
        logits = any(arm.distiller.needs_teacher_logits for arm in arms)
        wanted = (id(teacher), feed.view(epoch), feed.first_like(epoch), feed.batch_size, taps, logits)
        if wanted not in seen:
            seen.add(wanted)
            yield stage, arms, epoch


def _export(task: Classify, teacher: Teacher, file: Path) -> None:
    """Write the teacher's answers to the students' images, each as it is."""
    part = task.splits.students
    ids = np.unique(part.ids)
    size = task.recipe.train.batch_size * task.ahead
    told = []
    for start in range(0, len(ids), size):
        here = ids[start : start + size]
        images = part.samples.read(here, None).to(task.device)
        logits = teacher.answer(images, [Place("plain", torch.from_numpy(here))]).logits
        assert logits is not None
        told.append(logits.cpu())
    write_answers(file, ids, torch.cat(told), task.source.train.paths)
