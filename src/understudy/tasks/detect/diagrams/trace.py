"""Parents from the pixels: which boxes the drawn lines join, and from which root the drawing grows."""

import numpy as np

from understudy.tasks.detect.diagrams.heads import find_heads
from understudy.tasks.detect.diagrams.ink import Stroke, find_strokes, side_of
from understudy.tasks.detect.diagrams.orient import Join, orient


def trace_parents(pixels: np.ndarray, boxes: np.ndarray) -> list[int]:
    """Follow the lines between the boxes.

    Args:
        pixels: (H, W, 3) uint8.
        boxes: (N, 4) left, top, right, bottom in pixels.

    Returns:
        (N,) indices of the parents, -1 for nodes that no line leads to.
    """
    return orient(boxes, [_join(stroke, boxes) for stroke in find_strokes(pixels, boxes)])


def _join(stroke: Stroke, boxes: np.ndarray) -> Join:
    return Join(
        boxes=tuple(contact.box for contact in stroke.contacts),
        sides=tuple(side_of(boxes[contact.box], contact.place) for contact in stroke.contacts),
        heads=find_heads(stroke),
    )
