"""The tasks a recipe may name: its typed description, its checks, and what runs it. Imports nothing until asked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from understudy.recipe.problem import Problem
from understudy.recipe.schema import Recipe

_DEFAULT = "classify"


@dataclass(frozen=True)
class Task:
    """Where the parts of a task are; the first two import no torch.

    Args:
        recipe: `module:class` of its recipe, a `Recipe`.
        problems: `module:function` that finds what the schema cannot see: `(recipe, files=True)` yields `Problem`s.
        runner: the module with `machine`, `prepare`, `reopen`, `load` and `rehearse`; see `understudy.run.start`.
    """

    recipe: str
    problems: str
    runner: str

    @property
    def recipe_class(self) -> type[Recipe]:
        """The class of its recipes."""
        return _named(self.recipe)

    @property
    def find_problems(self) -> Callable[..., Iterator[Problem]]:
        """What holds a recipe against names and files."""
        return _named(self.problems)


TASKS: dict[str, Task] = {
    "classify": Task(
        recipe="understudy.recipe.schema:ClassifyRecipe",
        problems="understudy.recipe.check:check",
        runner="understudy.tasks.classify.run",
    ),
    "diffusion": Task(
        recipe="understudy.tasks.diffusion.recipe:DiffusionRecipe",
        problems="understudy.tasks.diffusion.recipe:problems",
        runner="understudy.tasks.diffusion.run",
    ),
    "detect": Task(
        recipe="understudy.tasks.detect.recipe:DetectRecipe",
        problems="understudy.tasks.detect.recipe:problems",
        runner="understudy.tasks.detect.run",
    ),
    "keras": Task(
        recipe="understudy.tasks.keras.recipe:KerasRecipe",
        problems="understudy.tasks.keras.recipe:problems",
        runner="understudy.tasks.keras.run",
    ),
}


def task_of(plain: Mapping[str, Any]) -> str:
    """The name of the task that a recipe's plain data is of; it may be one that does not exist."""
    return str(plain.get("task", _DEFAULT))


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
