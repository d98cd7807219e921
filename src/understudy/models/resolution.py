"""Position embeddings at another resolution: what lets a vision transformer see larger images than it learned from."""

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import UserError

POSITIONS = "pos_embed"


def interpolate_positions(
    embedding: Tensor, grid: tuple[int, int], *, extra: int, old: tuple[int, int] | None = None, antialias: bool = False
) -> Tensor:
    """Resample the position embedding of patches to another grid; that of the extra tokens is left as it is.

    Bicubic without antialiasing, in the embedding's own precision: bit for bit what DeiT's code does. timm resamples
    with antialiasing, also upwards, which gives other numbers (`antialias=True`).

    Reference: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML
    2021 (https://arxiv.org/abs/2012.12877), section 5.1 ("Fine-tuning at different resolutions").

    Args:
        embedding: (1, extra + H·W, D), rows of patches after the extra tokens.
        grid: (height, width) wanted, in patches.
        extra: tokens in front that stand for no patch (class, distillation).
        old: (height, width) it has; by default a square.
        antialias: low-pass filter first, as timm does.

    Returns:
        (1, extra + height·width, D).

    Raises:
        UserError: the patches it has are no square, and `old` does not say what they are.
    """
    tokens, patches = embedding[:, :extra], embedding[:, extra:]
    side = isqrt(patches.shape[1])
    old = old or (side, side)
    if old[0] * old[1] != patches.shape[1]:
        raise UserError(f"a position embedding of {patches.shape[1]} patches is no grid of {old[0]} x {old[1]}")
    width = embedding.shape[-1]
    maps = patches.reshape(-1, *old, width).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat((tokens, maps.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def fit_positions(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights whose position embedding has the length that a model of another resolution needs.

    Args:
        weights: tensors by name; one that is no position embedding, or fits already, stays as it is.
        module: the model that they are for; its `patch_embed` says how many patches it cuts an image into.

    Returns:
        The same tensors, the position embedding interpolated where only the number of patches differs.
    """
    grid = patch_grid(module)
    ours = getattr(module, POSITIONS, None)
    theirs = weights.get(POSITIONS)
    if grid is None or not isinstance(ours, Tensor) or theirs is None or theirs.shape == ours.shape:
        return dict(weights)
    extra = ours.shape[1] - grid[0] * grid[1]
    patches = theirs.shape[1] - extra if theirs.ndim == 3 else 0
    if extra < 0 or patches < 1 or isqrt(patches) ** 2 != patches or theirs.shape[2] != ours.shape[2]:
        return dict(weights)  # another model, and `load_weights` says so
    return {**weights, POSITIONS: interpolate_positions(theirs, grid, extra=extra)}


def patch_grid(module: nn.Module) -> tuple[int, int] | None:
    """How many patches (height, width) a vision transformer cuts an image into; None where it has no `patch_embed`."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    return None if grid is None else (int(grid[0]), int(grid[1]))
