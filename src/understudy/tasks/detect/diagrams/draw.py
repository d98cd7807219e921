"""Boxes and their parents drawn on an image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from understudy.errors import UserError
from understudy.tasks.detect.diagrams.forest import ROOT, depths_of, find_fault
from understudy.tasks.detect.diagrams.parents import Boxes, Picture, as_boxes, as_pixels

_BY_DEPTH = ((214, 39, 40), (31, 119, 180), (44, 160, 44), (255, 127, 14), (148, 103, 189), (23, 190, 207))


def draw_relations(image: Picture, boxes: Boxes, parents: Sequence[int]) -> Image.Image:
    """Draw every box in the colour of its depth, and an arrow from each parent to its child.

    Args:
        image: (H, W, 3) or (H, W) uint8 RGB, or a Pillow image; it is not changed.
        boxes: (N, 4) left, top, right, bottom in pixels.
        parents: (N,) indices, -1 for roots.

    Returns:
        An RGB image of the same size.

    Raises:
        UserError: there is not one parent a box, or the parents are no forest.
    """
    checked = as_boxes(boxes)
    listed = [int(parent) for parent in parents]
    if len(listed) != len(checked):
        raise UserError(f"{len(checked)} boxes, but {len(listed)} parents", where="draw_relations")
    fault = find_fault(listed)
    if fault:
        raise UserError(fault[1], where=f"node {fault[0]}")
    picture = Image.fromarray(as_pixels(image))
    draw = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 500))
    colours = [_BY_DEPTH[depth % len(_BY_DEPTH)] for depth in depths_of(listed)]
    for box, colour in zip(checked, colours, strict=True):
        draw.rectangle(tuple(box.tolist()), outline=colour, width=width)
    for child, parent in enumerate(listed):
        if parent != ROOT:
            _arrow(draw, checked[parent], checked[child], colours[child], width)
    return picture


def _arrow(
    draw: ImageDraw.ImageDraw, parent: np.ndarray, child: np.ndarray, colour: tuple[int, int, int], width: int
) -> None:
    """From the middle of the parent to where the way to the child's middle meets the child's box."""
    start, end = (parent[:2] + parent[2:]) / 2, (child[:2] + child[2:]) / 2
    way = end - start
    length = float(np.linalg.norm(way))
    if length < 1:
        return
    way /= length
    inside = float(np.min((child[2:] - child[:2]) / 2 / np.maximum(np.abs(way), 1e-9)))
    tip = end - way * min(inside, length / 2)
    back, side = tip - way * 5 * width, np.array([-way[1], way[0]]) * 2.5 * width
    draw.line([*start, *back], fill=colour, width=width)
    draw.polygon([tuple(map(float, point)) for point in (tip, back + side, back - side)], fill=colour)
