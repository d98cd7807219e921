"""The fourteen operations of RandAugment [1] on uint8 batches, each sample with its own value.

The ranges are those of `torchvision.transforms.v2.RandAugment`, whose 31 bins are replaced by a continuous
magnitude from 0 to 10 (its bin k is magnitude k / 3). As there, geometric operations read the nearest pixel
and fill with 0, and their direction, like that of the enhancing ones, is a coin toss.

Everything but `auto_contrast` is computed in integers with a fixed point: a sample's result has the same bits
alone and in any batch, and on any device, which floating-point means and convolutions do not promise.
`auto_contrast` uses single IEEE operations, which do.

References:
    [1] Cubuk, Zoph, Shlens and Le, "RandAugment: practical automated data augmentation with a reduced search
        space", CVPR Workshops 2020, arXiv:1909.13719.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.randomness import key, keys, uniform

_APPLIED = key("rand_augment", "applied")
_STRENGTH = key("rand_augment", "strength")

_BLEND_BITS = 16  # 255 x a factor of 1.9 x 2^16 fits in int32
_PLACE_BITS = 24  # coordinates are int64: an error of 2^-24 of the distance from the centre


def rand_augment(
    images: Tensor,
    sample_keys: np.ndarray,
    *,
    count: int,
    magnitude: float,
    std: float = 0.0,
    operations: "Mapping[str, Operation] | None" = None,
    probability: float = 1.0,
) -> Tensor:
    """Apply to each sample `count` operations, drawn with replacement from its key, one after the other.

    Args:
        images: (N, C, H, W) uint8 with 1 or 3 channels; left as it is.
        sample_keys: (N,) uint64, one key for each view.
        count: operations a sample.
        magnitude: strength of all operations, from 0 to 10.
        std: standard deviation of the magnitude, drawn anew for each operation and kept between 0 and 10.
        operations: to draw from; by default `OPERATIONS`.
        probability: that an operation drawn is applied at all.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        UserError: another number of channels, a negative count, or a magnitude out of its range.
    """
    if images.shape[1] not in (1, 3):
        raise UserError(f"RandAugment needs images of 1 or 3 channels, not {images.shape[1]}; leave it out")
    if count < 0:
        raise UserError(f"the number of RandAugment operations is 0 or more, not {count}")
    if not 0 <= magnitude <= 10:
        raise UserError(f"the magnitude of RandAugment is between 0 and 10, not {magnitude}")

    table = OPERATIONS if operations is None else operations
    height, width = images.shape[2:]
    draws = uniform(sample_keys, 2 * count)
    applied, strengths = _applied_and_strengths(sample_keys, count, magnitude / 10, std / 10, probability)
    views = images.clone()
    for step in range(count):
        chosen = np.where(applied[:, step], (draws[:, 2 * step] * len(table)).astype(np.int64), -1)
        signs = np.where(draws[:, 2 * step + 1] < 0.5, -1.0, 1.0)
        for number, operation in enumerate(table.values()):
            members = np.flatnonzero(chosen == number)
            if operation.apply is None or not len(members):
                continue
            values = np.broadcast_to(operation.value(strengths[members, step], height, width), members.shape)
            values = values * signs[members] if operation.signed else values
            where = torch.from_numpy(members).to(images.device)
            views.index_copy_(0, where, operation.apply(views[where], operation.base + values))
    return views


def _applied_and_strengths(
    sample_keys: np.ndarray, count: int, strength: float, std: float, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of a sample's operations is applied, and how strongly from 0 to 1; both (N, count)."""
    applied = np.ones((len(sample_keys), count), bool)
    strengths = np.full(applied.shape, strength)
    if probability < 1:
        applied = uniform(keys(_APPLIED, sample_keys), count) < probability
    if std > 0:
        normal = torch.special.ndtri(torch.from_numpy(uniform(keys(_STRENGTH, sample_keys), count))).numpy()
        strengths = np.clip(strengths + std * normal, 0, 1)
    return applied, strengths


# Geometric operations


def rotate(images: Tensor, degrees: np.ndarray) -> Tensor:
    """Turn each image counter-clockwise about its centre.

    Args:
        images: (N, C, H, W) uint8.
        degrees: (N,) angles.
    """
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return _resample(images, column=(cosine, -sine, 0.0), row=(sine, cosine, 0.0))


def shear_x(images: Tensor, levels: np.ndarray) -> Tensor:
    """Shift each row to the left in proportion to its distance from the upper edge.

    Args:
        images: (N, C, H, W) uint8.
        levels: (N,) pixels of shift a pixel of distance.
    """
    return _resample(images, column=(1.0, levels, levels * images.shape[2] / 2), row=(0.0, 1.0, 0.0))


