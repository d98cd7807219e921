"""Decisions instead of distributions: the labels, and the teacher's choice as one."""

from typing import Any

import keras

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import Tensor, compared, cross_entropy, in_float32, mean
from understudy.keras.operations import ops


@keras.saving.register_keras_serializable("understudy")
class CrossEntropy(Loss):
    """Cross entropy with class labels or with soft ones (mixup, cutmix): `-Σ_k y_k log softmax(z_s)_k`.

    Label smoothing ε replaces y by `(1 - ε) y + ε / K`.

    Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016
    (https://arxiv.org/abs/1512.00567), section 7.

    Args:
        label_smoothing: ε, the share of the probability spread evenly over all classes.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, label_smoothing: float = 0.0, **layer: Any) -> None:
        super().__init__(**layer)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        self.label_smoothing = label_smoothing

    def call(self, student: Tensor, *, labels: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits.
            labels: (N, ...) or (N, ..., 1) class numbers, or (N, ..., K) probabilities.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar, the mean over samples (and positions).
        """
        (student,) = in_float32(student)
        return mean(cross_entropy(student, labels, self.label_smoothing), sample_weight)


@keras.saving.register_keras_serializable("understudy")
class HardLabel(Loss):
    """Cross entropy against the class the teacher decides for: `CE(z_s, argmax z_t)`.

    Reference: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML
    2021 (https://arxiv.org/abs/2012.12877), equation 3 (its halves are the weights of objective and labels).

    Args:
        label_smoothing: share of the probability spread evenly over all classes.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, label_smoothing: float = 0.0, **layer: Any) -> None:
        super().__init__(**layer)
        self.label_smoothing = label_smoothing

    def call(self, student: Tensor, teacher: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ..., K) logits.
            teacher: logits of the same shape; of equal largest ones the first decides.
            sample_weight: (N,) or (N, ...).

        Returns:
            A scalar.
        """
        student, teacher = compared(student, teacher)
        decided = ops.argmax(teacher, axis=-1)
        return mean(cross_entropy(student, decided, self.label_smoothing), sample_weight)


@keras.saving.register_keras_serializable("understudy")
class LogitMSE(Loss):
    """The student's logits follow the teacher's: `mean (z_s - z_t)²` over samples and classes.

    Reference: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (https://arxiv.org/abs/1312.6184),
    equation 2, which halves the square and sums over classes: K/2 times ours.
    """

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
        return mean(ops.mean(ops.square(student - teacher), axis=-1), sample_weight)
