"""The lines of a generated diagram: their course from parent to child, and whether they cross what they should not."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from understudy.tasks.detect.diagrams.forest import children_of
from understudy.tasks.detect.diagrams.layout import Growth, Placed

Shape = Literal["straight", "elbow", "rounded", "bezier", "arc"]
Port = Literal["side", "centre", "spread"]


@dataclass(frozen=True)
class Manner:
    """How connectors are drawn.

    Args:
        shape: their course.
        port: where they leave the parent: the middle of its side, its centre (hidden under the node), or spread
            along the side.
        bend: where an elbow turns, as a share of the way between parent and nearest child.
        gap: clear pixels between a node's box and the line's ends.
        low: connectors meet nodes at the lower edge (nodes that are underlined words) instead of the middle.
    """

    shape: Shape
    port: Port
    bend: float
    gap: float
    low: bool


def route(parents: Sequence[int], placed: Placed, growth: Growth, manner: Manner) -> dict[int, np.ndarray]:
    """The course of every connector.

    Returns:
        For each child, (K, 2) points from its parent's box to its own.
    """
    courses: dict[int, np.ndarray] = {}
    for parent, children in enumerate(children_of(parents)):
        if not children:
            continue
        if growth == "indented":
            courses |= {child: _hanging(placed, parent, child, manner) for child in children}
            continue
        if growth == "radial":
            courses |= {child: _between_centres(placed, parent, child, manner) for child in children}
            continue
        for side in (1, -1):  # a mind map's root has two families
            family = [c for c in children if placed.growth[c].sum() * side > 0]
            if family:
                courses |= _family(placed, parent, family, manner)
    return courses


def _family(placed: Placed, parent: int, children: list[int], manner: Manner) -> dict[int, np.ndarray]:
    direction = placed.growth[children[0]]
    across = np.abs(direction[::-1])
    half, lift = placed.sizes / 2, np.zeros_like(placed.sizes)
    if manner.low:
        lift[:, 1] = half[:, 1] - 1
    begin = placed.centres[parent] + direction * (half[parent] + manner.gap) + lift[parent]
    ends = {c: placed.centres[c] - direction * (half[c] + manner.gap) + lift[c] for c in children}
    room = min(float((ends[c] - begin) @ direction) for c in children)
    turn = begin + direction * room * manner.bend
    order = sorted(children, key=lambda c: float(placed.centres[c] @ across))
    courses = {}
    for place, child in enumerate(order):
        start = begin
        if manner.port == "spread" and len(order) > 1:
            start = begin + across * (half[parent] @ across) * 1.2 * (place / (len(order) - 1) - 0.5)
        if manner.port == "centre":
            start = placed.centres[parent]
        corner_1 = start + direction * float((turn - start) @ direction)
        courses[child] = _course(start, corner_1, ends[child], direction, manner.shape)
    return courses


def _course(start: np.ndarray, corner: np.ndarray, end: np.ndarray, direction: np.ndarray, shape: Shape) -> np.ndarray:
    along = direction * float((end - start) @ direction)
    if shape == "straight":
        return np.stack([start, end])
    if shape == "bezier":
        return _curve([start, start + along / 2, end - along / 2, end])
    if shape == "arc":
        return _curve([start, start + along * 0.15 + (end - start - along), end])
    opposite = corner + (end - start - along)
    if shape == "elbow" or np.linalg.norm(opposite - corner) < 4:
        return np.stack([start, corner, opposite, end])
    return _rounded([start, corner, opposite, end])


def _hanging(placed: Placed, parent: int, child: int, manner: Manner) -> np.ndarray:
    """Down from under the parent's left end, then right to the child."""
    left, _, _, bottom = placed.boxes[parent]
    trunk = left + min(0.3 * placed.sizes[parent, 0], 0.45 * (placed.boxes[child][0] - left))
    end = np.array([placed.boxes[child][0] - manner.gap, placed.centres[child][1]])
    points = [np.array([trunk, bottom + manner.gap]), np.array([trunk, end[1]]), end]
    return _rounded(points) if manner.shape in ("rounded", "bezier", "arc") else np.stack(points)


