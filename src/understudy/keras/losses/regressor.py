"""The layer that brings a student's features to the shape of the teacher's; trained with the loss, dropped after."""

from typing import Any

import keras
from keras import layers

from understudy.keras.losses.functional import Tensor, interpolate
from understudy.keras.operations import ops

# Beyond it, a kernel that spans the difference of two sizes would hold more weights than the student.
_LARGEST_KERNEL = 16


@keras.saving.register_keras_serializable("understudy")
class Regressor(layers.Layer):
    """A convolution to the teacher's channels and size, batch norm, ReLU; for vectors a linear layer first.

    Half the size is reached by a 3×3 convolution of stride 2, twice the size by a transposed 4×4 one, any smaller
    size by a convolution as large as the difference (the choices of RepDistiller,
    https://github.com/HobbitLong/RepDistiller, BSD-2), anything else by a 1×1 convolution and interpolation.

    Args:
        student: shape of the student's features, (N, H, W, C) or (N, D).
        teacher: likewise of the teacher.
        relu: end with a ReLU, for features taken after one.
        dtype: of its weights.
    """

    def __init__(
        self, student: tuple[int, ...], teacher: tuple[int, ...], *, relu: bool = True, dtype: Any = "float32"
    ) -> None:
        super().__init__(dtype=dtype, autocast=False)
        if len(student) != len(teacher) or len(student) not in (2, 4):
            raise ValueError(
                f"no regressor leads from {tuple(student)} to {tuple(teacher)}: "
                "tap maps or vectors (N, D) in both models"
            )
        self.size = tuple(teacher[1:-1])
        # torch's border of one pixel on each side is not what Keras calls "same" at stride 2.
        self.border = len(student) == 4 and _halves(student, teacher)
        self.conv = _layer(student, teacher, dtype)
        self.norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype)
        self.relu = relu
        self.conv.build(student)
        self.norm.build((None, *teacher[1:]))
        self.built = True

    def call(self, features: Tensor, training: bool | None = None) -> Tensor:
        """Regress the student's features on the teacher's.

        Args:
            features: (N, H, W, C) or (N, D) of the student.
            training: whether the batch norm takes the batch's statistics.

        Returns:
            Features of the teacher's shape.
        """
        if self.border:
            features = ops.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
        features = self.conv(features)
        if self.size and tuple(features.shape[1:3]) != self.size:
            features = interpolate(features, self.size)
        features = self.norm(features, training=training)
        return ops.relu(features) if self.relu else features


def _halves(student: tuple[int, ...], teacher: tuple[int, ...]) -> bool:
    return all(one == 2 * other for one, other in zip(student[1:3], teacher[1:3], strict=True))


def _layer(student: tuple[int, ...], teacher: tuple[int, ...], dtype: Any) -> layers.Layer:
    channels = teacher[-1]
    if len(student) == 2:
        return layers.Dense(channels, dtype=dtype)
    settings: dict[str, Any] = {"data_format": "channels_last", "dtype": dtype}
    if _halves(student, teacher):
        return layers.Conv2D(channels, 3, strides=2, **settings)
    if _halves(teacher, student):
        return layers.Conv2DTranspose(channels, 4, strides=2, padding="same", **settings)
    kernel = [1 + one - other for one, other in zip(student[1:3], teacher[1:3], strict=True)]
    if min(kernel) < 1 or max(kernel) > _LARGEST_KERNEL:
        kernel = [1, 1]
    return layers.Conv2D(channels, kernel, **settings)
