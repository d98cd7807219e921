"""Reads recipes from files, overrides and Python, and checks them."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from understudy.errors import UserError, did_you_mean
from understudy.recipe.check import data_problems, exists, model_problems
from understudy.recipe.problem import Problem, as_written, first_problem
from understudy.recipe.schema import ClassifyRecipe, Data, Model, Part, Recipe
from understudy.recipe.source import KeyPath, Source, dotted, override, parse
from understudy.recipe.tasks import TASKS, task_of

__all__ = [
    "Source", "build_recipe", "find_recipe", "parse", "read_data", "read_model", "read_recipe", "read_source",
    "shipped",
]  # fmt: skip

_Section = TypeVar("_Section", bound=Part)


def read_recipe(name: str | Path, overrides: list[str] | tuple[str, ...] = (), *, files: bool = True) -> Recipe:
    """Read a recipe from a file or, by its bare name, from those shipped, and check it.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe.
        overrides: `key=value` texts, keys with dots (`train.lr=3e-4`), values as in YAML.
        files: whether the files that it names must be there.

    Returns:
        The recipe: its types, names, options and files are sound. Nothing was imported or run.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    return build_recipe(read_source(name), overrides, files=files)


def read_source(name: str | Path) -> Source:
    """Read a recipe's plain data, unchecked, from a file or, by its bare name, from those shipped.

    Raises:
        UserError: there is no such recipe, or it is not YAML.
    """
    path = find_recipe(name)
    return parse(path.read_bytes(), f"{name}.yaml" if path == shipped().get(str(name)) else str(path))


def build_recipe(source: Source, overrides: list[str] | tuple[str, ...] = (), *, files: bool = True) -> Recipe:
    """Lay overrides over a source, then hold it against the schema and the tables of names.

    Args:
        source: plain data; overrides change it in place.
        overrides: `key=value` texts.
        files: whether the files that it names must be there.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    for text in overrides:
        override(source, text)
    name = task_of(source.data)
    if name not in TASKS:
        raise UserError(f"task: unknown task '{name}', {did_you_mean(name, TASKS)}", where=source.where(("task",)))
    task = TASKS[name]
    recipe = _validate(task.recipe_class, source.data, (), source, task.recipe_class)
    _raise_first(task.find_problems(recipe, files=files), source)
    return recipe


def read_data(source: Source) -> Data:
    """Check a data section that stands alone.

    Args:
        source: its plain data holds the section as `data`.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    data = _validate(Data, source.data["data"], ("data",), source)
    _raise_first(data_problems(data), source)
    return data


def read_model(source: Source) -> Model:
    """Check a model section that stands alone.

    Args:
        source: its plain data holds the section as `model`.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    model = _validate(Model, source.data["model"], ("model",), source)
    _raise_first(model_problems(("model",), model), source)
    return model


def shipped() -> dict[str, Path]:
    """The shipped recipes: name to file."""
    folder = Path(str(resources.files("understudy") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by path or by bare name.

    Raises:
        UserError: there is no such file or shipped recipe.
    """
    path = Path(name)
    if exists(str(path), "file"):
        return path
    if exists(str(path / "recipe.yaml"), "file"):
        return path / "recipe.yaml"
    if str(name) in shipped():
        return shipped()[str(name)]
    if exists(str(path), "folder"):
        raise UserError("is a folder without a recipe.yaml: give a recipe file or a run folder", where=name)
    if path.suffix in (".yaml", ".yml"):
        raise UserError("there is no such file; `understudy recipes` lists the shipped recipes", where=name)
    raise UserError(f"there is no such recipe, {did_you_mean(str(name), shipped())}", where=name)


def _validate(
    kind: type[_Section], data: Any, path: KeyPath, source: Source, recipe: type[Recipe] = ClassifyRecipe
) -> _Section:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise first_problem(error, path, source, recipe) from None


def _raise_first(problems: Iterator[Problem], source: Source) -> None:
    for path, message in problems:
        written = as_written(path, source.data)
        raise UserError(f"{dotted(written)}: {message}", where=source.where(written))
