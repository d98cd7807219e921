"""What a run of a diffusion recipe does: a teacher, round after round of half the steps, and the comparison."""

import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from understudy import randomness
from understudy.models.store import write_tensors
from understudy.run.measure import multiply_adds, parameter_count, seconds_a_step, size_on_disk
from understudy.tasks.diffusion import contest
from understudy.tasks.diffusion.contest import Contender
from understudy.tasks.diffusion.draw import balanced, draw, starting_noise
from understudy.tasks.diffusion.guidance import Guided
from understudy.tasks.diffusion.judge import Judge
from understudy.tasks.diffusion.pictures import labelled_rows, moments
from understudy.tasks.diffusion.pixels import from_samples
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.recipe import FROM_TEACHER, DiffusionRecipe, Method
from understudy.tasks.diffusion.results import summarise
from understudy.tasks.diffusion.steps import Sampler, trajectory
from understudy.tasks.diffusion.store import load_network, save_network, why_no_pipeline
from understudy.tasks.diffusion.task import Diffusion
from understudy.tasks.diffusion.teachers import Teacher, describe
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.loop import Stage, fit
from understudy.train.machine import device, machine
from understudy.train.progress import Display

__all__ = ["Rounds", "load", "machine", "prepare", "rehearse", "reopen"]

_SHOWN, _MOMENTS = 12, 9


class Rounds:
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
        run = _Run(task, folder, display, stop)
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
                first, pictures = contenders, run.pictures(contenders, seed)
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


