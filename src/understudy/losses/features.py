"""What the losses on maps share: their pairs, sizes brought together, and full precision."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.losses.functional import NoMap, in_float32, paired

Features = Tensor | tuple[Tensor, ...]
"""What a side gives: one tapped output, or several."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_autocast(forward: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a loss that multiplies matrices or convolves do so in the precision of its inputs.

    Args:
        forward: of a loss, or another method of one that takes tensors.

    Returns:
        The same with autocast switched off inside.
    """

    @wraps(forward)
    def outside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = next(each for value in (*args, *kwargs.values()) for each in _tensors(value)).device.type
        if not torch.is_autocast_enabled(device):  # to switch off what is off takes as long as a small loss
            return forward(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return forward(*args, **kwargs)

    return outside


def several(features: Features) -> tuple[Tensor, ...]:
    """The features of a side as a tuple, also where there is only one.

    Args:
        features: one tapped output, or several.

    Returns:
        All of them, in float32 at least.
    """
    return in_float32(*(features if isinstance(features, tuple) else (features,)))


def paired_maps(student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
    """Maps of student and teacher tap by tap, in float32 at least, the teacher's without gradient.

    Args:
        student: (N, C, H, W) maps, one or several.
        teacher: as many.

    Returns:
        One (student, teacher) a tap.

    Raises:
        ValueError: one side has more taps than the other, or a tap gives no maps.
    """
    maps = paired(student, teacher)
    for pair in maps:
        for features in pair:
            check_map(features)
    return maps


def check_map(features: Tensor) -> None:
    """Refuse features that are no maps.

    Raises:
        NoMap: not (N, C, H, W).
    """
    if features.ndim != 4:
        raise NoMap(f"features of shape {tuple(features.shape)} are no maps (N, C, H, W): tap a convolutional stage")


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the size of the smaller one.

    Args:
        first: (N, C, H, W) maps.
        second: (N, C', H', W') maps.

    Returns:
        Both, of one height and width; untouched where they agree.
    """
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    first, second = (maps if maps.shape[-2:] == size else F.adaptive_avg_pool2d(maps, size) for maps in (first, second))
    return first, second


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    if isinstance(value, tuple):
        yield from (each for each in value if isinstance(each, Tensor))
