"""Mathematics that several losses share, in `keras.ops` alone."""

from typing import Any

import keras
import numpy as np

from understudy.keras.operations import ops

# A tensor of whichever backend.
Tensor = Any
Features = Tensor | tuple[Tensor, ...]
"""What a side gives: one tapped output, or several."""

# Squares of lengths are kept above it: the root of zero has no gradient.
_TINY = 1e-24


class ShapeMismatch(ValueError):
    """Student and teacher tensors cannot be compared element by element; an adapter between them may help."""


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Raise half-precision tensors to float32; wider ones stay as they are."""
    return tuple(
        ops.cast(tensor, "float32")
        if keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16")
        else tensor
        for tensor in tensors
    )


def compared(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in float32 at least, the teacher's without gradient.

    Raises:
        ShapeMismatch: their shapes differ, which broadcasting would hide.
    """
    check_same_shape(student, teacher)
    return in_float32(student, ops.stop_gradient(teacher))


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse student and teacher tensors that cannot be compared element by element.

    Raises:
        ShapeMismatch: their shapes differ.
    """
    ours, theirs = tuple(student.shape), tuple(teacher.shape)
    known = [pair for pair in zip(ours, theirs, strict=False) if None not in pair]
    if len(ours) != len(theirs) or any(one != other for one, other in known):
        raise ShapeMismatch(
            f"student {ours} and teacher {theirs} differ in shape: give both the same classes, or an adapter between "
            "the taps"
        )


def paired(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """Student and teacher tensors tap by tap, in float32 at least, the teacher's without gradient.

    Raises:
        ValueError: one side has more taps than the other.
    """
    of_student, of_teacher = several(student), several(teacher)
    if len(of_student) != len(of_teacher):
        raise ValueError(f"{len(of_student)} student taps and {len(of_teacher)} teacher taps: give as many of each")
    return [
        (in_float32(ours)[0], in_float32(ops.stop_gradient(theirs))[0])
        for ours, theirs in zip(of_student, of_teacher, strict=True)
    ]


def several(features: Any) -> tuple[Any, ...]:
    """The features (or shapes of features) of a side as a tuple, also where there is only one."""
    if isinstance(features, (tuple, list)) and not (features and isinstance(features[0], (int, type(None)))):
        return tuple(features)
    return (features,)


def weighted(terms: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Terms (N, ...) times the weights of their samples (N,) or of their positions (N, ...)."""
    if sample_weight is None:
        return terms
    weight = ops.cast(sample_weight, terms.dtype)
    if len(weight.shape) > len(terms.shape):  # positions of a sequence, terms of whole samples
        weight = ops.mean(weight, axis=tuple(range(len(terms.shape), len(weight.shape))))
    return terms * ops.reshape(weight, (*ops.shape(weight), *(1,) * (len(terms.shape) - len(weight.shape))))


def mean(terms: Tensor, sample_weight: Tensor | None) -> Tensor:
    """The mean of weighted terms over their number, as Keras' losses take it: weights are not divided out."""
    return ops.mean(weighted(terms, sample_weight))


