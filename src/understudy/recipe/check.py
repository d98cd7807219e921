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
from understudy.recipe.schema import Data, Model, Objective, Recipe
from understudy.recipe.signature import options, wrong_type

Problem = tuple[tuple[str | int, ...], str]


def check(recipe: Recipe) -> Iterator[Problem]:
    """Find what the schema cannot see: unknown names and options, files that are missing or no weights.

    Args:
        recipe: a recipe that fits the schema.

    Yields:
        The path of the value and what is wrong with it, in one line.
    """
    yield from _check_data(recipe.data)
    yield from _check_model(("teacher",), recipe.teacher)
    yield from _check_model(("student",), recipe.student)
    for index, method in enumerate(recipe.method):
        for place, objective in enumerate(method.objectives):
            yield from _check_objective(("method", index, "objectives", place), objective)
    if isinstance(recipe.teacher.train, dict):
        yield from _check_teacher_train(recipe)
    yield from _check_control(recipe)
    yield from _check_grid(recipe)


def _check_data(data: Data) -> Iterator[Problem]:
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
    if (data.mean is None) != (data.std is None):
        yield ("data", "mean" if data.mean is None else "std"), "mean and std come together"


def _check_model(path: tuple[str, ...], model: Model) -> Iterator[Problem]:
    name = model.name
    if model.weights is not None and not _is_remote(model.weights):
        try:
            _check_weights(Path(model.weights))
        except UserError as error:
            yield (*path, "weights"), str(error)
    if model.weights is not None and model.pretrained:
        yield (*path, "pretrained"), "weights and pretrained exclude each other: keep one"
    if name.startswith(("python:", *PREFIXES)) or name in REGISTERED:
        return
    if Path(name).is_dir() and (Path(name) / "config.json").is_file():
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
        path, model.options, entry.module, entry.function, {**entry.fixed, "classes": 0, "shape": 0}, known
    )


def _check_objective(path: tuple[str | int, ...], objective: Objective) -> Iterator[Problem]:
    if objective.loss not in LOSSES:
        yield (*path, "loss"), f"unknown loss '{objective.loss}', {did_you_mean(objective.loss, LOSSES)}"
        return
    entry = LOSSES[objective.loss]
    known = set(Objective.model_fields)
    yield from _check_options(path, objective.options, entry.module, entry.class_name, {}, known)


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
        elif problem := wrong_type(accepted[key], value):
            yield (*path, key), problem
    for key, option in accepted.items():
        if option.required and key not in given:
            yield (*path, key), "is missing"


def _check_teacher_train(recipe: Recipe) -> Iterator[Problem]:
    from pydantic import ValidationError

    try:
        recipe.teacher_train  # noqa: B018 (reading it validates it)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = detail["loc"][0] if detail["loc"] else ""
        message = f"{detail['msg']}, not '{detail.get('input')}'"
        if detail["type"] == "extra_forbidden":
            message = f"unknown key, {did_you_mean(str(key), type(recipe.train).model_fields)}"
        if detail["type"] == "value_error":
            message = str(detail.get("ctx", {}).get("error"))
        yield ("teacher", "train", key), message


def _check_control(recipe: Recipe) -> Iterator[Problem]:
    if recipe.control == "none" or isinstance(recipe.control, tuple):
        return
    if not (Path(recipe.control) / "results.json").is_file():
        yield (
            ("control",),
            f"'{recipe.control}' is neither train, none, label_smoothing, equal_time nor a finished run",
        )


def _check_grid(recipe: Recipe) -> Iterator[Problem]:
    for key, values in recipe.grid.items():
        for method in recipe.method:
            for objective in method.objectives:
                accepted = options(LOSSES[objective.loss].module, LOSSES[objective.loss].class_name)
                if key not in accepted and key not in ("weight", "labels"):
                    near = did_you_mean(key, [*accepted, "weight", "labels"])
                    yield ("grid", key), f"'{objective.loss}' has no such option, {near}"
        if not values:
            yield ("grid", key), "is empty"


def _is_remote(weights: str) -> bool:
    return weights.startswith(("https://", "http://", "hf://"))


def _check_weights(path: Path) -> None:
    """Look at a weight file's head; the tensors are read only when the model is built."""
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no such file '{path}'")
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
    tensors = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(tensors, default=0) > path.stat().st_size:
        raise UserError(f"'{path}' is cut short: {path.stat().st_size:,} bytes are fewer than its header promises")
