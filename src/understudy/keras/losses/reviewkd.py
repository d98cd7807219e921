"""Knowledge review: every level of the student learns from the teacher's level and, through the deeper ones, more."""

from typing import Any

import keras
from keras import layers

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import (
    Features,
    Tensor,
    average_pool,
    channels_last,
    check_same_shape,
    map_shapes,
    mean_square,
    nearest,
    paired,
    paired_maps,
)
from understudy.keras.operations import ops


@keras.saving.register_keras_serializable("understudy")
class ReviewKD(Loss):
    """From the deepest level up, each student map is fused with those below it and follows the teacher's.

    `Σ_levels HCL(ABF(F_s, fused below), F_t)`: the fusion weighs both by attention; the context loss is `HCL`.

    Reference: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021
    (https://arxiv.org/abs/2104.09044); code https://github.com/dvlab-research/ReviewKD. The published runs raise the
    weight over the first 20 epochs.

    Args:
        width: the fused maps have as many channels as the student's deepest level, at most this many.
        data_format: `channels_last` or `channels_first`; Keras' setting by default.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, width: int = 512, data_format: str | None = None, **layer: Any) -> None:
        super().__init__(**layer)
        self.width = width
        self.data_format = data_format
        self.fusions: list[Fusion] = []

    def build(self, student_shape: Any, teacher_shape: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make the fusions, the deepest first."""
        ours, theirs = (map_shapes(shape, self.data_format) for shape in (student_shape, teacher_shape))
        width = min(self.width, ours[-1][-1])
        self.fusions = [
            Fusion(channels=mine[-1], width=width, wanted=wanted[-1], fuses=depth > 0, dtype=self.dtype_policy)
            for depth, (mine, wanted) in enumerate(zip(reversed(ours), reversed(theirs), strict=True))
        ]
        self.built = True

    def call(
        self, student: Features, teacher: Features, *, sample_weight: Tensor | None = None, training: bool | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: maps from shallow to deep, the last one often an embedding (N, C).
            teacher: as many, with any channels and sizes; never a gradient.
            sample_weight: (N,).
            training: whether the fusions' batch norms take the batch's statistics.

        Returns:
            A scalar.
        """
        total, fused = 0.0, None
        for (ours, theirs), fusion in zip(reversed(paired(student, teacher)), self.fusions, strict=True):
            level, target = (self._as_map(features) for features in (ours, theirs))
            output, fused = fusion(level, below=fused, size=tuple(target.shape[1:3]), training=training)
            total = total + hierarchical_context(output, target, sample_weight)
        return total

    def _as_map(self, features: Tensor) -> Tensor:
        if len(features.shape) == 2:
            return ops.reshape(features, (-1, 1, 1, features.shape[1]))
        return channels_last(features, self.data_format)


@keras.saving.register_keras_serializable("understudy")
class HCL(Loss):
    """The context loss of ReviewKD alone: maps compared at full size and averaged to 4, 2 and 1 places a side.

    Their mean squared errors are weighted 1, 1/2, 1/4, 1/8 over the sum of those used; summed over taps.

    Reference: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021
    (https://arxiv.org/abs/2104.09044).

    Args:
        data_format: `channels_last` or `channels_first`; Keras' setting by default.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, data_format: str | None = None, **layer: Any) -> None:
        super().__init__(**layer)
        self.data_format = data_format

    def call(self, student: Features, teacher: Features, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: maps, one or several.
            teacher: as many of the same shapes; never a gradient.
            sample_weight: (N,).

        Returns:
            A scalar.
        """
        pairs = paired_maps(student, teacher, self.data_format)
        return sum(hierarchical_context(ours, theirs, sample_weight) for ours, theirs in pairs)


@keras.saving.register_keras_serializable("understudy")
class Fusion(layers.Layer):
    """Attention-based fusion: a level with what was fused below it; maps are channels last.

    Args:
        channels: of the level.
        width: of the fused map.
        wanted: channels of the teacher's level.
        fuses: there is something below.
        dtype: of its weights.
    """

    def __init__(self, *, channels: int, width: int, wanted: int, fuses: bool, dtype: Any = "float32") -> None:
        super().__init__(dtype=dtype, autocast=False)
        # The authors start from uniform weights within ±sqrt(3 / fan_in).
        settings: dict[str, Any] = {
            "use_bias": False, "data_format": "channels_last", "dtype": dtype,
            "kernel_initializer": keras.initializers.VarianceScaling(1.0, "fan_in", "uniform"),
        }  # fmt: skip
        norm: dict[str, Any] = {"momentum": 0.9, "epsilon": 1e-5, "dtype": dtype}
        self.reduce, self.reduce_norm = layers.Conv2D(width, 1, **settings), layers.BatchNormalization(**norm)
        self.widen = layers.Conv2D(wanted, 3, padding="same", **settings)
        self.widen_norm = layers.BatchNormalization(**norm)
        self.attend = layers.Conv2D(2, 1, data_format="channels_last", dtype=dtype) if fuses else None
        self.reduce.build((None, None, None, channels))
        self.widen.build((None, None, None, width))
        self.reduce_norm.build((None, None, None, width))
        self.widen_norm.build((None, None, None, wanted))
        if self.attend is not None:
            self.attend.build((None, None, None, 2 * width))
        self.built = True

    def call(
        self, level: Tensor, *, below: Tensor | None = None, size: tuple[int, ...], training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            level: (N, H, W, C) the student's map.
            below: (N, h, w, width) the fused map of the level below.
            size: (H, W) of the teacher's map.
            training: whether the batch norms take the batch's statistics.

        Returns:
            The map to compare with the teacher's, and the fused one, both of that size.
        """
        fused = self.reduce_norm(self.reduce(level), training=training)
        if self.attend is not None:
            below = nearest(below, tuple(level.shape[1:3]))
            attention = ops.sigmoid(self.attend(ops.concatenate([fused, below], axis=-1)))
            fused = fused * attention[..., :1] + below * attention[..., 1:]
        fused = nearest(fused, size)
        return self.widen_norm(self.widen(fused), training=training), fused


def hierarchical_context(student: Tensor, teacher: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Mean squared errors of two maps (N, H, W, C) at full size and at 4, 2, 1 places a side, weighted."""
    check_same_shape(student, teacher)
    total, weights, weight = mean_square(student, teacher, sample_weight), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= student.shape[1]:
            continue
        weight /= 2
        ours, theirs = (average_pool(maps, (side, side)) for maps in (student, teacher))
        total = total + weight * mean_square(ours, theirs, sample_weight)
        weights += weight
    return total / weights
