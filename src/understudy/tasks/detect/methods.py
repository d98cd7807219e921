"""What a distilled detector learns from: a method by name, its taps and the schedule of its weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from understudy.distill import Objective, Schedule
from understudy.errors import UserError
from understudy.losses.table import LOSSES
from understudy.recipe.methods import expand_method
from understudy.tasks.detect.catalogue import LOGITS, check_method, spelled_out
from understudy.tasks.detect.taps import Taps

Rows = Literal["scores", "classes", "boxes"]


@dataclass(frozen=True)
class Method:
    """A distillation method as a detector is trained by it.

    Args:
        name: what it is called in logs.
        objectives: for each loss its options, among them `loss`, `weight` and, for logits, `on`.
        layers: where features are tapped, in the student and, unless said otherwise, in the teacher.
        teacher_layers: where the teacher is tapped.
        schedule: how every weight goes to `end` of itself over the whole training.
        end: the share of its weight that a loss has at the end.
    """

    name: str
    objectives: tuple[Mapping[str, Any], ...]
    layers: Taps = "neck"
    teacher_layers: Taps | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    end: float = 0.1

    @property
    def is_native(self) -> bool:
        """Whether it is ultralytics' own distillation."""
        return self.name == "native"


def read_method(value: str | Mapping[str, Any] | Method) -> Method:
    """A method from a word (`cwd`, `mgd`, `kd`, `cwd:features`, `mgd+kd`, `native`) or a mapping with its options.

    Raises:
        UserError: no such method, option or layer, or one that a detector cannot be trained by.
    """
    if isinstance(value, Method):
        return value
    given = {"name": value} if isinstance(value, str) else dict(value)
    if problem := check_method(given):
        raise UserError(problem, where="method")
    names = ("layers", "teacher_layers", "schedule", "end")
    own: dict[str, Any] = {name: given.pop(name) for name in names if name in given}
    if given["name"] == "native":
        return Method("native", ({"loss": "native", "weight": given.get("weight", 6.0)},), **own)
    expanded = expand_method(spelled_out(given))
    return Method(str(value["name"] if isinstance(value, Mapping) else value), tuple(expanded["objectives"]), **own)


def make_objectives(method: Method, epochs: int, imgsz: int) -> list[Objective]:
    """The losses of a method, with their weights over a training; taps are found by who knows the models.

    Args:
        method: not ultralytics' own.
        epochs: of the whole training.
        imgsz: the image size: MGD sums over positions, so that its published weight, which is for 640 pixels, is
            scaled to mean the same at any size.
    """
    objectives = []
    for described in method.objectives:
        options = {key: value for key, value in described.items() if key not in ("loss", "weight", "on")}
        entry = LOSSES[described["loss"]]
        loss = getattr(import_module(entry.module), entry.class_name)(**_tuples(options))
        if getattr(loss, "with_logits", False) or getattr(loss, "needs_input_gradients", False):
            raise UserError(f"'{described['loss']}' compares whole images' logits or gradients beside features: a "
                            "detector has no such logits", where="method")  # fmt: skip
        scale = (640 / imgsz) ** 2 if described["loss"] == "mgd" else 1.0
        weight = _schedule(method, described.get("weight", 1.0), epochs, scale)
        is_logits = described["loss"] in LOGITS
        objectives.append(Objective(loss, weight, student_tap=None if is_logits else "taps", name=described["loss"]))
    return objectives


def rows_of(described: Mapping[str, Any]) -> Rows:
    """Which of a detector's outputs a logit method compares."""
    return described.get("on") or LOGITS[described["loss"]]


def _schedule(method: Method, weight: Any, epochs: int, scale: float) -> Schedule:
    """One weight schedule over the whole training, the method's own laid over the loss's."""
    own = [scale * value for value in _by_epoch(weight, epochs)]
    if method.schedule == "constant" or epochs < 2:
        return Schedule(tuple(own))
    share = Schedule.ramp(1.0, method.end, epochs - 1, method.schedule)
    return Schedule(tuple(value * share.at(epoch) for epoch, value in enumerate(own)))


def _by_epoch(weight: Any, epochs: int) -> list[float]:
    if isinstance(weight, Mapping):
        ramp = Schedule.ramp(weight["start"], weight["end"], weight["epochs"], weight.get("shape", "linear"))
        return [ramp.at(epoch) for epoch in range(epochs)]
    schedule = weight if isinstance(weight, Schedule) else Schedule(tuple(_several(weight)))
    return [schedule.at(epoch) for epoch in range(epochs)]


def _several(weight: Any) -> list[float]:
    return [float(value) for value in weight] if isinstance(weight, (list, tuple)) else [float(weight)]


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
