"""The students of a recipe: its controls, and its methods, each at every point of its grid."""

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal

from understudy.recipe.methods import grid_option
from understudy.recipe.schema import ClassifyRecipe, Method


def distilled_arms(recipe: ClassifyRecipe) -> dict[str, Method]:
    """The arms by name: `student_distilled` when there is one, else `student_METHOD` with its grid point.

    Args:
        recipe: with its methods and grid.
    """
    variants = {name: method for method in recipe.method for name, method in _points(method, recipe.grid)}
    if len(variants) == 1:
        return {"student_distilled": next(iter(variants.values()))}
    return {f"student_{name}": method for name, method in variants.items()}


def student_arms(recipe: ClassifyRecipe) -> dict[str, Literal["control", "distilled", "other"]]:
    """The students by name with their role, in the table's order: controls, then distilled ones."""
    arms: dict[str, Literal["control", "distilled", "other"]] = {}
    for name in recipe.control if isinstance(recipe.control, tuple) else ():
        arms["student_alone" if name == "train" else f"student_{name}"] = "control" if name == "train" else "other"
    for name in distilled_arms(recipe):
        arms[name] = "distilled"
    return arms


def groups(recipe: ClassifyRecipe) -> dict[str, list[str]]:
    """Which arms are grid points of one method: method name to arm names."""
    found: dict[str, list[str]] = {}
    for method in recipe.method:
        found[method.name] = [f"student_{name}" for name, _ in _points(method, recipe.grid)]
    arms = list(distilled_arms(recipe))
    return found if len(arms) > 1 else {recipe.method[0].name: arms}


def _points(method: Method, grid: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, Method]]:
    """A method at every point of the keys that it has: `temperature` is nothing to a method without one."""
    grid = {key: values for key, values in grid.items() if key == "labels" or _taking(method, key)}
    for values in product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        suffix = "".join(
            f"-{key}-{value:g}" if isinstance(value, float) else f"-{key}-{value}" for key, value in point.items()
        )
        yield method.name + suffix, _at(method, point)


def _at(method: Method, point: dict[str, Any]) -> Method:
    if not point:
        return method
    described = method.model_dump()
    if "labels" in point:
        described["labels"] = point["labels"]
    for key, value in point.items():
        for place in _taking(method, key):
            described["objectives"][place][key] = value
    return Method.model_validate(described)


def _taking(method: Method, key: str) -> list[int]:
    """The objectives of a method that a grid's key sets something of."""
    losses = [objective.loss for objective in method.objectives]
    return [place for place, loss in enumerate(losses) if grid_option(loss, key)]
