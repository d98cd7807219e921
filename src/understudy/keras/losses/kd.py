"""Hinton's distillation, with each convention that people mean by it as an argument of its own."""

import math
from typing import Any, Literal

import keras

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import Tensor, compared, in_float32, standardized, weighted
from understudy.keras.operations import ops


@keras.saving.register_keras_serializable("understudy")
class KD(Loss):
    """The student's softened class probabilities follow the teacher's.

    With temperature T: `T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))`, summed over classes, averaged over samples.
    It is computed from logarithms throughout; Keras' own divergence raises probabilities to 1e-7 first, which cuts the
    gradient where the student is most wrong (`SoftTargets` has it that way).

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531), section 2.

    Args:
        temperature: T; 1 leaves the probabilities as they are.
        t_squared: multiply by T².
        reduction: `batchmean` divides the sum by the number of samples N, `mean` by all N·K elements, `sum` by nothing.
        cross_entropy: leave out the teacher's entropy, which has no gradient.
        standardize: give both models' logits mean 0 and standard deviation 1 over the classes first: logit
            standardisation (LSKD), Sun, Ren, Li, Wang, Cao, CVPR 2024 (https://arxiv.org/abs/2403.01427).
        layer: settings of every loss, see `Loss`.

    Example:
        >>> from understudy.keras.losses import KD
        >>> import numpy as np
        >>> loss = KD(temperature=2.0)
        >>> round(float(loss(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))), 4)
        0.4898
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        t_squared: bool = True,
        reduction: Literal["batchmean", "mean", "sum"] = "batchmean",
        cross_entropy: bool = False,
        standardize: bool = False,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.t_squared = t_squared
        self.reduction = reduction
        self.cross_entropy = cross_entropy
        self.standardize = standardize

    def call(self, student: Tensor, teacher: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits; gradients flow here.
            teacher: logits of the same shape; never a gradient.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        student, teacher = compared(student, teacher)
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        log_student = ops.log_softmax(student / self.temperature, axis=-1)
        log_teacher = ops.log_softmax(teacher / self.temperature, axis=-1)
        terms = ops.exp(log_teacher) * (-log_student if self.cross_entropy else log_teacher - log_student)
        total = ops.sum(weighted(ops.sum(terms, axis=-1), sample_weight))
        if self.reduction == "batchmean":
            total = total / ops.cast(ops.shape(student)[0], total.dtype)
        if self.reduction == "mean":
            total = total / ops.cast(math.prod(ops.shape(student)), total.dtype)
        return total * self.temperature**2 if self.t_squared else total


@keras.saving.register_keras_serializable("understudy")
class SoftTargets(Loss):
    """Any loss of Keras between softened probabilities, times T²: the form of Keras' example and of its own Distiller.

    `T² · loss(softmax(z_t / T), softmax(z_s / T))`; with `keras.losses.KLDivergence()` that is `KD` but for Keras'
    clipping of probabilities at 1e-7.

    Reference: Borup, "Knowledge Distillation", Keras code examples, 2020
    (https://keras.io/examples/vision/knowledge_distillation).

    Args:
        loss: a loss of Keras (or a function of true and predicted probabilities), the teacher's being the true ones.
        temperature: T.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, loss: Any, temperature: float = 3.0, **layer: Any) -> None:
        super().__init__(**layer)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.loss = keras.losses.get(loss)
        self.temperature = temperature

    def call(self, student: Tensor, teacher: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits.
            teacher: logits of the same shape; never a gradient.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        student, teacher = compared(student, teacher)
        true, predicted = (ops.softmax(logits / self.temperature, axis=-1) for logits in (teacher, student))
        return _of_keras(self.loss, true, predicted, sample_weight) * self.temperature**2

    def get_config(self) -> dict[str, Any]:
        """What makes another of the same settings."""
        return {**super().get_config(), "loss": keras.losses.serialize(self.loss)}


@keras.saving.register_keras_serializable("understudy")
class KerasLoss(Loss):
    """Any loss of Keras between the labels and the student's output.

    Args:
        loss: a loss of Keras, or a function of labels and outputs.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, loss: Any, **layer: Any) -> None:
        super().__init__(**layer)
        self.loss = keras.losses.get(loss)

    def call(self, student: Tensor, *, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: what the student gave, as the loss of Keras wants it.
            labels: likewise.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        (student,) = in_float32(student)
        return _of_keras(self.loss, labels, student, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """What makes another of the same settings."""
        return {**super().get_config(), "loss": keras.losses.serialize(self.loss)}


def _of_keras(loss: Any, true: Tensor, predicted: Tensor, sample_weight: Tensor | None) -> Tensor:
    if isinstance(loss, keras.losses.Loss):
        value = ops.mean(loss(true, predicted, sample_weight=sample_weight))
    else:
        value = ops.mean(weighted(loss(true, predicted), sample_weight))
    return ops.cast(value, predicted.dtype)
