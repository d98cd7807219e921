"""What a run of a Keras recipe does: the teacher made ready, then each seed's students, by Keras' own fit."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from understudy.errors import RunError, UserError
from understudy.tasks.keras.backend import machine as machine
from understudy.tasks.keras.recipe import KerasRecipe
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.progress import Display

if TYPE_CHECKING:
    from understudy.keras import Teacher
    from understudy.tasks.keras.data import Parts

# Keras, and with it the backend, is imported inside functions: `machine` may still choose the backend before.


class Students:
    """The job of a Keras recipe.

    Args:
        recipe: what is run.
        objects: what was given in Python, by `teacher`, `student`, `data`.
        parts: the data.
    """

    def __init__(self, recipe: KerasRecipe, objects: Mapping[str, Any], parts: "Parts") -> None:
        self.recipe = recipe
        self.objects = objects
        self.parts = parts
        self.example, self.classes = _example(parts)

    def build(self, which: str, seed: int) -> Any:
        """Make the recipe's `teacher` or `student`; students of a seed start from the same weights."""
        import keras

        from understudy.tasks.keras.models import build

        keras.utils.set_random_seed(seed)
        described = getattr(self.recipe, which)
        shape = tuple(self.example.shape[1:])
        return build(described, shape=shape, classes=self.classes, given=self.objects.get(which))

    def as_teacher(self, model: Any) -> "Teacher":
        """A model as the one that answers."""
        from understudy.keras import Teacher
        from understudy.tasks.keras.models import as_teacher

        given = self.objects.get("teacher")
        preprocess = given.preprocess if isinstance(given, Teacher) else None
        return Teacher(model, preprocess=preprocess) if preprocess else as_teacher(model, self.recipe.teacher)

    def distiller(self, student: Any, teacher: "Teacher", method: Any) -> Any:
        """A student with a method's objectives, not compiled."""
        from understudy.keras import Distiller
        from understudy.keras.methods import objectives_of

        made = objectives_of(method)
        return Distiller(student=student, teacher=teacher, objectives=made, example=self.example)

    def run(self, folder: RunFolder, display: Display, stop: StopRequest) -> dict[str, Any]:
        """Train what the folder does not have yet and sum it up.

        Raises:
            RunError: a loss became infinite, or the teacher changed.
            Interrupted: a signal came.
        """
        from understudy.tasks.keras.fit import accuracy, train
        from understudy.tasks.keras.models import load_model, measure
        from understudy.tasks.keras.results import summarise

        recipe, parts = self.recipe, self.parts
        only_teacher = folder.environment()["only_teacher"]
        display.line(_said(parts, self.classes))
        home = folder.path / "teacher"
        if "teacher" not in folder.finished_stages:
            model = self.build("teacher", recipe.seed)
            if recipe.teacher.is_trained:
                arm = folder.arm("teacher", recipe.seed)
                train(
                    model,
                    recipe.teacher_train,
                    parts,
                    arm,
                    seed=recipe.seed,
                    name="teacher",
                    display=display,
                    stop=stop,
                )
                _save(model, arm / "student")
            _save(model, home)
            folder.finish_stage("teacher")
        teacher = self.as_teacher(load_model(home / "model.keras"))
        teacher.probe(_tensor(self.example))
        score = accuracy(lambda x: teacher(_tensor(x))[0], parts.test)
        display.line(f"teacher: {score:.4f} accuracy on test")
        arms = {} if only_teacher else recipe.arms
        for seed in recipe.all_seeds:
            for name, method in arms.items():
                stage = f"{name}-{seed}"
                if stage in folder.finished_stages:
                    continue
                student = self.build("student", seed)
                trained = student if method is None else self.distiller(student, teacher, method)
                train(
                    trained,
                    recipe.train,
                    parts,
                    folder.arm(name, seed),
                    seed=seed,
                    name=stage,
                    display=display,
                    stop=stop,
                )
                _save(student, folder.arm(name, seed) / "student")
                folder.finish_stage(stage)
        if not _same_weights(teacher.model, load_model(home / "model.keras")):
            raise RunError("the teacher changed while it taught: one of its layers writes to its weights in inference")
        one = self.example[:1]
        facts = {"teacher": {"role": "teacher", **measure(teacher.model, _to_numpy(teacher.prepared(_tensor(one))))}}
        if arms:
            cost = measure(load_model(folder.arm(next(iter(arms)), recipe.seed) / "student" / "model.keras"), one)
            facts |= {
                name: {"role": "control" if method is None else "distilled", **cost} for name, method in arms.items()
            }
        notes = []
        if teacher.gives_probabilities:
            notes.append("The teacher returns probabilities: their logarithms were taken as logits.")
        given = None if recipe.teacher.is_trained else score
        results = summarise(folder, recipe, facts, teacher_score=given, notes=notes, only_teacher=only_teacher)
        if results["best"] is not None:
            best = folder.arm(results["best"], recipe.seed) / "student"
            shutil.copytree(best, folder.path / "student", dirs_exist_ok=True)
        return results


