"""Adapters: what makes a student's feature comparable with the teacher's, built from the shapes of an example."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import UserError


def make_adapter(student: Tensor, teacher: Tensor) -> nn.Module:
    """Build the module that gives a student's feature the shape of the teacher's.

    Channels are mapped by a 1x1 convolution or a linear layer, resolutions by interpolation. Tokens (N, L, D) become
    a map where the teacher's feature is one, and maps become tokens; class tokens in front of a square number of
    patches are left out where a map is wanted, and taken from the mean where tokens are.

    Args:
        student: an example of the student's feature: (N, D), (N, L, D) or (N, C, H, W).
        teacher: an example of the teacher's.

    Returns:
        A module from the one to the other; the identity where their shapes agree.

    Raises:
        UserError: a vector is to become a map, or the other way round.
    """
    if student.shape[1:] == teacher.shape[1:]:
        return nn.Identity()
    kinds = student.ndim, teacher.ndim
    if kinds == (2, 2):
        return nn.Linear(student.shape[1], teacher.shape[1])
    if kinds == (4, 4):
        return MapAdapter(student.shape[1], teacher.shape[1], (teacher.shape[2], teacher.shape[3]))
    if kinds == (3, 3):
        return TokenAdapter(student.shape[2], teacher.shape[2], teacher.shape[1])
    if kinds == (3, 4):
        to_map = MapAdapter(student.shape[2], teacher.shape[1], (teacher.shape[2], teacher.shape[3]))
        return nn.Sequential(TokensToMap(), to_map)
    if kinds == (4, 3):
        return nn.Sequential(MapToTokens(), TokenAdapter(student.shape[1], teacher.shape[2], teacher.shape[1]))
    raise UserError(
        f"a feature of shape {tuple(student.shape[1:])} cannot be compared with one of {tuple(teacher.shape[1:])}: "
        "tap places of one kind, such as two maps or two pooled embeddings"
    )


class MapAdapter(nn.Module):
    """From a map to one of other channels and resolution: a 1x1 convolution, then interpolation.

    Args:
        channels: of the student's map.
        wanted: channels of the teacher's.
        size: (height, width) of the teacher's.
    """

    def __init__(self, channels: int, wanted: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.project = nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1)
        self.size = size

    def forward(self, feature: Tensor) -> Tensor:
        """Adapt a map (N, C, H, W)."""
        feature = self.project(feature)
        if feature.shape[-2:] == self.size:
            return feature
        if feature.shape[-2] >= self.size[0] and feature.shape[-1] >= self.size[1]:
            return F.adaptive_avg_pool2d(feature, self.size)
        return F.interpolate(feature, self.size, mode="bilinear", align_corners=False)


class TokenAdapter(nn.Module):
    """From tokens to tokens of another width and number.

    Args:
        width: of the student's tokens.
        wanted: width of the teacher's.
        length: number of the teacher's tokens, those for the class in front included.
    """

    def __init__(self, width: int, wanted: int, length: int) -> None:
        super().__init__()
        self.project = nn.Identity() if width == wanted else nn.Linear(width, wanted)
        self.length = length

    def forward(self, feature: Tensor) -> Tensor:
        """Adapt tokens (N, L, D)."""
        feature = self.project(feature)
        if feature.shape[1] == self.length:
            return feature
        front, side = _front_tokens(self.length)
        patches = feature[:, _front_tokens(feature.shape[1])[0] :]
        grid = _as_map(patches)
        grid = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        return F.pad(grid, (0, 0, front, 0)) + _mean_in_front(patches, front, self.length)


def make_resizer(student: Tensor, teacher: Tensor) -> nn.Module:
    """Build the module that gives a student's map the teacher's resolution and keeps its channels.

    Args:
        student: an example of the student's feature.
        teacher: an example of the teacher's.
    """
    if student.ndim != 4 or teacher.ndim != 4:
        return nn.Identity()
    return MapAdapter(student.shape[1], student.shape[1], (teacher.shape[2], teacher.shape[3]))


class TokensToMap(nn.Module):
    """From tokens (N, L, D) to a map (N, D, side, side), without those in front of the patches."""

    def forward(self, feature: Tensor) -> Tensor:
        """Adapt tokens."""
        return tokens_to_map(feature)


class MapToTokens(nn.Module):
    """From a map (N, C, H, W) to tokens (N, H·W, C)."""

    def forward(self, feature: Tensor) -> Tensor:
        """Adapt a map."""
        return feature.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: Tensor) -> Tensor:
    """The patches among some tokens as a map.

    Args:
        tokens: (N, L, D), any number of them in front of a square of patches.

    Returns:
        (N, D, side, side)
    """
    return _as_map(tokens[:, _front_tokens(tokens.shape[1])[0] :])


def _front_tokens(length: int) -> tuple[int, int]:
    """How many tokens stand in front of the largest square of patches, and its side."""
    side = math.isqrt(length)
    return length - side * side, side


def _as_map(patches: Tensor) -> Tensor:
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))


def _mean_in_front(patches: Tensor, front: int, length: int) -> Tensor:
    """The mean of the patches at the places of the class tokens, zero elsewhere."""
    return F.pad(patches.mean(1, keepdim=True).expand(-1, front, -1), (0, 0, 0, length - front))
