"""A run's networks, stage by stage: what is finished is read back, what is not is made."""

from itertools import pairwise
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from understudy import randomness
from understudy.models.store import write_tensors
from understudy.report.format import counted
from understudy.tasks.diffusion import stages
from understudy.tasks.diffusion.contest import Contender
from understudy.tasks.diffusion.draw import balanced, draw, forwards
from understudy.tasks.diffusion.judge import Judge
from understudy.tasks.diffusion.network import Network
from understudy.tasks.diffusion.pixels import from_samples
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.settings import Method
from understudy.tasks.diffusion.steps import Sampler
from understudy.tasks.diffusion.store import load_network, save_network, why_no_pipeline
from understudy.tasks.diffusion.task import Diffusion
from understudy.tasks.diffusion.teachers import Teacher, as_compared, describe
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.loop import fit
from understudy.train.progress import Display
from understudy.train.stage import Stage


class Rounds:
    """The stages of a run.

    Args:
        task: with its data read.
        folder: of the run.
        display: shows progress.
        stop: says when a signal came.
    """

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
        labels = balanced(self.recipe.data.images, len(task.classes)) if task.conditional else None
        path = self.folder.path / "samples" / "samples.safetensors"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".tmp")
            write_tensors({"images": self._samples(labels)}, partial)
            partial.rename(path)
        images = load_file(path)["images"]
        labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
        task.splits = from_samples(images, labels, task.classes)

    def _samples(self, labels: Tensor | None) -> Tensor:
        teacher = self.task.teacher(self.recipe.seed)
        count, steps = self.recipe.data.images, self.recipe.steps[0]
        self.display.line(f"data: {count:,} samples of the teacher in {counted(steps, 'step')}")
        meter = self.display.begin("data", forwards(count, steps), 0)

        def advance() -> None:
            meter.advance()
            self.stop.raise_if_asked()

        images = draw(
            teacher.model,
            process=teacher.process,
            shape=self.task.shape,
            count=count,
            steps=steps,
            labels=labels,
            seed=randomness.key("data", self.recipe.seed) & 0xFFFF_FFFF,
            device=self.task.device,
            advance=advance,
        )
        meter.finish(meter.total)
        return images

    def judge(self) -> Judge:
        """The classifier that all seeds are judged by."""
        stage = stages.judge_stage(self.task, self.recipe.seed)
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
        home = self.folder.arm(arm.name, arm.seed) / "student"
        if stage.name not in self.folder.finished_stages:
            fit(stage, self.folder, self.display, self.stop)
            save_network(arm.model, home, self.task.card(process, steps, text=text, **card))
            self.folder.finish_stage(stage.name)
            return arm.model.eval().requires_grad_(False)
        given = arm.distiller.student if not isinstance(arm.distiller.student, Network) else None
        network = load_network(home, given, unfolded=True)
        return network.to(self.task.device).requires_grad_(False)

    def contenders(self, seed: int, *, only_teacher: bool) -> list[Contender]:
        """Everything that a seed compares, trained where it is not yet."""
        recipe, task = self.recipe, self.task
        teacher = task.teacher(seed)
        if recipe.teacher.is_trained:
            text = f"The teacher of the run {recipe.name}."
            model = self.finished(stages.base_stage(task, seed, teacher), teacher.process, recipe.steps[0], text)
            teacher = Teacher(model, teacher.process, classes=teacher.classes, shape=teacher.shape, null=teacher.null)
        elif seed == recipe.seed:
            self.display.line(describe(teacher))
        found = self._of_teacher(teacher)
        if only_teacher:
            return found[:1]
        model, process, guided = teacher.model, teacher.process, False
        full = recipe.reference_steps  # what is compared with the teacher takes as many steps as it
        if task.needs_converting(teacher):
            stage, process = stages.convert_stage(task, seed, teacher)
            model = self.finished(stage, process, recipe.steps[0], f"The converted teacher of the run {recipe.name}.")
            name = f"converted_{full}"
            found.append(Contender(name, "other", model, process, full, "ddim", "converted, DDIM"))
            self.arms[name] = "converted"
        if recipe.guidance is not None:
            stage = stages.guidance_stage(task, seed, model, process, teacher.null)
            text = f"A student that has learnt guidance, of the run {recipe.name}."
            model, guided = self.finished(stage, process, recipe.steps[0], text, guided=True), True
            name = f"guided_{full}"
            found.append(Contender(name, "other", model, process, full, "ddim", "guided, DDIM", True))
            self.arms[name] = "guided"
        for method in recipe.method:
            found += self._of_method(seed, method, model, process, guided=guided)
        return found

    def _of_teacher(self, teacher: Teacher) -> list[Contender]:
        """The teacher with all its steps, and with the few that students take, by both samplers."""
        recipe, found = self.recipe, []
        model = as_compared(teacher, recipe)
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
            stage = stages.round_stage(
                self.task, seed, method, model, process, before=before, steps=steps, guided=guided
            )
            sampler: Sampler = "consistency" if method.name == "consistency" else "ddim"
            text = (
                f"Distilled from {before:,} steps to {steps:,} by {method.name} distillation in the run {recipe.name}."
            )
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
