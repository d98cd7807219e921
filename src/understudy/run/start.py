"""A run from start to end: data shown, teacher made ready, every seed's students trained together, results told."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import nn

from understudy.data import Preprocess
from understudy.distill import Teacher
from understudy.distill.taps import logits_of
from understudy.errors import UserError
from understudy.models import load, save
from understudy.recipe.schema import Recipe, Train
from understudy.report import write_report
from understudy.run.measure import measure, seconds_a_step
from understudy.run.result import Result
from understudy.run.results import check_control, summarise
from understudy.run.show import describe_data, first_batch, results_table
from understudy.run.teacher import gate, ready_teacher, teacher_scores
from understudy.tasks.classify import METRIC, Classify
from understudy.tasks.variants import student_arms
from understudy.train.checkpoint import write_atomically
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest, stop_on_signals
from understudy.train.loop import fit
from understudy.train.progress import Display


def start(
    recipe: Recipe,
    *,
    out: Path | None,
    objects: Mapping[str, Any],
    console: Console | None,
    only_teacher: bool = False,
) -> Result:
    """Make a run folder for a recipe and run it.

    Args:
        recipe: what to do.
        out: the folder; by default the next number below `runs/NAME`.
        objects: what was given in Python for names `python:...`.
        console: where progress is shown; None is silent.
        only_teacher: stop when the teacher is ready.

    Raises:
        UserError: something does not fit; found before the folder is made where that is possible.
        RunError: the run could not go on.
        Interrupted: a signal came.
    """
    with machine(recipe.train):
        task = prepare(recipe, objects)
        folder = RunFolder.create(recipe, out)
        folder.write_environment(threads=torch.get_num_threads(), device=str(task.device), only_teacher=only_teacher)
        return _proceed(task, folder, console)


def resume(path: Path, *, objects: Mapping[str, Any], console: Console | None) -> Result:
    """Continue a run where its last checkpoint was written; a finished one is only shown.

    Raises:
        UserError: no run folder, or objects are missing.
    """
    folder = RunFolder.open(path)
    recipe = folder.recipe()
    results = folder.results()
    if results is not None:
        if not (path / "report.html").exists():  # killed between its last two files
            write_report(path)
        return _show(Result(path, results, objects), console)
    if not (path / "environment.json").exists():  # killed between its first two files
        threads = recipe.train.threads or torch.get_num_threads()
        folder.write_environment(threads=threads, device=recipe.train.device, only_teacher=False)
    with machine(recipe.train.model_copy(update={"threads": folder.environment()["threads"]})):
        return _proceed(Classify(recipe, objects, _device(recipe.train)), folder, console)


def _proceed(task: Classify, folder: RunFolder, console: Console | None) -> Result:
    recipe = task.recipe
    only_teacher = folder.environment()["only_teacher"]
    with stop_on_signals() as stop, Display(console) as display:
        display.line(describe_data(task.source.name, task.splits, recipe.data.augment))
        if not only_teacher:
            display.line(_plan(recipe))
        teachers = [ready_teacher(task, folder, seed, display, stop) for seed in _teacher_seeds(recipe)]
        first_batch(task, teachers[0]).save(folder.path / "first_batch.png")
        gate(task, teachers[0], display)
        for index, seed in enumerate(() if only_teacher else _seeds(recipe)):
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
        shutil.copytree(
            folder.arm(results["best"], recipe.seed) / "student", folder.path / "student", dirs_exist_ok=True
        )
    write_atomically(folder.path / "results.json", json.dumps(_without_nan(results), indent=2))
    write_report(folder.path)
    return _show(Result(folder.path, _without_nan(results), task.objects), console)


def _show(result: Result, console: Console | None) -> Result:
    if console is not None:
        console.print(results_table(result.results))
        for note in result.results["notes"]:
            console.print(f"[dim]· {note}[/dim]", highlight=False, soft_wrap=True)
        console.print(f"[bold]{result.verdict}[/bold]", highlight=False, soft_wrap=True)
        console.print(f"hash {result.results['hash'][:16]}", highlight=False)
    return result


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


def _seeds(recipe: Recipe) -> range:
    return range(recipe.seed, recipe.seed + recipe.seeds)


def _teacher_seeds(recipe: Recipe) -> range:
    return range(recipe.seed, recipe.seed + (recipe.teacher_seeds if recipe.teacher.is_trained else 1))


def _device(train: Train) -> torch.device:
    if train.device == "auto":
        from accelerate import PartialState

        return PartialState().device or torch.device("cpu")
    try:
        device = torch.device(train.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"cannot be used: {str(error).splitlines()[0]}", where=f"train.device '{train.device}'"
        ) from None
    return device


@contextmanager
def machine(train: Train) -> Iterator[None]:
    """Threads and determinism as a recipe wants them, inside the block alone."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(train.threads or threads)
    _set_deterministic(train.deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _set_deterministic(deterministic)


def _set_deterministic(wanted: bool) -> None:
    if wanted != torch.are_deterministic_algorithms_enabled():  # setting it imports torch's compiler: seconds
        torch.use_deterministic_algorithms(wanted)


def prepare(recipe: Recipe, objects: Mapping[str, Any]) -> Classify:
    """Read the data and build one of everything, so that what cannot work is said before anything is written.

    Args:
        recipe: what will be run.
        objects: what was given in Python for names `python:...`.

    Raises:
        UserError: something does not fit.
    """
    check_control(recipe)
    task = Classify(recipe, objects, _device(recipe.train))
    for which in ("teacher", "student"):
        _check_takes_images(task, which)
    task.student_stage(recipe.seed, task.as_teacher(task.build("teacher", recipe.seed)))
    if recipe.teacher.is_trained:
        task.teacher_stage(recipe.seed)
    return task


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


def _plan(recipe: Recipe) -> str:
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


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None takes its place."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
