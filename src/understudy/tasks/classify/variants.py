"""The students of a recipe: its controls, and its methods, each at every point of its grid and in every generation."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from understudy.recipe.methods import grid_option
from understudy.recipe.schema import ClassifyRecipe, Method, Student


@dataclass(frozen=True)
class Planned:
    """A distilled student of a recipe.

    Args:
        method: what it learns from.
        generation: 1 is taught by the teacher, each further one by the student before, whose arm is `taught_by`.
        taught_by: name of a teacher or assistant, or of the arm that came before.
    """

    method: Method
    generation: int
    taught_by: str


def distilled_arms(recipe: ClassifyRecipe) -> dict[str, Planned]:
    """The arms by name: `student_distilled` when there is one, else `student_METHOD` with its grid point.

    Args:
        recipe: with its methods and grid.
    """
    points = [point for method in recipe.method for point in _points(method, recipe.grid)]
    if len(points) == 1 and points[0][1].generations == 1:
        return {"student_distilled": Planned(points[0][1], 1, _teacher_of(points[0][1], recipe))}
    arms: dict[str, Planned] = {}
    for name, method in points:
        first = earlier = f"student_{name}"
        arms[first] = Planned(method, 1, _teacher_of(method, recipe))
        for generation in range(2, method.generations + 1):
            arm = f"{first}-generation-{generation}"
            arms[arm] = Planned(method, generation, earlier)
            earlier = arm
    return arms


def student_arms(recipe: ClassifyRecipe) -> dict[str, Literal["control", "distilled", "other"]]:
    """The students by name with their role, in the table's order: controls, then distilled ones."""
    arms: dict[str, Literal["control", "distilled", "other"]] = {}
    for name in recipe.control if isinstance(recipe.control, tuple) else ():
        arms["student_alone" if name == "train" else f"student_{name}"] = "control" if name == "train" else "other"
    for name in distilled_arms(recipe):
        arms[name] = "distilled"
    return arms


def groups(recipe: ClassifyRecipe) -> list[list[str]]:
    """The arms that are grid points of one method and generation: of each group one is chosen."""
    found: dict[tuple[str, int], list[str]] = {}
    for arm, planned in distilled_arms(recipe).items():
        found.setdefault((planned.method.name, planned.generation), []).append(arm)
    return list(found.values())


def changed(student: Student, method: Method) -> Student:
    """The recipe's student as a method wants it: with the keys of `model` laid over it."""
    if not method.model:
        return student
    return Student.model_validate({**student.model_dump(), **method.model})


def _teacher_of(method: Method, recipe: ClassifyRecipe) -> str:
    if method.taught_by not in (None, "assistant"):
        return method.taught_by
    return next(reversed(recipe.all_assistants), "teacher")


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
