"""Which node is the root: the one choice that turns joined boxes into parents and children."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from understudy.tasks.detect.diagrams.forest import ROOT

# What it costs to believe in a way of growing; an edge that goes against it costs 1. Reading order comes first.
_WAYS = {"down": 0.0, "right": 0.2, "up": 0.6, "left": 0.6, "both": 0.9, "radial": 1.8}
_HEAD_AT_PARENT = 3.0
_SLACK = 4.0  # pixels that a child may overlap its parent along the growth


@dataclass(frozen=True)
class Join:
    """Boxes that one stroke joins: a parent and its children, which is which being open.

    Args:
        boxes: their indices.
        sides: which side of each box the stroke meets: 0 left, 1 top, 2 right, 3 bottom.
        heads: whether the stroke has an arrowhead there.
    """

    boxes: tuple[int, ...]
    sides: tuple[int, ...]
    heads: tuple[bool, ...]


def orient(boxes: np.ndarray, joins: Sequence[Join]) -> list[int]:
    """Choose a root for every connected drawing, by which all of its edges get their direction.

    Every node is tried. A root is the cheaper, the fewer edges go against the best way of growing for it, the fewer
    arrows point at parents, and the more the ends of a branching line agree that it is they who are the children.

    Args:
        boxes: (N, 4) left, top, right, bottom in pixels.
        joins: what the lines join.

    Returns:
        (N,) parents, -1 for roots.
    """
    joins = _without_rings(len(boxes), joins)
    meeting: list[list[int]] = [[] for _ in boxes]
    for number, join in enumerate(joins):
        for box in join.boxes:
            meeting[box].append(number)
    parents = [ROOT] * len(boxes)
    seen: set[int] = set()
    for start in range(len(boxes)):
        if start in seen or not meeting[start]:
            continue
        members = sorted([start, *_rooted(start, joins, meeting)])
        seen.update(members)
        trees = {root: _rooted(root, joins, meeting) for root in members}
        best = min(members, key=lambda root: (_cost(root, trees[root], boxes, joins), boxes[root][:2].sum(), root))
        for node, (parent, _) in trees[best].items():
            parents[node] = parent
    return parents


def _without_rings(count: int, joins: Sequence[Join]) -> list[Join]:
    """The joins without what would close a ring: the earlier one is believed."""
    group = np.arange(count)
    kept = []
    for join in joins:
        first_of = {}
        for place, box in enumerate(join.boxes):
            first_of.setdefault(int(group[box]), place)
        if len(first_of) < 2:
            continue
        places = sorted(first_of.values())
        kept.append(Join(*(tuple(part[p] for p in places) for part in (join.boxes, join.sides, join.heads))))
        group[np.isin(group, list(first_of))] = min(first_of)
    return kept


def _rooted(root: int, joins: Sequence[Join], meeting: Sequence[Sequence[int]]) -> dict[int, tuple[int, int]]:
    """For each other node of the root's tree: its parent, and the number of the join between them."""
    tree: dict[int, tuple[int, int]] = {}
    waiting, used = [root], set()
    while waiting:
        node = waiting.pop()
        for number in meeting[node]:
            if number in used:
                continue
            used.add(number)
            for box in joins[number].boxes:
                if box != node:
                    tree[box] = (node, number)
                    waiting.append(box)
    return tree


def _cost(root: int, tree: Mapping[int, tuple[int, int]], boxes: np.ndarray, joins: Sequence[Join]) -> float:
    cost = 0.0
    for number, parent in {number: parent for parent, number in tree.values()}.items():
        join = joins[number]
        at = join.boxes.index(parent)
        cost += _HEAD_AT_PARENT * join.heads[at]
        children = [side for place, side in enumerate(join.sides) if place != at]
        if len(children) > 1:
            side, agreeing = Counter(children).most_common(1)[0]
            cost += len(children) - agreeing + (join.sides[at] == side)
    child_ids, parent_ids = list(tree), [parent for parent, _ in tree.values()]
    against = edges_against(boxes, root, np.array(parent_ids), np.array(child_ids))
    return round(cost + min(price + int(against[way].sum()) for way, price in _WAYS.items()), 6)


def edges_against(boxes: np.ndarray, root: int, parents: np.ndarray, children: np.ndarray) -> dict[str, np.ndarray]:
    """For each way of growing, which edges go against it.

    Args:
        boxes: (N, 4) left, top, right, bottom in pixels.
        root: index of the tree's root.
        parents: (E,) indices of the edges' parents.
        children: (E,) indices of the edges' children.

    Returns:
        (E,) booleans by way. `both` grows to the right on the right of the root and to the left on its left; `radial`
        away from it.
    """
    parent, child = boxes[parents], boxes[children]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    from_root = np.linalg.norm(centres - centres[root], axis=1)
    right, left = child[:, 0] < parent[:, 2] - _SLACK, child[:, 2] > parent[:, 0] + _SLACK
    return {
        "down": child[:, 1] < parent[:, 3] - _SLACK,
        "up": child[:, 3] > parent[:, 1] + _SLACK,
        "right": right,
        "left": left,
        "both": (right | (child[:, 0] < boxes[root, 2] - _SLACK)) & (left | (child[:, 2] > boxes[root, 0] + _SLACK)),
        "radial": from_root[children] < from_root[parents] + _SLACK,
    }
