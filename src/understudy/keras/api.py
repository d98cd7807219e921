"""The front door of the Keras side: distil, or compare methods, with the control trained beside; the same result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from understudy.errors import UserError
from understudy.recipe.reader import Source, build_recipe
from understudy.recipe.source import section_of
from understudy.run.result import Result


def distill(
    *,
    teacher: Any,
    student: Any,
    x: Any = None,
    y: Any = None,
    test: Any = None,
    validation: Any = None,
    data: str | None = None,
    method: Any = "kd",
    preprocess: Callable[[Any], Any] | None = None,
    name: str = "distill",
    out: str | Path | None = None,
    seeds: int = 3,
    control: str = "train",
    teacher_train: dict[str, Any] | None = None,
    quiet: bool = False,
    **train: Any,
) -> Result:
    """Distil a teacher into a student by Keras' fit, and compare with the student trained alone.

    Args:
        teacher: a `keras.Model` (used as it is) or a `Teacher`, a function that makes one (then trained first), the
            path of a `.keras` file, or a model by its recipe name.
        student: a function that makes a `keras.Model`, a model (copied; all seeds start from its weights), or a name.
        x: inputs, or a tf.data data set, PyDataset or DataLoader of (inputs, class numbers).
        y: class numbers; None where `x` yields them.
        test: (x, y) or a data set, for the table and the verdict; of arrays a fifth is held out where it is missing.
        validation: likewise, for the choice of the best epoch.
        data: a data set by its recipe name, in place of all these.
        method: as in a recipe: `kd`, `kd:seed-004`, `dkd+at`, a mapping, or several in a list.
        preprocess: from the student's inputs to the teacher's, see `Teacher`.
        name: of the run.
        out: the run folder; by default the next number below `runs/NAME`.
        seeds: how many times each student is trained.
        control: `train` or `none`.
        teacher_train: settings that differ for a teacher that is trained here.
        quiet: print nothing.
        train: settings of a recipe's `train`, such as `epochs=5, batch_size=64, lr=1e-3`.

    Returns:
        The result: `.verdict`, `.table`, `.student`, `.teacher`, `.history`, `.folder`.

    Raises:
        UserError: something does not fit.
        RunError: the run could not go on.

    Example:
        >>> import understudy as us
        >>> result = us.keras.distill(teacher=teacher, student=make_student, x=x, y=y, epochs=5)  # doctest: +SKIP
        >>> print(result.verdict)  # doctest: +SKIP
    """
    import keras

    from understudy.keras.teacher import Teacher
    from understudy.run import start as engine

    if preprocess is not None:
        if not isinstance(teacher, keras.Model):
            raise UserError("preprocess goes with a teacher that is given as a keras.Model")
        teacher = Teacher(teacher, preprocess=preprocess)
    objects: dict[str, Any] = {}
    described = {
        "name": name,
        "task": "keras",
        "data": _data(data, x, y, test, validation, objects),
        "teacher": section_of("teacher", teacher, objects),
        "student": section_of("student", student, objects),
        "method": method,
        "train": train,
        "seeds": seeds,
        "control": control,
    }
    if isinstance(teacher, (keras.Model, Teacher)):
        described["teacher"]["train"] = "none"
    elif teacher_train is not None:
        described["teacher"]["train"] = dict(teacher_train)
    recipe = build_recipe(Source("arguments", described))
    console = None if quiet else Console()
    return engine.start(recipe, out=None if out is None else Path(out), objects=objects, console=console)


def compare(*, methods: Sequence[Any] = ("kd",), name: str = "compare", **arguments: Any) -> Result:
    """Distil by several methods, each compared with the student alone; p values are corrected for their number.

    Args:
        methods: as `method` of `distill`, each.
        name: of the run.
        arguments: of `distill`.

    Returns:
        The result, with a verdict for each method.

    Raises:
        UserError: something does not fit.
        RunError: the run could not go on.
    """
    return distill(method=list(methods), name=name, **arguments)


def _data(name: str | None, x: Any, y: Any, test: Any, validation: Any, objects: dict[str, Any]) -> dict[str, Any]:
    if name is not None:
        if x is not None:
            raise UserError("data names a data set and x is one: keep one of them")
        return {"name": name}
    if x is None:
        raise UserError("there is nothing to train on: give x and y, a data set as x, or data='mnist'")
    train = x if y is None else (x, y)
    if test is None:
        if y is None:
            raise UserError("a data set cannot be divided: give test=, as arrays (x, y) or a data set")
        objects["data"] = train
    else:
        parts = {"train": train, "test": test, "validation": validation}
        objects["data"] = {use: part for use, part in parts.items() if part is not None}
    return {
        "name": f"python:{type(x).__qualname__}",
        "validation": 0.1 if validation is None and y is not None else "none",
    }