def shear_y(images: Tensor, levels: np.ndarray) -> Tensor:
    """Shift each column upwards in proportion to its distance from the left edge.

    Args:
        images: (N, C, H, W) uint8.
        levels: (N,) pixels of shift a pixel of distance.
    """
    return _resample(images, column=(1.0, 0.0, 0.0), row=(levels, 1.0, levels * images.shape[3] / 2))


def translate_x(images: Tensor, pixels: np.ndarray) -> Tensor:
    """Shift each image to the right.

    Args:
        images: (N, C, H, W) uint8.
        pixels: (N,) shifts, cut to whole pixels towards zero.
    """
    return _resample(images, column=(1.0, 0.0, -np.trunc(pixels)), row=(0.0, 1.0, 0.0))


def translate_y(images: Tensor, pixels: np.ndarray) -> Tensor:
    """Shift each image downwards.

    Args:
        images: (N, C, H, W) uint8.
        pixels: (N,) shifts, cut to whole pixels towards zero.
    """
    return _resample(images, column=(1.0, 0.0, 0.0), row=(0.0, 1.0, -np.trunc(pixels)))


_Coefficients = tuple[np.ndarray | float, np.ndarray | float, np.ndarray | float]


def _resample(images: Tensor, *, column: _Coefficients, row: _Coefficients) -> Tensor:
    """Read each pixel from the nearest place of an affine map; places outside the image are 0.

    `column` and `row` give a source coordinate as a x + b y + c, all measured in pixels from the centre.
    Positions are doubled so that a centre between two pixels is an integer too.
    """
    height, width = images.shape[2:]
    device = images.device
    x = (torch.arange(width, device=device) * 2 - (width - 1)).view(1, 1, width)
    y = (torch.arange(height, device=device) * 2 - (height - 1)).view(1, height, 1)

    def source(coefficients: _Coefficients, length: int) -> Tensor:
        of_x, of_y, shift = (_fixed(value, len(images), _PLACE_BITS, device) for value in coefficients)
        doubled = of_x * x + of_y * y + 2 * shift + (length << _PLACE_BITS)  # from the edge, half a pixel added
        return doubled >> (_PLACE_BITS + 1)

    source_columns, source_rows = source(column, width), source(row, height)
    inside = (source_columns >= 0) & (source_columns < width) & (source_rows >= 0) & (source_rows < height)
    places = torch.where(inside, source_rows * width + source_columns, 0).flatten(1).unsqueeze(1)
    read = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1))
    return read.reshape(images.shape) * inside.unsqueeze(1)


def _fixed(values: np.ndarray | float, count: int, bits: int, device: torch.device) -> Tensor:
    """(count, 1, 1) int64: numbers as multiples of 2^-bits."""
    scaled = np.rint(np.broadcast_to(values, (count,)) * 2.0**bits).astype(np.int64)
    return torch.from_numpy(scaled).to(device).view(count, 1, 1)


# Enhancing operations: an image is moved away from, or towards, a degenerate version of itself


def brightness(images: Tensor, factors: np.ndarray) -> Tensor:
    """Blend with black.

    Args:
        images: (N, C, H, W) uint8.
        factors: (N,) from 0 (black) over 1 (unchanged) up.
    """
    return _blend(images, images.new_zeros(1, dtype=torch.int32), factors)


def color(images: Tensor, factors: np.ndarray) -> Tensor:
    """Blend with the grey image; images of one channel stay as they are.

    Args:
        images: (N, C, H, W) uint8 with 1 or 3 channels.
        factors: (N,) from 0 (grey) over 1 (unchanged) up.
    """
    if images.shape[1] == 1:
        return images
    return _blend(images, _grey(images) << _BLEND_BITS, factors)


def contrast(images: Tensor, factors: np.ndarray) -> Tensor:
    """Blend with the mean grey level of the image.

    Args:
        images: (N, C, H, W) uint8 with 1 or 3 channels.
        factors: (N,) from 0 (flat) over 1 (unchanged) up.
    """
    total = _grey(images).sum(dim=(1, 2, 3), keepdim=True)  # int64
    mean = torch.div(total << _BLEND_BITS, images[0, 0].numel(), rounding_mode="floor")
    return _blend(images, mean, factors)


def sharpness(images: Tensor, factors: np.ndarray) -> Tensor:
    """Blend the pixels off the border with their smoothed values; images of two pixels or less stay.

    Args:
        images: (N, C, H, W) uint8.
        factors: (N,) from 0 (smooth) over 1 (unchanged) up.
    """
    height, width = images.shape[2:]
    if height <= 2 or width <= 2:
        return images
    levels = images.to(torch.int32)
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    blocks = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    centre = levels[:, :, 1:-1, 1:-1]
    # The kernel has 5 in the middle and 1 around it; 13 is odd, so rounding has no ties.
    smooth = torch.div(2 * (blocks + 4 * centre) + 13, 26, rounding_mode="floor")
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = _blend(centre, smooth << _BLEND_BITS, factors)
    return result


