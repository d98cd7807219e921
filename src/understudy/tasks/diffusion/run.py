"""What a run of a diffusion recipe does: a teacher, round after round of half the steps, and the comparison."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from understudy.errors import UserError
from understudy.report.format import counted
from understudy.run.measure import multiply_adds, parameter_count, seconds_a_step, size_on_disk
from understudy.tasks.diffusion import contest, stages
from understudy.tasks.diffusion.contest import Contender
from understudy.tasks.diffusion.draw import balanced, starting_noise
from understudy.tasks.diffusion.evaluate import evaluate
from understudy.tasks.diffusion.guidance import Guided
from understudy.tasks.diffusion.pictures import labelled_rows, moments
from understudy.tasks.diffusion.quality import check_inception
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.tasks.diffusion.results import summarise
from understudy.tasks.diffusion.rounds import Rounds
from understudy.tasks.diffusion.settings import FROM_TEACHER
from understudy.tasks.diffusion.steps import trajectory
from understudy.tasks.diffusion.store import load_network
from understudy.tasks.diffusion.task import Diffusion
from understudy.tasks.diffusion.teachers import Teacher
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.machine import device, machine
from understudy.train.progress import Display

__all__ = ["Distillation", "evaluate", "load", "machine", "prepare", "rehearse", "reopen"]

_SHOWN, _MOMENTS = 12, 9


class Distillation:
    """The job of a diffusion recipe.

    Args:
        task: with its data read.
    """

    def __init__(self, task: Diffusion) -> None:
        self.task = task
        self.recipe = task.recipe

    def run(self, folder: RunFolder, display: Display, stop: StopRequest) -> dict[str, Any]:
        """Train what the folder does not have yet, compare, and sum it up.

        Raises:
            RunError: the run could not go on.
            Interrupted: a signal came.
        """
        task, recipe = self.task, self.recipe
        run = Rounds(task, folder, display, stop)
        display.line(_plan(recipe, task))
        if recipe.data.name == FROM_TEACHER:
            run.draw_data()
        yard = contest.yardstick(task, run.judge() if task.is_judged else None)
        floor = contest.floor(task, yard)
        rows, first, pictures = {}, [], []
        for seed in recipe.all_seeds:
            contenders = run.contenders(seed, only_teacher=folder.environment()["only_teacher"])
            log = folder.path / "quality" / f"seed-{seed}.jsonl"
            rows[seed] = contest.judged(contenders, task, yard, seed, log=log, display=display, stop=stop)
            if seed == recipe.seed:
                first, pictures = contenders, draw_pictures(contenders, task, folder.path, seed)
        results = summarise(
            folder,
            recipe,
            first,
            rows,
            facts={one.name: _costs(one, task) for one in first},
            floor=floor,
            pictures=pictures,
            notes=run.notes,
        )
        home = folder.arm("teacher", recipe.seed) / "student"
        if home.exists():
            shutil.copytree(home, folder.path / "teacher", dirs_exist_ok=True)
        if results["best"] is not None:
            best = folder.arm(run.arms[results["best"]], recipe.seed) / "student"
            shutil.copytree(best, folder.path / "student", dirs_exist_ok=True)
        return results


def draw_pictures(contenders: list[Contender], task: Diffusion, folder: Path, seed: int) -> list[dict[str, str]]:
    """Grids from the same noise, round by round, and one image on its way; written into the run folder."""
    rows = [(one.name, contest.images_of(one, task, _SHOWN, seed)) for one in contenders]
    labelled_rows(rows).save(folder / "rounds.png")
    shown = [
        {
            "title": "The same noise, round by round",
            "text": "A column starts from one noise; a row is one model with its number of steps.",
            "image": "rounds.png",
        }
    ]
    students = [one for one in contenders if one.role == "distilled" and one.sampler == "ddim"]
    if not students:
        return shown
    student = next((one for one in students if one.steps == task.recipe.verdict_steps), students[-1])
    paths = []
    for one in (contenders[0], student):
        noise = starting_noise(seed, [0], task.shape).to(task.device)
        labels = contest.labels_for(one, task, 1)
        y = None if labels is None else labels.to(task.device)
        path = [noise, *trajectory(one.model, noise, one.steps, y, process=one.process)]
        paths.append((one.name, moments(path, _MOMENTS).cpu()))
    labelled_rows(paths).save(folder / "path.png")
    taken = f"{counted(contenders[0].steps, 'step')} of the teacher and {student.steps} of the student"
    text = f"One noise followed through {taken}."
    return [*shown, {"title": "One image on its way", "text": text, "image": "path.png"}]


def _costs(one: Contender, task: Diffusion) -> dict[str, float]:
    """Size of a model and multiply-adds of one image, all its steps together."""
    model = one.model.model if isinstance(one.model, Guided) else one.model
    assert isinstance(model, nn.Module)
    labels = contest.labels_for(one, task, 1)

    class OneImage(nn.Module):
        def forward(self, noise: torch.Tensor) -> torch.Tensor:
            t = torch.ones(1, device=noise.device)
            return one.model(noise, t, None if labels is None else labels.to(noise.device))

    wrapped = OneImage()
    macs = multiply_adds(wrapped, torch.zeros(1, *task.shape, device=task.device))
    return {"parameters": parameter_count(model), "macs": one.steps * macs, "size_bytes": size_on_disk(model)}


def _plan(recipe: DiffusionRecipe, task: Diffusion) -> str:
    base = f"teacher {recipe.teacher.train.updates:,} updates, then " if recipe.teacher.train is not None else ""
    ways = []
    for method in recipe.method:
        numbers = recipe.steps_of(method)
        updates = sum(method.updates_to(steps) for steps in numbers[1:])
        ways.append(f"{method.name} {' > '.join(map(str, numbers))} ({updates:,} updates)")
    channels, height, width = task.shape
    by_class = f", by class ({len(task.classes)})" if task.conditional else ""
    return f"plan: images {channels}x{height}x{width}{by_class}; {base}{'; '.join(ways)}; x {recipe.seeds} seeds"


def prepare(recipe: DiffusionRecipe, objects: Mapping[str, Any]) -> Distillation:
    """Read the data and build one of everything, so that what cannot work is said before anything is written.

    Args:
        recipe: what will be run.
        objects: what was given in Python for names `python:...`.

    Raises:
        UserError: something does not fit.
    """
    task = Diffusion(recipe, objects, device(recipe.train))
    teacher = task.teacher(recipe.seed)
    _try_out(task, teacher)
    if recipe.evaluate.inception is not None:
        check_inception(Path(recipe.evaluate.inception).expanduser())
        if task.shape[0] not in (1, 3):
            raise UserError(f"FID is for grey and RGB images, these have {task.shape[0]} channels", where="evaluate")
    return Distillation(task)


@torch.no_grad()
def _try_out(task: Diffusion, teacher: Teacher) -> None:
    """Ask the teacher about one image."""
    noise = starting_noise(0, [0], task.shape).to(task.device)
    y = balanced(1, len(task.classes)).to(task.device) if task.conditional else None
    teacher.process.denoise(teacher.model.eval(), noise, torch.ones(1, device=task.device), y)


def reopen(recipe: DiffusionRecipe, objects: Mapping[str, Any]) -> Distillation:
    """Read the data of a run that was started before.

    Raises:
        UserError: the data or an object are missing.
    """
    return Distillation(Diffusion(recipe, objects, device(recipe.train)))


def load(folder: Path, given: Any = None) -> nn.Module:
    """The network that a run saved in `teacher/`, `student/` or an arm's `student/`, in evaluation mode."""
    return load_network(folder, given)


