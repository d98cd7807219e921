"""What a run of a classification recipe does: teacher made ready, every seed's students trained together."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from understudy.data import Preprocess
from understudy.distill import Ensemble, Teacher
from understudy.distill.pretraining import Pretraining
from understudy.distill.recorded import RecordedTeacher
from understudy.distill.taps import logits_of
from understudy.errors import UserError
from understudy.models import load, save
from understudy.models.store import write_tensors
from understudy.recipe.schema import ClassifyRecipe
from understudy.run.measure import measure, parameter_count, seconds_a_step
from understudy.run.profile import profile, told
from understudy.run.show import describe_data, first_batch
from understudy.tasks.classify.answers import answers_root, caches_of, in_words, recorded_scores, remember
from understudy.tasks.classify.dry import rehearse
from understudy.tasks.classify.pace import seeds_at_once
from understudy.tasks.classify.results import check_control, summarise
from understudy.tasks.classify.stages import (
    every_stage,
    init_stage,
    name_of_seeds,
    stage_name,
    stage_of_seeds,
    student_stage,
)
from understudy.tasks.classify.task import METRIC, Classify
from understudy.tasks.classify.teacher import gate, ready_assistants, ready_teacher, teacher_scores
from understudy.tasks.classify.variants import distilled_arms, student_arms
from understudy.train import processes
from understudy.train.files import write_atomically
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.loop import fit
from understudy.train.machine import device, machine
from understudy.train.progress import Display
from understudy.train.stage import Stage

__all__ = ["MANY_PROCESSES", "Students", "load", "machine", "prepare", "rehearse", "reopen"]

MANY_PROCESSES = True


class Students:
    """The job of a classification recipe.

    Args:
        task: with its data read.
    """

    def __init__(self, task: Classify) -> None:
        self.task = task
        self.recipe = task.recipe

    def run(self, folder: RunFolder, display: Display, stop: StopRequest) -> dict[str, Any]:
        """Train what the folder does not have yet and sum it up.

        Raises:
            RunError: the run could not go on.
            Interrupted: a signal came.
        """
        task, recipe = self.task, self.recipe
        only_teacher = folder.environment()["only_teacher"]
        display.line(describe_data(task.source.name, task.splits, recipe.data.augment))
        if not only_teacher:
            display.line(_plan(recipe))
        teachers = [ready_teacher(task, folder, seed, display, stop) for seed in _teacher_seeds(recipe)]
        processes.on_first(lambda: _look(task, teachers[0], folder, display))
        if not only_teacher:
            for index, seed in enumerate(recipe.all_seeds):
                teacher = teachers[index % len(teachers)]
                task.start_students_from(teacher)
                remember(task, teacher, answers_root(folder))
                who = ready_assistants(task, folder, teacher, display, stop)
                at_once = not index and seeds_at_once(task, student_stage(task, seed, who))
                if recipe.profile and not index:
                    _profile(task, folder, recipe.all_seeds if at_once else range(seed, seed + 1), who)
                if at_once:
                    _train_seeds(task, folder, who, display, stop)
                    break
                _train_students(task, folder, seed, who, display, stop)
        return processes.on_first(lambda: _sum_up(task, folder, teachers, only_teacher))


def _look(task: Classify, teacher: Teacher, folder: RunFolder, display: Display) -> None:
    first_batch(task, teacher).save(folder.path / "first_batch.png")
    gate(task, teacher, display)


def _sum_up(task: Classify, folder: RunFolder, teachers: list[Teacher], only_teacher: bool) -> dict[str, Any]:
    teacher, caches = teachers[0], caches_of(teachers)
    results = summarise(
        folder,
        task.recipe,
        _facts(task, folder, teacher, only_teacher),
        metric=METRIC,
        given=_given_scores(task, folder, teacher),
        notes=[*_notes(teacher, task), *(f"Teacher: {in_words(cache)}." for cache in caches)],
    )
    results["cache"] = caches
    profiled = folder.path / "profile.json"
    if profiled.exists():
        results["extra"] = [told(json.loads(profiled.read_text()))]
    if results["best"] is not None:
        best = folder.arm(results["best"], task.recipe.seed) / "student"
        shutil.copytree(best, folder.path / "student", dirs_exist_ok=True)
    return results


def prepare(recipe: ClassifyRecipe, objects: Mapping[str, Any]) -> Students:
    """Read the data and build one of everything, so that what cannot work is said before anything is written.

    Args:
        recipe: what will be run.
        objects: what was given in Python for names `python:...`.

    Raises:
        UserError: something does not fit.
    """
    check_control(recipe)
    task = Classify(recipe, objects, device(recipe.train))
    networks = recipe.all_assistants if task.recorded else {**recipe.teachers, **recipe.all_assistants}
    for which in (*networks, "student"):
        _check_takes_images(task, which)
    every_stage(task)
    return Students(task)


def reopen(recipe: ClassifyRecipe, objects: Mapping[str, Any]) -> Students:
    """Read the data of a run that was started before.

    Raises:
        UserError: the data or an object are missing.
    """
    return Students(Classify(recipe, objects, device(recipe.train)))


def _profile(task: Classify, folder: RunFolder, seeds: range, teachers: Mapping[str, Teacher]) -> None:
    """Measure where the students' steps spend their time, on students that are thrown away; once a run."""
    path = folder.path / "profile.json"
    if not path.exists():
        stage = stage_of_seeds(task, seeds, teachers) if len(seeds) > 1 else student_stage(task, seeds[0], teachers)
        found = profile(stage)
        processes.barrier()  # nobody still looks whether it was measured
        processes.on_first(lambda: write_atomically(path, json.dumps(found, indent=2)))


