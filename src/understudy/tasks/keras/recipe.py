"""What a recipe of the task `keras` may say. Inert data: neither Keras nor a backend is imported."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from understudy.errors import did_you_mean
from understudy.keras.methods import unsupported
from understudy.losses.table import LOSSES
from understudy.recipe.problem import Problem
from understudy.recipe.schema import Int, Machine, Method, NonNegative, Part, Positive, Recipe, Share, Switch
from understudy.recipe.signature import options, wrong_type

Widths = Annotated[tuple[Positive, ...], Field(min_length=1)]
DATA = ("mnist", "fashion-mnist", "digits")
MODELS = ("strided-cnn", "mlp")
APPLICATIONS = "applications/"


class KerasTrain(Machine):
    """How a model is trained, and on which backend; `auto` is the one Keras is set to."""

    backend: Literal["auto", "torch", "jax", "tensorflow"] = "auto"
    epochs: Positive = 10
    batch_size: Positive = 32
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Strict(), Field(gt=0)] = 1e-3
    weight_decay: NonNegative = 0.0
    momentum: Share = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Annotated[float, Strict(), Field(gt=0)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: Switch | Literal["auto"] = "auto"


class KerasData(Part):
    """Where the arrays come from; `train` keeps that many images, `validation` holds a share out of them."""

    name: str
    path: str | None = None
    train: Positive | Literal["all"] = "all"
    validation: Annotated[float, Strict(), Field(gt=0, lt=1)] | Literal["none"] = 0.1
    seed: Int = 0

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class KerasModel(Part):
    """A network by name: `strided-cnn`, `mlp`, `applications/NAME`, or a saved `.keras` file.

    `widths` are the channels or units of the first two; `pretrained` takes the library's weights of an application.
    """

    name: str
    widths: Widths | None = None
    pretrained: Switch = False

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def is_saved(self) -> bool:
        """Whether it is a file with weights."""
        return self.name.endswith(".keras")


class KerasTeacher(KerasModel):
    """The teacher: trained by the recipe unless it brings weights or `train` is `none`."""

    train: dict[str, Any] | Literal["none"] | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the run has to train it."""
        if self.train is not None:
            return self.train != "none"
        return not (self.pretrained or self.is_saved)


class KerasRecipe(Recipe):
    """Image classification by Keras' own fit: a teacher, a student, its methods, and the student alone beside it."""

    task: Literal["keras"]  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    data: KerasData
    teacher: KerasTeacher
    student: KerasModel
    method: tuple[Method, ...]
    train: KerasTrain = KerasTrain()  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    control: Literal["train", "none"] = "train"

    @model_validator(mode="before")
    @classmethod
    def _one_method_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, dict) and "method" in value and not isinstance(value["method"], (list, tuple)):
            return {**value, "method": [value["method"]]}
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> "KerasRecipe":
        names = [method.name for method in self.method]
        if not names:
            raise ValueError("method: is empty, name at least one, such as 'kd'")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"method: two are called '{twice[0]}', give them different names")
        if "alone" in names:
            raise ValueError("method: 'alone' is what the control is called, give it another name")
        return self

    @property
    def teacher_train(self) -> KerasTrain:
        """How the teacher is trained: the recipe's `train` with the teacher's own laid over it."""
        own = self.teacher.train if isinstance(self.teacher.train, dict) else {}
        return KerasTrain.model_validate({**self.train.model_dump(exclude_unset=True), **own})

    @property
    def arms(self) -> dict[str, Method | None]:
        """The students by name, the control first: `student_distilled` when there is one method."""
        control: dict[str, Method | None] = {"student_alone": None} if self.control == "train" else {}
        if len(self.method) == 1:
            return {**control, "student_distilled": self.method[0]}
        return {**control, **{f"student_{method.name}": method for method in self.method}}

    @property
    def summary(self) -> str:
        """What it does, in one sentence."""
        methods = ", ".join(method.name for method in self.method)
        return f"{self.teacher.name} teaches {self.student.name} on {self.data.name} by {methods}, with Keras"


def problems(recipe: KerasRecipe, *, files: bool = True) -> Iterator[Problem]:
    """Find what the schema cannot see: unknown names and options, files and packages that are missing.

    Args:
        recipe: a recipe that fits the schema.
        files: whether the files that it names must be there.

    Yields:
        The path of the value and what is wrong with it, in one line.
    """
    if files and find_spec("keras") is None:
        yield ("task",), "needs Keras: pip install 'understudy[keras]'"
    name = recipe.data.name
    if name not in DATA and not name.startswith("python:"):
        yield ("data", "name"), f"unknown data set '{name}', {did_you_mean(name, DATA)}"
    if files and recipe.data.path is not None and not Path(recipe.data.path).expanduser().exists():
        yield ("data", "path"), f"there is no '{recipe.data.path}' (looked from {Path.cwd()})"
    yield from _of_model("teacher", recipe.teacher, files)
    yield from _of_model("student", recipe.student, files)
    if isinstance(recipe.teacher.train, dict):
        yield from _of_teacher_train(recipe)
    plain = Machine()  # a resolved recipe writes every default out
    for setting in Machine.model_fields:
        if getattr(recipe.train, setting) == getattr(plain, setting):
            continue
        yield ("train", setting), "is the backend's own affair with Keras: leave it out, or use its variables"
    for index, method in enumerate(recipe.method):
        for problem in unsupported(method):
            yield ("method", index), problem
        yield from _of_options(index, method)


def _of_model(which: str, model: KerasModel, files: bool) -> Iterator[Problem]:
    if model.is_saved:
        if files and not Path(model.name).expanduser().is_file():
            yield (which, "name"), f"there is no file '{model.name}' (looked from {Path.cwd()})"
        return
    if model.name.startswith("python:"):
        return
    if model.pretrained and not model.name.startswith(APPLICATIONS):
        yield (which, "pretrained"), f"'{model.name}' has no pretrained weights: give a .keras file in name"
    if model.name not in MODELS and not model.name.startswith(APPLICATIONS):
        near = did_you_mean(model.name, MODELS)
        yield (which, "name"), f"unknown model '{model.name}', {near} (or {APPLICATIONS}NAME, or a .keras file)"


def _of_teacher_train(recipe: KerasRecipe) -> Iterator[Problem]:
    from pydantic import ValidationError

    try:
        settings = recipe.teacher_train
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        yield ("teacher", "train", *first["loc"]), first["msg"].removeprefix("Value error, ")
        return
    if settings.backend != recipe.train.backend:
        yield ("teacher", "train", "backend"), "a run has one backend: set train.backend"


def _of_options(index: int, method: Method) -> Iterator[Problem]:
    """Options have the names and types of the torch side's, whose source is read, not imported."""
    for place, objective in enumerate(method.objectives):
        if objective.loss not in LOSSES:
            continue
        known = options(LOSSES[objective.loss].module, LOSSES[objective.loss].class_name)
        for key, value in objective.options.items():
            path = ("method", index, "objectives", place, key)
            if key not in known:
                yield path, f"unknown option of '{objective.loss}', {did_you_mean(key, known)}"
            elif problem := wrong_type(known[key], value):
                yield path, problem
