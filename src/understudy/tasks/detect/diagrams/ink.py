"""What is drawn between the boxes of a diagram: connected pieces of ink, and the boxes that each piece touches."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_EIGHT = np.ones((3, 3), dtype=bool)
_NEAR = 4.0  # pixels between a box and a line that surely ends at it
_FAR = 11.0  # pixels between a box and a line's loose end that may be meant to end at it


@dataclass(frozen=True)
class Contact:
    """Where a piece of ink meets a box.

    Args:
        box: index of the box.
        place: (2,) x and y of the ink nearest to the box.
        distance: pixels between the ink and the box.
    """

    box: int
    place: np.ndarray
    distance: float


@dataclass(frozen=True)
class Stroke:
    """A connected piece of ink that joins boxes.

    Args:
        contacts: the boxes it meets, two or more.
        left: of its picture, in pixels.
        top: of its picture, in pixels.
        ink: (h, w) its pixels.
    """

    contacts: tuple[Contact, ...]
    left: int
    top: int
    ink: np.ndarray


def find_strokes(pixels: np.ndarray, boxes: np.ndarray) -> list[Stroke]:
    """The pieces of ink that join two or more boxes.

    Pieces that join nothing are looked at again with larger and larger gaps closed: dashes become lines.

    Args:
        pixels: (H, W, 3) uint8.
        boxes: (N, 4) left, top, right, bottom in pixels.
    """
    free = outside(boxes, pixels.shape[:2], 1.0)
    if len(boxes) < 2 or free.sum() < 100:
        return []
    contrast, noise = contrast_of(pixels, free)
    if noise > 3:
        contrast, noise = contrast_of(ndimage.gaussian_filter(pixels.astype(np.float32), (0.7, 0.7, 0)), free)
    ink = _connected_to_strong(contrast > max(15.0, 2.8 * noise), contrast > max(24.0, 4.5 * noise))
    boxes = _grown_over_outlines(boxes, ink)
    free = outside(boxes, pixels.shape[:2], 1.5)
    ink &= free

    strokes: list[Stroke] = []
    for reach in (0, 2, 4, 6):
        closed = ink if reach == 0 else _dilated(ink, reach) & free
        labels = _label(closed)
        labels[~ink] = 0
        found = _strokes_of(labels, boxes)
        strokes += found
        for stroke in found:
            height, width = stroke.ink.shape
            ink[stroke.top : stroke.top + height, stroke.left : stroke.left + width] &= ~stroke.ink
    return strokes


def outside(boxes: np.ndarray, shape: tuple[int, ...], margin: float) -> np.ndarray:
    """(H, W) True for the pixels farther than a margin from every box."""
    free = np.ones(shape, dtype=bool)
    for rows, columns in (_window(box, margin, shape) for box in boxes):
        free[rows, columns] = False
    return free


def contrast_of(pixels: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, float]:
    """How far every pixel is from the paper.

    The paper is a quadratic surface fitted to the pixels outside the boxes, again and again without those far from
    it: uneven light and gradients are paper, lines are not.

    Args:
        pixels: (H, W, 3).
        free: (H, W) True outside the boxes.

    Returns:
        (H, W) float32, the largest difference over the channels; and the median of that difference on paper.
    """
    height, width = free.shape
    rows, columns = np.nonzero(free)
    every = max(1, len(rows) // 8000)
    rows, columns = rows[::every], columns[::every]
    terms, values = _terms(columns / width - 0.5, rows / height - 0.5), pixels[rows, columns].astype(float)
    surface = np.zeros((6, 3))
    surface[0] = np.median(values, axis=0)
    spread, noise = 60.0, 0.0
    for _ in range(6):
        paper = np.abs(values - terms @ surface).max(axis=1) <= spread
        surface = np.linalg.lstsq(terms[paper].T @ terms[paper], terms[paper].T @ values[paper], rcond=None)[0]
        apart = np.abs(values - terms @ surface).max(axis=1)
        noise = float(np.median(apart[apart <= spread])) if (apart <= spread).any() else spread
        spread = max(4 * noise, 10.0)

    x, y = np.arange(width, dtype=np.float32) / width - 0.5, np.arange(height, dtype=np.float32)[:, None] / height - 0.5
    contrast = np.zeros((height, width), dtype=np.float32)
    for channel, weights in enumerate(surface.T.astype(np.float32)):
        one, by_x, by_y, by_xx, by_xy, by_yy = weights
        paper = (one + by_x * x + by_xx * x * x) + (by_y * y + by_yy * y * y) + (by_xy * y) * x
        np.maximum(contrast, np.abs(pixels[..., channel] - paper), out=contrast)
    return contrast, noise


def _terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _grown_over_outlines(boxes: np.ndarray, ink: np.ndarray, most: int = 6) -> np.ndarray:
    """Boxes moved out to where their outlines end: a detector's box may leave part of a node's edge outside."""
    grown = boxes.copy()
    for box in grown:
        left, top, right, bottom = np.maximum(np.round(box), 0).astype(int).tolist()
        beside = (
            ink[top:bottom, max(left - most, 0) : left].T[::-1],
            ink[max(top - most, 0) : top, left:right][::-1],
            ink[top:bottom, right : right + most].T,
            ink[bottom : bottom + most, left:right],
        )
        for side, lines in enumerate(beside):  # lines parallel to the side, from the box outwards
            covered = np.flatnonzero(lines.sum(axis=1) > lines.shape[1] / 2)
            if len(covered):
                box[side] += (covered[-1] + 1) * (-1 if side < 2 else 1)
    return grown


def _connected_to_strong(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """The weak pixels of the pieces that hold strong ones: a thin line keeps its pale parts, noise has none."""
    labels = _label(weak)
    kept = np.zeros(labels.max(initial=0) + 1, dtype=bool)
    kept[labels[strong]] = True
    kept[0] = False
    return kept[labels]


def _label(ink: np.ndarray) -> np.ndarray:
    """(H, W) the number of the connected piece that a pixel belongs to, 0 for paper."""
    labels = np.zeros(ink.shape, dtype=np.int32)
    ndimage.label(ink, _EIGHT, output=labels)
    return labels


def _dilated(ink: np.ndarray, reach: int) -> np.ndarray:
    return ndimage.maximum_filter(ink, size=2 * reach + 1)


def _strokes_of(labels: np.ndarray, boxes: np.ndarray) -> list[Stroke]:
    near: dict[int, list[Contact]] = {}
    for box, (left, top, right, bottom) in enumerate(boxes):
        rows, columns = _window(boxes[box], _FAR + 2, labels.shape)
        part = labels[rows, columns]
        ys, xs = np.nonzero(part)
        if not len(ys):
            continue
        found = part[ys, xs]
        points = np.stack([xs + columns.start, ys + rows.start], axis=1) + 0.5
        apart = np.maximum(np.maximum([left, top] - points, points - [right, bottom]), 0)
        distance = np.hypot(*apart.T)
        for label in np.unique(found):
            mine = found == label
            nearest = distance[mine].min()
            if nearest > _FAR:
                continue
            ends = points[mine][distance[mine] <= nearest + 1]
            place = ends[np.hypot(*(ends - ends[0]).T) < 6].mean(axis=0)
            contact = Contact(box, place, float(nearest))
            if nearest < 3 or not _passes_by(points[mine] - place):
                near.setdefault(int(label), []).append(contact)

    windows = ndimage.find_objects(labels)
    strokes = []
    for label, contacts in near.items():
        chosen = _believable(contacts, boxes)
        if len(chosen) >= 2:
            rows, columns = windows[label - 1]
            strokes.append(Stroke(chosen, columns.start, rows.start, labels[rows, columns] == label))
    return strokes


def _passes_by(ink: np.ndarray) -> bool:
    """Whether a line goes on in two opposite directions instead of ending.

    Args:
        ink: (K, 2) pixels of the line around the place where it is nearest to a box, relative to that place.
    """
    radius = np.hypot(*ink.T)
    around = (radius > 6) & (radius < 11)
    headings = ink[around] / radius[around][:, None]
    return len(headings) > 1 and bool((headings @ headings.T).min() < -0.94)


def side_of(box: np.ndarray, place: np.ndarray) -> int:
    """Which side of a box a place is at: 0 left, 1 top, 2 right, 3 bottom."""
    return int(np.argmax([box[0] - place[0], box[1] - place[1], place[0] - box[2], place[1] - box[3]]))


def _believable(contacts: list[Contact], boxes: np.ndarray) -> tuple[Contact, ...]:
    """The contacts that are near; where these are fewer than two, also those as far as the second nearest.

    An end of a line belongs to the nearest box only.
    """
    own = []
    for contact in contacts:
        rivals = [other for other in contacts if np.hypot(*(other.place - contact.place)) < 8]
        apart = [distance_to(boxes[other.box], contact.place) for other in rivals]
        if distance_to(boxes[contact.box], contact.place) <= min(apart) + 0.5:
            own.append(contact)
    distances = sorted(contact.distance for contact in own)
    limit = max(_NEAR, distances[1] + 1) if len(distances) > 1 else 0.0
    return tuple(contact for contact in own if contact.distance <= limit)


def distance_to(box: np.ndarray, place: np.ndarray) -> float:
    """Pixels between a place and a box; 0 inside."""
    return float(np.hypot(*np.maximum(np.maximum(box[:2] - place, place - box[2:]), 0)))


def _window(box: np.ndarray, margin: float, shape: tuple[int, ...]) -> tuple[slice, slice]:
    left, top = np.floor(box[:2] - margin).astype(int)
    right, bottom = np.ceil(box[2:] + margin).astype(int)
    return slice(max(top, 0), max(min(bottom, shape[0]), 0)), slice(max(left, 0), max(min(right, shape[1]), 0))
