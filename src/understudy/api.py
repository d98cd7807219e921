"""The front door for Python: the same runs as the command line, with models and data as objects if you like."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console

from understudy.recipe.reader import Source, build_recipe, read_source
from understudy.recipe.schema import Recipe
from understudy.recipe.source import section_of
from understudy.run import start as engine
from understudy.run.result import Result

if TYPE_CHECKING:
    from torch import nn

ModelLike: TypeAlias = "str | Mapping[str, Any] | nn.Module | Callable[[], nn.Module]"


def distill(
    *,
    teacher: ModelLike,
    student: ModelLike,
    data: Any,
    method: Any = "kd",
    name: str = "distill",
    out: str | Path | None = None,
    seeds: int = 3,
    control: Any = "train",
    quiet: bool = False,
    **train: Any,
) -> Result:
    """Distil a teacher into a student and compare with the student trained alone.

    Args:
        teacher: a model by its recipe name, a mapping as in a recipe's `teacher`, a module (used as it is), or a
            callable without arguments that makes one (then trained first).
        student: likewise; a module is copied, and all seeds start from its weights.
        data: a data set by its recipe name, a mapping as in a recipe's `data`, or an object: (images, labels), a torch
            Dataset, or a mapping with `train`, `validation`, `test` and `classes`.
        method: as in a recipe: `kd`, `kd:seed-001`, a mapping, or several in a list.
        name: of the run.
        out: the run folder; by default the next number below `runs/NAME`.
        seeds: how many times each student is trained.
        control: `train`, `none`, several controls, or another run's folder.
        quiet: print nothing.
        train: settings of a recipe's `train`, such as `epochs=30, lr=1e-3`.

    Returns:
        The result: `.verdict`, `.table`, `.student`, `.teacher`, `.history`, `.folder`.

    Raises:
        UserError: something does not fit.
        RunError: the run could not go on.

    Example:
        >>> import understudy as us
        >>> result = us.distill(teacher="cnn", student=MyNet, data=(images, labels), epochs=5)  # doctest: +SKIP
        >>> print(result.verdict)  # doctest: +SKIP
    """
    objects: dict[str, Any] = {}
    described = {
        "name": name,
        "data": section_of("data", data, objects),
        "teacher": section_of("teacher", teacher, objects),
        "student": section_of("student", student, objects),
        "method": method,
        "train": train,
        "seeds": seeds,
        "control": control,
    }
    if _is_model(teacher):
        described["teacher"] = {**described["teacher"], "train": "none"}
    return _start(_recipe(described), out, objects, quiet)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    teacher: Any = None,
    student: Any = None,
    data: Any = None,
    quiet: bool = False,
) -> Result:
    """Run a recipe.

    Args:
        recipe: a path, the name of a shipped recipe, a mapping, or a recipe that was read before.
        overrides: `key=value` texts.
        out: the run folder; by default the next number below `runs/NAME`.
        teacher: an object in place of the recipe's teacher.
        student: an object in place of the recipe's student.
        data: an object in place of the recipe's data set.
        quiet: print nothing.

    Returns:
        The result.

    Raises:
        UserError: something does not fit.
        RunError: the run could not go on.
    """
    return _run(_source(recipe), overrides, out=out, teacher=teacher, student=student, data=data, quiet=quiet)


def _run(
    source: Source, overrides: Sequence[str], *, out: Any, teacher: Any, student: Any, data: Any, quiet: bool
) -> Result:
    objects = _put_in(source, teacher=teacher, student=student, data=data)
    return _start(build_recipe(source, list(overrides)), out, objects, quiet)


def _put_in(source: Source, *, teacher: Any, student: Any, data: Any) -> dict[str, Any]:
    """Put objects in the place of a recipe's sections, and give them by the section's name."""
    objects: dict[str, Any] = {}
    for which, given in (("teacher", teacher), ("student", student), ("data", data)):
        if given is not None:
            source.data[which] = section_of(which, given, objects)
    if _is_model(teacher):
        source.data["teacher"] |= {"train": "none"}
    return objects


def compare(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[Any] = (),
    seeds: int | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path | None = None,
    teacher: Any = None,
    student: Any = None,
    data: Any = None,
    quiet: bool = False,
) -> Result:
    """Run a recipe with several methods, seeds or settings; all arms of a seed share each teacher pass.

    Args:
        recipe: as for `run`.
        overrides: `key=value` texts.
        methods: in place of the recipe's.
        seeds: in place of the recipe's.
        grid: options to try, each with its values; points are chosen on validation.
        out: as for `run`, like all that follow.
        teacher: an object in place of the recipe's teacher.
        student: an object in place of the recipe's student.
        data: an object in place of the recipe's data set.
        quiet: print nothing.

    Returns:
        The result, with a verdict for each method.

    Raises:
        UserError: something does not fit.
        RunError: the run could not go on.
    """
    source = _source(recipe)
    if methods:
        source.data["method"] = list(methods)
    if seeds is not None:
        source.data["seeds"] = seeds
    if grid:
        source.data["grid"] = {key: list(values) for key, values in grid.items()}
    return _run(source, overrides, out=out, teacher=teacher, student=student, data=data, quiet=quiet)


def resume(
    folder: str | Path, *, teacher: Any = None, student: Any = None, data: Any = None, quiet: bool = False
) -> Result:
    """Continue a run that was stopped; a finished one is only read.

    Args:
        folder: the run folder.
        teacher: the same object again where the run had one in place of a name.
        student: likewise.
        data: likewise.
        quiet: print nothing.

    Returns:
        The result.

    Raises:
        UserError: no run folder, or an object is missing.
    """
    objects = {"teacher": teacher, "student": student, "data": data}
    given = {which: value for which, value in objects.items() if value is not None}
    return engine.resume(Path(folder), objects=given, console=None if quiet else Console())


def cache(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    export: str | Path | None = None,
    teacher: Any = None,
    student: Any = None,
    data: Any = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Keep the answers that a recipe's teacher will be asked for; it is trained first where no run has.

    Args:
        recipe: as for `run`.
        overrides: `key=value` texts.
        export: a parquet file, for a table of the answers to the unchanged images.
        teacher: an object in place of the recipe's teacher.
        student: an object in place of the recipe's student.
        data: an object in place of the recipe's data set.
        quiet: print nothing.

    Returns:
        Of each teacher: how many `answers` were wanted, the share of them `known` before, `bytes` on disk, `folder`.

    Raises:
        UserError: something does not fit.
        Interrupted: a signal came; what was answered is kept, and the same call goes on.
    """
    from understudy.run.fill import fill

    source = _source(recipe)
    objects = _put_in(source, teacher=teacher, student=student, data=data)
    described = build_recipe(source, list(overrides))
    return fill(described, objects=objects, console=None if quiet else Console(), export=_path(export))


