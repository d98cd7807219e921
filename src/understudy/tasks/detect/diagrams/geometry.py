"""Parents from the boxes alone: the tidy drawing that explains best where they stand.

Trees are drawn by conventions (Reingold and Tilford, "Tidier Drawings of Trees", IEEE Transactions on Software
Engineering, 1981, https://doi.org/10.1109/TSE.1981.234519): children stand behind their parent, on one level, with
the parent at their middle, and no stranger between them. For each direction a tree can grow in, parents are chosen
so that these conventions are broken least; then the direction is chosen whose tree is the most plausible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from understudy.tasks.detect.diagrams.forest import ROOT, children_of

_SLACK = 4.0  # pixels by which boxes may overlap or be off a common line
_CANDIDATES = 6  # nearest possible parents that are looked at
_SWEEPS = 12

# How implausible a drawing is: fitted on generated ones by maximum likelihood of the true direction, then rounded.
_OFF_CENTRE, _UNEVEN, _STRANGER, _ONLY_CHILD, _ROOT, _FOREST = 3.5, 10.0, 2.0, 7.0, 6.0, 3.0
_WAYS = {"down": 0.0, "right": 0.8, "left": 1.9, "up": 2.8, "both": -2.4}


@dataclass(frozen=True)
class Axes:
    """Boxes as a tree sees them that grows away from the viewer.

    Args:
        near: (N,) where each box begins along the growth.
        far: (N,) where it ends.
        low: (N,) where it begins across.
        high: (N,) where it ends across.
        side: (N,) which half of a mind map it is in, 1 or -1, and 0 for the root; all 1 in other drawings.
    """

    near: np.ndarray
    far: np.ndarray
    low: np.ndarray
    high: np.ndarray
    side: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """(N,) the middle of each box across the growth."""
        return (self.low + self.high) / 2


def guess_parents(boxes: np.ndarray) -> list[int]:
    """Find the direction of growth and the parents from where the boxes stand.

    Args:
        boxes: (N, 4) left, top, right, bottom.

    Returns:
        (N,) indices of the parents, -1 for roots.
    """
    if len(boxes) < 2:
        return [ROOT] * len(boxes)
    indented = _indented(boxes)
    if indented is not None:
        return indented
    unit = max(1.0, float(np.median(boxes[:, 3] - boxes[:, 1])))
    best, least = [ROOT] * len(boxes), np.inf
    for way, axes in _readings(boxes):
        parents = _tidiest(axes, unit)
        cost = _implausibility(parents, axes, unit) + _WAYS[way]
        if cost < least:
            best, least = parents, cost
    return best


def _readings(boxes: np.ndarray) -> list[tuple[str, Axes]]:
    left, top, right, bottom = boxes.T
    one = np.ones(len(boxes), dtype=int)
    readings = [
        ("down", Axes(top, bottom, left, right, one)),
        ("right", Axes(left, right, top, bottom, one)),
        ("left", Axes(-right, -left, top, bottom, one)),
        ("up", Axes(-bottom, -top, left, right, one)),
    ]
    middle = (left + right) / 2
    for root in np.argsort(np.abs(middle - np.median(middle)), kind="stable")[:5]:
        side = np.where(left > right[root] - _SLACK, 1, np.where(right < left[root] + _SLACK, -1, 0))
        if (side == 0).sum() > 1 or not {1, -1} <= set(side.tolist()):
            continue
        near = np.where(side < 0, middle[root] - right, left - middle[root])
        readings.append(("both", Axes(near, near + right - left, top, bottom, side)))
    return readings


def _tidiest(axes: Axes, unit: float) -> list[int]:
    """Give every box the nearest parent before it, then change parents one by one while the drawing gets tidier."""
    gap = axes.near[None, :] - axes.far[:, None]  # of a child (column) behind a parent (row)
    across = np.maximum(np.maximum(axes.low[None] - axes.high[:, None], axes.low[:, None] - axes.high[None]), 0)
    price = 0.3 * np.maximum(gap, 0) + 0.5 * across
    price[gap < -_SLACK] = np.inf
    price[(axes.side[:, None] != axes.side[None]) & (axes.side[:, None] != 0)] = np.inf
    np.fill_diagonal(price, np.inf)
    nearest = np.argsort(price, axis=0, kind="stable")[:_CANDIDATES]
    options = [[int(p) for p in nearest[:, child] if np.isfinite(price[p, child])] for child in range(len(price))]

    parents = [candidates[0] if candidates else ROOT for candidates in options]
    families = children_of(parents)
    costs = [_untidiness(parent, family, axes, unit) for parent, family in enumerate(families)]
    order = [child for child in np.argsort(axes.near, kind="stable").tolist() if len(options[child]) > 1]
    for _ in range(_SWEEPS):
        moved = False
        for child in order:
            old = parents[child]
            left_behind = [other for other in families[old] if other != child]
            before = price[old, child] + costs[old] - _untidiness(old, left_behind, axes, unit)
            added = {
                new: price[new, child] + _untidiness(new, [*families[new], child], axes, unit) - costs[new]
                for new in options[child]
                if new != old
            }
            new = min(added, key=added.__getitem__)
            if added[new] > before - 1e-6:
                continue
            parents[child] = new
            families[old] = left_behind
            families[new] = [*families[new], child]
            for changed in (old, new):
                costs[changed] = _untidiness(changed, families[changed], axes, unit)
            moved = True
        if not moved:
            break
    return parents


def _untidiness(parent: int, family: Sequence[int], axes: Axes, unit: float) -> float:
    return sum(off + uneven + unit * strangers for off, uneven, strangers in _faults(parent, family, axes))


def _faults(parent: int, family: Sequence[int], axes: Axes) -> list[tuple[float, float, int]]:
    """What is untidy about the children on each side.

    Returns:
        Pixels that the parent is off their middle; pixels that they are off one level; others between them.
    """
    faults = []
    middle = axes.middle
    for side in (1, -1):
        children = [child for child in family if axes.side[child] == side]
        if not children:
            continue
        low, high = middle[children].min(), middle[children].max()
        begin, end = axes.near[children].min(), axes.near[children].max()
        between = (middle > low) & (middle < high) & (axes.near < end + _SLACK) & (axes.far > begin - _SLACK)
        between &= axes.side == side
        between[[*children, parent]] = False
        faults.append((float(abs(middle[parent] - (low + high) / 2)), float(end - begin), int(between.sum())))
    return faults


def _implausibility(parents: Sequence[int], axes: Axes, unit: float) -> float:
    families = children_of(parents)
    faults = [fault for parent, family in enumerate(families) for fault in _faults(parent, family, axes)]
    off, uneven, strangers = (sum(kind) for kind in zip(*faults, strict=True)) if faults else (0, 0, 0)
    only_children = sum(len(family) == 1 for family in families)
    roots = sum(parent == ROOT for parent in parents)
    mean = (
        _OFF_CENTRE * off / unit + _UNEVEN * uneven / unit + _STRANGER * strangers
        + _ONLY_CHILD * only_children + _ROOT * roots
    ) / len(parents)  # fmt: skip
    return mean + _FOREST * (roots > 1)


def _indented(boxes: np.ndarray) -> list[int] | None:
    """The parents of an indented list (a file tree), or None if the boxes are no such list.

    In such a list every row holds one node, and the left edges stand on few common lines.
    """
    order = np.argsort(boxes[:, 1], kind="stable")
    rows = boxes[order]
    left = rows[:, 0]
    lines = 1 + int((np.diff(np.sort(left)) > _SLACK).sum())
    overlapping = any(below[1] < above[3] - _SLACK for above, below in pairwise(rows))
    if len(rows) < 3 or overlapping or not 2 <= lines <= max(2, len(rows) // 2) or left[0] > left.min() + _SLACK:
        return None
    parents, ancestors = [ROOT] * len(boxes), []
    for node in order.tolist():
        while ancestors and boxes[ancestors[-1], 0] > boxes[node, 0] - _SLACK:
            ancestors.pop()
        parents[node] = ancestors[-1] if ancestors else ROOT
        ancestors.append(node)
    return parents
