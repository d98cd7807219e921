"""Where the nodes of a generated diagram stand: tidy trees in four directions, mind maps, indented lists, circles."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from understudy.tasks.detect.diagrams.forest import ROOT, children_of, depths_of, parents_first

Growth = Literal["down", "up", "right", "left", "both", "indented", "radial"]

_AXES: dict[str, tuple[int, int]] = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "both": (0, 1)}


@dataclass(frozen=True)
class Spacing:
    """The measures of a layout.

    Args:
        level: between a parent and its children, in pixels.
        sibling: between neighbours on one level, in pixels.
        levelled: all nodes of a depth start at one line; else each stands next to its own parent.
        level_align: where a node stands within its level: 0 at the near edge, 0.5 in the middle, 1 at the far edge.
        parent_align: where a parent stands along its children: 0 beside the first, 0.5 in the middle.
        jitter: how far a node may be off its place, in pixels, as if it had been put there by hand.
    """

    level: float
    sibling: float
    levelled: bool
    level_align: float
    parent_align: float
    jitter: float


@dataclass
class Placed:
    """Nodes with their places.

    Args:
        centres: (N, 2) x and y in pixels.
        sizes: (N, 2) width and height in pixels.
        growth: (N, 2) the unit vector along which the tree grows from a node's parent to it.
    """

    centres: np.ndarray
    sizes: np.ndarray
    growth: np.ndarray = field(repr=False)

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) left, top, right, bottom."""
        return np.concatenate([self.centres - self.sizes / 2, self.centres + self.sizes / 2], axis=1)


def random_tree(random: np.random.Generator, count: int) -> list[int]:
    """A tree of one of several habits: bushy, deep, starlike, or a chain.

    Returns:
        (count,) parents; node 0 is the root and parents come before their children.
    """
    habit = random.choice(["bushy", "deep", "star", "chain"], p=[0.6, 0.22, 0.13, 0.05])
    most = {"bushy": int(random.integers(2, 6)), "deep": 3, "star": count, "chain": 1}[habit]
    deepest = int(random.integers(2, 6)) if habit == "bushy" else count
    parents, depths, children = [ROOT], [0], [0]
    for node in range(1, count):
        open_nodes = [n for n in range(node) if children[n] < most and depths[n] < deepest]
        open_nodes = open_nodes or [0]
        weights = np.array([_appeal(habit, depths[n], children[n]) for n in open_nodes])
        parent = int(random.choice(open_nodes, p=weights / weights.sum()))
        parents.append(parent)
        depths.append(depths[parent] + 1)
        children[parent] += 1
        children.append(0)
    return parents


def _appeal(habit: str, depth: int, children: int) -> float:
    if habit == "deep":
        return 1.5**depth
    if habit == "star":
        return 6.0 if depth == 0 else 0.3
    return 1.0 + (children > 0) * 1.5  # who has a child often has several


def arrange(
    parents: Sequence[int], sizes: np.ndarray, growth: Growth, spacing: Spacing, random: np.random.Generator
) -> Placed:
    """Place one tree.

    Args:
        parents: (N,) with one root; parents come before their children.
        sizes: (N, 2) width and height of the nodes.
        growth: how it grows.
        spacing: the measures.
        random: for jitter and for the sides of a mind map.
    """
    if growth == "indented":
        placed = _indented(parents, sizes, spacing)
    elif growth == "radial":
        placed = _radial(parents, sizes, spacing)
    elif growth == "both":
        placed = _both(parents, sizes, spacing, random)
    else:
        placed = _tidy(parents, sizes, growth, spacing)
    placed.centres += random.uniform(-1, 1, placed.centres.shape) * spacing.jitter
    return placed


