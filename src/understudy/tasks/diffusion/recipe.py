"""What a recipe of the task `diffusion` may say: a teacher, how many steps to halve it down to, and by which method."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from understudy.errors import did_you_mean
from understudy.recipe.check import data_problems, exists
from understudy.recipe.problem import Problem
from understudy.recipe.schema import Positive, Recipe
from understudy.recipe.signature import in_words, shown
from understudy.tasks.diffusion.settings import (
    FLAT_FOLDER,
    FROM_TEACHER,
    Convert,
    DiffusionData,
    DiffusionTrain,
    Evaluate,
    Guidance,
    Method,
    Schedule,
    Teacher,
)
from understudy.tasks.diffusion.shapes import SHAPES, Shape


class DiffusionRecipe(Recipe):
    """Progressive distillation of a diffusion model, round by round into half the steps."""

    task: Literal["diffusion"] = "diffusion"  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    data: DiffusionData
    teacher: Teacher
    process: Schedule = Schedule()
    convert: Convert | Literal["auto", "none"] = "auto"
    guidance: Guidance | None = None
    steps: tuple[Positive, ...]
    method: tuple[Method, ...] = (Method(),)
    evaluate: Evaluate = Evaluate()
    train: DiffusionTrain = DiffusionTrain()  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    seeds: Positive = 1

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, dict) and "method" in value and not isinstance(value["method"], (list, tuple)):
            value = {**value, "method": [value["method"]]}
        if isinstance(value, dict) and isinstance(value.get("data"), str):
            value = {**value, "data": {"name": value["data"]}}
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "DiffusionRecipe":
        if not self.method:
            raise ValueError("method: is empty, name at least one, such as 'progressive'")
        names = [method.name for method in self.method]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"method: '{twice}' is named twice")
        for method in self.method:
            if problem := _wrong_steps(method.name, self.steps_of(method)):
                raise ValueError(problem)
        if self.teacher.is_trained and self.teacher.train is None:
            raise ValueError("teacher: has neither 'weights' nor 'train': give one, such as train: {updates: 5000}")
        if not self.teacher.is_trained and self.teacher.train is not None:
            raise ValueError("teacher: has 'weights', so there is nothing to train: take 'train' out")
        if self.guidance is not None and not self.teacher.conditional:
            raise ValueError("guidance: needs a teacher that knows classes: set teacher.conditional=true")
        trained = self.teacher.train
        if self.guidance is not None and trained is not None and not trained.label_dropout:
            raise ValueError(
                "guidance: the teacher must be trained without labels too: set teacher.train.label_dropout=0.1"
            )
        if trained is not None and trained.label_dropout and not self.teacher.conditional:
            raise ValueError("teacher: label_dropout drops labels, but the teacher takes none: set conditional: true")
        if self.data.name == FROM_TEACHER and self.teacher.is_trained:
            raise ValueError("data: a teacher that is trained here needs data; 'teacher' is for one with weights")
        return self

    @property
    def summary(self) -> str:
        """What it does, in one sentence."""
        ways = ", ".join(method.name for method in self.method)
        return f"{self.name}: a diffusion model distilled from {self.steps[0]} steps to {self.steps[-1]} ({ways})"

    def steps_of(self, method: Method) -> tuple[int, ...]:
        """The numbers of steps that a method goes through; the first is its teacher's."""
        if method.steps is not None:
            return method.steps
        return self.steps if method.name == "progressive" else (self.steps[0], self.steps[-1])

    @property
    def compared_steps(self) -> tuple[int, ...]:
        """The numbers of steps that are evaluated, falling."""
        return tuple(sorted(set(self.evaluate.steps or self.steps), reverse=True))

    @property
    def reference_steps(self) -> int:
        """The number of steps that the teacher's best images take."""
        return self.evaluate.reference or self.steps[0]

    @property
    def verdict_steps(self) -> int:
        """The number of steps that the verdict is about."""
        reached = [steps for method in self.method for steps in self.steps_of(method)[1:]]
        return self.evaluate.verdict or (4 if 4 in reached and 4 in self.compared_steps else min(reached))


