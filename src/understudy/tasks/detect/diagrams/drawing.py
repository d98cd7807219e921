"""One generated diagram: a forest, its words, its layout and its look, drawn until it is a clean drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from understudy.tasks.detect.diagrams.connectors import Manner, is_clean, route
from understudy.tasks.detect.diagrams.forest import ROOT
from understudy.tasks.detect.diagrams.layout import Growth, Placed, Spacing, arrange, random_tree
from understudy.tasks.detect.diagrams.render import Scene, draw_scene, wear, word_sizes
from understudy.tasks.detect.diagrams.style import Style, random_style

_LARGEST = (1440, 1080)
_GROWTHS: tuple[Growth, ...] = ("down", "up", "right", "left", "both", "indented", "radial")
_GROWTH_SHARES = (0.26, 0.08, 0.22, 0.08, 0.22, 0.07, 0.07)
_SYLLABLES = (
    "ba", "con", "den", "el", "fra", "gi", "hol", "in", "ka", "lo",
    "mer", "no", "pra", "ro", "sta", "ti", "um", "ver", "wo", "zy",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A generated diagram with its truth.

    Args:
        image: RGB.
        boxes: (N, 4) left, top, right, bottom in pixels.
        parents: (N,) indices, -1 for roots.
        growth: how its trees grow.
    """

    image: Image.Image
    boxes: np.ndarray
    parents: list[int]
    growth: Growth


def draw_diagram(random: np.random.Generator) -> Drawing:
    """Draw a random diagram: the same generator state gives the same pixels where the same fonts are installed."""
    growth: Growth = random.choice(_GROWTHS, p=_GROWTH_SHARES)
    count = int(random.integers(1, 31)) if random.random() < 0.9 else int(random.integers(30, 46))
    trees = int(random.choice([1, 2, 3], p=[0.85, 0.11, 0.04])) if growth not in ("both", "radial") else 1
    while True:  # a crowded drawing is tried again, smaller
        scene, style = _try(random, growth, count, trees)
        if scene is not None:
            break
        count = max(1, int(count * 0.9))
    image = wear(draw_scene(scene, style), random)
    order = random.permutation(len(scene.parents))  # a node's index must not betray its place in the tree
    place = np.argsort(order)
    parents = [ROOT if scene.parents[n] == ROOT else int(place[scene.parents[n]]) for n in order]
    return Drawing(image, scene.boxes[order], parents, growth)


def _try(random: np.random.Generator, growth: Growth, count: int, trees: int) -> tuple[Scene | None, Style]:
    style = random_style(random, sideways=growth in ("right", "left", "both"))
    spacing, manner = _spacing(random, growth, style), _manner(random, growth, style)
    placed, parents, words = [], [], []
    sizes_of_trees = np.diff([0, *np.sort(random.choice(np.arange(1, max(count, trees)), trees - 1, replace=False)),
                              max(count, trees)])  # fmt: skip
    beside = bool(random.random() < 0.5)
    for size in sizes_of_trees:
        tree = random_tree(random, int(size))
        texts = [_words(random) for _ in tree]
        sizes = word_sizes(texts, style, [parent == ROOT for parent in tree])
        if random.random() < 0.2:
            sizes[:, 0] = sizes[:, 0].max()  # boxes of one width, as tools like to draw them
        placed.append(arrange(tree, sizes, growth, spacing, random))
        parents += [ROOT if parent == ROOT else parent + len(words) for parent in tree]
        words += texts
    whole = _side_by_side(placed, 0 if beside else 1, spacing.sibling + random.uniform(20, 80))
    boxes = _whole_pixels(whole)
    margin = random.integers(6, 60, 4)
    title = random.random() < 0.15
    if title:
        margin[1] += 40
    whole.centres += margin[:2] - boxes[:, :2].min(axis=0)
    boxes = _whole_pixels(whole)
    width, height = (boxes[:, 2:].max(axis=0) + margin[2:]).astype(int).tolist()
    if width > _LARGEST[0] or height > _LARGEST[1] or _overlap(boxes, 5):
        return None, style
    courses = route(parents, whole, growth, manner)
    if not is_clean(parents, boxes, courses, 4 + style.line):
        return None, style
    notes = [(float(margin[0]), 8.0, _words(random, 4).replace("\n", " "))] if title else []
    notes += _remarks(random, courses) if random.random() < 0.05 else []
    scene = Scene((max(width, 96), max(height, 96)), boxes, words, parents, courses, notes, random.random() < 0.05)
    return scene, style