def _between_centres(placed: Placed, parent: int, child: int, manner: Manner) -> np.ndarray:
    start, end = placed.centres[parent], placed.centres[child]
    heading = (end - start) / np.linalg.norm(end - start)
    leave = _exit(placed.sizes[parent], heading) + manner.gap
    arrive = _exit(placed.sizes[child], heading) + manner.gap
    start, end = start + heading * leave, end - heading * arrive
    if manner.shape in ("bezier", "arc"):
        bow = heading[::-1] * [-1, 1] * np.linalg.norm(end - start) * 0.12
        return _curve([start, (start + end) / 2 + bow, end])
    return np.stack([start, end])


def _exit(size: np.ndarray, heading: np.ndarray) -> float:
    """How far from a box's centre a ray leaves it."""
    return float(np.min(size / 2 / np.maximum(np.abs(heading), 1e-9)))


def _curve(control: list[np.ndarray], count: int = 20) -> np.ndarray:
    """A Bezier curve by de Casteljau's construction."""
    t = np.linspace(0, 1, count)[:, None]
    points = [np.broadcast_to(point, (count, 2)) for point in control]
    while len(points) > 1:
        points = [a + (b - a) * t for a, b in pairwise(points)]
    return points[0]


def _rounded(points: list[np.ndarray], radius: float = 10.0) -> np.ndarray:
    """A polyline with its inner corners rounded."""
    pieces = [points[0][None]]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        to_before, to_after = before - corner, after - corner
        lengths = np.linalg.norm(to_before), np.linalg.norm(to_after)
        if min(lengths) < 2:
            pieces.append(corner[None])
            continue
        reach = min(radius, min(lengths) / 2)
        pieces.append(_curve([corner + to_before / lengths[0] * reach, corner,
                              corner + to_after / lengths[1] * reach], 6))  # fmt: skip
    return np.concatenate([*pieces, points[-1][None]])


def is_clean(parents: Sequence[int], boxes: np.ndarray, courses: dict[int, np.ndarray], clearance: float) -> bool:
    """Whether no line runs over a foreign node and no two lines of different parents cross, as in drawings by hand.

    Args:
        parents: (N,) of the whole drawing.
        boxes: (N, 4) in pixels.
        courses: for each child the points of its connector.
        clearance: pixels that a line keeps from foreign nodes.
    """
    starts, ends, owners = [], [], []
    for child, points in courses.items():
        samples = _densely(points)
        inside = (samples[:, None] > boxes[None, :, :2] - clearance) & (
            samples[:, None] < boxes[None, :, 2:] + clearance
        )
        touched = set(np.flatnonzero(inside.all(axis=2).any(axis=0)).tolist())
        if touched - {child, parents[child]}:
            return False
        starts.append(points[:-1])
        ends.append(points[1:])
        owners += [parents[child]] * (len(points) - 1)
    if not courses:
        return True
    return not _cross(np.concatenate(starts), np.concatenate(ends), np.array(owners))


def _densely(points: np.ndarray, step: float = 4.0) -> np.ndarray:
    pieces = [a + (b - a) * np.linspace(0, 1, int(np.linalg.norm(b - a) / step) + 2)[:, None]
              for a, b in pairwise(points)]  # fmt: skip
    return np.concatenate(pieces)


def _cross(a: np.ndarray, b: np.ndarray, owners: np.ndarray) -> bool:
    """Whether segments of different owners meet: each one's ends lie on both sides of the other."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    a1, b1, a2, b2 = a[:, None], b[:, None], a[None], b[None]
    meet = (side(a1, b1, a2) * side(a1, b1, b2) <= 0) & (side(a2, b2, a1) * side(a2, b2, b1) <= 0)
    overlap = ((np.maximum(a1, b1) >= np.minimum(a2, b2)) & (np.maximum(a2, b2) >= np.minimum(a1, b1))).all(axis=2)
    return bool((meet & overlap & (owners[:, None] != owners[None])).any())
