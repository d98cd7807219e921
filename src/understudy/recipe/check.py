"""Holds a recipe against the tables of names and the files it points to; imports no torch."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from understudy.data.table import REGISTERED as REGISTERED_DATA
from understudy.data.table import SOURCES
from understudy.errors import UserError, did_you_mean
from understudy.losses.table import LOSSES
from understudy.models.table import MODELS, PREFIXES, REGISTERED
from understudy.recipe.methods import grid_option
from understudy.recipe.problem import Problem
from understudy.recipe.schema import ClassifyRecipe, Data, Method, Model, Objective, Teacher
from understudy.recipe.signature import Option, in_words, options, shown, wrong_type

# What `path` must be for the sources that have one; a data set of the hub may also be a name.
_PATHS: dict[str, str] = dict.fromkeys(("folder", "cifar10", "cifar100", "flowers", "cars", "inaturalist"), "folder")
_PATHS |= {"csv": "file", "mnist": "file or folder", "fashion-mnist": "file or folder"}


def check(recipe: ClassifyRecipe, *, files: bool = True) -> Iterator[Problem]:
    """Find what the schema cannot see: unknown names and options, files that are missing or no weights.

    Args:
        recipe: a recipe that fits the schema.
        files: whether the files that it names must be there.

    Yields:
        The path of the value and what is wrong with it, in one line.
    """
    yield from data_problems(recipe.data, files=files)
    for path, section in _teachers(recipe):
        if section.is_recorded:
            yield from _check_recorded(path, section, recipe, files=files)
            continue
        if section.approximate:
            yield (*path, "approximate"), "belongs to a file of answers, as in teacher: {name: answers.parquet}"
        yield from model_problems(path, section, files=files)
    yield from model_problems(("student",), recipe.student, files=files)
    for index, method in enumerate(recipe.method):
        yield from _check_method(("method", index), method)
        yield from _check_model_changes(("method", index, "model"), method, recipe)
    for path, section in _teachers(recipe):
        if isinstance(section.train, dict):
            yield from _check_teacher_train(path, section, recipe)
    yield from _check_control(recipe)
    yield from _check_grid(recipe)


def data_problems(data: Data, *, files: bool = True) -> Iterator[Problem]:
    """What is wrong with a recipe's `data`; with `files`, its path must be there."""
    if data.name.startswith("python:") or data.name in REGISTERED_DATA:
        return
    if data.name not in SOURCES:
        yield ("data", "name"), f"unknown data set '{data.name}', {did_you_mean(data.name, SOURCES)}"
        return
    entry = SOURCES[data.name]
    yield from _check_options(
        ("data",), data.options, entry.module, entry.function, entry.fixed, set(Data.model_fields)
    )
    if isinstance(data.validation, float) and 1 <= data.validation != math.floor(data.validation):
        yield (
            ("data", "validation"),
            f"is a share below 1 or a whole number of images, not {data.validation:g}",
        )
    yield from _check_normalisation(("data",), data)
    path, wanted = data.options.get("path"), _PATHS.get(data.name)
    if files and wanted and isinstance(path, str) and not exists(path, wanted):
        yield ("data", "path"), f"there is no {wanted} '{path}' (looked from {Path.cwd()})"


def model_problems(path: tuple[str | int, ...], model: Model, *, files: bool = True) -> Iterator[Problem]:
    """What is wrong with a recipe's `teacher` or `student`, whose place in the recipe is `path`.

    With `files`, the weights that it names must be there.
    """
    name = model.name
    yield from _check_normalisation(path, model)
    if files and model.weights is not None and not _is_remote(model.weights):
        try:
            _check_weights(Path(model.weights))
        except UserError as error:
            yield (*path, "weights"), str(error)
    if model.weights is not None and model.pretrained:
        yield (*path, "pretrained"), "weights and pretrained exclude each other: keep one"
    if name.startswith(("python:", *PREFIXES)) or name in REGISTERED:
        return
    if exists(f"{name}/config.json", "file"):
        return
    if name not in MODELS:
        near = did_you_mean(name, [*MODELS, *REGISTERED])
        yield (
            (*path, "name"),
            f"unknown model '{name}', {near} (or timm/…, torchvision/…, hf/…, a saved folder)",
        )
        return
    if model.pretrained:
        yield (*path, "pretrained"), f"'{name}' has no pretrained weights: give a file in weights"
    entry = MODELS[name]
    known = set(type(model).model_fields)
    yield from _check_options(
        path, model.options, entry.module, entry.function, {**entry.fixed, "classes": 0, "shape": 0, "given": 0}, known
    )


