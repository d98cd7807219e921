"""Masked generative distillation: rebuild the teacher's features from part of one's own."""

from typing import Any, Literal

import keras
from keras import layers

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import (
    Features,
    Tensor,
    check_same_shape,
    map_shapes,
    paired_maps,
    standardized_channels,
    weighted,
)
from understudy.keras.operations import ops


@keras.saving.register_keras_serializable("understudy")
class MGD(Loss):
    """From a student map with holes, a small network generates the teacher's whole one.

    With M a random mask, r a 1×1 convolution where channels differ and G two 3×3 convolutions:
    `‖F_t - G(M · r(F_s))‖² / N`, summed over taps.

    Reference: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022
    (https://arxiv.org/abs/2205.01529), equations 2 to 4; code https://github.com/yzd-v/MGD (Apache 2.0): its
    detection masks positions, its classification channels.

    Args:
        mask: what is left out, `positions` of the map (in all channels) or `channels`.
        ratio: the share that is left out, λ.
        align: r; without it G maps the student's channels to the teacher's.
        standardize: give each channel mean 0 and variance 1 over the batch first, on both sides.
        data_format: `channels_last` or `channels_first`; Keras' setting by default.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(
        self,
        *,
        mask: Literal["positions", "channels"] = "positions",
        ratio: float = 0.65,
        align: bool = True,
        standardize: bool = False,
        data_format: str | None = None,
        **layer: Any,
    ) -> None:
        super().__init__(**layer)
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must lie in [0, 1), not {ratio}")
        self.mask = mask
        self.ratio = ratio
        self.align = align
        self.standardize = standardize
        self.data_format = data_format
        self.seeds = keras.random.SeedGenerator()
        self.aligners: list[layers.Layer] = []
        self.generators: list[layers.Layer] = []

    def build(self, student_shape: Any, teacher_shape: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make the aligning convolutions and the generators."""
        settings: dict[str, Any] = {"data_format": "channels_last", "dtype": self.dtype_policy}
        shapes = (map_shapes(shape, self.data_format) for shape in (student_shape, teacher_shape))
        aligners, generators = [], []
        for ours, theirs in zip(*shapes, strict=True):
            wanted = theirs[-1]
            aligned = self.align and ours[-1] != wanted
            aligners.append(layers.Conv2D(wanted, 1, **settings) if aligned else layers.Identity())
            aligners[-1].build(ours)
            generators.append(
                keras.Sequential(
                    [
                        layers.Conv2D(wanted, 3, padding="same", activation="relu", **settings),
                        layers.Conv2D(wanted, 3, padding="same", **settings),
                    ]
                )
            )
            generators[-1].build((None, *theirs[1:3], wanted if aligned else ours[-1]))
        self.aligners, self.generators = aligners, generators
        self.built = True

    def call(self, student: Features, teacher: Features, *, sample_weight: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            student: maps of one tap or of several.
            teacher: as many maps of the same sizes, with any channels; never a gradient.
            sample_weight: (N,).

        Returns:
            A scalar.
        """
        total = 0.0
        pairs = paired_maps(student, teacher, self.data_format)
        for (ours, theirs), align, generate in zip(pairs, self.aligners, self.generators, strict=True):
            if self.standardize:
                ours, theirs = standardized_channels(ours), standardized_channels(theirs)
            ours = align(ours)
            generated = generate(ours * self._kept(ours))
            check_same_shape(generated, theirs)
            errors = ops.sum(ops.square(generated - theirs), axis=(1, 2, 3))
            total = total + ops.mean(weighted(errors, sample_weight))
        return total

    def _kept(self, maps: Tensor) -> Tensor:
        samples, height, width, channels = ops.shape(maps)
        shape = (samples, height, width, 1) if self.mask == "positions" else (samples, 1, 1, channels)
        return ops.cast(self._draw(shape) <= 1 - self.ratio, maps.dtype)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return keras.random.uniform(shape, seed=self.seeds)