def _blend(images: Tensor, degenerate: Tensor, factors: np.ndarray) -> Tensor:
    """Return factor x image + (1 - factor) x degenerate, cut to whole levels.

    `degenerate` holds integers, its levels times 2^_BLEND_BITS: a mean need not be a whole level.
    """
    factor = _fixed(factors, len(images), _BLEND_BITS, images.device).unsqueeze(3)
    other = (degenerate * ((1 << _BLEND_BITS) - factor)) >> _BLEND_BITS
    blended = (images * factor.to(torch.int32) + other.to(torch.int32)) >> _BLEND_BITS
    return blended.clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) int32 luma, cut to whole levels, with torchvision's coefficients."""
    levels = images.to(torch.int32)
    if images.shape[1] == 1:
        return levels
    red, green, blue = levels.split(1, dim=1)
    return torch.div(2989 * red + 5870 * green + 1140 * blue, 10000, rounding_mode="floor")


# Operations on the levels


def posterize(images: Tensor, bits: np.ndarray) -> Tensor:
    """Keep the highest bits of each level.

    Args:
        images: (N, C, H, W) uint8.
        bits: (N,) from 0 to 8, rounded to whole bits.
    """
    masks = (255 << (8 - np.rint(bits).astype(np.int64))) & 255
    return images & torch.from_numpy(masks.astype(np.uint8)).to(images.device).view(-1, 1, 1, 1)


def solarize(images: Tensor, thresholds: np.ndarray) -> Tensor:
    """Invert the levels from a threshold on.

    Args:
        images: (N, C, H, W) uint8.
        thresholds: (N,) levels from 0 to 255.
    """
    first = torch.from_numpy(np.ceil(thresholds).astype(np.int16)).to(images.device).view(-1, 1, 1, 1)
    return torch.where(images >= first, 255 - images, images)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel to the full range; a channel of one level stays as it is.

    Args:
        images: (N, C, H, W) uint8.
    """
    darkest = images.amin(dim=(2, 3), keepdim=True)
    span = images.amax(dim=(2, 3), keepdim=True) - darkest
    # The quotient is torchvision's, in float32, so that its cut to whole levels falls the same way.
    scale = torch.where(span > 0, span * (1.0 / 255), 1.0)
    stretched = ((images - darkest) / scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(span > 0, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """Spread the levels of each channel so that all are about equally frequent, by Pillow's formula.

    Args:
        images: (N, C, H, W) uint8.
    """
    levels = images.flatten(2).long()
    histogram = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    below = histogram.cumsum(2) - histogram
    brightest = histogram.gather(2, levels.amax(dim=2, keepdim=True))
    step = torch.div(levels.shape[2] - brightest, 255, rounding_mode="floor")
    divisor = step.clamp(min=1)
    table = torch.div(below + torch.div(step, 2, rounding_mode="floor"), divisor, rounding_mode="floor")
    spread = table.clamp_(max=255).gather(2, levels)
    return torch.where(step > 0, spread, levels).to(torch.uint8).reshape(images.shape)


# The table


@dataclass(frozen=True)
class Operation:
    """One row of the table: what is done with which value.

    Args:
        apply: takes images (N, C, H, W) and values (N,); None leaves the images as they are.
        value: the values for strengths (N,) from 0 to 1 and an image height and width.
        signed: whether the value is negated with probability 1/2.
        base: added to the value after its sign (enhancing operations move away from a factor of 1).
    """

    apply: Callable[[Tensor, np.ndarray], Tensor] | None
    value: Callable[[np.ndarray, int, int], np.ndarray | float] = lambda strength, height, width: 0.0
    signed: bool = False
    base: float = 0.0


def _enhancing(apply: Callable[[Tensor, np.ndarray], Tensor]) -> Operation:
    return Operation(apply, lambda strength, height, width: 0.9 * strength, signed=True, base=1.0)


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(None),
    "auto_contrast": Operation(lambda images, values: auto_contrast(images)),
    "equalize": Operation(lambda images, values: equalize(images)),
    "rotate": Operation(rotate, lambda strength, height, width: 30.0 * strength, signed=True),
    "solarize": Operation(solarize, lambda strength, height, width: 255.0 * (1.0 - strength)),
    "color": _enhancing(color),
    "posterize": Operation(posterize, lambda strength, height, width: 8.0 - 4.0 * strength),
    "contrast": _enhancing(contrast),
    "brightness": _enhancing(brightness),
    "sharpness": _enhancing(sharpness),
    "shear_x": Operation(shear_x, lambda strength, height, width: 0.3 * strength, signed=True),
    "shear_y": Operation(shear_y, lambda strength, height, width: 0.3 * strength, signed=True),
    "translate_x": Operation(translate_x, lambda strength, height, width: 150 / 331 * width * strength, signed=True),
    "translate_y": Operation(translate_y, lambda strength, height, width: 150 / 331 * height * strength, signed=True),
}
