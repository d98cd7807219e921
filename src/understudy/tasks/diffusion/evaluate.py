"""A finished run compared at other numbers of steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from safetensors.torch import load_file

from understudy.errors import UserError
from understudy.recipe.schema import Recipe
from understudy.tasks.diffusion import contest, stages
from understudy.tasks.diffusion.contest import Contender, Row
from understudy.tasks.diffusion.judge import Judge
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.tasks.diffusion.samples import saved
from understudy.tasks.diffusion.steps import Sampler
from understudy.tasks.diffusion.store import load_network
from understudy.tasks.diffusion.task import Diffusion
from understudy.tasks.diffusion.teachers import as_compared, of_card
from understudy.train.folder import RunFolder
from understudy.train.machine import device as device_of
from understudy.train.progress import Display


def evaluate_run(run: Path, steps: Sequence[int], *, objects: Any = None, display: Display | None = None) -> list[Row]:
    """Compare a run's teacher, by both samplers, and its students at some numbers of steps.

    The teacher with the recipe's reference steps is the first row: the others are paired with its images.

    Args:
        run: the folder of a finished run.
        steps: numbers of steps; none are those that the recipe compares.
        objects: what was given in Python, by `teacher` and `data`.
        display: shows progress.

    Returns:
        One row each: `name`, `steps`, `sampler`, the scores, and `ms_per_image`.

    Raises:
        UserError: no such run, or its classifier is not there.
    """
    folder = RunFolder.open(run)
    recipe: Recipe = folder.recipe()
    if not isinstance(recipe, DiffusionRecipe):
        raise UserError(f"is a run of the task '{recipe.task}': --steps belongs to diffusion", where=run)
    wanted = tuple(sorted(set(steps), reverse=True)) or recipe.compared_steps
    if wanted[-1] < 1:
        raise UserError("numbers of steps are 1 and more", where="--steps")
    task = Diffusion(recipe, objects or {}, device_of(recipe.train))
    judge = None
    if task.is_judged:
        judge = _judge(task, folder, recipe.seed)
    contenders = _contenders(task, run, wanted)
    rows = contest.judged(
        contenders, task, contest.yardstick(task, judge), recipe.seed, log=None, display=display or Display(None)
    )
    about = [{"name": one.name, "steps": one.steps, "sampler": one.sampler} for one in contenders]
    return [known | row for known, row in zip(about, rows, strict=True)]


def _judge(task: Diffusion, folder: RunFolder, seed: int) -> Judge:
    path = folder.arm("judge", seed) / "student" / "model.safetensors"
    if not path.is_file():
        raise UserError("the run has not trained its classifier yet", where=folder.path)
    model = stages.judge_stage(task, seed).arms[0].model
    model.load_state_dict(load_file(path))
    return Judge(model.to(task.device))


def _contenders(task: Diffusion, run: Path, steps: tuple[int, ...]) -> list[Contender]:
    recipe = task.recipe
    known = {one.name: one for one in saved(run)}
    given = task.objects.get("teacher")
    if "teacher" in known:
        teacher = of_card(load_network(known["teacher"].folder).to(task.device))
    else:
        teacher = task.teacher(recipe.seed)
    model, process = as_compared(teacher, recipe), teacher.process
    full = recipe.reference_steps
    found = [Contender(f"teacher_{full}", "teacher", model, process, full, "ddim", "teacher, DDIM")]
    samplers: tuple[Sampler, ...] = ("ddim", "noisy") if recipe.evaluate.noisy else ("ddim",)
    for sampler in samplers:
        for number in steps:
            if (sampler, number) != ("ddim", full):
                name = f"teacher_{sampler}_{number}"
                found.append(Contender(name, "other", model, process, number, sampler, "teacher"))
    for one in known.values():
        if not one.name.startswith("student"):
            continue
        numbers = [one.card.steps] if one.card.sampler == "ddim" else [number for number in steps if number <= 4]
        for number in numbers:
            if number in steps:
                student = load_network(one.folder, given).to(task.device)
                sampler = cast(Sampler, one.card.sampler)
                name = one.name if sampler == "ddim" else f"{one.name}_{number}"
                found.append(Contender(name, "distilled", student, one.card.process, number, sampler, "distilled"))
    return found


def evaluate(folder: Path, options: Sequence[str]) -> str:
    """What `understudy evaluate RUN --steps 1,4` prints: a line for each sampler and number of steps.

    Args:
        folder: of a finished run.
        options: `steps=1,4`; by default those that the recipe compares.

    Raises:
        UserError: another option, or numbers that are none.
    """
    given = {text.partition("=")[0]: text.partition("=")[2] for text in options}
    if unknown := set(given) - {"steps"}:
        raise UserError("is nothing to a run of diffusion: there is --steps 1,2,4", where=f"'{sorted(unknown)[0]}'")
    words = given["steps"].split(",") if "steps" in given else []
    if not all(word.strip().isdigit() for word in words):
        raise UserError("numbers of steps are written as 1,2,4", where=f"--steps {given['steps']}")
    with Display(Console(stderr=True)) as display:
        rows = evaluate_run(folder, [int(word) for word in words], display=display)
    columns = list(rows[0])
    lines = [
        [f"{row[column]:.4g}" if isinstance(row[column], float) else str(row[column]) for column in columns]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    told = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [columns, *lines]]
    return "\n".join("  ".join(line).rstrip() for line in told)
