"""DIST: the student's predictions correlate with the teacher's, instead of equalling them."""

from typing import Any

import keras

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import Tensor, compared, length, mean, weighted
from understudy.keras.operations import ops

# Added to the product of the norms, as the authors do: a column of nearly constant probabilities counts for little.
_EPSILON = 1e-8


@keras.saving.register_keras_serializable("understudy")
class DIST(Loss):
    """Pearson's correlation ρ of the two models' probabilities, within each sample and within each class.

    With p the softmax at temperature T, i the samples and c the classes:
    `T² · [β · (1 - mean_i ρ(p_s[i, :], p_t[i, :])) + γ · (1 - mean_c ρ(p_s[:, c], p_t[:, c]))]`. Sample weights weigh
    the first mean, and the samples in the correlations of the second.

    Reference: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    (https://arxiv.org/abs/2205.10536); code: https://github.com/hunto/DIST_KD (Apache-2.0), whose T² it is.

    Args:
        beta: weight of the correlation between the classes of a sample (inter-class in the paper).
        gamma: weight of the correlation between the samples within a class (intra-class).
        temperature: T; the authors take 1 on ImageNet, 4 on CIFAR-100.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, **layer: Any) -> None:
        super().__init__(**layer)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def call(self, student: Tensor, teacher: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits; each position of a map is a sample.
            teacher: logits of the same shape; never a gradient.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        student, teacher = compared(student, teacher)
        weight = ops.reshape(weighted(ops.ones_like(student[..., 0]), sample_weight), (-1,))
        student, teacher = (
            ops.reshape(ops.softmax(logits / self.temperature, axis=-1), (-1, logits.shape[-1]))
            for logits in (student, teacher)
        )
        # The mean over the classes is known: the probabilities add up to 1.
        student, teacher = student - 1 / student.shape[1], teacher - 1 / teacher.shape[1]
        within_samples = mean(1 - _cosine(student, teacher, axis=1), weight)
        relative = ops.expand_dims(weight / ops.maximum(ops.mean(weight), _EPSILON), 1)
        student, teacher = (
            ops.sqrt(relative) * (values - ops.mean(relative * values, axis=0)) for values in (student, teacher)
        )
        within_classes = ops.mean(1 - _cosine(student, teacher, axis=0))
        return self.temperature**2 * (self.beta * within_samples + self.gamma * within_classes)


def _cosine(student: Tensor, teacher: Tensor, *, axis: int) -> Tensor:
    product = ops.sum(student * teacher, axis=axis)
    return product / (length(student, axis) * length(teacher, axis) + _EPSILON)
