"""The Distiller: a `keras.Model` whose fit trains a student on its objectives, with one forward of it a step."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from understudy.errors import UserError
from understudy.keras.losses.kd import KerasLoss, SoftTargets
from understudy.keras.masks import MaskReader, with_mask
from understudy.keras.objective import Objective, Signals
from understudy.keras.operations import ops
from understudy.keras.pair import Pair
from understudy.keras.settle import check_from_logits, distinct_names, labels_like, union
from understudy.keras.taps import Tapped
from understudy.keras.teacher import Teacher, logits_of

Tensor = Any


class _Kept(threading.local):
    """The student's tapped features, from its forward to the loss of the same step."""

    features: dict[str, Tensor] | None = None


@dataclass
class _Beside:
    """What a model that is built already could not take as attributes of its own; nothing in it has weights."""

    trackers: list[keras.metrics.Mean] = field(default_factory=list)
    made_at_compile: list[Objective] = field(default_factory=list)
    compiled_with: tuple[Any, Any, float, float] = (None, None, 0.1, 3)


class _Epochs(keras.callbacks.Callback):
    """Tells the distiller which epoch starts, for weights that change."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        assert isinstance(self.model, Distiller)
        for objective in self.model.objectives:
            objective.start_epoch(epoch)


@keras.saving.register_keras_serializable("understudy")
class Distiller(keras.Model):
    """Trains a student on objectives that compare it with a teacher, by Keras' own `compile` and `fit`.

    The student runs once a step, whatever is tapped; the teacher is frozen, in inference mode, and not differentiated;
    `sample_weight`, `class_weight` and masks apply to every objective that is a mean over samples. Each objective is a
    metric of its own in the progress bar. `predict` is the student's; `distiller.student.save("student.keras")` saves
    a plain Keras model.

    Besides the objectives, `compile(loss=...)` adds a loss of Keras between labels and the student's output, and the
    call shape of Keras' example makes both parts itself: `compile(optimizer, metrics=..., student_loss_fn=...,
    distillation_loss_fn=..., alpha=0.1, temperature=10)`.

    Args:
        student: a `keras.Model` that gives logits.
        teacher: a `keras.Model`, or a `Teacher`; None where no objective needs one.
        objectives: summed with their weights; a method's name such as `kd` or `dkd+at` stands for its usual ones.
        preprocess: from the student's inputs to the teacher's, see `Teacher`.
        example: an input batch, for models whose input shape is not known; both are run on it once, so that what does
            not fit is found here.
        name: of the model.

    Raises:
        UserError: class counts differ, a tap does not exist, a teacher is missing, the student is not built.

    Example:
        >>> import keras, numpy as np, understudy as us
        >>> def model(width):
        ...     return keras.Sequential([keras.Input((8,)), keras.layers.Dense(width), keras.layers.Dense(3)])
        >>> distiller = us.keras.Distiller(student=model(4), teacher=model(32), objectives=[
        ...     us.keras.Objective(us.keras.losses.CrossEntropy(), weight=0.1),
        ...     us.keras.Objective(us.keras.losses.KD(temperature=4), weight=0.9)])
        >>> distiller.compile("adam", metrics=["accuracy"])
        >>> history = distiller.fit(np.random.rand(64, 8), np.random.randint(0, 3, 64), verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'crossentropy', 'kd', 'loss']
    """

    def __init__(
        self,
        *,
        student: keras.Model,
        teacher: keras.Model | Teacher | None = None,
        objectives: str | Iterable[Objective] = (),
        preprocess: Callable[[Tensor], Tensor] | None = None,
        example: Any = None,
        name: str = "distiller",
    ) -> None:
        super().__init__(name=name)
        if not isinstance(student, keras.Model):
            raise UserError(f"the student is a {type(student).__name__}: give a keras.Model")
        if not isinstance(teacher, keras.Model | Teacher | None):
            raise UserError(f"the teacher is a {type(teacher).__name__}: give a keras.Model, or an us.keras.Teacher")
        if isinstance(objectives, str):
            from understudy.keras.methods import objectives_of

            objectives = objectives_of(objectives)
        self.student = student
        self.asked = Teacher(teacher, preprocess=preprocess) if isinstance(teacher, keras.Model) else teacher
        self.teacher = None if self.asked is None else self.asked.model
        self._kept = _Kept()
        self._mask = MaskReader()
        self._labels_loss = False
        self._beside = _Beside()
        self._given: list[Objective] = []
        self._pair = Pair(student, self.asked, example)
        self._given = self._checked(list(objectives))
        self._settle(self._given)
        self.built = True

    @property
    def objectives(self) -> list[Objective]:
        """What the student is trained on, besides a loss of `compile`."""
        return [*self._given, *self._beside.made_at_compile]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' own, and each objective's."""
        return [*super().metrics, *self._beside.trackers]

    # What Keras calls

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        *,
        metrics: Any = None,
        student_loss_fn: Any = None,
        distillation_loss_fn: Any = None,
        alpha: float = 0.1,
        temperature: float = 3,
        **settings: Any,
    ) -> None:
        """Set the optimiser, metrics, and perhaps losses of Keras.

        Args:
            optimizer: trains the student and the objectives' own weights.
            loss: between labels and the student's output, added to the objectives with weight 1 (or `loss_weights`).
            metrics: of the student's output.
            student_loss_fn: in the form of Keras' example: the loss with the labels, weighted `alpha`.
            distillation_loss_fn: between softened probabilities, times T², weighted `1 - alpha`.
            alpha: share of the labels.
            temperature: T.
            settings: of `keras.Model.compile`, such as `jit_compile`.

        Raises:
            UserError: nothing is left to train on, or a loss does not fit the student.
        """
        if student_loss_fn is not None or distillation_loss_fn is not None:
            self._as_in_example(student_loss_fn, distillation_loss_fn, alpha, temperature)
        if loss is None and not self.objectives:
            raise UserError("there is nothing to train on: give the Distiller objectives, or compile a loss")
        check_from_logits(loss)
        self._labels_loss = loss is not None
        self._beside.compiled_with = (student_loss_fn, distillation_loss_fn, alpha, temperature)
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **settings)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """The student's output; what is tapped on the way is kept for the loss of the same step."""
        output, self._kept.features = self._tapped(inputs, training=training)
        return output

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Ask the teacher and add up the objectives, as Keras' steps of training and testing want it."""
        if y_pred is None:
            y_pred = self(x, training=training)
        features, self._kept.features = self._kept.features, None
        if self._labels_loss:
            total = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        else:  # regularisers of the student and of the objectives' own weights
            total = sum((ops.sum(each) for each in self.losses), ops.zeros(()))
        answer, of_teacher = self._ask(x)
        logits = logits_of(y_pred, "student")
        signals = Signals(
            student=logits,
            teacher=answer,
            student_features=features or {},
            teacher_features=of_teacher,
            labels=y,
            sample_weight=with_mask(sample_weight, self._mask(logits)) if self._masks else sample_weight,
        )
        for objective, tracker in zip(self.objectives, self._beside.trackers, strict=True):
            if not objective.counts:
                continue
            value = objective.value(signals, training=training)
            tracker.update_state(value, sample_weight=ops.shape(logits)[0])
            total = total + objective.weight * value
        return total

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, epochs: int = 1,
            verbose: Any = "auto", callbacks: Any = None, **settings: Any) -> Any:  # fmt: skip
        """Train as `keras.Model.fit` does; arrays, tf.data, PyDataset and DataLoader alike."""
        epochs_told = _Epochs()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks.append(epochs_told)  # pyright: ignore[reportAttributeAccessIssue]
            epochs_told.set_model(self)
        else:
            given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
            callbacks = [epochs_told, *given]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **settings)

    def predict(self, x: Any, *args: Any, **settings: Any) -> Any:
        """The student's output for new inputs."""
        return self.student.predict(x, *args, **settings)

    def get_config(self) -> dict[str, Any]:
        """What makes another of the same models and objectives."""
        pack = keras.saving.serialize_keras_object
        preprocess = self.asked.preprocess if self.asked else None
        return {
            "name": self.name,
            "student": pack(self.student),
            "teacher": None if self.teacher is None else pack(self.teacher),
            "preprocess": None if preprocess is None else pack(preprocess),
            "objectives": [pack(objective) for objective in self._given],
            "example": {
                "shape": list(self._pair.example.shape),
                "dtype": keras.backend.standardize_dtype(self._pair.example.dtype),
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Distiller":
        """Make one from its settings."""
        unpack = keras.saving.deserialize_keras_object
        config = dict(config)
        example = config.pop("example")
        models = {key: unpack(config[key]) for key in ("student", "teacher", "preprocess") if config[key] is not None}
        made = [unpack(objective) for objective in config.pop("objectives")]
        return cls(name=config["name"], objectives=made, example=np.zeros(example["shape"], example["dtype"]), **models)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was called with."""
        labels, soft, alpha, temperature = self._beside.compiled_with
        losses = {"student_loss_fn": labels, "distillation_loss_fn": soft}
        packed = {name: None if loss is None else keras.losses.serialize(loss) for name, loss in losses.items()}
        return {**(super().get_compile_config() or {}), **packed, "alpha": alpha, "temperature": temperature}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as it was when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    # What happens before

    def _checked(self, objectives: list[Objective]) -> list[Objective]:
        """Refuse what cannot be compared; find the taps."""
        for objective in objectives:
            if not isinstance(objective, Objective):
                raise UserError(f"an objective is a {type(objective).__name__}: write us.keras.Objective(loss, weight)")
            self._pair.place(objective)
        return objectives

    def _settle(self, new: list[Objective]) -> None:
        """Settle how both models are run; make the weights and adapters of new objectives, and try them."""
        objectives = self.objectives
        self._tapped = Tapped(self.student, union(objective.student_paths for objective in objectives))
        self._teacher_taps = union(objective.teacher_paths for objective in objectives if objective.counts)
        self._needs_logits = any(objective.needs_teacher_logits and objective.counts for objective in objectives)
        output, features = self._tapped(self._pair.example, training=False)
        logits = logits_of(output, "student")
        # Layers that make masks make them of every batch.
        self._masks = self._mask(logits) is not None
        answer, of_teacher = self._ask(self._pair.example)
        example = Signals(logits, answer, features, of_teacher, labels=labels_like(logits))
        for objective in new:
            objective.fit_to(example)
        self._beside.trackers = [keras.metrics.Mean(name=name) for name in distinct_names(objectives)]

    def _ask(self, inputs: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        if self.asked is None or not (self._needs_logits or self._teacher_taps):
            return None, {}
        return self.asked(inputs, taps=self._teacher_taps, logits=self._needs_logits)

    def _as_in_example(self, labels: Any, soft: Any, alpha: float, temperature: float) -> None:
        """The two objectives of Keras' example."""
        if self._given:
            raise UserError("objectives and student_loss_fn/distillation_loss_fn exclude each other: keep one")
        if labels is None or soft is None:
            missing = "student_loss_fn" if labels is None else "distillation_loss_fn"
            raise UserError(f"{missing} is missing: both are needed")
        self._beside.made_at_compile = self._checked(
            [
                Objective(KerasLoss(loss=labels), alpha, name="student_loss"),
                Objective(SoftTargets(loss=soft, temperature=temperature), 1 - alpha, name="distillation_loss"),
            ]
        )
        self._settle(self._beside.made_at_compile)