def _train_seeds(
    task: Classify, folder: RunFolder, teachers: Mapping[str, Teacher], display: Display, stop: StopRequest
) -> None:
    """The students of every seed at once."""
    name = name_of_seeds(task.recipe.all_seeds)
    if name not in folder.finished_stages:
        _train(task, folder, stage_of_seeds(task, task.recipe.all_seeds, teachers), display, stop)


def _train(task: Classify, folder: RunFolder, stage: Stage, display: Display, stop: StopRequest) -> None:
    """Train a stage's students to their end and save them."""
    fit(stage, folder, display, stop)
    for arm in stage.arms if processes.is_first() else ():
        text = f"{arm.name} (seed {arm.seed}) of the run {task.recipe.name}."
        save(arm.model, _saved(folder, arm.name, arm.seed), task.card(arm.name, arm.model, text=text))
    folder.finish_stage(stage.name)


def _train_students(
    task: Classify, folder: RunFolder, seed: int, teachers: dict[str, Teacher], display: Display, stop: StopRequest
) -> None:
    """One generation after the other; each is taught by those before it."""
    teachers = dict(teachers)
    for generation in range(1, 1 + max(method.generations for method in task.recipe.method)):
        name = stage_name(seed, generation)
        if name not in folder.finished_stages:
            prepared = _init_stage(task, folder, seed, teachers, generation, display, stop)
            equal_time = _equal_time(task, folder, teachers)
            stage = student_stage(task, seed, teachers, generation=generation, equal_time=equal_time)
            for arm in stage.arms:
                if arm.name in prepared:
                    arm.distiller.load_state_dict(load_file(prepared[arm.name]))
            _train(task, folder, stage, display, stop)
        for arm, planned in distilled_arms(task.recipe).items():
            if planned.generation == generation < planned.method.generations:
                teachers[arm] = task.as_teacher(_load(task, folder, arm, seed), "student")


def _init_stage(
    task: Classify,
    folder: RunFolder,
    seed: int,
    teachers: Mapping[str, Teacher],
    generation: int,
    display: Display,
    stop: StopRequest,
) -> dict[str, Path]:
    """What was trained before a generation's students: for their arms, the file that they start from."""
    stage = init_stage(task, seed, teachers, generation)
    if stage is None:
        return {}
    files = {arm.name: folder.arm(arm.name, seed) / "init.safetensors" for arm in stage.arms}
    if stage.name not in folder.finished_stages:
        fit(stage, folder, display, stop)
        for arm in stage.arms if processes.is_first() else ():
            learner = arm.distiller.distiller if isinstance(arm.distiller, Pretraining) else arm.distiller
            write_tensors({key: value.cpu() for key, value in learner.state_dict().items()}, files[arm.name])
        folder.finish_stage(stage.name)
    return {name.removesuffix("-init"): path for name, path in files.items()}


def _saved(folder: RunFolder, arm: str, seed: int) -> Path:
    return folder.arm(arm, seed) / "student"


def _load(task: Classify, folder: RunFolder, arm: str, seed: int) -> nn.Module:
    return load(_saved(folder, arm, seed), given=task.objects.get("student")).to(task.device)


def _equal_time(task: Classify, folder: RunFolder, teachers: Mapping[str, Teacher]) -> float:
    """How much longer a control may train to take the time of distilling: measured once and kept with the run."""
    if not isinstance(task.recipe.control, tuple) or "equal_time" not in task.recipe.control:
        return 1.0
    path = folder.path / "equal_time.json"
    if not path.exists():
        stage = student_stage(task, task.recipe.seed, teachers)
        control = [arm for arm in stage.arms if arm.role == "control"]
        distilled = [arm for arm in stage.arms if arm.role == "distilled"][:1]
        # Several processes must take equally many steps, whatever their clocks say.
        limit = {"seconds": 0.0} if processes.count() > 1 else {}
        ratio = seconds_a_step(stage, distilled, **limit) / seconds_a_step(stage, control, **limit)
        processes.barrier()  # nobody still looks whether it was measured
        if processes.is_first():
            write_atomically(path, json.dumps({"distilled_over_control": ratio}))
    return processes.on_first(lambda: json.loads(path.read_text())["distilled_over_control"])