def _check_normalisation(path: tuple[str | int, ...], section: Data | Model) -> Iterator[Problem]:
    if (section.mean is None) != (section.std is None):
        yield (*path, "mean" if section.mean is None else "std"), "is missing: mean and std come together"
    elif section.mean and section.std and len(section.mean) != len(section.std):
        yield (*path, "std"), f"has {len(section.std)} values, mean has {len(section.mean)}"


def _check_method(path: tuple[str | int, ...], method: Method) -> Iterator[Problem]:
    for place, objective in enumerate(method.objectives):
        yield from _check_objective((*path, "objectives", place), objective)
    if isinstance(method.peers, tuple):
        for place, peer in enumerate(method.peers):
            yield from model_problems((*path, "peers", place), peer)
    weights = [method.labels, *(objective.weight for objective in method.objectives)]
    if all(weight == 0 for weight in weights):
        yield (*path, "labels"), f"'{method.name}' has nothing to learn from: every weight is 0"


def _check_model_changes(path: tuple[str | int, ...], method: Method, recipe: ClassifyRecipe) -> Iterator[Problem]:
    """A method's `model` is held against the student that it changes."""
    from pydantic import ValidationError

    if not method.model:
        return
    try:
        student = type(recipe.student).model_validate({**recipe.student.model_dump(), **method.model})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        yield (*path, *detail["loc"]), f"{in_words(detail)}, not {shown(detail.get('input'))}"
        return
    for where, problem in model_problems(path, student, files=False):
        if where[-1] in method.model:
            yield where, problem


def _check_objective(path: tuple[str | int, ...], objective: Objective) -> Iterator[Problem]:
    if objective.loss not in LOSSES:
        yield (*path, "loss"), f"unknown loss '{objective.loss}', {did_you_mean(objective.loss, LOSSES)}"
        return
    entry = LOSSES[objective.loss]
    known = {*Objective.model_fields, *Method.model_fields}
    yield from _check_options(
        path, objective.options, entry.module, entry.class_name, {"samples": "of the data"}, known
    )


def _check_options(
    path: tuple[str | int, ...],
    given: dict[str, Any],
    module: str,
    name: str,
    fixed: dict[str, Any],
    others: set[str],
) -> Iterator[Problem]:
    accepted = {key: option for key, option in options(module, name).items() if key not in fixed}
    for key, value in given.items():
        if key not in accepted:
            yield (*path, key), f"unknown key, {did_you_mean(key, [*accepted, *sorted(others)])}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield (*path, key), f"should be a finite number, not {value}"
        elif problem := wrong_type(accepted[key], value):
            yield (*path, key), problem
    for key, option in accepted.items():
        if option.required and key not in given:
            yield (*path, key), "is missing"


def _teachers(recipe: ClassifyRecipe) -> Iterator[tuple[tuple[str | int, ...], Teacher]]:
    yield ("teacher",), recipe.teacher
    for key in ("more_teachers", "assistants"):
        for place, section in enumerate(getattr(recipe, key)):
            yield (key, place), section


