from itertools import permutations

import numpy as np
import pytest

from understudy.errors import UserError
from understudy.tasks.detect.diagrams import relation_metrics
from understudy.tasks.detect.diagrams.metrics import match_boxes

A, B, C, D = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]


def plain_iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def best_matching(first, second, iou):
    """Every one-to-one matching, one by one: the most pairs, then the largest sum of overlaps."""
    if len(first) > len(second):
        return best_matching(second, first, iou)
    best = (0, 0.0)
    for chosen in permutations(range(len(second)), len(first)):
        overlaps = [plain_iou(first[a], second[b]) for a, b in enumerate(chosen)]
        fitting = [value for value in overlaps if value >= iou]
        best = max(best, (len(fitting), sum(fitting)))
    return best


def random_boxes(random, count):
    corner = random.uniform(0, 12, (count, 2))
    return np.concatenate([corner, corner + random.uniform(6, 14, (count, 2))], axis=1)


def test_matching_is_the_best_of_all_matchings():
    random = np.random.default_rng(1)
    pairs_seen = 0
    for _ in range(150):
        first, second = random_boxes(random, random.integers(1, 6)), random_boxes(random, random.integers(1, 6))
        iou = float(random.choice([0.2, 0.35, 0.5]))
        pairs = match_boxes(first, second, iou=iou)
        count, total = best_matching(first.tolist(), second.tolist(), iou)
        assert len(pairs) == count
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == count
        assert sum(plain_iou(first[a], second[b]) for a, b in pairs) == pytest.approx(total)
        pairs_seen += count
    assert pairs_seen > 150


def test_a_greedy_matching_would_lose_a_pair():
    # the second prediction overlaps the first truth best, but is the only one for the second truth
    truth = np.array([[0, 0, 10, 10], [3, 0, 13, 10]], dtype=float)
    found = np.array([[-3, 0, 7, 10], [1, 0, 11, 10]], dtype=float)
    assert plain_iou(truth[0], found[1]) > plain_iou(truth[0], found[0])
    assert sorted(match_boxes(truth, found)) == [(0, 0), (1, 1)]


def test_figures_worked_out_by_hand():
    # truth: A -> B -> C, A -> D. Found: B twice (one is a surplus), D missed, C hung under A instead of B.
    metrics = relation_metrics([[A, B, C, D]], [[A, B, C, B]], [[-1, 0, 1, 0]], [[-1, 0, 0, 0]])
    assert (metrics.nodes.right, metrics.nodes.given, metrics.nodes.wanted) == (3, 4, 4)
    # edges given: A-B, A-C, A-(surplus B); wanted: A-B, B-C, A-D; one of them right
    assert (metrics.directed.right, metrics.directed.given, metrics.directed.wanted) == (1, 3, 3)
    assert metrics.directed.precision == metrics.directed.recall == pytest.approx(1 / 3)
    assert metrics.directed.f1 == pytest.approx(1 / 3)
    assert metrics.exact == 0
    assert metrics.accuracy == pytest.approx(2 / 3)  # A and B are right, C is not


def test_a_tree_upside_down_is_right_only_without_direction():
    metrics = relation_metrics([[A, B, C]], [[A, B, C]], [[-1, 0, 1]], [[1, 2, -1]])
    assert metrics.directed.f1 == 0
    assert metrics.undirected.f1 == metrics.nodes.f1 == 1
    assert metrics.exact == 0
    assert metrics.accuracy == 0


def test_edges_are_summed_over_images_not_averaged():
    # 3 of 3 edges in one image, 0 of 1 in the other: 3/4, not the mean of 1 and 0
    metrics = relation_metrics(
        [[A, B, C, D], [A, B]], [[D, C, B, A], [A, B]], [[-1, 0, 1, 2], [-1, 0]], [[1, 2, 3, -1], [-1, -1]]
    )
    assert metrics.directed.recall == pytest.approx(3 / 4)
    assert metrics.directed.precision == 1
    assert metrics.directed.f1 == pytest.approx(6 / 7)
    assert metrics.exact == 1 / 2
    assert metrics.accuracy == pytest.approx(5 / 6)


def test_the_order_of_predictions_does_not_matter():
    random = np.random.default_rng(2)
    boxes = np.array([A, B, C, D], dtype=float)
    for _ in range(10):
        order = random.permutation(4)
        place = np.argsort(order)
        parents = [int(place[p]) if p >= 0 else -1 for p in np.array([-1, 0, 0, 2])[order]]
        metrics = relation_metrics([boxes], [boxes[order]], [[-1, 0, 0, 2]], [parents])
        assert metrics.directed.f1 == metrics.exact == metrics.accuracy == 1


@pytest.mark.parametrize(("shift", "f1"), [(3, 1), (4, 0)])  # IoU 7/13 and 6/14 of squares of side 10
def test_a_box_counts_from_an_overlap_of_one_half(shift, f1):
    moved = [[x1 + shift, y1, x2 + shift, y2] for x1, y1, x2, y2 in (A, B)]
    assert relation_metrics([[A, B]], [moved], [[-1, 0]], [[-1, 0]]).directed.f1 == f1


def test_nothing_wanted_and_nothing_found_is_right():
    empty = relation_metrics([[]], [[]], [[]], [[]])
    assert empty.directed.f1 == empty.exact == empty.accuracy == 1
    surplus = relation_metrics([[]], [[A, B]], [[]], [[-1, 0]])
    assert surplus.directed.precision == surplus.directed.f1 == surplus.exact == 0
    missed = relation_metrics([[A, B]], [[]], [[-1, 0]], [[]])
    assert missed.directed.recall == missed.directed.f1 == missed.accuracy == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[A]], [], [[-1]], []), "same images"),
        (([[A, B]], [[A, B]], [[-1]], [[-1, 0]]), "image 0: 2 boxes, but 1 parents"),
        (([[A, B]], [[A, B]], [[-1, 0]], [[-1, 2]]), "parent 2 of node 1 is none of the 2 nodes"),
        (([[A, [5, 5, 5, 9]]], [[A]], [[-1, 0]], [[-1]]), "box 1: .*positive size"),
    ],
)
def test_lists_that_do_not_fit_are_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        relation_metrics(*arguments)
