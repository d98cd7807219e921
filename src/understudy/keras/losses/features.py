"""Features compared place by place: attention maps, regression with and without a regressor, channels."""

from typing import Any, Literal

import keras

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import (
    Features,
    Tensor,
    check_same_shape,
    length,
    map_shapes,
    mean,
    mean_square,
    paired,
    paired_maps,
    per_sample,
    pool_to_smaller,
    rows,
    standardized_channels,
)
from understudy.keras.losses.regressor import Regressor
from understudy.keras.operations import ops


@keras.saving.register_keras_serializable("understudy")
class AT(Loss):
    """The student's maps of activation follow the teacher's, place by place.

    `Σ_taps mean (Q_s/‖Q_s‖ - Q_t/‖Q_t‖)²` with `Q = Σ_c |F_c|^p`, the norm over all places of a sample. Student and
    teacher may differ in their channels; of maps of two sizes the larger is average-pooled.

    Reference: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017
    (https://arxiv.org/abs/1612.03928), equation 2 with the mean in place of norm and β/2, as in the authors' code
    (https://github.com/szagoruyko/attention-transfer).

    Args:
        p: the exponent; larger ones weigh the strongest places more.
        epsilon: added to the norms, so that a map of zeros stays finite.
        data_format: `channels_last` or `channels_first`; Keras' setting by default.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, p: float = 2.0, epsilon: float = 1e-12, data_format: str | None = None, **layer: Any) -> None:
        super().__init__(**layer)
        self.p = p
        self.epsilon = epsilon
        self.data_format = data_format

    def call(self, student: Features, teacher: Features, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: maps, one or several.
            teacher: as many, of any number of channels; never a gradient.
            sample_weight: (N,).

        Returns:
            A scalar.
        """
        losses = []
        for maps in paired_maps(student, teacher, self.data_format):
            mine, theirs = (self._attention(each) for each in pool_to_smaller(*maps))
            losses.append(mean_square(mine, theirs, sample_weight))
        return sum(losses)

    def _attention(self, maps: Tensor) -> Tensor:
        powers = ops.square(maps) if self.p == 2 else ops.power(ops.abs(maps), self.p)
        attention = rows(ops.sum(powers, axis=-1))
        return attention / (length(attention, 1, keepdims=True) + self.epsilon)


@keras.saving.register_keras_serializable("understudy")
class FitNet(Loss):
    """A regressor on the student's features follows the teacher's: hints for a thinner, deeper net.

    `Σ_taps mean (r(F_s) - F_t)²`, with r a convolution that is trained with the student and dropped after.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550),
    equation 3, which halves and sums where we average; with the regressor of
    https://github.com/HobbitLong/RepDistiller (BSD-2).

    Args:
        relu: the regressor ends with a ReLU, for features tapped after one.
        data_format: `channels_last` or `channels_first`; Keras' setting by default.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, relu: bool = True, data_format: str | None = None, **layer: Any) -> None:
        super().__init__(**layer)
        self.relu = relu
        self.data_format = data_format
        self.regressors: list[Regressor] = []

    def build(self, student_shape: Any, teacher_shape: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make a regressor for each pair of taps."""
        shapes = (map_shapes(shape, self.data_format) for shape in (student_shape, teacher_shape))
        self.regressors = [
            Regressor(mine, theirs, relu=self.relu, dtype=self.dtype_policy)
            for mine, theirs in zip(*shapes, strict=True)
        ]
        self.built = True

    def call(
        self, student: Features, teacher: Features, *, sample_weight: Tensor | None = None, training: bool | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: maps or (N, D) vectors, one or several.
            teacher: as many; never a gradient.
            sample_weight: (N,).
            training: whether the regressors' batch norms take the batch's statistics.

        Returns:
            A scalar.
        """
        losses = []
        for regressor, (mine, theirs) in zip(self.regressors, paired(student, teacher), strict=True):
            if len(mine.shape) == 4:
                ((mine, theirs),) = paired_maps(mine, theirs, self.data_format)
            regressed = regressor(mine, training=training)
            check_same_shape(regressed, theirs)
            losses.append(mean_square(regressed, theirs, sample_weight))
        return sum(losses)


@keras.saving.register_keras_serializable("understudy")
class FeatureRegression(Loss):
    """The student's features follow the teacher's of the same shape: `Σ_taps mean (F_s - F_t)²`, or by the angle.

    With `distance="cosine"`: `1 - mean cos(F_s, F_t)` along the last dimension, as for embeddings.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (https://arxiv.org/abs/1412.6550), without
    the regressor; also Keras' own `FeatureDistillation`, whose cosine loss is ours minus 1.

    Args:
        distance: `mse`, the mean squared difference, or `cosine`.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, distance: Literal["mse", "cosine"] = "mse", **layer: Any) -> None:
        super().__init__(**layer)
        self.distance = distance

    def call(self, student: Features, teacher: Features, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ...) features, one tensor or several.
            teacher: as many of the same shapes; never a gradient.
            sample_weight: (N,).

        Returns:
            A scalar.
        """
        losses = []
        for mine, theirs in paired(student, teacher):
            check_same_shape(mine, theirs)
            losses.append(self._distance(mine, theirs, sample_weight))
        return sum(losses)

    def _distance(self, student: Tensor, teacher: Tensor, sample_weight: Tensor | None) -> Tensor:
        if self.distance == "mse":
            return mean_square(student, teacher, sample_weight)
        cosine = ops.sum(student * teacher, axis=-1) / (length(student, -1) * length(teacher, -1))
        return mean(per_sample(1 - cosine), sample_weight)


@keras.saving.register_keras_serializable("understudy")
class CWD(Loss):
    """Each channel's distribution over the positions of the map follows the teacher's.

    With p the softmax of a channel over its H·W positions at temperature T, C channels and N samples:
    `T² / (N C) · Σ p_t log(p_t / p_s)`, summed over taps.

    Reference: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021
    (https://arxiv.org/abs/2011.13256), equations 3 and 4; code https://github.com/irfanICMLL/TorchDistiller.

    Args:
        temperature: T; the paper's for logits of segmentation, 1 is common for features.
        softmax_over: `positions` compares where each channel looks; `channels` what each position holds (the sum is
            then divided by N·H·W).
        standardize: give each channel mean 0 and variance 1 over the batch first, on both sides.
        data_format: `channels_last` or `channels_first`; Keras' setting by default.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        softmax_over: Literal["positions", "channels"] = "positions",
        standardize: bool = False,
        data_format: str | None = None,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.softmax_over = softmax_over
        self.standardize = standardize
        self.data_format = data_format

    def call(self, student: Features, teacher: Features, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: maps of one tap or of several.
            teacher: as many of the same shapes; never a gradient.
            sample_weight: (N,).

        Returns:
            A scalar.
        """
        pairs = paired_maps(student, teacher, self.data_format)
        return sum(self._of_tap(ours, theirs, sample_weight) for ours, theirs in pairs)

    def _of_tap(self, student: Tensor, teacher: Tensor, sample_weight: Tensor | None) -> Tensor:
        check_same_shape(student, teacher)
        if self.standardize:
            student, teacher = standardized_channels(student), standardized_channels(teacher)
        axis = (1, 2) if self.softmax_over == "positions" else -1
        log_student, log_teacher = (
            maps / self.temperature - ops.logsumexp(maps / self.temperature, axis=axis, keepdims=True)
            for maps in (student, teacher)
        )
        divergences = ops.sum(ops.exp(log_teacher) * (log_teacher - log_student), axis=axis)
        return self.temperature**2 * mean(per_sample(divergences), sample_weight)