def prepare(recipe: KerasRecipe, objects: Mapping[str, Any]) -> Students:
    """Read the data and build one of everything, so that what cannot work is said before anything is written.

    Raises:
        UserError: something does not fit.
    """
    from understudy.tasks.keras.models import check_saving

    job = reopen(recipe, objects)
    model = job.build("teacher", recipe.seed)
    check_saving(model, "teacher")
    check_saving(job.build("student", recipe.seed), "student")
    teacher = job.as_teacher(model)
    answer = teacher.probe(_tensor(job.example))
    if answer.shape[-1] < job.classes:
        raise UserError(
            f"teacher: '{recipe.teacher.name}' gives {answer.shape[-1]} classes, the data has {job.classes}"
        )
    for method in recipe.method:
        job.distiller(job.build("student", recipe.seed), teacher, method)
    return job


def reopen(recipe: KerasRecipe, objects: Mapping[str, Any]) -> Students:
    """Read the data of a run that was started before.

    Raises:
        UserError: the data or an object are missing.
    """
    from understudy.tasks.keras.data import read_parts

    for which in ("teacher", "student", "data"):
        name = getattr(recipe, which).name
        if name.startswith("python:") and which not in objects:
            raise UserError(f"the run had a Python object as {which} ({name[7:]}): give it again", where=which)
    return Students(recipe, objects, read_parts(recipe.data, objects.get("data")))


def load(folder: Path, given: Any = None) -> Any:
    """The model saved in `student/` or `teacher/`, a plain `keras.Model`."""
    from understudy.tasks.keras.models import load_model

    return load_model(folder / "model.keras")


def rehearse(job: Students, console: Console) -> None:
    """Train every arm for a few steps and say what it would cost."""
    from understudy.tasks.keras.fit import seconds_a_step

    recipe = job.recipe
    console.print(_said(job.parts, job.classes), highlight=False)
    model = job.build("teacher", recipe.seed)
    seconds = {}
    if recipe.teacher.is_trained:
        seconds["teacher"] = (seconds_a_step(model, recipe.teacher_train, job.parts), recipe.teacher_train, 1)
    teacher = job.as_teacher(job.build("teacher", recipe.seed))
    teacher.probe(_tensor(job.example))
    for name, method in recipe.arms.items():
        student = job.build("student", recipe.seed)
        trained = student if method is None else job.distiller(student, teacher, method)
        seconds[name] = (seconds_a_step(trained, recipe.train, job.parts), recipe.train, recipe.seeds)
    total = 0.0
    for name, (step, settings, repeats) in seconds.items():
        steps = _steps(job.parts, settings.batch_size)
        total += step * steps * settings.epochs * repeats
        console.print(
            f"  {name}: {1000 * step:.1f} ms a step, {steps} steps, {settings.epochs} epochs, {repeats} times"
        )
    console.print(f"about {total:.0f} s to finish, evaluations not counted; nothing was left behind", highlight=False)


def _steps(parts: "Parts", batch_size: int) -> int:
    return -(-len(parts.train.x) // batch_size) if parts.train.is_arrays else len(parts.train.x)


def _example(parts: "Parts") -> tuple[Any, int]:
    """A few inputs, and the number of classes."""
    from understudy.tasks.keras.fit import batches

    x, _ = next(iter(batches(parts.test)))
    if parts.train.y is not None:
        return x[:4], int(parts.train.y.max()) + 1
    return x[:4], 1 + max(int(labels.max()) for _, labels in batches(parts.test))


def _said(parts: "Parts", classes: int) -> str:
    lines = [f"data: {parts.name}, {classes} classes"]
    for use, part in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        if part is not None:
            lines.append(
                f"  {use:<11}{f'{len(part.x):,} samples {part.x.shape[1:]}' if part.is_arrays else 'a data set'}"
            )
    return "\n".join(lines)


def _save(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    text = "A Keras model: `keras.saving.load_model('model.keras')` loads it, without understudy.\n"
    (folder / "README.md").write_text(text)


def _same_weights(one: Any, other: Any) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(mine.tobytes() == theirs.tobytes() for mine, theirs in pairs)


def _tensor(values: Any) -> Any:
    from understudy.keras.operations import ops

    return ops.convert_to_tensor(values)


def _to_numpy(values: Any) -> Any:
    from understudy.keras.operations import ops

    return ops.convert_to_numpy(values)
