"""Makes a run's teachers ready: trained, found where an earlier run left them, or loaded; and looked at before use."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.distill import Teacher
from understudy.distill.recorded import RecordedTeacher
from understudy.evaluate import asking
from understudy.models import load, read_card, save
from understudy.models.store import save_ensemble
from understudy.recipe.schema import ANSWERING, ClassifyRecipe
from understudy.run.measure import parameter_count
from understudy.tasks.classify.answers import freeze, recorded_scores
from understudy.tasks.classify.stages import assistant_stage, teacher_stage
from understudy.tasks.classify.task import Classify
from understudy.train import processes
from understudy.train.folder import RunFolder, runs_root
from understudy.train.guard import StopRequest
from understudy.train.loop import fit
from understudy.train.progress import Display
from understudy.train.stage import Stage


def fingerprint(recipe: ClassifyRecipe, which: str, seed: int) -> str:
    """What a trained teacher depends on, as a hash: equal ones mean the same teacher."""
    section = recipe.teachers[which]
    settings = recipe.train_of(section).model_dump(mode="json", exclude={"checkpoint_seconds", "workers"})
    parts = {
        "data": recipe.data.model_dump(mode="json", exclude={"transfer", "without", "second_view"}),
        "model": section.model_dump(mode="json", exclude={"share", "copies", *ANSWERING}),
        "name": which,
        "train": settings,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **({"processes": processes.count()} if processes.count() > 1 else {}),
    }
    return f"{randomness.key(json.dumps(parts, sort_keys=True)):016x}"


def ready_teacher(task: Classify, folder: RunFolder, seed: int, display: Display, stop: StopRequest) -> Teacher:
    """Train the teacher, or find it where an earlier run of the same recipe left it, or load the one given.

    Several teachers become an ensemble, saved as such. It is built for answering.
    """
    if task.recorded is not None:
        return task.recorded
    return _frozen(task, _unfrozen(task, folder, seed, display, stop), "teacher", display)


def _frozen(task: Classify, teacher: Teacher, which: str, display: Display) -> Teacher:
    for line in freeze(task, teacher, which):
        display.line(line)
    return teacher


def _unfrozen(task: Classify, folder: RunFolder, seed: int, display: Display, stop: StopRequest) -> Teacher:
    modules = {name: _ready(task, folder, name, seed, display, stop) for name in task.recipe.teachers}
    home = folder.path / "teacher"
    if len(modules) > 1:
        ensemble = task.ensemble(modules)
        if processes.is_first() and not (home / "config.json").exists():
            text = f"One of the {len(modules)} teachers of the run {task.recipe.name}."
            save_ensemble(ensemble, home, [task.card(name, module, text=text) for name, module in modules.items()])
        return task.as_teacher(ensemble)
    if not processes.is_first():
        return task.as_teacher(modules["teacher"])
    if not task.recipe.teacher.is_trained:
        if not (home / "config.json").exists():
            text = f"The teacher of the run {task.recipe.name}."
            save(modules["teacher"], home, task.card("teacher", modules["teacher"], text=text))
    elif seed == task.recipe.seed:
        shutil.copytree(_saved(folder, "teacher", seed), home, dirs_exist_ok=True)
    return task.as_teacher(modules["teacher"])


def ready_assistants(
    task: Classify, folder: RunFolder, teacher: Teacher, display: Display, stop: StopRequest
) -> dict[str, Teacher]:
    """Train the assistants, each taught by the one before, or load those that bring weights.

    Returns:
        Who may teach, by name: the teacher and the assistants.
    """
    ready = {"teacher": teacher}
    for name, section in task.recipe.all_assistants.items():
        seed, above = task.recipe.seed, next(reversed(ready.values()))
        if name not in folder.finished_stages:
            if section.is_trained:
                stage = assistant_stage(task, name, above)
                fit(stage, folder, display, stop)
                module = stage.arms[0].model
            else:
                module = task.build(name, seed)
            text = f"{name} of the run {task.recipe.name}."
            if processes.is_first():
                save(module, _saved(folder, name, seed), task.card(name, module, text=text))
            folder.finish_stage(name)
        ready[name] = _frozen(task, task.as_teacher(_load(task, folder, name, seed), name), name, display)
    return ready


def _ready(task: Classify, folder: RunFolder, which: str, seed: int, display: Display, stop: StopRequest) -> nn.Module:
    """One teacher, in the layout of its library below `arms/`."""
    recipe = task.recipe
    name = f"{which}-{seed}"
    if not recipe.teachers[which].is_trained:
        return task.build(which, seed)
    if name not in folder.finished_stages:
        mark = fingerprint(recipe, which, seed)
        earlier = processes.on_first(lambda: _take_teacher(recipe, which, mark, seed, folder))
        if earlier is not None:
            display.line(f"{which}: taken from {earlier}, which trained it by the same recipe")
        else:
            stage: Stage = teacher_stage(task, which, seed)
            fit(stage, folder, display, stop)
            module = stage.arms[0].model
            text = f"The {which} of the run {recipe.name}, trained on {len(task.splits.teacher):,} labelled images."
            if processes.is_first():
                save(module, _saved(folder, which, seed), task.card(which, module, fingerprint=mark, text=text))
        folder.finish_stage(name)
    return _load(task, folder, which, seed)


def _saved(folder: RunFolder, which: str, seed: int) -> Path:
    return folder.arm(which, seed) / "student"


def _load(task: Classify, folder: RunFolder, which: str, seed: int) -> nn.Module:
    return load(_saved(folder, which, seed), given=task.objects.get(which)).to(task.device)


def needs_training(task: Classify) -> bool:
    """Whether a teacher has to be trained that no earlier run of the recipe has trained."""
    recipe = task.recipe
    return any(
        section.is_trained and _find_teacher(recipe, name, fingerprint(recipe, name, recipe.seed), recipe.seed) is None
        for name, section in recipe.teachers.items()
    )


def _take_teacher(recipe: ClassifyRecipe, which: str, mark: str, seed: int, folder: RunFolder) -> str | None:
    """Copy what an earlier run has, and say where it was."""
    earlier = _find_teacher(recipe, which, mark, seed)
    if earlier is not None:
        arm = Path("arms") / which
        shutil.copytree(earlier / arm, folder.path / arm, dirs_exist_ok=True)
    return None if earlier is None else str(earlier)


def _find_teacher(recipe: ClassifyRecipe, which: str, mark: str, seed: int) -> Path | None:
    """A run below the usual root whose teacher was trained by the same recipe; objects of Python have no recipe."""
    if recipe.teachers[which].name.startswith("python:") or recipe.data.name.startswith("python:"):
        return None
    if recipe.teacher_seeds > 1:
        return None
    for config in sorted(runs_root().glob(f"*/*/arms/{which}/seed-{seed}/student/config.json")):
        run = config.parents[4]
        finished = f"{which}-{seed}" in RunFolder(run).finished_stages
        if finished and read_card(config.parent).fingerprint == mark:
            return run
    return None


def gate(task: Classify, teacher: Teacher, display: Display) -> None:
    """Say how good the teacher is before anyone learns from it, and what is odd about it."""
    if isinstance(teacher, RecordedTeacher):
        scores, count = recorded_scores(task, teacher)
        display.line(f"teacher: answers of {teacher.name}, {scores['accuracy']:.4f} accuracy on {count:,} of training")
        return
    where = "validation" if task.splits.validation is not None else "test"
    accuracy = teacher_scores(task, teacher, where)["accuracy"]
    several = f" of {len(task.recipe.teachers)} together" if len(task.recipe.teachers) > 1 else ""
    display.line(f"teacher: {accuracy:.4f} accuracy{several} on {where}")
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
    """Score a teacher on the `test` or `validation` images."""

    def ask(images: Tensor) -> Tensor:
        logits = teacher(images).logits
        assert logits is not None
        return logits

    return task.scores(ask)[part]