def _wrong_steps(method: str, steps: tuple[int, ...]) -> str | None:
    if len(steps) < 2:
        return "steps: wants at least two numbers, the teacher's and a student's, such as [64, 32, 16, 8, 4, 2, 1]"
    for before, after in pairwise(steps):
        if method == "progressive" and before != 2 * after:
            return (
                f"steps: {before} to {after} is no halving: each round takes half the steps of the one before, such as "
                "[64, 32, 16, 8, 4, 2, 1]"
            )
        if method != "progressive" and (after >= before or before % after):
            return f"steps: '{method}' goes from a number of steps to one that divides it, not from {before} to {after}"
    return None


def problems(recipe: DiffusionRecipe, *, files: bool = True) -> Iterator[Problem]:
    """Find what the schema cannot see: unknown names, shapes that cannot be, files that are missing.

    Args:
        recipe: a recipe that fits the schema.
        files: whether the files that it names must be there.

    Yields:
        The path of the value and what is wrong with it, in one line.
    """
    yield from _data_problems(recipe.data, files=files)
    yield from _teacher_problems(recipe.teacher, files=files)
    reached = {steps for method in recipe.method for steps in recipe.steps_of(method)}
    if recipe.evaluate.verdict and recipe.evaluate.verdict not in reached & set(recipe.compared_steps):
        yield ("evaluate", "verdict"), f"no student of {recipe.evaluate.verdict} steps is made and compared"
    for index, method in enumerate(recipe.method):
        for key in ("updates_at", "lr_at"):
            if stray := sorted(set(getattr(method, key)) - set(recipe.steps_of(method)[1:])):
                yield ("method", index, key), f"there is no round to {stray[0]} steps"
    inception = recipe.evaluate.inception
    if files and inception is not None and not exists(inception, "file"):
        yield ("evaluate", "inception"), f"there is no file '{inception}' (looked from {Path.cwd()})"


def _data_problems(data: DiffusionData, *, files: bool) -> Iterator[Problem]:
    if data.name == FROM_TEACHER:
        if data.options:
            yield ("data", next(iter(data.options))), "unknown key, of the teacher's samples only 'images' is asked"
    elif data.name == FLAT_FOLDER:
        for key in data.options:
            if key not in ("path", "size", "channels"):
                yield ("data", key), f"unknown key, {did_you_mean(key, ('path', 'size', 'channels'))}"
        if "path" not in data.options:
            yield ("data", "path"), "is missing"
        path = data.options.get("path")
        if files and path is not None and not exists(str(path), "folder"):
            yield ("data", "path"), f"there is no folder '{path}' (looked from {Path.cwd()})"
    else:
        yield from data_problems(data, files=files)


def _teacher_problems(teacher: Teacher, *, files: bool) -> Iterator[Problem]:
    if teacher.is_object:
        return
    if teacher.weights is not None:
        if files and not exists(teacher.weights, "file or folder"):
            yield ("teacher", "weights"), f"there is no file or folder '{teacher.weights}' (looked from {Path.cwd()})"
        for key in teacher.options:
            yield ("teacher", key), "the weights say what shape the model has: take this out"
        return
    if teacher.name not in SHAPES:
        yield ("teacher", "name"), f"unknown model '{teacher.name}', {did_you_mean(str(teacher.name), SHAPES)}"
        return
    try:
        teacher.shape()
    except ValidationError as error:
        detail: Any = error.errors(include_url=False)[0]
        key = detail["loc"][0] if detail["loc"] else "name"
        if detail["type"] == "extra_forbidden":
            known = (*Teacher.model_fields, *Shape.model_fields)
            yield ("teacher", key), f"unknown key, {did_you_mean(str(key), known)}"
        elif detail["type"] == "value_error":
            yield ("teacher",), str(detail["ctx"]["error"])
        else:
            yield ("teacher", key), f"{in_words(detail)}, not {shown(detail.get('input'))}"