def train(
    *,
    model: ModelLike,
    data: Any,
    name: str = "train",
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Train one model alone, for instance a teacher.

    Args:
        model: a model by its recipe name, a mapping, a module or a callable that makes one.
        data: as for `distill`.
        name: of the run.
        out: the run folder.
        quiet: print nothing.
        settings: of a recipe's `train`.

    Returns:
        The result; the model is its `.teacher`, saved in `FOLDER/teacher`.
    """
    objects: dict[str, Any] = {}
    described = {
        "name": name,
        "data": section_of("data", data, objects),
        "teacher": {**section_of("teacher", model, objects), "train": dict(settings)},
        "student": {"name": "mlp", "hidden": [16]},
        "method": "kd",
        "train": settings,
    }
    return engine.start(
        _recipe(described), out=_path(out), objects=objects, console=None if quiet else Console(), only_teacher=True
    )


def _start(recipe: Recipe, out: str | Path | None, objects: Mapping[str, Any], quiet: bool) -> Result:
    return engine.start(recipe, out=_path(out), objects=objects, console=None if quiet else Console())


def _source(recipe: str | Path | Mapping[str, Any] | Recipe) -> Source:
    """A recipe's plain data, the caller's own left as it is."""
    if isinstance(recipe, Recipe):
        return Source("recipe", recipe.model_dump(mode="json"))
    if isinstance(recipe, Mapping):
        return Source("recipe", copy.deepcopy(dict(recipe)))
    return read_source(recipe)


def _path(out: str | Path | None) -> Path | None:
    return None if out is None else Path(out)


def _recipe(described: dict[str, Any]) -> Recipe:
    return build_recipe(Source("arguments", described))


def _is_model(given: Any) -> bool:
    """Whether it is a model that is there already, torch's or Keras'; neither library is imported to ask."""
    kinds = (("torch.nn", "Module"), ("keras", "Model"))
    return isinstance(given, tuple(getattr(sys.modules[name], kind) for name, kind in kinds if name in sys.modules))
