"""Augmentation of whole uint8 batches, each view a function of its sample's key and of nothing else.

The number of workers, the other samples of a batch and a resume never change a view. The pixels are
gathered, shifted and blended in integers or in single IEEE operations, so that a sample alone and the same
sample in a batch agree in every bit, on any device.

References:
    [1] He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385
        (zero padding, random crop and flip for CIFAR).
    [2] Cubuk, Zoph, Shlens and Le, "RandAugment: practical automated data augmentation with a reduced search
        space", CVPR Workshops 2020, arXiv:1909.13719.
    [3] Zhong, Zheng, Kang, Li and Yang, "Random erasing data augmentation", AAAI 2020, arXiv:1708.04896.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from understudy.data import rand_augment_timm
from understudy.data.color_jitter import color_jitter as apply_color_jitter
from understudy.data.rand_augment import rand_augment as apply_rand_augment
from understudy.errors import UserError
from understudy.randomness import key, keys, uniform

# One parent key a stage: switching a stage on or off never changes what another stage draws.
_CROP = key("augment", "crop")
_FLIP = key("augment", "flip")
_COLOR_JITTER = key("augment", "color_jitter")
_RAND_AUGMENT = key("augment", "rand_augment")
_ERASE = key("augment", "erase")
_ERASE_PIXELS = key("augment", "erase", "pixels")

_ERASE_AREA = (0.02, 0.33)
_ERASE_ASPECT = (0.3, 3.3)
_ERASE_ATTEMPTS = 10

# Mean and standard deviation of each channel, from 0 to 1.
Normal = tuple[tuple[float, ...], tuple[float, ...]]


def augment(
    images: Tensor,
    sample_keys: np.ndarray,
    *,
    crop: int = 0,
    flip: bool = False,
    color_jitter: float = 0.0,
    rand_augment: tuple[int, float] | None = None,
    rand_augment_std: float = 0.0,
    rand_augment_as: Literal["torchvision", "timm"] = "torchvision",
    erase: float = 0.0,
    erase_with: Normal | None = None,
) -> Tensor:
    """Random views of a batch: crop [1], flip [1], colour jitter, RandAugment [2] and erasing [3], in this order.

    Args:
        images: (N, C, H, W) uint8; left as it is.
        sample_keys: (N,) uint64, one key for each view, from `randomness.keys`.
        crop: zero pixels added on each side before an H x W window is cut out; all (2 crop + 1)² windows are
            equally likely.
        flip: mirror left and right with probability 1/2.
        color_jitter: brightness, contrast and saturation are scaled by up to 1 plus or minus this.
        rand_augment: number of operations a sample and their magnitude from 0 to 10; needs 1 or 3 channels.
        rand_augment_std: standard deviation of the magnitude.
        rand_augment_as: whose operations and ranges; timm's are DeiT's too.
        erase: probability that a rectangle of 2 to 33 % of the area, its height 0.3 to 3.3 times its width,
            is filled with random pixels.
        erase_with: mean and deviation of normally distributed pixels, cut to whole levels: as timm and DeiT fill,
            whose noise is standard normal after normalisation. None for pixels of all levels alike.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        UserError: images of another type or shape, keys that do not match them, a setting out of its range.
    """
    _check(images, sample_keys, crop=crop, erase=erase)
    views = images
    if crop or flip:
        views = _crop_and_flip(views, sample_keys, crop=crop, flip=flip)
    if color_jitter:
        views = apply_color_jitter(views, keys(_COLOR_JITTER, sample_keys), strength=color_jitter)
    if rand_augment is not None:
        as_timm = rand_augment_as == "timm"
        views = apply_rand_augment(
            views,
            keys(_RAND_AUGMENT, sample_keys),
            count=rand_augment[0],
            magnitude=rand_augment[1],
            std=rand_augment_std,
            operations=rand_augment_timm.OPERATIONS if as_timm else None,
            probability=rand_augment_timm.PROBABILITY if as_timm else 1.0,
        )
    if erase:
        views = _erase(views, sample_keys, probability=erase, normal=erase_with)
    return views


def _check(images: Tensor, sample_keys: np.ndarray, *, crop: int, erase: float) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(
            f"augment needs a uint8 tensor of shape (N, C, H, W), not {images.dtype} {tuple(images.shape)}; "
            "augment before converting to float"
        )
    if sample_keys.shape != (len(images),):
        raise UserError(f"{len(images)} images need as many keys, not an array {sample_keys.shape}")
    if crop < 0:
        raise UserError(f"crop is a number of pixels, 0 or more, not {crop}")
    if not 0 <= erase <= 1:
        raise UserError(f"erase is a probability between 0 and 1, not {erase}")


def _crop_and_flip(images: Tensor, sample_keys: np.ndarray, *, crop: int, flip: bool) -> Tensor:
    """Both at once by one gather: a mirrored window is the same window with its columns read backwards."""
    count, channels, height, width = images.shape
    tops = lefts = np.zeros(count, dtype=np.int64)
    if crop:
        corners = (uniform(keys(_CROP, sample_keys), 2) * (2 * crop + 1)).astype(np.int64)
        tops, lefts = corners.T
    columns = lefts[:, None] + np.arange(width)
    if flip:
        # A key is itself a hash, so that its first bit is a fair coin.
        mirrored = keys(_FLIP, sample_keys) >> np.uint64(63) == 1
        columns[mirrored] = columns[mirrored, ::-1]
    padded_width = width + 2 * crop
    rows = (tops[:, None] + np.arange(height)) * padded_width
    row_starts = torch.from_numpy(rows).to(images.device).unsqueeze(2)
    pixels = row_starts + torch.from_numpy(columns).to(images.device).unsqueeze(1)
    padded = pad(images, (crop, crop, crop, crop)) if crop else images
    index = pixels.view(count, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).reshape(images.shape)


def _erase(images: Tensor, sample_keys: np.ndarray, *, probability: float, normal: Normal | None) -> Tensor:
    """Fill one rectangle of the chosen samples; a sample none of whose attempts fits stays as it is."""
    channels, height, width = images.shape[1:]
    stage_keys = keys(_ERASE, sample_keys)
    draws = uniform(stage_keys, 3 + 2 * _ERASE_ATTEMPTS)
    box_heights, box_widths = _box_sizes(draws[:, 3:], height, width)
    fits = (box_heights < height) & (box_widths < width)
    chosen = np.flatnonzero((draws[:, 0] < probability) & fits.any(axis=1))
    if not len(chosen):
        return images
    first = fits.argmax(axis=1)
    box_heights, box_widths = box_heights[chosen, first[chosen]], box_widths[chosen, first[chosen]]
    tops = (draws[chosen, 1] * (height - box_heights + 1)).astype(np.int64)
    lefts = (draws[chosen, 2] * (width - box_widths + 1)).astype(np.int64)
    inside_rows = _between(height, tops, box_heights)
    inside_columns = _between(width, lefts, box_widths)
    inside = torch.from_numpy(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])
    pixel_keys = keys(_ERASE_PIXELS, sample_keys[chosen])
    if normal is None:
        noise = _random_words(pixel_keys, channels * height * width, np.uint8)
    else:
        noise = _normal_levels(pixel_keys, channels, height * width, normal)
    noise_images = torch.from_numpy(noise).view(-1, channels, height, width)
    where = torch.from_numpy(chosen).to(images.device)
    erased = torch.where(inside.to(images.device), noise_images.to(images.device), images[where])
    return images.clone().index_copy_(0, where, erased)


def _box_sizes(draws: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths, each (N, attempts), of rectangles of random area and aspect."""
    areas = _ERASE_AREA[0] + draws[:, ::2] * (_ERASE_AREA[1] - _ERASE_AREA[0])
    low, high = np.log(_ERASE_ASPECT)
    aspects = np.exp(low + draws[:, 1::2] * (high - low))
    pixels = areas * (height * width)
    heights = np.rint(np.sqrt(pixels * aspects)).astype(np.int64)
    widths = np.rint(np.sqrt(pixels / aspects)).astype(np.int64)
    return heights, widths


