"""Arrowheads: where a line widens towards a box and is one thin line again behind."""

import numpy as np

from understudy.tasks.detect.diagrams.ink import Stroke

_LOOK = 30  # pixels around a line's end


def find_heads(stroke: Stroke) -> tuple[bool, ...]:
    """Whether each contact of a stroke is the tip of an arrow."""
    profiles = [_profile(stroke, contact.place) for contact in stroke.contacts]
    widths = np.concatenate([ink[arcs > 0] / arcs[arcs > 0] for ink, arcs in profiles])
    if not len(widths):
        return (False,) * len(profiles)
    line = max(1.0, float(np.median(widths)))
    return tuple(_is_head(ink, arcs, line) for ink, arcs in profiles)


def _profile(stroke: Stroke, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """On circles around a line's end, 0 to 29 pixels: how much ink lies on each, and in how many arcs."""
    x, y = place - [stroke.left, stroke.top]
    left, top = max(int(x) - _LOOK, 0), max(int(y) - _LOOK, 0)
    ys, xs = np.nonzero(stroke.ink[top : int(y) + _LOOK, left : int(x) + _LOOK])
    across, down = xs + left + 0.5 - x, ys + top + 0.5 - y
    radius = np.hypot(across, down)
    ring = np.round(radius).astype(int)
    near = ring < _LOOK
    order = np.lexsort((np.arctan2(down, across)[near], ring[near]))
    ring, angle, radius = ring[near][order], np.arctan2(down, across)[near][order], radius[near][order]
    ink = np.bincount(ring, minlength=_LOOK)
    breaks = (np.diff(ring) == 0) & (np.diff(angle) * np.maximum(radius[1:], 1) > 2.2)
    arcs = (ink > 0) + np.bincount(ring[1:][breaks], minlength=_LOOK)
    for number in range(_LOOK):  # an arc over the seam of the angles was counted twice
        mine = angle[ring == number]
        if arcs[number] > 1 and (mine[0] + 2 * np.pi - mine[-1]) * number <= 2.2:
            arcs[number] -= 1
    return ink, arcs


def _is_head(ink: np.ndarray, arcs: np.ndarray, line: float) -> bool:
    peak = 4 + int(np.argmax(ink[4:24]))
    behind = slice(peak + 2, min(peak + 7, _LOOK))
    thin_behind = (arcs[behind] == 1) & (ink[behind] <= 1.7 * line + 1)
    return bool(ink[peak] >= 2.2 * line + 1.5 and ink[round(0.6 * peak)] >= 1.4 * line + 1 and thin_behind.any())
