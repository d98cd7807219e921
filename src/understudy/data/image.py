"""From an encoded image to pixels of one size: the whole in the middle, or a random part of it."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from understudy import randomness
from understudy.errors import UserError

# Share of the image's area that a random training crop keeps, smallest and largest.
Scale = tuple[float, float]
DEFAULT_SCALE: Scale = (0.35, 1.0)


def open_image(file: Path | IO[bytes], channels: int, *, where: object = None) -> Image.Image:
    """Open an image as RGB or grey, turned upright where its EXIF data says how it was held.

    Args:
        file: path, or an open stream of bytes.
        channels: 3 for RGB, 1 for grey.
        where: its name for messages; by default the path.

    Raises:
        UserError: it is missing or damaged.
    """
    where = where or file
    try:
        with Image.open(file) as image:
            return as_mode(ImageOps.exif_transpose(image) if "exif" in image.info else image, channels)
    except FileNotFoundError:
        raise UserError("no such image", where=where) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error).split("\n")[0]
        raise UserError(f"is no image that can be read ({reason})", where=where) from None


def as_mode(image: Image.Image, channels: int) -> Image.Image:
    """Turn an image of any mode into RGB (3 channels) or grey (1): palettes, CMYK, transparency, 16 bits."""
    if image.mode.startswith("I;16"):  # Pillow would cut values above 255 off
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def cut(image: Image.Image, size: int | None, draw: np.ndarray | None, scale: Scale = DEFAULT_SCALE) -> Tensor:
    """Turn an opened image into pixels of one size.

    Args:
        image: of any size, RGB or grey.
        size: height and width wanted, in pixels; None keeps the image as it is.
        draw: (4,) uniform numbers to take a random part by; None takes the middle, or the whole of an image that
            has the size already.
        scale: smallest and largest share of the area that a random part has.

    Returns:
        (C, size, size) uint8.
    """
    if size is None:
        return pixels(image)
    if draw is not None:
        image = _resize(image, size, random_box(*image.size, draw, scale))
    elif image.size != (size, size):
        image = _resize(image, size, center_box(*image.size))
    return pixels(image)


def pixels(image: Image.Image) -> Tensor:
    """(C, H, W) uint8 of an RGB or grey image."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def decode(
    read: Callable[[Any, np.ndarray | None], Tensor],
    items: Iterable[Any],
    keys: np.ndarray | None,
    *,
    threads: bool = True,
) -> list[Tensor]:
    """Decode the images of a batch, on all cores unless a loader's worker process does it.

    Args:
        read: from an item and its four uniform numbers (None without keys) to pixels.
        items: (N,) whatever `read` takes.
        keys: (N,) one key an image, or None for no random crops.
        threads: False for images so small that threads cost more than they save.
    """
    items = list(items)
    draws = [None] * len(items) if keys is None else list(randomness.uniform(keys, 4))
    count = min(8, os.cpu_count() or 1, len(items))
    if not threads or count < 2 or get_worker_info() is not None:
        return list(map(read, items, draws))
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(read, items, draws))


def center_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The middle square that holds 7/8 of the shorter side, as ImageNet is evaluated (resize 256, crop 224)."""
    side = min(width, height) * 0.875
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, draw: np.ndarray, scale: Scale) -> tuple[float, float, float, float]:
    """A random part of an image (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015), from four numbers.

    Unlike torchvision's, a part that does not fit is shrunk into the image instead of drawn again: a view then
    always costs four numbers of its key.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        draw: (4,) uniform numbers: area, aspect, left, top.
        scale: smallest and largest share of the area.
    """
    area = width * height * (scale[0] + (scale[1] - scale[0]) * draw[0])
    aspect = np.exp(np.log(4 / 3) * (2 * draw[1] - 1))
    box_width, box_height = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
    left, top = (width - box_width) * draw[2], (height - box_height) * draw[3]
    return left, top, left + box_width, top + box_height


def _resize(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
