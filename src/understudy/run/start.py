"""A run from start to end: data shown, teacher made ready, every seed's students trained together, results told."""

import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from understudy.data import Preprocess
from understudy.distill import Teacher
from understudy.errors import UserError
from understudy.models import load, save
from understudy.recipe.reader import build_recipe, parse
from understudy.recipe.schema import Recipe, Train
from understudy.report import write_report
from understudy.run.measure import measure
from understudy.run.result import Result
from understudy.run.results import arm_names, summarise
from understudy.run.show import describe_data, first_batch, results_table
from understudy.run.teacher import gate, ready_teacher, teacher_scores
from understudy.tasks.classify import METRIC, Classify
from understudy.train.checkpoint import write_atomically
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest, stop_on_signals
from understudy.train.loop import Stage, fit, train_step
from understudy.train.progress import Display


def start(recipe: Recipe, *, out: Path | None, objects: Mapping[str, Any], console: Console | None) -> Result:
    """Make a run folder for a recipe and run it.

    Args:
        recipe: what to do.
        out: the folder; by default the next number below `runs/NAME`.
        objects: what was given in Python for names `python:...`.
        console: where progress is shown; None is silent.

    Raises:
        UserError: something does not fit; found before the folder is made where that is possible.
        RunError: the run could not go on.
        Interrupted: a signal came.
    """
    _set_machine(recipe.train)
    task = Classify(recipe, objects, _device(recipe.train))
    _try_out(task)
    folder = RunFolder.create(recipe, out)
    return _proceed(task, folder, console)


def resume(path: Path, *, objects: Mapping[str, Any], console: Console | None) -> Result:
    """Continue a run where its last checkpoint was written; a finished one is only shown.

    Raises:
        UserError: no run folder, or objects are missing.
    """
    folder = RunFolder.open(path)
    text = (path / "recipe.yaml").read_bytes()
    recipe = build_recipe(parse(text, str(path / "recipe.yaml")))
    results = folder.results()
    if results is not None:
        if console is not None:
            console.print(results_table(results))
            console.print(f"[bold]{results['verdict']['text']}[/bold]\nfinished already")
        return Result(path, results, objects)
    threads = folder.environment()["threads"] if (path / "environment.json").exists() else recipe.train.threads
    _set_machine(recipe.train.model_copy(update={"threads": threads}))
    return _proceed(Classify(recipe, objects, _device(recipe.train)), folder, console)


def _proceed(task: Classify, folder: RunFolder, console: Console | None) -> Result:
    folder.write_environment(threads=torch.get_num_threads(), device=str(task.device))
    recipe = task.recipe
    with stop_on_signals() as stop, Display(console) as display:
        display.line(describe_data(task.source.name, task.splits, recipe.data.augment))
        display.line(_plan(recipe))
        teachers = [ready_teacher(task, folder, seed, display, stop) for seed in _teacher_seeds(recipe)]
        first_batch(task, teachers[0]).save(folder.path / "first_batch.png")
        gate(task, teachers[0], display)
        for index, seed in enumerate(_seeds(recipe)):
            _train_students(task, folder, seed, teachers[index % len(teachers)], display, stop)
        facts = _facts(task, folder, teachers[0])
    trained_here = recipe.teacher.is_trained
    results = summarise(
        folder,
        recipe,
        facts,
        metric=METRIC,
        teacher_scores=None if trained_here else teacher_scores(task, teachers[0]),
        notes=_notes(teachers[0], task),
    )
    _keep_best(folder, results["best"], recipe.seed)
    write_atomically(folder.path / "results.json", json.dumps(_without_nan(results), indent=2))
    write_report(folder.path)
    results = folder.results()
    assert results is not None
    if console is not None:
        console.print(results_table(results))
        for note in results["notes"]:
            console.print(f"[dim]· {note}[/dim]", highlight=False)
        console.print(f"[bold]{results['verdict']['text']}[/bold]", highlight=False)
    return Result(folder.path, results, task.objects)


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
        ratio = _seconds_a_step(stage, distilled) / _seconds_a_step(stage, control)
        write_atomically(path, json.dumps({"distilled_over_control": ratio}))
    return json.loads(path.read_text())["distilled_over_control"]


