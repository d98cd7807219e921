"""Grids of images, and what happens to one of them on its way from noise."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from understudy.tasks.diffusion.quality import pixels

_SMALLEST, _GAP, _LABEL = 40, 2, 150


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images side by side.

    Args:
        images: (N, C, H, W) in [-1, 1]; of other channels than 1 and 3 (latents) the first three, or one, are shown.
        columns: images in a row.
    """
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return labelled_rows([("", row) for row in rows])


def labelled_rows(rows: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Rows of images with a word before each.

    Args:
        rows: for each row its word and its images (N, C, H, W) in [-1, 1].
    """
    height, width = rows[0][1].shape[-2:]
    scale = max(1, -(-_SMALLEST // max(height, width)))
    tile = (width * scale, height * scale)
    left = _LABEL if any(word for word, _ in rows) else 0
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (left + columns * (tile[0] + _GAP), len(rows) * (tile[1] + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (word, images) in enumerate(rows):
        top = row * (tile[1] + _GAP)
        draw.text((4, top + tile[1] // 2 - 6), word, fill="black")
        for column, image in enumerate(images):
            sheet.paste(_tile(image).resize(tile, Image.Resampling.NEAREST), (left + column * (tile[0] + _GAP), top))
    return sheet


def _tile(image: Tensor) -> Image.Image:
    array = pixels(image[:3] if len(image) >= 3 else image[:1]).cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)).convert("RGB")


def moments(path: Sequence[Tensor], count: int) -> Tensor:
    """Some of the images of a path, its first and last among them, evenly spaced."""
    places = np.unique(np.linspace(0, len(path) - 1, min(count, len(path))).round().astype(int))
    return torch.cat([path[place] for place in places])