class _Run:
    """A run on its way: what is finished is read, what is not is made."""

    def __init__(self, task: Diffusion, folder: RunFolder, display: Display, stop: StopRequest) -> None:
        self.task = task
        self.recipe = task.recipe
        self.folder = folder
        self.display = display
        self.stop = stop
        self.notes: list[str] = []
        self.arms: dict[str, str] = {}  # the arm whose student a contender is

    def draw_data(self) -> None:
        """The teacher's own samples become the data, drawn once and kept with the run."""
        task = self.task
        teacher = task.teacher(self.recipe.seed)
        path = self.folder.path / "samples" / "samples.safetensors"
        labels = balanced(self.recipe.data.images, len(task.classes)) if task.conditional else None
        if not path.is_file():
            self.display.line(
                f"data: {self.recipe.data.images:,} samples of the teacher in {self.recipe.steps[0]} steps"
            )
            images = draw(
                teacher.model,
                process=teacher.process,
                shape=task.shape,
                count=self.recipe.data.images,
                steps=self.recipe.steps[0],
                labels=labels,
                seed=randomness.key("data", self.recipe.seed) & 0xFFFF_FFFF,
                device=task.device,
            )
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".tmp")
            write_tensors({"images": images}, partial)
            partial.rename(path)
        images = load_file(path)["images"]
        labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        task.splits = from_samples(images, labels, task.classes)

    def judge(self) -> Judge:
        """The classifier that all seeds are judged by."""
        stage = self.task.judge_stage(self.recipe.seed)
        home = self.folder.arm("judge", self.recipe.seed) / "student"
        if "judge" not in self.folder.finished_stages:
            fit(stage, self.folder, self.display, self.stop)
            home.mkdir(parents=True, exist_ok=True)
            write_tensors(dict(stage.arms[0].model.state_dict()), home / "model.safetensors")
            self.folder.finish_stage("judge")
        model = stage.arms[0].model
        model.load_state_dict(load_file(home / "model.safetensors"))
        return Judge(model.to(self.task.device))

    def finished(self, stage: Stage, process: Process, steps: int, text: str, **card: Any) -> nn.Module:
        """The network that a stage trains, made now or read back."""
        arm = stage.arms[0]
        home = self.folder.arm(arm.name, stage.seed) / "student"
        if stage.name not in self.folder.finished_stages:
            fit(stage, self.folder, self.display, self.stop)
            save_network(arm.model, home, self.task.card(process, steps, text=text, **card))
            self.folder.finish_stage(stage.name)
            return arm.model.eval().requires_grad_(False)
        given = arm.distiller.student if not _is_ours(arm.distiller.student) else None
        network = load_network(home, given, unfolded=True)
        return network.to(self.task.device).requires_grad_(False)

    def contenders(self, seed: int, *, only_teacher: bool) -> list[Contender]:
        """Everything that a seed compares, trained where it is not yet."""
        recipe, task = self.recipe, self.task
        teacher = task.teacher(seed)
        if recipe.teacher.is_trained:
            text = f"The teacher of the run {recipe.name}."
            model = self.finished(task.base_stage(seed, teacher), teacher.process, recipe.steps[0], text)
            teacher = Teacher(model, teacher.process, classes=teacher.classes, shape=teacher.shape, null=teacher.null)
        elif seed == recipe.seed:
            self.display.line(describe(teacher))
        found = self._of_teacher(teacher)
        if only_teacher:
            return found[:1]
        model, process, guided = teacher.model, teacher.process, False
        if task.needs_converting(teacher):
            stage, process = task.convert_stage(seed, teacher)
            model = self.finished(stage, process, recipe.steps[0], f"The converted teacher of the run {recipe.name}.")
            name = f"converted_{recipe.steps[0]}"
            found.append(Contender(name, "other", model, process, recipe.steps[0], "ddim", "converted, DDIM"))
            self.arms[name] = "converted"
        if recipe.guidance is not None:
            stage = task.guidance_stage(seed, model, process, teacher.null)
            text = f"A student that has learnt guidance, of the run {recipe.name}."
            model, guided = self.finished(stage, process, recipe.steps[0], text, guided=True), True
            name = f"guided_{recipe.steps[0]}"
            found.append(Contender(name, "other", model, process, recipe.steps[0], "ddim", "guided, DDIM", True))
            self.arms[name] = "guided"
        for method in recipe.method:
            found += self._of_method(seed, method, model, process, guided=guided)
        return found

    def _of_teacher(self, teacher: Teacher) -> list[Contender]:
        """The teacher with all its steps, and with the few that students take, by both samplers."""
        recipe, found = self.recipe, []
        model: nn.Module | Guided = teacher.model
        if recipe.guidance is not None and teacher.null is not None:
            model = Guided(teacher.model, teacher.null, recipe.guidance.sample)
        full = recipe.reference_steps
        samplers: tuple[Sampler, ...] = ("ddim", "noisy") if recipe.evaluate.noisy else ("ddim",)
        for sampler in samplers:
            family = "teacher, DDIM" if sampler == "ddim" else "teacher, stochastic"
            for steps in sorted({full, *recipe.compared_steps}, reverse=True):
                if steps > full:
                    continue
                is_full, is_control = steps == full, steps == recipe.verdict_steps
                role = "other"
                if sampler == "ddim":
                    role = "teacher" if is_full else "control" if is_control else "other"
                name = f"teacher_{steps}" if sampler == "ddim" and is_full else f"teacher_{sampler}_{steps}"
                found.append(Contender(name, role, model, teacher.process, steps, sampler, family))
                self.arms[name] = "teacher"
        return found

    def _of_method(
        self, seed: int, method: Method, model: nn.Module, process: Process, *, guided: bool
    ) -> list[Contender]:
        """The students of a method, round after round."""
        recipe, found = self.recipe, []
        numbers = recipe.steps_of(method)
        for before, steps in pairwise(numbers):
            stage = self.task.round_stage(seed, method, model, process, before=before, steps=steps, guided=guided)
            sampler: Sampler = "consistency" if method.name == "consistency" else "ddim"
            text = f"Distilled from {before} steps to {steps} by {method.name} distillation in the run {recipe.name}."
            model = self.finished(stage, process, steps, text, guided=guided, sampler=sampler)
            arm = stage.arms[0].name
            taken = [number for number in recipe.compared_steps if number <= 4] if sampler == "consistency" else [steps]
            for number in taken:
                if number not in recipe.compared_steps:
                    continue
                name = f"{arm}_{number}" if sampler == "consistency" else arm
                family = f"distilled, {method.name}"
                found.append(Contender(name, "distilled", model, process, number, sampler, family, guided))
                self.arms[name] = arm
            reason = why_no_pipeline(model, process, sampler)
            note = f"Students of {method.name} distillation are not written as diffusers pipelines: {reason}."
            if reason is not None and note not in self.notes:
                self.notes.append(note)
        return found

    # Pictures

    def pictures(self, contenders: list[Contender], seed: int) -> list[dict[str, str]]:
        """Grids from the same noise, round by round, and one image on its way."""
        task = self.task
        rows = [(one.name, contest.images_of(one, task, _SHOWN, seed)) for one in contenders]
        labelled_rows(rows).save(self.folder.path / "rounds.png")
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
        student = next((one for one in students if one.steps == self.recipe.verdict_steps), students[-1])
        paths = []
        for one in (contenders[0], student):
            noise = starting_noise(seed, [0], task.shape).to(task.device)
            labels = contest.labels_for(one, task, 1)
            y = None if labels is None else labels.to(task.device)
            path = [noise, *trajectory(one.model, noise, one.steps, y, process=one.process)]
            paths.append((one.name, moments(path, _MOMENTS).cpu()))
        labelled_rows(paths).save(self.folder.path / "path.png")
        text = (
            f"One noise followed through {contenders[0].steps} steps of the teacher and {student.steps} of the student."
        )
        return [*shown, {"title": "One image on its way", "text": text, "image": "path.png"}]