def rehearse(job: Distillation, console: Console) -> None:
    """Take a few updates of the teacher and of a round, and say how long a seed would take; leave nothing."""
    task, recipe = job.task, job.recipe
    teacher = task.teacher(recipe.seed)
    total = 0.0
    if recipe.data.name == FROM_TEACHER:
        console.print("the data are the teacher's samples: they would be drawn first")
        return
    if recipe.teacher.train is not None:
        stage = stages.base_stage(task, recipe.seed, teacher)
        seconds = seconds_a_step(stage, list(stage.arms))
        total += seconds * recipe.teacher.train.updates
        console.print(f"teacher: {seconds:.3f} s an update, {recipe.teacher.train.updates:,} updates")
    if recipe.guidance is None and not task.needs_converting(teacher):
        for method in recipe.method:
            numbers = recipe.steps_of(method)
            before, steps = numbers[:2]
            stage = stages.round_stage(
                task, recipe.seed, method, teacher.model, teacher.process, before=before, steps=steps, guided=False
            )
            seconds = seconds_a_step(stage, list(stage.arms))
            updates = sum(method.updates_to(number) for number in numbers[1:])
            total += seconds * updates
            console.print(f"{method.name}: {seconds:.3f} s an update, {updates:,} updates in {len(numbers) - 1} rounds")
    console.print(f"about {total / 60:.1f} minutes of training a seed, and the samples; x {recipe.seeds} seeds")
