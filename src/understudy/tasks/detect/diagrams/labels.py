"""Labels of diagrams: text files with a line `class x y w h px py pw ph p` for each node.

All lengths are shares of the image: centre, width and height of the node's box, then of its parent's; `p` is the
number of the parent's line, counted from 0, and -1 for a root, whose parent's box is 0 0 0 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from understudy.errors import UserError
from understudy.tasks.detect.diagrams.forest import ROOT, find_fault

_FIELDS = "class x y w h px py pw ph p"
_TOLERANCE = 2e-3  # of the image: how far a parent's box may be from the box of the line that `p` names


@dataclass(frozen=True)
class Diagram:
    """The truth about one diagram.

    Args:
        classes: (N,) class of each node.
        boxes: (N, 4) left, top, right, bottom as shares of the image.
        parents: (N,) indices, -1 for roots.
        clipped: how many boxes reached beyond the image and were cut off at its edge.
    """

    classes: list[int]
    boxes: np.ndarray
    parents: list[int]
    clipped: int = 0

    def in_pixels(self, width: int, height: int) -> np.ndarray:
        """(N, 4) the boxes in pixels of an image of this size."""
        return self.boxes * [width, height, width, height]


def read_diagram(path: Path | str, *, classes: int | None = None) -> Diagram:
    """Read the labels of a diagram; an empty file is a diagram without nodes.

    Args:
        path: of the text file.
        classes: how many classes there are; None accepts any.

    Raises:
        UserError: no such file; a line of another form; a box without area inside the image; a class beyond the
            list; a parent that is no line of the file, whose box is another, or that leads back to the node itself.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError("no such label file (plabels, one text file an image)", where=path) from None
    except UnicodeDecodeError:
        raise UserError("is no text", where=path) from None
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    rows = np.array([_parse(lines[number - 1], f"{path}:{number}") for number in numbers]).reshape(-1, 10)
    for row, number in zip(rows, numbers, strict=True):
        if classes is not None and not 0 <= row[0] < classes:
            raise UserError(f"class {row[0]:.0f} is none of the {classes} classes", where=f"{path}:{number}")
    parents = rows[:, 9].astype(int).tolist()
    fault = find_fault(parents)
    if fault:
        raise UserError(fault[1], where=f"{path}:{numbers[fault[0]]}")
    for node, parent in enumerate(parents):
        if parent != ROOT and np.abs(rows[node, 5:9] - rows[parent, 1:5]).max() > _TOLERANCE:
            raise UserError(
                f"the parent's box is not that of node {parent} (line {numbers[parent]})",
                where=f"{path}:{numbers[node]}",
            )
    boxes = np.concatenate([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2], axis=1)
    inside = np.clip(boxes, 0, 1)
    for node in np.flatnonzero((inside[:, 2:] <= inside[:, :2]).any(axis=1)):
        raise UserError("the box has no area inside the image", where=f"{path}:{numbers[node]}")
    clipped = int((np.abs(boxes - inside) > _TOLERANCE).any(axis=1).sum())
    return Diagram(rows[:, 0].astype(int).tolist(), inside, parents, clipped)


def _parse(line: str, where: str) -> list[float]:
    words = line.split()
    if len(words) != 10:
        hint = "; plain detection labels belong into labels/" if len(words) == 5 else ""
        raise UserError(f"has {len(words)} fields, not the 10 of `{_FIELDS}`{hint}", where=where)
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise UserError(f"holds something else than numbers (`{_FIELDS}`)", where=where) from None
    if not all(map(isfinite, values)) or values[0] != int(values[0]) or values[9] != int(values[9]):
        raise UserError("class and p must be whole numbers, all others finite", where=where)
    if values[3] <= 0 or values[4] <= 0:
        raise UserError("a box needs a positive width and height", where=where)
    return values


def write_diagram(path: Path | str, diagram: Diagram) -> None:
    """Write the labels of a diagram in the form that `read_diagram` reads.

    Raises:
        UserError: the parents are no forest.
    """
    fault = find_fault(diagram.parents)
    if fault:
        raise UserError(fault[1], where=f"{path}, node {fault[0]}")
    boxes = _centred(diagram.boxes)
    lines = []
    for kind, box, parent in zip(diagram.classes, boxes, diagram.parents, strict=True):
        of_parent = boxes[parent] if parent != ROOT else np.zeros(4)
        lines.append(f"{kind} {_text(box)} {_text(of_parent)} {parent}\n")
    Path(path).write_text("".join(lines))


def write_plain(path: Path | str, classes: Sequence[int], boxes: np.ndarray) -> None:
    """Write plain detection labels: `class x y w h`, as shares of the image."""
    lines = [f"{kind} {_text(box)}\n" for kind, box in zip(classes, _centred(boxes), strict=True)]
    Path(path).write_text("".join(lines))


def _centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def _text(values: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in values)
