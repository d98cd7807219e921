"""Adapters: what makes a student's feature comparable with the teacher's, built from the shapes of a probe."""

import math
from typing import Any

import keras
from keras import layers

from understudy.errors import UserError
from understudy.keras.losses.functional import Tensor, average_pool, in_float32, interpolate, is_channels_first
from understudy.keras.operations import ops

Shape = tuple[int, ...]


@keras.saving.register_keras_serializable("understudy")
class Adapter(layers.Layer):
    """From a student's feature to the shape of the teacher's.

    Channels are mapped by a 1×1 convolution or a Dense layer, resolutions by averaging or interpolation. Tokens
    (N, L, D) become a map where the teacher's feature is one, and maps become tokens; class tokens in front of a square
    number of patches are left out where a map is wanted, and taken from the mean where tokens are.

    Args:
        student: shape of the student's feature without the batch, in Keras' data format.
        teacher: likewise of the teacher's.
    """

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__(dtype="float32", autocast=False)
        if {len(student), len(teacher)} not in ({1}, {2}, {3}, {2, 3}):
            raise UserError(
                f"a feature of shape {student} cannot be compared with one of {teacher}: tap places of one kind, such "
                "as two maps or two pooled embeddings"
            )
        self.student, self.teacher = student, teacher
        self.first = is_channels_first(None)
        channels, self.wanted = (self._channels(shape) for shape in (student, teacher))
        self.project = None if channels == self.wanted else layers.Dense(self.wanted, dtype="float32")
        if self.project is not None:
            self.project.build((None, channels))
        self.built = True

    def call(self, feature: Tensor) -> Tensor:
        """Adapt a feature.

        Args:
            feature: (N, ...) the student's.

        Returns:
            It in the teacher's shape.
        """
        (feature,) = in_float32(feature)
        if len(self.student) == 1:
            return self._projected(feature)
        grid = self._grid(feature)
        if len(self.teacher) == 3:
            size = self.teacher[1:] if self.first else self.teacher[:2]
            return self._map(self._resized(self._projected(grid), size))
        if len(self.student) == 2 and self.student[0] == self.teacher[0]:
            return self._projected(feature)
        side = math.isqrt(self.teacher[0])
        tokens = ops.reshape(self._resized(self._projected(grid), (side, side)), (-1, side * side, self.wanted))
        front = ops.repeat(ops.mean(tokens, axis=1, keepdims=True), self.teacher[0] - side * side, axis=1)
        return ops.concatenate([front, tokens], axis=1)

    def _channels(self, shape: Shape) -> int:
        return shape[0] if len(shape) == 3 and self.first else shape[-1]

    def _projected(self, feature: Tensor) -> Tensor:
        return feature if self.project is None else self.project(feature)

    def _grid(self, feature: Tensor) -> Tensor:
        """A map with channels last; of tokens, the largest square at the end."""
        if len(self.student) == 3:
            return ops.transpose(feature, (0, 2, 3, 1)) if self.first else feature
        side = math.isqrt(self.student[0])
        patches = feature[:, self.student[0] - side * side :]
        return ops.reshape(patches, (-1, side, side, self.student[1]))

    def _map(self, grid: Tensor) -> Tensor:
        return ops.transpose(grid, (0, 3, 1, 2)) if self.first else grid

    def _resized(self, grid: Tensor, size: Shape) -> Tensor:
        if grid.shape[1] >= size[0] and grid.shape[2] >= size[1]:
            return average_pool(grid, size)
        return interpolate(grid, size)

    def get_config(self) -> dict[str, Any]:
        """What makes another of the same shapes."""
        return {"student": self.student, "teacher": self.teacher}