def _spacing(random: np.random.Generator, growth: Growth, style: Style) -> Spacing:
    near = 26 + style.line * 2 + (style.arrow_size if style.arrow != "none" else 0)
    if growth == "indented":
        return Spacing(random.uniform(28, 60), random.uniform(10, 26), False, 0, 0, 0)
    by_hand = random.random() < 0.25
    return Spacing(
        level=random.uniform(near, near + 70),
        sibling=random.uniform(9, 40),
        levelled=bool(random.random() < 0.6),
        level_align=float(random.choice([0, 0.5])),
        parent_align=float(random.choice([0.5, 0.5, 0.5, 0.0])),
        jitter=random.uniform(1, 7) if by_hand else 0,
    )


def _manner(random: np.random.Generator, growth: Growth, style: Style) -> Manner:
    low = style.node == "underlined"
    ports, shares = ["side", "centre", "spread"], [0.7, 0.15, 0.15]
    if low:
        shares = [1, 0, 0]
    elif style.node == "plain" or growth in ("indented", "radial"):
        shares = [0.9, 0, 0.1]  # a line to the centre would show through
    return Manner(
        shape=random.choice(["straight", "elbow", "rounded", "bezier", "arc"], p=[0.28, 0.24, 0.14, 0.22, 0.12]),
        port=random.choice(ports, p=shares),
        bend=random.uniform(0.3, 0.6),
        gap=0.0 if low or random.random() < 0.75 else random.uniform(1, 5),
        low=low and growth in ("right", "left", "both"),
    )


def _words(random: np.random.Generator, most: int = 3) -> str:
    words = ["".join(random.choice(_SYLLABLES, random.integers(1, 4))) for _ in range(random.integers(1, most + 1))]
    words[0] = words[0].capitalize()
    if random.random() < 0.15:
        words[-1] = str(random.integers(0, 2000))
    return ("\n" if len(words) > 1 and random.random() < 0.25 else " ").join(words)


def _remarks(random: np.random.Generator, courses: dict[int, np.ndarray]) -> list[tuple[float, float, str]]:
    """A word beside some of the lines."""
    middles = [points[len(points) // 2] for points in courses.values() if random.random() < 0.4]
    return [(float(x) + 4, float(y) - 6, str(random.integers(1, 30))) for x, y in middles]


def _side_by_side(trees: Sequence[Placed], axis: int, gap: float) -> Placed:
    begin = 0.0
    for tree in trees:
        tree.centres += -tree.boxes[:, :2].min(axis=0)
        tree.centres[:, axis] += begin
        begin = tree.boxes[:, 2 + axis].max() + gap
    return Placed(*(np.concatenate([getattr(tree, part) for tree in trees]) for part in ("centres", "sizes", "growth")))


def _whole_pixels(placed: Placed) -> np.ndarray:
    """Round the nodes' places and sizes, so that a box is exactly what is drawn."""
    placed.sizes = np.round(placed.sizes / 2) * 2
    placed.centres = np.round(placed.centres)
    return placed.boxes


def _overlap(boxes: np.ndarray, clearance: float) -> bool:
    meet = ((boxes[:, None, :2] < boxes[None, :, 2:] + clearance)
            & (boxes[None, :, :2] < boxes[:, None, 2:] + clearance)).all(axis=2)  # fmt: skip
    return int(meet.sum()) > len(boxes)
