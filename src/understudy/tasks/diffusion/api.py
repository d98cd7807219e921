"""Distillation of diffusion models in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from understudy.data.table import REGISTERED, SOURCES
from understudy.errors import UserError, did_you_mean
from understudy.recipe.reader import Source, build_recipe
from understudy.run.result import Result
from understudy.tasks.diffusion.settings import FLAT_FOLDER, FROM_TEACHER
from understudy.tasks.diffusion.shapes import SHAPES


def distill(
    *,
    teacher: Any,
    data: Any,
    steps: Sequence[int],
    method: Any = "progressive",
    prediction: str | None = None,
    conditional: bool | None = None,
    convert: Any = "auto",
    guidance: Mapping[str, Any] | None = None,
    process: Mapping[str, float] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    name: str = "diffusion",
    out: str | Path | None = None,
    seeds: int = 1,
    quiet: bool = False,
    **train: Any,
) -> Result:
    """Distil a diffusion model into ever fewer steps and compare the students with it.

    Args:
        teacher: a diffusers pipeline or its folder, a run folder, a published Flax checkpoint, a module called as
            `model(z, t, y)` with t in [0, 1], the name of a shape or a mapping as in a recipe's `teacher` (these two
            are trained first).
        data: a data set by name, a mapping as in a recipe's `data`, a folder of images (which need no classes), an
            object (images, (images, labels) or a Dataset), or `"teacher"` for the teacher's own samples.
        steps: numbers of steps, each half of the one before: `[64, 32, 16, 8, 4, 2, 1]`.
        method: `progressive`, `tract`, `consistency`, a mapping as in a recipe, or several in a list.
        prediction: what a module given as teacher predicts: `v` (the default), `x`, `eps` or `both`.
        conditional: whether images are drawn by class; by default as the teacher says, else no.
        convert: as in a recipe: `auto`, `none`, or how long to fine-tune a foreign teacher on our schedule.
        guidance: as in a recipe: students learn guidance first, such as `{"weights": [0, 4], "sample": 1}`.
        process: limits of the schedule, such as `{"logsnr_min": -10, "logsnr_max": 10}`, where a teacher has others.
        evaluate: as in a recipe, such as `{"images": 1000}`.
        name: of the run.
        out: the run folder; by default the next number below `runs/NAME`.
        seeds: how many times everything is done.
        quiet: print nothing.
        train: settings of a recipe's `train`, such as `threads=1, device="cuda", precision="bf16"`.

    Returns:
        The result: `.verdict`, `.table`, `.student` (called as `student(z, t, y)`), `.folder`.

    Raises:
        UserError: something does not fit.
        RunError: the run could not go on.

    Example:
        >>> import understudy as us
        >>> result = us.diffusion.distill(teacher="runs/my-ddpm", data="photos", steps=[64, 32, 16, 8, 4])
        ... # doctest: +SKIP
    """
    from understudy.run.start import start

    objects: dict[str, Any] = {}
    described = {
        "name": name,
        "task": "diffusion",
        "data": _data(data, objects),
        "teacher": _teacher(teacher, objects, prediction, conditional),
        "steps": list(steps),
        "method": method,
        "convert": convert,
        "guidance": None if guidance is None else dict(guidance),
        "process": dict(process or {}),
        "evaluate": dict(evaluate or {}),
        "train": train,
        "seeds": seeds,
    }
    recipe = build_recipe(Source("arguments", described))
    console = None if quiet else Console()
    return start(recipe, out=None if out is None else Path(out), objects=objects, console=console)


def _teacher(given: Any, objects: dict[str, Any], prediction: str | None, conditional: bool | None) -> dict[str, Any]:
    section: dict[str, Any]
    if isinstance(given, Mapping):
        section = dict(given)
    elif isinstance(given, (str, Path)):
        section = {"name" if str(given) in SHAPES else "weights": str(given)}
    else:
        objects["teacher"] = given
        section = {"name": f"python:{getattr(given, '__qualname__', type(given).__qualname__)}"}
        if conditional is None and isinstance(given, nn.Module):
            conditional = bool(getattr(given, "conditional", False))
    if prediction is not None:
        section["prediction"] = prediction
    if conditional is not None:
        section["conditional"] = conditional
    return section


def _data(given: Any, objects: dict[str, Any]) -> dict[str, Any]:
    known = (*SOURCES, *REGISTERED, FROM_TEACHER)
    if isinstance(given, str) and given in known:
        return {"name": given}
    if isinstance(given, (str, Path)):
        if not Path(given).expanduser().is_dir():
            raise UserError(f"is neither a folder nor a data set, {did_you_mean(str(given), known)}", where=given)
        return {"name": FLAT_FOLDER, "path": str(given)}
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        return dict(given)
    objects["data"] = given
    return {"name": f"python:{getattr(given, '__qualname__', type(given).__qualname__)}"}