def _between(length: int, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(N, length) mask of `counts` places from `starts` on."""
    places = np.arange(length)
    return (places >= starts[:, None]) & (places < (starts + counts)[:, None])


def _normal_levels(stage_keys: np.ndarray, channels: int, pixels: int, normal: Normal) -> np.ndarray:
    """(N, channels, pixels) uint8, normally distributed in each channel: 16 random bits look their level up."""
    words = _random_words(stage_keys, channels * pixels, np.uint16).reshape(-1, channels, pixels)
    places = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    quantiles = torch.special.ndtri(places).numpy()
    levels = np.empty(words.shape, np.uint8)
    for channel in range(channels):
        mean, std = (values[channel % len(values)] for values in normal)
        table = np.rint(255 * (mean + std * quantiles)).clip(0, 255).astype(np.uint8)
        levels[:, channel] = table[words[:, channel]]
    return levels


def _random_words(stage_keys: np.ndarray, count: int, kind: type[np.uint8] | type[np.uint16]) -> np.ndarray:
    """(N, count) numbers of 8 or 16 bits from 48 of the 53 random bits of a draw: a hash per pixel would be slow."""
    each = 6 // np.dtype(kind).itemsize
    draws = uniform(stage_keys, -(-count // each))
    whole = (draws * 2.0**48).astype("<u8")
    words = whole.view(np.dtype(kind).newbyteorder("<")).reshape(len(stage_keys), whole.shape[1], -1)[:, :, :each]
    return words.reshape(len(stage_keys), -1)[:, :count]
