"""A run from start to end, whatever its task: folder made, signals caught, the task's work done, results told."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from understudy.errors import UserError
from understudy.recipe.schema import Machine, Recipe
from understudy.recipe.tasks import TASKS
from understudy.report import write_report
from understudy.run.result import Result
from understudy.run.show import results_table
from understudy.train import processes, trackers
from understudy.train.files import write_atomically
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest, stop_on_signals
from understudy.train.progress import Display


class Job(Protocol):
    """A recipe with its data read and its models known to fit, ready to be run."""

    @property
    def recipe(self) -> Recipe:
        """What is run."""
        ...

    def run(self, folder: RunFolder, display: Display, stop: StopRequest) -> dict[str, Any]:
        """Do the stages that the folder does not have yet.

        Returns:
            The content of results.json.
        """
        ...


class Runner(Protocol):
    """What a task's module offers; one that can be run by several processes says so by `MANY_PROCESSES = True`."""

    def machine(self, wanted: Machine) -> AbstractContextManager[dict[str, Any]]:
        """Set the machine up inside a block; gives what a run records of it, `threads` among it."""
        ...

    def prepare(self, recipe: Any, objects: Mapping[str, Any]) -> Job:
        """Read the data and build one of everything: what cannot work is said before anything is written."""
        ...

    def reopen(self, recipe: Any, objects: Mapping[str, Any]) -> Job:
        """The same for a run that was started before."""
        ...

    def rehearse(self, job: Any, console: Console) -> None:
        """Try the job on a few steps, say what it would cost, leave nothing."""
        ...

    def load(self, folder: Path, given: Any = None) -> Any:
        """The model that a run saved in `student/` or `teacher/`; `given` is the object it was made from, if any."""
        ...


def runner_of(task: str) -> Runner:
    """The module that runs a task; importing it imports the task's libraries."""
    return import_module(TASKS[task].runner)  # pyright: ignore[reportReturnType]


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
    trackers.require(recipe.tracker)
    runner = runner_of(recipe.task)
    _check_processes(recipe, runner)
    with processes.joined(recipe.train.device), runner.machine(recipe.train) as facts:
        job = runner.prepare(recipe, objects)
        folder = RunFolder(Path(processes.on_first(lambda: str(RunFolder.create(recipe, out).path))))
        with folder.held():
            processes.on_first(lambda: folder.write_environment(**facts, only_teacher=only_teacher))
            return _proceed(job, folder, objects, console)


def resume(path: Path, *, objects: Mapping[str, Any], console: Console | None, packages: Sequence[str] = ()) -> Result:
    """Continue a run where its last checkpoint was written; a finished one is only shown.

    One of several processes on this machine is continued by as many, which are started here.

    Args:
        path: the run folder.
        objects: what was given in Python for names `python:...`.
        console: where progress is shown; None is silent.
        packages: what the command line was told to import, for processes that are started.

    Raises:
        UserError: no run folder, it is being run, objects are missing, or the number of processes is another.
    """
    folder = RunFolder.open(path)
    recipe = folder.recipe()
    results = folder.results()
    if results is not None:
        if processes.launched().rank:
            return Result(path, results, objects)
        if not (path / "report.html").exists():  # killed between its last two files
            write_report(path)
        return _show(Result(path, results, objects), console)
    trackers.require(recipe.tracker)
    runner = runner_of(recipe.task)
    # The threads of the start, because sums change in their last bits with them. No file: killed between the first two.
    started = folder.environment() if (path / "environment.json").exists() else {}
    _check_processes(recipe, runner)
    if started and _needs_launcher(path, started, objects):
        return _relaunch(path, started["processes"], console, packages)
    settings = recipe.train.model_copy(update={"threads": started.get("threads", recipe.train.threads)})
    with processes.joined(recipe.train.device), runner.machine(settings) as facts, folder.held():
        _warn_of_versions(started)
        processes.on_first(lambda: folder.write_environment(**facts, only_teacher=False))
        return _proceed(runner.reopen(recipe, objects), folder, objects, console)


def rehearse(recipe: Recipe, console: Console) -> None:
    """Try a recipe out and say what it would cost; nothing is left behind.

    Raises:
        UserError: something does not fit.
    """
    if processes.launched().count > 1:
        raise UserError("is tried by one process: leave the others out", where="--dry-run")
    runner = runner_of(recipe.task)
    with runner.machine(recipe.train):
        runner.rehearse(runner.prepare(recipe, {}), console)


def _proceed(job: Job, folder: RunFolder, objects: Mapping[str, Any], console: Console | None) -> Result:
    console = console if processes.is_first() else None
    following = trackers.following(folder.path, job.recipe.tracker)
    with stop_on_signals() as stop, Display(console) as display, following:
        results = _without_nan(job.run(folder, display, stop))

    def write() -> None:
        write_atomically(folder.path / "results.json", json.dumps(results, indent=2))
        write_report(folder.path)

    processes.on_first(write)
    return _show(Result(folder.path, results, objects), console)


def _check_processes(recipe: Recipe, runner: Runner) -> None:
    launched = processes.launched().count
    if launched == 1:
        return
    if not getattr(runner, "MANY_PROCESSES", False):
        raise UserError(f"'{recipe.task}' runs in one process, {launched} were started", where="task")
    smallest = getattr(recipe.train, "batch_size", launched)
    if smallest < launched:
        raise UserError(f"{smallest} images cannot be shared by {launched} processes", where="train.batch_size")


def _needs_launcher(path: Path, started: Mapping[str, Any], objects: Mapping[str, Any]) -> bool:
    """Whether a run of several processes is to be continued by this one, which has to start them."""
    wanted, launched = started.get("processes", 1), processes.launched().count
    if wanted == launched:
        return False
    where = f"{path} was run by {wanted} process{'es' if wanted > 1 else ''}"
    if launched > 1:
        raise UserError(f"it cannot go on with {launched}, whose sums differ: start {wanted}", where=where)
    if started["machines"] > 1:
        raise UserError(
            f"on {started['machines']} machines: continue it there by torchrun, or `understudy submit RECIPE --out` it",
            where=where,
        )
    if objects:
        raise UserError("and is given objects: call resume in a script that torchrun starts", where=where)
    return True


def _relaunch(path: Path, count: int, console: Console | None, packages: Sequence[str]) -> Result:
    from understudy.train.launch import launch

    further = [] if console else ["--quiet"]
    code = launch(["resume", str(path), *further, *(f"--import={package}" for package in packages)], count)
    if code:
        raise SystemExit(code)  # what happened was said
    results = RunFolder.open(path).results()
    assert results is not None
    return Result(path, results, {})


def _warn_of_versions(started: Mapping[str, Any]) -> None:
    recorded, present = started.get("torch"), version("torch")
    if recorded not in (None, present) and processes.is_first():
        print(
            f"understudy: the run was started with torch {recorded}, this is {present}: its bits may differ from those "
            "of a run never stopped",
            file=sys.stderr,
        )


def _show(result: Result, console: Console | None) -> Result:
    if console is not None:
        console.print(results_table(result.results))
        for note in result.results["notes"]:
            console.print(f"[dim]· {note}[/dim]", highlight=False, soft_wrap=True)
        console.print(f"[bold]{result.verdict}[/bold]", highlight=False, soft_wrap=True)
        console.print(f"hash {result.results['hash'][:16]}", highlight=False)
    return result


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None takes its place."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
