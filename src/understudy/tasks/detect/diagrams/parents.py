"""Parents of the nodes of a diagram, from their boxes alone or from the lines that are drawn between them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from understudy.errors import UserError
from understudy.tasks.detect.diagrams.geometry import guess_parents
from understudy.tasks.detect.diagrams.trace import trace_parents

Picture = Image.Image | np.ndarray
Boxes = np.ndarray | Sequence[Sequence[float]]


def find_parent_nodes(boxes: Boxes, image: Picture | None = None) -> list[int]:
    """The parent of every box.

    With an image the lines between the boxes are followed: a box without a line is a root. Without one the
    direction of growth and the parents are guessed from where the boxes stand, as tidy trees are drawn; lines tell
    much more. Where the drawing leaves open which node is the root (a chain without arrowheads), reading order
    decides: downwards, then to the right.

    Args:
        boxes: (N, 4) left, top, right, bottom in pixels; (0, 4) or an empty list for none.
        image: the picture the boxes are from: (H, W, 3) or (H, W) uint8 with channels in any order, or a Pillow
            image.

    Returns:
        (N,) index of each box's parent, -1 for a root; never a cycle.

    Raises:
        UserError: the boxes or the image are of another form.
    """
    checked = as_boxes(boxes)
    if image is None:
        return guess_parents(checked)
    return trace_parents(as_pixels(image), checked)


def as_boxes(boxes: Boxes) -> np.ndarray:
    """Boxes as a (N, 4) float array.

    Raises:
        UserError: they are no finite left, top, right, bottom with left before right and top above bottom.
    """
    try:
        array = np.array(boxes, dtype=float)
    except (TypeError, ValueError):
        raise UserError("boxes must be numbers: left, top, right, bottom of each", where="boxes") from None
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise UserError(f"boxes must have the shape (N, 4), not {array.shape}", where="boxes")
    wrong = np.flatnonzero(~np.isfinite(array).all(axis=1) | (array[:, 2:] <= array[:, :2]).any(axis=1))
    if len(wrong):
        raise UserError(
            f"{array[wrong[0]].tolist()} is no left, top, right, bottom with a positive size", where=f"box {wrong[0]}"
        )
    return array


def as_pixels(image: Picture) -> np.ndarray:
    """A picture as (H, W, 3) uint8.

    Raises:
        UserError: an array of another shape or type.
    """
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise UserError(f"must be (H, W, 3) uint8, not {image.shape} {image.dtype}", where="image")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image[..., :3]
