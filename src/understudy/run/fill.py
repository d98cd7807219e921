"""The cache of a recipe filled ahead of its runs; its teacher is trained first where no run has done it."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from understudy.errors import UserError
from understudy.recipe.schema import ClassifyRecipe, Recipe
from understudy.run.start import start
from understudy.train import processes
from understudy.train.folder import RunFolder
from understudy.train.guard import stop_on_signals
from understudy.train.progress import Display


def fill(
    recipe: Recipe, *, objects: Mapping[str, Any], console: Console | None, export: Path | None = None
) -> list[dict[str, Any]]:
    """Ask the teacher about all that a recipe's run will ask it, and keep the answers for that run.

    Args:
        recipe: what will be run.
        objects: what was given in Python for names `python:...`.
        console: where progress is shown; None is silent.
        export: where a table of the answers to the images as they are is written too.

    Returns:
        What each teacher's cache came to: `answers`, the share of them `known` before, `bytes`, `folder` and more.

    Raises:
        UserError: something does not fit.
        Interrupted: a signal came; what was answered is kept.
    """
    if not isinstance(recipe, ClassifyRecipe):
        raise UserError(f"'{recipe.task}' keeps no answers: only classification does", where="task")
    if processes.launched().count > 1:
        raise UserError("the cache is filled by one process: leave the others out")
    # They import the task's libraries.
    from understudy.tasks.classify.answers import in_words
    from understudy.tasks.classify.fill import check_fillable
    from understudy.tasks.classify.fill import fill as ask_all
    from understudy.tasks.classify.run import machine, prepare
    from understudy.tasks.classify.teacher import needs_training

    if export is not None and not export.parent.is_dir():
        raise UserError("there is no such folder", where=export.parent)
    with machine(recipe.train):
        task = prepare(recipe, objects).task
        check_fillable(task, export=export is not None)
        untrained = needs_training(task)
    trained = start(recipe, out=None, objects=objects, console=console, only_teacher=True) if untrained else None
    with (
        TemporaryDirectory() as spare,
        machine(recipe.train),
        stop_on_signals() as stop,
        Display(console) as display,
    ):
        folder = RunFolder(trained.folder) if trained else RunFolder.create(recipe, Path(spare) / "run")
        caches = ask_all(task, folder, display, stop, export)
        for cache in caches:
            display.line(f"cache: {in_words(cache)}")
    return caches
