"""Weighted soft labels: samples that the student knows as well as the teacher count less."""

from typing import Any

import keras

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import Tensor, compared, cross_entropy, mean
from understudy.keras.operations import ops


@keras.saving.register_keras_serializable("understudy")
class WSLD(Loss):
    """Distillation that weighs each sample by how much worse than the teacher the student is at it.

    With H the cross entropy with the labels at temperature 1: `w = 1 - exp(-H_s / H_t)`, without gradient, and
    `T² · mean_i w_i · (-Σ_k softmax(z_t / T)_k log softmax(z_s / T)_k)`.

    Reference: Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge Distillation: A
    Bias-Variance Tradeoff Perspective", ICLR 2021 (https://arxiv.org/abs/2102.00650); code:
    https://github.com/bellymonster/Weighted-Soft-Label-Distillation (it adds 1e-7 to H_t, so do we).

    Args:
        temperature: T; 2 on ImageNet, 4 on CIFAR-100.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, temperature: float = 2.0, **layer: Any) -> None:
        super().__init__(**layer)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature

    def call(self, student: Tensor, teacher: Tensor, *, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits.
            teacher: logits of the same shape; never a gradient.
            labels: class numbers, or (N, ..., K) probabilities.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        student, teacher = compared(student, teacher)
        of_student = cross_entropy(ops.stop_gradient(student), labels)
        of_teacher = cross_entropy(teacher, labels)
        weight = -ops.expm1(-of_student / (of_teacher + 1e-7))
        soft_labels = ops.softmax(teacher / self.temperature, axis=-1)
        distilled = cross_entropy(student / self.temperature, soft_labels)
        return self.temperature**2 * mean(weight * distilled, sample_weight)
