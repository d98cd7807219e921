"""Makes a run's teacher ready: trained, found where an earlier run left it, or loaded; and looked at before use."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from understudy import randomness
from understudy.distill import Teacher
from understudy.evaluate import asking
from understudy.models import load, read_card, save
from understudy.recipe.schema import ClassifyRecipe
from understudy.run.measure import parameter_count
from understudy.tasks.classify.task import Classify
from understudy.train.folder import RunFolder, runs_root
from understudy.train.guard import StopRequest
from understudy.train.loop import fit
from understudy.train.progress import Display


def fingerprint(recipe: ClassifyRecipe, seed: int) -> str:
    """What a trained teacher depends on, as a hash: equal ones mean the same teacher."""
    settings = recipe.teacher_train.model_dump(mode="json", exclude={"checkpoint_seconds", "workers"})
    parts = {
        "data": recipe.data.model_dump(mode="json", exclude={"transfer", "without"}),
        "model": recipe.teacher.model_dump(mode="json"),
        "train": settings,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return f"{randomness.key(json.dumps(parts, sort_keys=True)):016x}"


def ready_teacher(task: Classify, folder: RunFolder, seed: int, display: Display, stop: StopRequest) -> Teacher:
    """Train the teacher, or find it where an earlier run of the same recipe left it, or load the one given."""
    recipe = task.recipe
    name = f"teacher-{seed}"
    home = folder.path / "teacher" if seed == recipe.seed else folder.arm("teacher", seed) / "student"
    if not recipe.teacher.is_trained:
        module = task.build("teacher", seed)
        if name not in folder.finished_stages:
            save(module, home, task.card("teacher", module, text=f"The teacher of the run {recipe.name}."))
            folder.finish_stage(name)
        return task.as_teacher(module)
    mark = fingerprint(recipe, seed)
    if name not in folder.finished_stages:
        earlier = _find_teacher(recipe, mark, seed)
        if earlier is not None:
            shutil.copytree(earlier / "arms" / "teacher", folder.path / "arms" / "teacher", dirs_exist_ok=True)
            display.line(f"teacher: taken from {earlier}, which trained it by the same recipe")
        else:
            stage = task.teacher_stage(seed)
            fit(stage, folder, display, stop)
            module = stage.arms[0].model
            text = f"The teacher of the run {recipe.name}, trained on {len(task.splits.teacher):,} labelled images."
            card = task.card("teacher", module, fingerprint=mark, text=text)
            save(module, folder.arm("teacher", seed) / "student", card)
        if seed == recipe.seed:
            shutil.copytree(folder.arm("teacher", seed) / "student", home, dirs_exist_ok=True)
        folder.finish_stage(name)
    module = load(home, given=task.objects.get("teacher")).to(task.device)
    return task.as_teacher(module)


def _find_teacher(recipe: ClassifyRecipe, mark: str, seed: int) -> Path | None:
    """A run below the usual root whose teacher was trained by the same recipe; objects of Python have no recipe."""
    if recipe.teacher.name.startswith("python:") or recipe.data.name.startswith("python:"):
        return None
    if recipe.teacher_seeds > 1:
        return None
    for config in sorted(runs_root().glob(f"*/*/arms/teacher/seed-{seed}/student/config.json")):
        run = config.parents[4]
        finished = f"teacher-{seed}" in RunFolder(run).finished_stages
        if finished and read_card(config.parent).fingerprint == mark:
            return run
    return None


def gate(task: Classify, teacher: Teacher, display: Display) -> None:
    """Say how good the teacher is before anyone learns from it, and what is odd about it."""
    scores = teacher_scores(task, teacher, "validation" if task.splits.validation is not None else "test")
    accuracy = scores["accuracy"]
    where = "validation" if task.splits.validation is not None else "test"
    display.line(f"teacher: {accuracy:.4f} accuracy on {where}")
    if accuracy < 2 / task.classes and accuracy < 0.9:
        display.line(
            f"[yellow]the teacher is near chance ({1 / task.classes:.2f}): are its weights and normalisation right?[/]"
        )
    student = task.build("student", task.recipe.seed)
    if parameter_count(teacher.model) < parameter_count(student):
        display.line("[yellow]the teacher has fewer parameters than the student[/]")
    if task.recipe.student.weights or task.recipe.student.pretrained:
        ask = asking(student, task.preprocess("student", student))
        if task.scores(ask).get(where, {}).get("accuracy", 0.0) > accuracy:
            display.line("[yellow]the student is already better than the teacher[/]")


def teacher_scores(task: Classify, teacher: Teacher, part: str = "test") -> dict[str, float]:
    """Score the teacher on the `test` or `validation` images."""

    def ask(images: Tensor) -> Tensor:
        logits = teacher(images).logits
        assert logits is not None
        return logits

    return task.scores(ask)[part]
