"""The target class and the others apart: decoupled (DKD) and normalised (NKD) distillation."""

from typing import Any

import keras

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import Tensor, compared, mean, own_class, split_target, standardized
from understudy.keras.operations import ops


@keras.saving.register_keras_serializable("understudy")
class DKD(Loss):
    """Hinton's divergence taken apart: how sure of the target class, and how the other classes share the rest.

    With p the probability of the labelled class at temperature T and q the distribution over the other classes among
    themselves: `T² · [α · KL([p_t, 1 - p_t] ‖ [p_s, 1 - p_s]) + β · KL(q_t ‖ q_s)]`, averaged over samples.

    Reference: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022
    (https://arxiv.org/abs/2203.08679), equation 7; code: https://github.com/megvii-research/mdistiller (MIT). The same
    value in closed form, finite where probabilities underflow.

    Args:
        temperature: T.
        alpha: weight of the target class against the rest.
        beta: weight of the other classes among themselves.
        standardize: standardise both models' logits first (LSKD, see `KD`).
        layer: settings of every loss, see `Loss`.
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        standardize: bool = False,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.standardize = standardize

    def call(self, student: Tensor, teacher: Tensor, *, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits.
            teacher: logits of the same shape; never a gradient.
            labels: class numbers, or (N, ..., K) probabilities, of which the largest counts.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        student, teacher = compared(student, teacher)
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        own = own_class(labels, student)
        log_own, log_rest, log_student = split_target(student / self.temperature, own)
        teacher_own, teacher_rest, log_teacher = split_target(teacher / self.temperature, own)
        target = ops.exp(teacher_own) * (teacher_own - log_own) + ops.exp(teacher_rest) * (teacher_rest - log_rest)
        others = ops.sum(ops.exp(log_teacher) * (log_teacher - log_student), axis=-1)
        return self.temperature**2 * mean(self.alpha * target + self.beta * others, sample_weight)


@keras.saving.register_keras_serializable("understudy")
class NKD(Loss):
    """The target class in the teacher's measure, and the other classes normalised to one on both sides.

    With p the softmax, y the label and q the softmax over the other classes at temperature T:
    `-p_t[y] log p_s[y] - γ · T² · Σ_k q_t[k] log q_s[k]`, averaged over samples. The first term has no temperature.

    Reference: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", ICCV 2023 (https://arxiv.org/abs/2303.13005); code:
    https://github.com/yzd-v/cls_KD (Apache-2.0).

    Args:
        temperature: T of the other classes.
        gamma: γ, their weight.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, temperature: float = 1.0, gamma: float = 1.5, **layer: Any) -> None:
        super().__init__(**layer)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.gamma = gamma

    def call(self, student: Tensor, teacher: Tensor, *, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits.
            teacher: logits of the same shape; never a gradient.
            labels: class numbers, or (N, ..., K) probabilities, of which the largest counts.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        student, teacher = compared(student, teacher)
        own = own_class(labels, student)
        target = ops.sum(own * ops.softmax(teacher, axis=-1) * ops.log_softmax(student, axis=-1), axis=-1)
        *_, log_student = split_target(student / self.temperature, own)
        *_, log_teacher = split_target(teacher / self.temperature, own)
        others = ops.sum(ops.exp(log_teacher) * log_student, axis=-1)
        return -mean(target + self.gamma * self.temperature**2 * others, sample_weight)
