"""What a run of a classification recipe does: teacher made ready, every seed's students trained together."""

import json
import shutil
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from understudy.data import Preprocess
from understudy.distill import Teacher
from understudy.distill.taps import logits_of
from understudy.errors import UserError
from understudy.models import load, save
from understudy.recipe.schema import ClassifyRecipe
from understudy.run.measure import measure, seconds_a_step
from understudy.run.show import describe_data, first_batch
from understudy.tasks.classify.dry import rehearse
from understudy.tasks.classify.results import check_control, summarise
from understudy.tasks.classify.task import METRIC, Classify
from understudy.tasks.classify.teacher import gate, ready_teacher, teacher_scores
from understudy.tasks.classify.variants import student_arms
from understudy.train.files import write_atomically
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.loop import fit
from understudy.train.machine import device, machine
from understudy.train.progress import Display

__all__ = ["Students", "load", "machine", "prepare", "rehearse", "reopen"]


class Students:
    """The job of a classification recipe.

    Args:
        task: with its data read.
    """

    def __init__(self, task: Classify) -> None:
        self.task = task
        self.recipe = task.recipe

    def run(self, folder: RunFolder, display: Display, stop: StopRequest) -> dict[str, Any]:
        """Train what the folder does not have yet and sum it up.

        Raises:
            RunError: the run could not go on.
            Interrupted: a signal came.
        """
        task, recipe = self.task, self.recipe
        only_teacher = folder.environment()["only_teacher"]
        display.line(describe_data(task.source.name, task.splits, recipe.data.augment))
        if not only_teacher:
            display.line(_plan(recipe))
        teachers = [ready_teacher(task, folder, seed, display, stop) for seed in _teacher_seeds(recipe)]
        first_batch(task, teachers[0]).save(folder.path / "first_batch.png")
        gate(task, teachers[0], display)
        for index, seed in enumerate(() if only_teacher else recipe.all_seeds):
            _train_students(task, folder, seed, teachers[index % len(teachers)], display, stop)
        results = summarise(
            folder,
            recipe,
            _facts(task, folder, teachers[0], only_teacher),
            metric=METRIC,
            teacher_scores=None if recipe.teacher.is_trained else teacher_scores(task, teachers[0]),
            notes=_notes(teachers[0], task),
        )
        if results["best"] is not None:
            best = folder.arm(results["best"], recipe.seed) / "student"
            shutil.copytree(best, folder.path / "student", dirs_exist_ok=True)
        return results


def prepare(recipe: ClassifyRecipe, objects: Mapping[str, Any]) -> Students:
    """Read the data and build one of everything, so that what cannot work is said before anything is written.

    Args:
        recipe: what will be run.
        objects: what was given in Python for names `python:...`.

    Raises:
        UserError: something does not fit.
    """
    check_control(recipe)
    task = Classify(recipe, objects, device(recipe.train))
    for which in ("teacher", "student"):
        _check_takes_images(task, which)
    task.student_stage(recipe.seed, task.as_teacher(task.build("teacher", recipe.seed)))
    if recipe.teacher.is_trained:
        task.teacher_stage(recipe.seed)
    return Students(task)


def reopen(recipe: ClassifyRecipe, objects: Mapping[str, Any]) -> Students:
    """Read the data of a run that was started before.

    Raises:
        UserError: the data or an object are missing.
    """
    return Students(Classify(recipe, objects, device(recipe.train)))


def _train_students(
    task: Classify, folder: RunFolder, seed: int, teacher: Teacher, display: Display, stop: StopRequest
) -> None:
    name = f"seed-{seed}"
    if name in folder.finished_stages:
        return
    stage = task.student_stage(seed, teacher, _equal_time(task, folder, teacher))
    fit(stage, folder, display, stop)
    for arm in stage.arms:
        text = f"{arm.name} (seed {seed}) of the run {task.recipe.name}."
        save(arm.model, folder.arm(arm.name, seed) / "student", task.card("student", arm.model, text=text))
    folder.finish_stage(name)


def _equal_time(task: Classify, folder: RunFolder, teacher: Teacher) -> float:
    """How much longer a control may train to take the time of distilling: measured once and kept with the run."""
    if not isinstance(task.recipe.control, tuple) or "equal_time" not in task.recipe.control:
        return 1.0
    path = folder.path / "equal_time.json"
    if not path.exists():
        stage = task.student_stage(task.recipe.seed, teacher)
        control = [arm for arm in stage.arms if arm.role == "control"]
        distilled = [arm for arm in stage.arms if arm.role == "distilled"][:1]
        ratio = seconds_a_step(stage, distilled) / seconds_a_step(stage, control)
        write_atomically(path, json.dumps({"distilled_over_control": ratio}))
    return json.loads(path.read_text())["distilled_over_control"]


def _notes(teacher: Teacher, task: Classify) -> list[str]:
    notes = []
    if teacher.gives_probabilities:
        notes.append("The teacher returns probabilities: their logarithms were taken as logits.")
    for which in ("teacher", "student"):
        if isinstance(task.objects.get(which), nn.Module):
            notes.append(f"The {which} was given as a module: every seed starts from its weights.")
    return notes


def _teacher_seeds(recipe: ClassifyRecipe) -> range:
    return range(recipe.seed, recipe.seed + (recipe.teacher_seeds if recipe.teacher.is_trained else 1))


def _check_takes_images(task: Classify, which: Literal["teacher", "student"]) -> None:
    module = task.build(which, task.recipe.seed)
    model = getattr(task.recipe, which)
    example = task.example(task.preprocess(which, module))
    try:
        with torch.no_grad():
            classes = logits_of(module.eval()(example)).shape[-1]
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        shape = tuple(example.shape[1:])
        raise UserError(
            f"{which}: '{model.name}' cannot take images (C, H, W) of {shape}: {reason}; set {which}.size or take "
            "another model"
        ) from error
    # A saved teacher that knows more classes, or in another order, is asked for those of the data.
    if classes != task.classes and getattr(module, "card", None) is None:
        raise UserError(f"{which}: '{model.name}' gives {classes} classes, the data has {task.classes}")


def _plan(recipe: ClassifyRecipe) -> str:
    arms = student_arms(recipe)
    epochs = recipe.train.epochs
    control = f", {1 / len(arms):.0%} of them for the control" if "student_alone" in arms else ""
    teacher = f"teacher {recipe.teacher_train.epochs} epochs, then " if recipe.teacher.is_trained else ""
    return (
        f"plan: {teacher}{len(arms)} students ({', '.join(arms)}) x {recipe.seeds} seeds x {epochs} epochs = "
        f"{len(arms) * recipe.seeds * epochs:,} epochs{control}"
    )


def _facts(task: Classify, folder: RunFolder, teacher: Teacher, only_teacher: bool) -> dict[str, dict[str, Any]]:
    """Role, size and cost of each model; the students have one architecture and share theirs."""
    facts = {
        "teacher": {
            "role": "teacher",
            **measure(teacher.model, task.example(teacher.preprocess or Preprocess(), 1)),
        }
    }
    if only_teacher:
        return facts
    saved = folder.arm(next(iter(task.arms)), task.recipe.seed) / "student"
    student = load(saved, given=task.objects.get("student")).to(task.device)
    cost = measure(student, task.example(task.preprocess("student", student), 1))
    return facts | {name: {"role": role, **cost} for name, role in task.arms.items()}