def _tidy(parents: Sequence[int], sizes: np.ndarray, growth: Growth, spacing: Spacing) -> Placed:
    axis, sign = _AXES[growth]
    main, cross = sizes[:, axis], sizes[:, 1 - axis]
    children, depths = children_of(parents), depths_of(parents)
    order = parents_first(parents)

    along = np.zeros(len(parents))  # middle of the node on the main axis
    thickness = [max(main[np.array(depths) == depth]) for depth in range(max(depths) + 1)]
    starts = np.concatenate([[0], np.cumsum([size + spacing.level for size in thickness])])
    for node in order:
        if spacing.levelled or parents[node] == ROOT:
            slack = thickness[depths[node]] - main[node] if spacing.levelled else 0
            along[node] = starts[depths[node]] + slack * spacing.level_align + main[node] / 2
        else:
            parent = parents[node]
            along[node] = along[parent] + main[parent] / 2 + spacing.level + main[node] / 2

    spans, needed = np.zeros(len(parents)), np.zeros(len(parents))  # across: of a subtree, of a node's children
    for node in reversed(order):
        family = [spans[child] + spacing.sibling for child in children[node]]
        needed[node] = sum(family) - spacing.sibling if family else 0
        spans[node] = max(cross[node], needed[node])
    across, begins = np.zeros(len(parents)), np.zeros(len(parents))
    for node in order:
        begin = begins[node] + (spans[node] - needed[node]) / 2
        for child in children[node]:
            begins[child] = begin
            begin += spans[child] + spacing.sibling
    for node in reversed(order):
        across[node] = begins[node] + spans[node] / 2
        if children[node]:
            first, last = across[children[node][0]], across[children[node][-1]]
            wanted = first + (last - first) * spacing.parent_align
            low, high = begins[node] + cross[node] / 2, begins[node] + spans[node] - cross[node] / 2
            across[node] = min(max(wanted, low), high)

    centres = np.zeros((len(parents), 2))
    centres[:, axis], centres[:, 1 - axis] = sign * along, across
    direction = np.zeros((len(parents), 2))
    direction[:, axis] = sign
    return Placed(centres, sizes, direction)


def _both(parents: Sequence[int], sizes: np.ndarray, spacing: Spacing, random: np.random.Generator) -> Placed:
    """A mind map: some children of the root to the right, the others to the left."""
    first_level = children_of(parents)[0]
    right = set(first_level[: max(1, round(len(first_level) * random.uniform(0.35, 0.65)))])
    sides = np.zeros(len(parents), dtype=int)
    for node in parents_first(parents)[1:]:
        sides[node] = (1 if node in right else -1) if parents[node] == 0 else sides[parents[node]]

    centres, growth = np.zeros((len(parents), 2)), np.zeros((len(parents), 2))
    halves: tuple[tuple[int, Growth], ...] = ((1, "right"), (-1, "left"))
    for side, name in halves:
        part = [0, *np.flatnonzero(sides == side).tolist()]
        inside = {node: index for index, node in enumerate(part)}
        placed = _tidy([inside.get(parents[node], ROOT) for node in part], sizes[part], name, spacing)
        centres[part[1:]] = placed.centres[1:] - placed.centres[0]
        growth[part[1:], 0] = side
    return Placed(centres, sizes, growth)


def _indented(parents: Sequence[int], sizes: np.ndarray, spacing: Spacing) -> Placed:
    """A file tree: one node a row, children below and to the right of their parent."""
    depths = depths_of(parents)
    centres, top = np.zeros((len(parents), 2)), 0.0
    for node in parents_first(parents):
        centres[node] = depths[node] * spacing.level + sizes[node, 0] / 2, top + sizes[node, 1] / 2
        top += sizes[node, 1] + spacing.sibling
    return Placed(centres, sizes, np.tile([0.0, 1.0], (len(parents), 1)))


def _radial(parents: Sequence[int], sizes: np.ndarray, spacing: Spacing) -> Placed:
    """The root in the middle, each depth on a circle, angles shared by the number of leaves."""
    children, depths, order = children_of(parents), depths_of(parents), parents_first(parents)
    leaves = np.ones(len(parents))
    for node in reversed(order):
        leaves[node] = max(1, sum(leaves[c] for c in children[node]))
    step = spacing.level + float(np.linalg.norm(sizes, axis=1).mean())
    begins, turns = np.zeros(len(parents)), np.zeros(len(parents))
    turns[0] = 2 * np.pi
    centres, growth = np.zeros((len(parents), 2)), np.zeros((len(parents), 2))
    for node in order:
        begin = begins[node]
        for child in children[node]:
            turns[child] = turns[node] * leaves[child] / leaves[node]
            begins[child] = begin
            begin += turns[child]
        if node:
            angle = begins[node] + turns[node] / 2
            centres[node] = depths[node] * step * np.array([np.cos(angle), np.sin(angle)])
            growth[node] = centres[node] - centres[parents[node]]
            growth[node] /= np.linalg.norm(growth[node])
    return Placed(centres, sizes, growth)