def _seconds_a_step(stage: Stage, arms: list[Any], steps: int = 30) -> float:
    feeds = {arm.feed: stage.feeds[arm.feed] for arm in arms}
    times = []
    for step in range(steps):
        began = time.perf_counter()
        train_step(stage, arms, {name: feed[step].to(stage.device) for name, feed in feeds.items()}, 0, step)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _keep_best(folder: RunFolder, name: str, seed: int) -> None:
    shutil.copytree(folder.arm(name, seed) / "student", folder.path / "student", dirs_exist_ok=True)


def _notes(teacher: Teacher, task: Classify) -> list[str]:
    notes = []
    if teacher.gives_probabilities:
        notes.append("The teacher returns probabilities: their logarithms were taken as logits.")
    for which in ("teacher", "student"):
        if isinstance(task.objects.get(which), nn.Module):
            notes.append(f"The {which} was given as a module: every seed starts from its weights.")
    return notes


def _seeds(recipe: Recipe) -> range:
    return range(recipe.seed, recipe.seed + recipe.seeds)


def _teacher_seeds(recipe: Recipe) -> range:
    return range(recipe.seed, recipe.seed + (recipe.teacher_seeds if recipe.teacher.is_trained else 1))


def _device(train: Train) -> torch.device:
    if train.device == "auto":
        from accelerate import PartialState

        return PartialState().device
    try:
        device = torch.device(train.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"cannot be used: {str(error).splitlines()[0]}", where=f"train.device '{train.device}'"
        ) from None
    return device


def _set_machine(train: Train) -> None:
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    torch.use_deterministic_algorithms(train.deterministic)


def _try_out(task: Classify) -> None:
    """Build one of everything and put a batch through, so that what cannot work is said before anything is written."""
    teacher = task.as_teacher(task.build("teacher", task.recipe.seed))
    stage = task.student_stage(task.recipe.seed, teacher)
    task.teacher_stage(task.recipe.seed)
    for part in (task.splits.test, task.splits.validation):
        if part is not None:
            task.example(stage.arms[0].preprocess)


def _plan(recipe: Recipe) -> str:
    arms = arm_names(recipe)
    epochs = recipe.train.epochs
    control = f", {1 / len(arms):.0%} of them for the control" if "student_alone" in arms else ""
    teacher = f"teacher {recipe.teacher_train.epochs} epochs, then " if recipe.teacher.is_trained else ""
    return (
        f"plan: {teacher}{len(arms)} students ({', '.join(arms)}) x {recipe.seeds} seeds x {epochs} epochs = "
        f"{len(arms) * recipe.seeds * epochs:,} epochs{control}"
    )


def _facts(task: Classify, folder: RunFolder, teacher: Teacher) -> dict[str, dict[str, Any]]:
    """Size and cost of each model; students of one architecture share them."""
    student = load(
        folder.arm(arm_names(task.recipe)[-1], task.recipe.seed) / "student",
        given=task.objects.get("student"),
    )
    student = student.to(task.device)
    preprocess = task.preprocess("student", student)
    of_teacher = measure(teacher.model, task.example(teacher.preprocess or Preprocess(), 1))
    of_student = measure(student, task.example(preprocess, 1))
    facts = {"teacher": {"role": "teacher", **of_teacher}}
    for name in arm_names(task.recipe):
        role = "control" if name == "student_alone" else "other"
        if name not in ("student_alone", "student_label_smoothing", "student_equal_time"):
            role = "distilled"
        facts[name] = {"role": role, **of_student}
    return facts


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None takes its place."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
