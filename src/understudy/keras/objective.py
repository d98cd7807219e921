"""An objective: a loss with its weight, the layers it compares, and an adapter where their shapes differ."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from understudy.distill.schedule import Schedule
from understudy.errors import UserError
from understudy.keras.adapters import Adapter
from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import ShapeMismatch
from understudy.keras.losses.kd import KerasLoss
from understudy.keras.operations import ops

Tensor = Any
Taps = str | Sequence[str] | None


@dataclass(frozen=True)
class Signals:
    """What one batch yields.

    Args:
        student: (N, ..., K) logits.
        teacher: logits of the same shape, or None without a teacher.
        student_features: tapped outputs of the student by layer path.
        teacher_features: tapped outputs of the teacher by layer path.
        labels: as they were given to `fit`, or None.
        sample_weight: (N,) or (N, ...) weights of samples or positions, masks included, or None.
    """

    student: Tensor
    teacher: Tensor | None = None
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    sample_weight: Tensor | None = None


@keras.saving.register_keras_serializable("understudy")
class Objective(keras.layers.Layer):
    """A loss, its weight, and where it taps the two models.

    Args:
        loss: one of `understudy.keras.losses`, or a loss of Keras between labels and the student's output.
        weight: a number, or a schedule over epochs.
        student_tap: a layer's name, `NESTED/LAYER`, globs, several, `auto`, `last` or `embedding`; None compares the
            logits.
        teacher_tap: likewise of the teacher; where only the student's is given, the same.
        name: in the progress bar and in logs; by default the loss class's name.
    """

    def __init__(
        self,
        loss: Any,
        weight: float | Schedule = 1.0,
        *,
        student_tap: Taps = None,
        teacher_tap: Taps = None,
        name: str | None = None,
    ) -> None:
        if isinstance(loss, (keras.losses.Loss, str)):
            loss = KerasLoss(loss=loss)
        if not isinstance(loss, Loss):
            raise UserError(f"{type(loss).__name__} is no loss of Keras: take one of understudy.keras.losses")
        super().__init__(name=name or type(loss).__name__.lower(), dtype="float32", autocast=False)
        self.loss = loss
        self.schedule = weight if isinstance(weight, Schedule) else Schedule((float(weight),))
        self.student_tap = student_tap
        self.teacher_tap = student_tap if teacher_tap is None else teacher_tap
        # Resolved by the distiller, which knows the models.
        self.student_paths: tuple[str, ...] = ()
        self.teacher_paths: tuple[str, ...] = ()
        self.adapters: list[Adapter] = []
        # A variable where it changes: a compiled step reads it anew.
        self.current = None
        if len(self.schedule.values) > 1:
            start = keras.initializers.Constant(self.schedule.at(0))
            self.current = self.add_weight(shape=(), initializer=start, trainable=False, name="weight")
        self.built = True

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares with a teacher."""
        return self.loss.takes("teacher")

    @property
    def needs_teacher_logits(self) -> bool:
        """Whether it compares with the teacher's logits."""
        return self.needs_teacher and not self.teacher_paths

    @property
    def weight(self) -> Any:
        """The weight as it is now, a number or a variable."""
        return self.schedule.values[0] if self.current is None else self.current

    @property
    def counts(self) -> bool:
        """Whether it ever has a weight."""
        return any(value != 0 for value in self.schedule.values)

    def start_epoch(self, epoch: int) -> None:
        """Set the weight of an epoch, counted from 0."""
        if self.current is not None:
            self.current.assign(self.schedule.at(epoch))

    def value(self, signals: Signals, *, training: bool = True) -> Tensor:
        """Compute the loss, unweighted.

        Args:
            signals: what the batch yielded.
            training: the mode, for batch norms of regressors.

        Returns:
            A scalar in float32.
        """
        given: dict[str, Any] = {}
        if self.loss.takes("labels"):
            if signals.labels is None:
                raise UserError(f"the loss '{self.name}' needs labels: give y to fit, or leave that objective out")
            given["labels"] = signals.labels
        if signals.sample_weight is not None:
            if self.loss.takes("sample_weight"):
                given["sample_weight"] = signals.sample_weight
            else:
                warnings.warn(
                    f"'{self.name}' compares the samples of a batch with each other: sample weights, class weights and "
                    "masks do not apply to it",
                    stacklevel=2,
                )
        if self.loss.takes("training"):
            given["training"] = training
        return ops.cast(self.loss(*self._sides(signals), **given), "float32")

    def fit_to(self, example: Signals) -> None:
        """Make what depends on the models' shapes: the loss's own weights, or adapters where shapes must agree.

        Args:
            example: what a small batch yielded, labels included.

        Raises:
            UserError: features that no adapter can bring together.
        """
        if not self.counts:
            return
        if self.loss.has_weights() or not self.student_paths or not self.needs_teacher:
            self._try(example)
            return
        try:
            self._try(example)
        except UserError as error:
            if not isinstance(error.__cause__, ShapeMismatch):
                raise
            self.adapters = [
                Adapter(
                    tuple(example.student_features[own].shape[1:]), tuple(example.teacher_features[other].shape[1:])
                )
                for own, other in zip(self.student_paths, self.teacher_paths, strict=True)
            ]
            self._try(example)

    def _try(self, example: Signals) -> None:
        """Compute the loss once, so that what cannot be compared is found before training."""
        try:
            self.value(example, training=False)
        except (ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"'{self.name}' cannot compare what is tapped ({reason}): name other taps") from error

    def _sides(self, signals: Signals) -> list[Any]:
        own = tuple(signals.student_features[path] for path in self.student_paths)
        if self.adapters:
            own = tuple(adapt(feature) for adapt, feature in zip(self.adapters, own, strict=True))
        sides = [_side(signals.student, own)]
        if self.needs_teacher:
            other = tuple(signals.teacher_features[path] for path in self.teacher_paths)
            sides.append(_side(signals.teacher, other))
        return sides

    def get_config(self) -> dict[str, Any]:
        """What makes another of the same settings."""
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "weight": list(self.schedule.values),
            "student_tap": self.student_tap,
            "teacher_tap": self.teacher_tap,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Objective":
        """Make one from its settings."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss, "weight": Schedule(tuple(config["weight"]))})


def _side(logits: Tensor | None, tapped: tuple[Tensor, ...]) -> Any:
    """What a loss gets of one model: the logits, or the tapped features."""
    if not tapped:
        return logits
    return tapped[0] if len(tapped) == 1 else tapped
