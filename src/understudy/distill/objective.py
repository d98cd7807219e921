"""An objective: a loss with its weight and the places it compares."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from understudy.distill.adapters import make_adapter, make_resizer, tokens_to_map
from understudy.distill.ensemble import mixture
from understudy.distill.schedule import Schedule, Share
from understudy.errors import UserError
from understudy.losses.functional import NoMap, ShapeMismatch

# What an objective reads of a student with two heads.
Head = Literal["class", "distillation", "each"]


@dataclass(frozen=True)
class Signals:
    """What one batch yields; a loss names the fields it needs as keyword arguments.

    Args:
        student: (N, K) logits; of two heads those of the class head.
        distillation: (N, K) logits of the student's distillation head, where it has one.
        teacher: (N, K) logits, or None without a teacher.
        student_features: tapped outputs of the student by module path.
        teacher_features: tapped outputs of the teacher by module path.
        inputs: (N, C, H, W) what the student saw.
        labels: (N,) class numbers or (N, K) probabilities.
        sample_ids: (N,) numbers of the samples in their source.
        labelled: (M,) positions of the samples with a label; None when all have one.
        views: how many views of the samples there are, one after the other along N.
        members: (N, M, K) logits of several teachers; None for one.
        shares: the M weights of their mean.
        teacher_head: the teacher's last linear layer, frozen.
        student_model: the student itself, for losses that run it again.
        teacher_model: the teacher itself, frozen.
        epoch: counted from 0.
        step: counted from 0 over the whole training.
    """

    student: Tensor
    teacher: Tensor | None = None
    student_features: dict[str, Tensor] = field(default_factory=dict)
    teacher_features: dict[str, Tensor] = field(default_factory=dict)
    inputs: Tensor | None = None
    labels: Tensor | None = None
    sample_ids: Tensor | None = None
    labelled: Tensor | None = None
    views: int = 1
    members: Tensor | None = None
    shares: tuple[float, ...] = ()
    teacher_head: nn.Module | None = None
    student_model: nn.Module | None = None
    teacher_model: nn.Module | None = None
    distillation: Tensor | None = None
    epoch: int = 0
    step: int = 0


class Objective(nn.Module):
    """A loss, its weight, and where it taps the two models.

    Args:
        loss: any module with `forward(student, teacher, *, <needs>)`; each keyword is a field of `Signals`. Without
            a `teacher` argument it is asked without one.
        weight: a number, a schedule over epochs, or the share of the gradient that it is to hold.
        student_tap: a module path with globs, several, or `auto`; None compares the logits.
        teacher_tap: likewise for the teacher; None takes the logits, or with a student tap `auto`'s match.
        members: which of several teachers it learns from, counted from 0; None means all.
        head: which head of a student with two it reads: `class`, `distillation`, or `each` for the mean of the loss on
            either. By default what compares with the teacher reads the distillation head, labels the class head, and
            both where no teacher teaches the other.
        name: in logs and reports; by default the class's name.
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float | Schedule | Share = 1.0,
        *,
        student_tap: str | Sequence[str] | None = None,
        teacher_tap: str | Sequence[str] | None = None,
        members: Sequence[int] | None = None,
        head: Head | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weight = weight
        self.student_tap = student_tap
        self.teacher_tap = teacher_tap
        self.members = members
        self.head: Head | None = head
        self.reads: Head = "class"  # resolved by the distiller
        self.held_weight = 1.0  # of a `Share`, until the first gradients were measured
        if teacher_tap is None and student_tap is not None and getattr(loss, "with_logits", False) != "student":
            self.teacher_tap = student_tap
        self.name = name or type(loss).__name__.lower()
        parameters = inspect.signature(loss.forward).parameters.values()
        self.needs = tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
        self.needs_teacher = any(p.name == "teacher" for p in parameters)
        unknown = set(self.needs) - set(Signals.__dataclass_fields__)
        if unknown:
            raise ValueError(f"{type(loss).__name__} asks for {sorted(unknown)}, which no batch has")
        # Resolved by the distiller, which knows the models.
        self.student_paths: tuple[str, ...] = ()
        self.teacher_paths: tuple[str, ...] = ()
        self.adapters = nn.ModuleList()
        self.tokens_as_maps = False
        # A loss may ask for the logits behind the features it compares, of both models or of the student alone,
        # and for gradients with respect to the input.
        self.with_logits: bool | Literal["student"] = getattr(loss, "with_logits", False)
        self.needs_input_gradients = bool(getattr(loss, "needs_input_gradients", False))
        self.takes_views = bool(getattr(loss, "takes_views", False))

    @property
    def reads_logits(self) -> bool:
        """Whether it reads the student's logits, and not its features alone."""
        return self.student_tap is None or bool(self.with_logits)

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        if isinstance(self.weight, Share):
            return self.held_weight
        return self.weight.at(epoch) if isinstance(self.weight, Schedule) else float(self.weight)

    def forward(self, signals: Signals) -> Tensor:
        """Compute the loss, unweighted, over the samples that have what it needs.

        Args:
            signals: what the batch yielded.

        Returns:
            A scalar; zero, with a gradient of zero, where no sample of the batch has a label it needs.
        """
        if self.needs_input_gradients and signals.labelled is not None:
            raise UserError(f"the loss '{self.name}' needs a label for every sample: leave data.transfer out")
        if "labels" in self.needs and signals.labelled is not None:
            if len(signals.labelled) == 0:
                return signals.student.sum() * 0.0
            signals = _rows(signals, signals.labelled)
        for need in self.needs:
            if getattr(signals, need) is None:
                raise UserError(f"the loss '{self.name}' needs {need}: give them with the batch")
        if self.reads == "class" or signals.distillation is None:
            return self._loss_of(signals)
        on_distillation = self._loss_of(replace(signals, student=signals.distillation))
        return on_distillation if self.reads == "distillation" else (self._loss_of(signals) + on_distillation) / 2

    def _loss_of(self, signals: Signals) -> Tensor:
        with torch.autocast(signals.student.device.type, enabled=False):
            return self.loss(*self._arguments(signals), **{need: getattr(signals, need) for need in self.needs})

    def fit_to(self, example: Signals) -> None:
        """Make what depends on the models' shapes: the loss's own weights, or adapters where shapes must agree.

        Args:
            example: what a small batch yielded; every field the loss needs is there.

        Raises:
            UserError: features that no adapter can bring together.
        """
        try:
            self._fit_to(example)
        except UserError as error:
            if self.tokens_as_maps or not isinstance(error.__cause__, NoMap):
                raise
            self.tokens_as_maps, self.adapters = True, nn.ModuleList()
            self._fit_to(example)

    def _fit_to(self, example: Signals) -> None:
        prepare = getattr(self.loss, "prepare", None)
        if callable(prepare):
            self.tokens_as_maps |= self._has_tokens_beside_maps(example)
            sides = self._arguments(example)
            try:
                prepare(*sides if self.needs_teacher else (*sides, None))
            except ValueError as error:
                raise UserError(f"'{self.name}' cannot compare what is tapped ({error}): name other taps") from error
            self._give_margins(example)
            if self.student_paths and self.needs_teacher and self._shapes_differ(example):
                # Its own weights brought the channels together: what is left is the resolution.
                self._adapt(make_resizer, example)
        elif self.student_paths and self.needs_teacher and self._shapes_differ(example):
            self._adapt(make_adapter, example)
        self._try(example)

    def _adapt(self, make: Callable[[Tensor, Tensor], nn.Module], example: Signals) -> None:
        students = self._tapped(example.student_features, self.student_paths)
        teachers = self._tapped(example.teacher_features, self.teacher_paths)
        self.adapters = nn.ModuleList(make(*pair) for pair in zip(students, teachers, strict=True))

    def _give_margins(self, example: Signals) -> None:
        """To a loss that takes margins from the teacher's batch norms: the modules that it taps."""
        take = getattr(self.loss, "margins_from", None)
        taps_outputs = all(not path.endswith(":input") for path in self.teacher_paths)
        if callable(take) and example.teacher_model is not None and taps_outputs:
            take([example.teacher_model.get_submodule(path) for path in self.teacher_paths])

    def _has_tokens_beside_maps(self, example: Signals) -> bool:
        """Whether one model's tokens meet the other's map, which a loss with weights of its own brings to no shape."""
        pairs = zip(self.student_paths, self.teacher_paths, strict=False)
        return any(
            {example.student_features[own].ndim, example.teacher_features[other].ndim} == {3, 4} for own, other in pairs
        )

    def _shapes_differ(self, example: Signals) -> bool:
        """Whether the loss refuses the tapped features because student's and teacher's differ in shape."""
        try:
            self._try(example)
        except UserError as error:
            return isinstance(error.__cause__, ShapeMismatch) and not isinstance(error.__cause__, NoMap)
        return False

    def _try(self, example: Signals) -> None:
        """Compute the loss once, changing nothing, so that taps it cannot compare are found before training."""
        if self.takes_views or "sample_ids" in self.needs:
            return
        self.loss.eval()
        try:
            with torch.set_grad_enabled(self.needs_input_gradients):
                self(example)
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"'{self.name}' cannot compare what is tapped ({reason}): name other taps") from error
        finally:
            self.loss.train()

    def _arguments(self, signals: Signals) -> list[Any]:
        own = self._tapped(signals.student_features, self.student_paths)
        if len(self.adapters):
            own = tuple(adapt(_raised(feature)) for adapt, feature in zip(self.adapters, own, strict=True))
        sides = [_side(signals.student, own, bool(self.with_logits))]
        if self.needs_teacher:
            other = self._tapped(signals.teacher_features, self.teacher_paths)
            sides.append(_side(self._teacher_logits(signals), other, self.with_logits is True))
        if signals.views > 1 and self.takes_views:
            sides = [tuple(side.chunk(signals.views)) for side in sides]
        return sides

    def _tapped(self, features: dict[str, Tensor], paths: tuple[str, ...]) -> tuple[Tensor, ...]:
        tapped = (features[path] for path in paths)
        return tuple(
            tokens_to_map(feature) if self.tokens_as_maps and feature.ndim == 3 else feature for feature in tapped
        )

    def _teacher_logits(self, signals: Signals) -> Tensor | None:
        """The teacher's logits; of several teachers the mean of their probabilities at the loss's temperature."""
        if signals.members is None:
            return signals.teacher
        chosen = list(self.members) if self.members is not None else list(range(signals.members.shape[1]))
        total = sum(signals.shares[member] for member in chosen)
        temperature = getattr(self.loss, "temperature", 1.0)
        return mixture(
            signals.members[:, chosen],
            [signals.shares[member] / total for member in chosen],
            temperature if isinstance(temperature, (int, float)) else 1.0,
        )


def _side(logits: Tensor | None, tapped: tuple[Tensor, ...], with_logits: bool) -> Any:
    """What a loss gets of one model: the logits, the tapped features, or both."""
    if not tapped:
        return logits
    if with_logits:
        return (*tapped, logits)
    return tapped[0] if len(tapped) == 1 else tapped


def _raised(feature: Tensor) -> Tensor:
    """Under autocast features are half precision; adapters compute in their own."""
    return feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature


def _rows(signals: Signals, rows: Tensor) -> Signals:
    def pick(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensor[rows] for key, tensor in value.items()}
        return value[rows] if isinstance(value, Tensor) else value

    chosen = {name: pick(value) for name, value in vars(signals).items() if name != "labelled"}
    return Signals(**chosen)