def mean_square(student: Tensor, teacher: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """The mean squared difference, each sample's times its weight."""
    return mean(per_sample(ops.square(student - teacher)), sample_weight)


def per_sample(values: Tensor) -> Tensor:
    """(N,) means over everything but the samples."""
    return ops.mean(values, axis=tuple(range(1, len(values.shape)))) if len(values.shape) > 1 else values


def rows(features: Tensor) -> Tensor:
    """(N, D): each sample flattened."""
    return ops.reshape(features, (-1, int(np.prod(features.shape[1:]))))


def length(values: Tensor, axis: int | None, *, keepdims: bool = False) -> Tensor:
    """Euclidean lengths along an axis, with a gradient of zero where they are zero."""
    return ops.sqrt(ops.maximum(ops.sum(ops.square(values), axis=axis, keepdims=keepdims), _TINY))


def scaled(values: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    return values / length(values, 1, keepdims=True)


def standardized(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over the classes, deviations over K - 1: `(z - mean) / (std + 1e-7)`.

    The convention of the authors of logit standardisation (https://arxiv.org/abs/2403.01427).
    """
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    variance = ops.sum(ops.square(centred), axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    return centred / (ops.sqrt(ops.maximum(variance, _TINY)) + 1e-7)


def target(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as probabilities (N, ..., K): class numbers (N, ...) or (N, ..., 1) become one-hot."""
    if len(labels.shape) == len(logits.shape) and labels.shape[-1] == logits.shape[-1] and logits.shape[-1] > 1:
        return ops.cast(labels, logits.dtype)
    return ops.one_hot(_numbers(labels, logits), logits.shape[-1], dtype=keras.backend.standardize_dtype(logits.dtype))


def own_class(labels: Tensor, logits: Tensor) -> Tensor:
    """One-hot labels (N, ..., K); of probabilities (mixup, cutmix), the largest one's."""
    classes = ops.argmax(target(labels, logits), axis=-1)
    return ops.one_hot(classes, logits.shape[-1], dtype=keras.backend.standardize_dtype(logits.dtype))


def _numbers(labels: Tensor, logits: Tensor) -> Tensor:
    if len(labels.shape) == len(logits.shape):
        if labels.shape[-1] != 1:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} are neither class numbers nor probabilities of "
                f"{logits.shape[-1]} classes"
            )
        labels = ops.squeeze(labels, -1)
    return ops.cast(labels, "int32")


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropies (N, ...) of logits (N, ..., K) with labels."""
    wanted = target(labels, logits)
    if label_smoothing:
        wanted = (1 - label_smoothing) * wanted + label_smoothing / logits.shape[-1]
    return -ops.sum(wanted * ops.log_softmax(logits, axis=-1), axis=-1)


def split_target(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probability of one class, that of all others together, and how these share it.

    Nothing is computed as 1 - p, so a probability that rounds to 1 keeps its complement.

    Args:
        logits: (N, ..., K) with K of at least 2.
        own: one-hot, the class.

    Returns:
        (N, ...) log p, (N, ...) log (1 - p), and (N, ..., K) log-probabilities of the others among themselves, about
        -1e30 for the class itself.
    """
    others = ops.where(own > 0, ops.cast(-1e30, logits.dtype), logits)
    everything = ops.logsumexp(logits, axis=-1)
    return (
        ops.sum(own * logits, axis=-1) - everything,
        ops.logsumexp(others, axis=-1) - everything,
        ops.log_softmax(others, axis=-1),
    )


# Maps. Inside the losses channels are last, wherever they come from.


def channels_last(features: Tensor, data_format: str | None) -> Tensor:
    """A map with its channels last.

    Raises:
        ShapeMismatch: features that are no maps.
    """
    if len(features.shape) != 4:
        raise ShapeMismatch(
            f"features of shape {tuple(features.shape)} are no maps: tap a convolutional stage, or add an adapter"
        )
    return ops.transpose(features, (0, 2, 3, 1)) if is_channels_first(data_format) else features


def is_channels_first(data_format: str | None) -> bool:
    """Whether maps are (N, C, H, W); Keras' setting where nothing is said."""
    return (data_format or keras.config.image_data_format()) == "channels_first"


def paired_maps(student: Features, teacher: Features, data_format: str | None) -> list[tuple[Tensor, Tensor]]:
    """Maps of student and teacher tap by tap, as `paired`, channels last."""
    return [tuple(channels_last(maps, data_format) for maps in pair) for pair in paired(student, teacher)]  # pyright: ignore[reportReturnType]


def map_shapes(shapes: Any, data_format: str | None) -> list[tuple[int, ...]]:
    """(N, H, W, C) of each map of a side, from the shapes a layer is built with."""
    found = [tuple(shape) for shape in several(shapes)]
    if not is_channels_first(data_format):
        return found
    return [(shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape for shape in found]


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (N, H, W, C) to the size of the smaller one."""
    size = tuple(min(one, other) for one, other in zip(first.shape[1:3], second.shape[1:3], strict=True))
    return average_pool(first, size), average_pool(second, size)


def average_pool(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (N, H, W, C) averaged to another height and width, each place over the pixels it covers."""
    return _resample(maps, size, _averages)


def interpolate(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (N, H, W, C) at another height and width, bilinear, antialiased where they shrink."""
    return _resample(maps, size, _triangles)


def nearest(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (N, H, W, C) at another height and width, each place copied from where it falls."""
    for axis, (old, new) in enumerate(zip(maps.shape[1:3], size, strict=True), start=1):
        if old != new:
            maps = ops.take(maps, np.arange(new) * old // new, axis=axis)
    return maps


def standardized_channels(maps: Tensor) -> Tensor:
    """A map (N, H, W, C) with mean 0 and variance 1 in each channel, over the batch and all places."""
    centred = maps - ops.mean(maps, axis=(0, 1, 2), keepdims=True)
    return centred * ops.rsqrt(ops.mean(ops.square(centred), axis=(0, 1, 2), keepdims=True) + 1e-5)


def _resample(maps: Tensor, size: tuple[int, ...], matrix: Any) -> Tensor:
    # A product with a small constant matrix for each axis is the same on every backend, which their resizes are not.
    dtype = keras.backend.standardize_dtype(maps.dtype)
    (height, width), (rows_wanted, columns_wanted) = maps.shape[1:3], size
    if height != rows_wanted:
        maps = ops.einsum("oh,nhwc->nowc", ops.cast(matrix(height, rows_wanted), dtype), maps)
    if width != columns_wanted:
        maps = ops.einsum("pw,nhwc->nhpc", ops.cast(matrix(width, columns_wanted), dtype), maps)
    return maps


def _averages(old: int, new: int) -> np.ndarray:
    """(new, old): place i covers the pixels from floor(i·old/new) to ceil((i + 1)·old/new)."""
    weights = np.zeros((new, old))
    for place in range(new):
        first, last = place * old // new, -(-(place + 1) * old // new)
        weights[place, first:last] = 1 / (last - first)
    return weights


def _triangles(old: int, new: int) -> np.ndarray:
    """(new, old): a triangle around each place's centre, as wide as the step between places, one pixel at least."""
    step = old / new
    reach = max(step, 1.0)
    centres = (np.arange(new) + 0.5) * step
    distances = np.abs(np.arange(old) + 0.5 - centres[:, None]) / reach
    weights = np.clip(1 - distances, 0, None)
    return weights / weights.sum(1, keepdims=True)
