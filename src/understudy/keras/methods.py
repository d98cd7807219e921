"""Methods by name, as in recipes: a loss with its usual weights, taps and options, built for Keras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from understudy.distill.schedule import Schedule
from understudy.errors import UserError, did_you_mean
from understudy.keras import losses
from understudy.losses.table import LOSSES
from understudy.recipe.schema import Method, Weight, WeightSchedule

if TYPE_CHECKING:
    from understudy.keras.objective import Objective

# Where a loss compares the models when nothing is said.
_DEFAULT_TAPS = {"logits": None, "features": "auto", "last": "last", "embedding": "embedding"}


def known_losses() -> tuple[str, ...]:
    """The losses of the table that the Keras front has, by their recipe names; asks without importing Keras."""
    return tuple(name for name, entry in LOSSES.items() if entry.class_name in dir(losses))


def unsupported(method: Method) -> Iterator[str]:
    """What of a method the Keras front does not have, one line each."""
    if method.generations > 1 or method.peers or method.taught_by:
        yield "generations, peers and taught_by are not for Keras: leave them out"
    for objective in method.objectives:
        if objective.loss not in known_losses():
            yield f"'{objective.loss}' has no Keras form, {did_you_mean(objective.loss, known_losses())}"
        if objective.init:
            yield f"'{objective.loss}': an init stage is not for Keras, leave init out"
        if isinstance(objective.weight, str):
            yield f"'{objective.loss}': a weight set by its gradient is not for Keras, give a number or a schedule"


def objectives_of(method: str | dict[str, Any] | Method, *, labels: Any = None, **options: Any) -> list[Objective]:
    """Build a method's objectives: cross entropy with the labels, then its losses.

    Args:
        method: `kd`, `kd:seed-004`, `dkd+at`, a mapping as in a recipe, or a `Method`.
        labels: the weight of the labels in place of the method's.
        options: of the loss, in place of the method's, where it has one: `temperature=10`, `weight=0.5`.

    Raises:
        UserError: the method, the loss or an option does not exist.
    """
    from understudy.keras.objective import Objective

    described = _described(method, labels, options)
    built = []
    if described.labels != 0:
        cross_entropy = losses.CrossEntropy(label_smoothing=described.label_smoothing or 0.0)
        built.append(Objective(cross_entropy, schedule(described.labels), name="labels"))
    for problem in unsupported(described):
        raise UserError(problem, where=f"method '{described.name}'")
    for objective in described.objectives:
        entry = LOSSES[objective.loss]
        try:
            loss = getattr(losses, entry.class_name)(**objective.options)
        except (TypeError, ValueError) as error:
            raise UserError(str(error), where=f"method '{described.name}', loss '{objective.loss}'") from None
        built.append(
            Objective(
                loss,
                schedule(objective.weight),
                student_tap=objective.student or _DEFAULT_TAPS[entry.taps],
                teacher_tap=objective.teacher,
                name=objective.loss,
            )
        )
    return built


def schedule(weight: Weight | str) -> float | Schedule:
    """A recipe's weight as a number or a schedule over epochs."""
    if isinstance(weight, WeightSchedule):
        return Schedule.ramp(weight.start, weight.end, weight.epochs, weight.shape)
    return Schedule(tuple(weight)) if isinstance(weight, tuple) else float(weight)


def _described(method: str | dict[str, Any] | Method, labels: Any, options: dict[str, Any]) -> Method:
    from pydantic import ValidationError

    if isinstance(method, Method):
        return method
    try:
        if options or labels is not None:
            word = {"name": method, "loss": method} if isinstance(method, str) else dict(method)
            method = {**word, **({} if labels is None else {"labels": labels}), **options}
            method["name"] = str(method["name"]).replace(":", "-").replace(" ", "")
        return Method.model_validate(method)
    except ValidationError as error:
        raise UserError(str(error.errors()[0]["msg"]).removeprefix("Value error, "), where="method") from None