def _notes(teacher: Teacher, task: Classify) -> list[str]:
    notes = []
    if teacher.gives_probabilities:
        notes.append("The teacher returns probabilities: their logarithms were taken as logits.")
    if task.recorded is not None:
        notes.append(
            f"The teacher's answers come from {task.recorded.name}; its row is their score on "
            f"{recorded_scores(task, task.recorded)[1]:,} labelled training images, for it has none to test images."
        )
        if task.recipe.teacher.approximate:
            notes.append("The students see random views of the images, the answers are about the images as they are.")
    for which in ("teacher", "student"):
        if isinstance(task.objects.get(which), nn.Module):
            notes.append(f"The {which} was given as a module: every seed starts from its weights.")
    if task.copied is not None:
        notes.append(
            f"Every student, the control too, starts from the teacher: {task.copied[0]} of {task.copied[1]} tensors."
        )
    return notes


def _teacher_seeds(recipe: ClassifyRecipe) -> range:
    return range(recipe.seed, recipe.seed + (recipe.teacher_seeds if recipe.teacher.is_trained else 1))


def _check_takes_images(task: Classify, which: str) -> None:
    module = task.build(which, task.recipe.seed)
    model = task.section(which)
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


def _plan(recipe: ClassifyRecipe) -> str:
    arms = student_arms(recipe)
    epochs = recipe.train.epochs
    control = f", {1 / len(arms):.0%} of them for the control" if "student_alone" in arms else ""
    before = {
        name: recipe.train_of(section).epochs
        for name, section in {**recipe.teachers, **recipe.all_assistants}.items()
        if section.is_trained
    }
    first = "".join(f"{name} {epochs} epochs, then " for name, epochs in before.items())
    return (
        f"plan: {first}{len(arms)} students ({', '.join(arms)}) x {recipe.seeds} seeds x {epochs} epochs = "
        f"{len(arms) * recipe.seeds * epochs:,} epochs{control}"
    )


def _facts(task: Classify, folder: RunFolder, teacher: Teacher, only_teacher: bool) -> dict[str, dict[str, Any]]:
    """Role, size and cost of each model; students of one architecture share theirs."""

    def cost(module: nn.Module, preprocess: Preprocess) -> dict[str, Any]:
        return measure(module, task.example(preprocess, 1))

    if isinstance(teacher, RecordedTeacher):
        unknown = dict.fromkeys(("parameters", "macs", "latency_ms", "size_bytes"))
        facts: dict[str, dict[str, Any]] = {"teacher": {"role": "teacher", **unknown}}
    else:
        facts = {"teacher": {"role": "teacher", **cost(teacher.model, teacher.preprocess or Preprocess())}}
    if len(task.recipe.teachers) > 1:
        assert isinstance(teacher.model, Ensemble)
        for name, module, asked in zip(task.recipe.teachers, teacher.model.members, teacher.model.asked, strict=True):
            facts[name] = {"role": "other", **cost(module, asked.preprocess)}
    if only_teacher:
        return facts
    for name in task.recipe.all_assistants:
        module = load(_saved(folder, name, task.recipe.seed), given=task.objects.get(name)).to(task.device)
        facts[name] = {"role": "other", **cost(module, task.preprocess(name, module))}
    known: dict[tuple[str, int], dict[str, Any]] = {}
    for name, role in task.arms.items():
        student = _load(task, folder, name, task.recipe.seed)
        architecture = type(student).__name__, parameter_count(student)
        if architecture not in known:
            known[architecture] = cost(student, task.preprocess(name, student))
        facts[name] = {"role": role, **known[architecture]}
    return facts


def _given_scores(task: Classify, folder: RunFolder, teacher: Teacher) -> dict[str, dict[str, float]]:
    """Test scores of what was not trained here, and of several teachers together."""
    recipe = task.recipe
    given = {}
    if isinstance(teacher, RecordedTeacher):
        given["teacher"] = recorded_scores(task, teacher)[0]
    elif len(recipe.teachers) > 1 or not recipe.teacher.is_trained:
        given["teacher"] = teacher_scores(task, teacher)
    if len(recipe.teachers) > 1:
        assert isinstance(teacher.model, Ensemble)
        for (name, section), module in zip(recipe.teachers.items(), teacher.model.members, strict=True):
            if not section.is_trained:
                given[name] = teacher_scores(task, task.as_teacher(module, name))
    for name, section in recipe.all_assistants.items():
        if not section.is_trained:
            module = load(_saved(folder, name, recipe.seed), given=task.objects.get(name)).to(task.device)
            given[name] = teacher_scores(task, task.as_teacher(module, name))
    return given
