"""How well predicted nodes and their parents agree with the true ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from understudy.errors import UserError
from understudy.tasks.detect.diagrams.forest import ROOT
from understudy.tasks.detect.diagrams.parents import Boxes, as_boxes


@dataclass(frozen=True)
class Score:
    """Right answers against given and wanted ones, summed over all images (micro-averaged).

    Args:
        right: answers that are true.
        given: answers.
        wanted: truths.
    """

    right: int
    given: int
    wanted: int

    @property
    def precision(self) -> float:
        """Share of the answers that are true; 1 where nothing was wanted and nothing given."""
        return self.right / self.given if self.given else float(not self.wanted)

    @property
    def recall(self) -> float:
        """Share of the truths that were found; 1 where nothing was wanted."""
        return self.right / self.wanted if self.wanted else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing was wanted and nothing given."""
        return 2 * self.right / (self.given + self.wanted) if self.given + self.wanted else 1.0


@dataclass(frozen=True)
class RelationMetrics:
    """What `relation_metrics` found.

    Args:
        images: how many there were.
        nodes: boxes that were matched.
        directed: edges from a parent to its child; counted right when both ends match and the direction does.
        undirected: the same without the direction.
        exact: share of the images without any fault: all nodes, no others, and exactly their edges.
        accuracy: share of the matched nodes with the right parent, or rightly without one. With true boxes this is
            the accuracy of the relations alone. 1 where nothing was matched and nothing wanted, else 0.
    """

    images: int
    nodes: Score
    directed: Score
    undirected: Score
    exact: float
    accuracy: float

    def to_dict(self) -> dict[str, float]:
        """All figures by name, as results.json keeps them."""
        figures: dict[str, float] = {}
        for name in ("directed", "undirected", "nodes"):
            score: Score = getattr(self, name)
            figures |= {f"{name}_{part}": getattr(score, part) for part in ("precision", "recall", "f1")}
        return figures | {"exact": self.exact, "accuracy": self.accuracy, "images": self.images}


def relation_metrics(
    true_boxes: Sequence[Boxes],
    predicted_boxes: Sequence[Boxes],
    true_parents: Sequence[Sequence[int]],
    predicted_parents: Sequence[Sequence[int]],
    *,
    iou: float = 0.5,
) -> RelationMetrics:
    """Compare trees of boxes: boxes are matched one to one, and an edge counts when both of its ends match.

    The matching is optimal, not greedy: of all one-to-one matchings of boxes with at least the wanted overlap it
    takes one with the most pairs, and among these one with the largest sum of overlaps.

    Args:
        true_boxes: for each image (N, 4) left, top, right, bottom.
        predicted_boxes: for each image (M, 4).
        true_parents: for each image (N,) indices of the parents, -1 for roots.
        predicted_parents: for each image (M,) the same among the predicted boxes.
        iou: intersection over union that a pair must have.

    Raises:
        UserError: the lists do not fit together, or a parent is none of the boxes.
    """
    if not len(true_boxes) == len(predicted_boxes) == len(true_parents) == len(predicted_parents):
        raise UserError("true and predicted boxes and parents must be lists of the same images")
    counts = np.zeros(8, dtype=int)
    exact = 0
    for number in range(len(true_boxes)):
        truth, found = as_boxes(true_boxes[number]), as_boxes(predicted_boxes[number])
        wanted = _checked(true_parents[number], len(truth), number)
        given = _checked(predicted_parents[number], len(found), number)
        pairs = match_boxes(truth, found, iou=iou)
        one = _count(pairs, wanted, given)
        counts += one
        exact += one[0] == one[1] == one[2] and one[3] == one[4] == one[5]
    matched, given_nodes, wanted_nodes, right, given_edges, wanted_edges, undirected, right_parents = counts.tolist()
    return RelationMetrics(
        images=len(true_boxes),
        nodes=Score(matched, given_nodes, wanted_nodes),
        directed=Score(right, given_edges, wanted_edges),
        undirected=Score(undirected, given_edges, wanted_edges),
        exact=exact / len(true_boxes) if true_boxes else 1.0,
        accuracy=right_parents / matched if matched else float(not wanted_nodes),
    )


def match_boxes(first: np.ndarray, second: np.ndarray, *, iou: float = 0.5) -> list[tuple[int, int]]:
    """Pairs of boxes, one to one, that overlap enough: as many as possible, then with the largest overlaps.

    Args:
        first: (N, 4) left, top, right, bottom.
        second: (M, 4).
        iou: intersection over union that a pair must have.
    """
    overlaps = overlap(first, second)
    fitting = overlaps >= iou
    if not fitting.any():
        return []
    # one more pair is worth more than any sum of overlaps
    worth = np.where(fitting, min(overlaps.shape) + 1 + overlaps, 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return [(int(a), int(b)) for a, b in zip(rows, columns, strict=True) if fitting[a, b]]


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of two sets of boxes."""
    size = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    common = np.maximum(size, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def _checked(parents: Sequence[int], count: int, image: int) -> list[int]:
    listed = [int(parent) for parent in parents]
    if len(listed) != count:
        raise UserError(f"{count} boxes, but {len(listed)} parents", where=f"image {image}")
    for node, parent in enumerate(listed):
        if not ROOT <= parent < count:
            raise UserError(f"parent {parent} of node {node} is none of the {count} nodes", where=f"image {image}")
    return listed


def _count(pairs: list[tuple[int, int]], wanted: list[int], given: list[int]) -> np.ndarray:
    """Matched, predicted and true nodes; right, predicted and true edges; right undirected edges; right parents."""
    true_of = {found: true for true, found in pairs}
    wanted_edges = {(parent, child) for child, parent in enumerate(wanted) if parent != ROOT}
    given_edges = {(parent, child) for child, parent in enumerate(given) if parent != ROOT}
    translated = {
        (true_of[parent], true_of[child]) for parent, child in given_edges if parent in true_of and child in true_of
    }
    undirected = sum((a, b) in wanted_edges or (b, a) in wanted_edges for a, b in translated)
    right_parents = sum(
        wanted[true] == (ROOT if given[found] == ROOT else true_of.get(given[found], -2)) for true, found in pairs
    )
    return np.array(
        [len(pairs), len(given), len(wanted), len(translated & wanted_edges), len(given_edges), len(wanted_edges),
         undirected, right_parents]
    )  # fmt: skip
