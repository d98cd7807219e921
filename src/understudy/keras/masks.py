"""Masks of sequences: read from what a model gives, and turned into weights of positions."""

from typing import Any

import keras

from understudy.keras.operations import ops

Tensor = Any


class MaskReader(keras.layers.Layer):
    """Reads the mask that a model's output carries."""

    def __init__(self) -> None:
        super().__init__(name="mask_reader", autocast=False)
        self.supports_masking = True

    def call(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Give the mask that Keras hands a layer with its input.

        Args:
            outputs: of a model.
            mask: (N, L), or None where no layer made one.
        """
        return mask


def with_mask(sample_weight: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Weights of the positions that count, as Keras makes them: masked ones 0, the others raised to keep the mean."""
    if mask is None:
        return sample_weight
    kept = ops.cast(mask, "float32")
    kept = kept / ops.maximum(ops.mean(kept), 1e-7)
    if sample_weight is None:
        return kept
    weight = ops.cast(sample_weight, "float32")
    if len(weight.shape) > len(kept.shape):
        weight = ops.squeeze(weight, -1)
    return kept * ops.reshape(weight, (*ops.shape(weight), *(1,) * (len(kept.shape) - len(weight.shape))))