def _is_ours(network: nn.Module) -> bool:
    from understudy.tasks.diffusion.network import Network

    return isinstance(network, Network)


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


def prepare(recipe: DiffusionRecipe, objects: Mapping[str, Any]) -> Rounds:
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
        from understudy.tasks.diffusion.quality import check_inception

        check_inception(Path(recipe.evaluate.inception).expanduser())
    return Rounds(task)


@torch.no_grad()
def _try_out(task: Diffusion, teacher: Teacher) -> None:
    """Ask the teacher about one image."""
    noise = starting_noise(0, [0], task.shape).to(task.device)
    y = balanced(1, len(task.classes)).to(task.device) if task.conditional else None
    teacher.process.denoise(teacher.model.eval(), noise, torch.ones(1, device=task.device), y)


def reopen(recipe: DiffusionRecipe, objects: Mapping[str, Any]) -> Rounds:
    """Read the data of a run that was started before.

    Raises:
        UserError: the data or an object are missing.
    """
    return Rounds(Diffusion(recipe, objects, device(recipe.train)))


def load(folder: Path, given: Any = None) -> nn.Module:
    """The network that a run saved in `teacher/`, `student/` or an arm's `student/`, in evaluation mode."""
    return load_network(folder, given)


def rehearse(job: Rounds, console: Console) -> None:
    """Take a few updates of the teacher and of a round, and say how long a seed would take; leave nothing."""
    task, recipe = job.task, job.recipe
    teacher = task.teacher(recipe.seed)
    total = 0.0
    if recipe.data.name == FROM_TEACHER:
        console.print("the data are the teacher's samples: they would be drawn first")
        return
    if recipe.teacher.train is not None:
        stage = task.base_stage(recipe.seed, teacher)
        seconds = seconds_a_step(stage, list(stage.arms))
        total += seconds * recipe.teacher.train.updates
        console.print(f"teacher: {seconds:.3f} s an update, {recipe.teacher.train.updates:,} updates")
    if recipe.guidance is None and not task.needs_converting(teacher):
        for method in recipe.method:
            numbers = recipe.steps_of(method)
            before, steps = numbers[:2]
            stage = task.round_stage(
                recipe.seed, method, teacher.model, teacher.process, before=before, steps=steps, guided=False
            )
            seconds = seconds_a_step(stage, list(stage.arms))
            updates = sum(method.updates_to(number) for number in numbers[1:])
            total += seconds * updates
            console.print(f"{method.name}: {seconds:.3f} s an update, {updates:,} updates in {len(numbers) - 1} rounds")
    console.print(f"about {total / 60:.1f} minutes of training a seed, and the samples; x {recipe.seeds} seeds")