def _check_recorded(
    path: tuple[str | int, ...], section: Teacher, recipe: ClassifyRecipe, *, files: bool
) -> Iterator[Problem]:
    """A table of answers stands for the one teacher, and has nothing but logits."""
    if path != ("teacher",) or len(recipe.teachers) > 1:
        yield (*path, "name"), f"'{section.name}' is a table of answers: it can only be the one teacher"
    if files and not exists(section.name, "file"):
        yield (*path, "name"), f"there is no file '{section.name}' (looked from {Path.cwd()})"
    usual = Teacher(name=section.name).model_dump()
    for key, value in section.model_dump().items():
        if key not in ("approximate", "share") and value != usual.get(key):
            yield (*path, key), f"says nothing to a table of answers such as '{section.name}': leave it out"
    if recipe.student.init is not None:
        yield ("student", "init"), f"'{section.name}' is a table of answers: there are no tensors to start from"
    for index, method in enumerate(recipe.method):
        for place, objective in enumerate(method.objectives):
            known = LOSSES.get(objective.loss)
            if objective.student or objective.teacher or (known is not None and known.taps != "logits"):
                yield (
                    ("method", index, "objectives", place, "loss"),
                    f"'{objective.loss}' compares features, '{section.name}' holds answers alone: take a method that "
                    "compares logits, such as kd",
                )


def _check_teacher_train(path: tuple[str | int, ...], section: Teacher, recipe: ClassifyRecipe) -> Iterator[Problem]:
    from pydantic import ValidationError

    try:
        recipe.train_of(section)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = detail["loc"][0] if detail["loc"] else ""
        message = f"{in_words(detail)}, not {shown(detail.get('input'))}"
        if detail["type"] == "extra_forbidden":
            message = f"unknown key, {did_you_mean(str(key), type(recipe.train).model_fields)}"
        if detail["type"] == "value_error":
            key, _, message = str(detail.get("ctx", {}).get("error")).partition(": ")
        yield (*path, "train", key), message


def _check_control(recipe: ClassifyRecipe) -> Iterator[Problem]:
    if recipe.control == "none" or isinstance(recipe.control, tuple):
        return
    if not exists(f"{recipe.control}/results.json", "file"):
        yield (
            ("control",),
            f"'{recipe.control}' is neither train, none, label_smoothing, equal_time nor a finished run",
        )


def _check_grid(recipe: ClassifyRecipe) -> Iterator[Problem]:
    losses = dict.fromkeys(objective.loss for method in recipe.method for objective in method.objectives)
    for key, values in recipe.grid.items():
        taking = [option for loss in losses if (option := grid_option(loss, key))]
        if key == "labels":
            taking = [Option("float", required=False)]
        if not taking:
            known = [name for loss in losses for name in options(LOSSES[loss].module, LOSSES[loss].class_name)]
            near = did_you_mean(key, dict.fromkeys([*known, "weight", "labels"]))
            yield ("grid", key), f"no loss of these methods ({', '.join(losses)}) has such an option, {near}"
        if not values:
            yield ("grid", key), "is empty: give the values to try"
        if len(set(map(str, values))) < len(values):
            yield ("grid", key), "names a value twice"
        for value in values:
            if taking and (problem := wrong_type(taking[0], value)):
                yield ("grid", key), problem


def exists(path: str, what: str) -> bool:
    """Whether there is such a `file`, `folder` or `file or folder`; what cannot be a path at all is not there."""
    try:
        place = Path(path).expanduser()
        return {"file": place.is_file, "folder": place.is_dir, "file or folder": place.exists}[what]()
    except (OSError, RuntimeError):  # a name too long, a folder that may not be entered, an unknown ~user
        return False


def _is_remote(weights: str) -> bool:
    return weights.startswith(("https://", "http://", "hf://"))


def _check_weights(path: Path) -> None:
    """Look at a weight file's head; the tensors are read only when the model is built."""
    if exists(str(path), "folder"):
        path = path / "model.safetensors"
    if not exists(str(path), "file"):
        raise UserError(f"there is no file '{path}' (looked from {Path.cwd()})")
    path = path.expanduser()
    if path.suffix != ".safetensors":
        return
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < min(100_000_000, path.stat().st_size):
            raise UserError(f"'{path}' is no safetensors file, or is cut short")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise UserError(f"'{path}' is no safetensors file: its header cannot be read") from None
    try:
        tensors = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (AttributeError, KeyError, TypeError, IndexError):
        raise UserError(f"'{path}' is no safetensors file: its header lists no tensors") from None
    if 8 + length + max(tensors, default=0) > path.stat().st_size:
        raise UserError(f"'{path}' is cut short: {path.stat().st_size:,} bytes are fewer than its header promises")
