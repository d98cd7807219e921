"""Relations on a data set: what a detector and the search for parents find, and the search alone on true boxes."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from understudy.data.image import open_image
from understudy.errors import UserError
from understudy.tasks.detect.diagrams.labels import read_diagram
from understudy.tasks.detect.diagrams.metrics import RelationMetrics, relation_metrics
from understudy.tasks.detect.diagrams.parents import find_parent_nodes

_SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".bmp"}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_relations` found.

    Args:
        found: with the detector's boxes; None without a detector.
        on_true_boxes: with the true boxes.
        clipped: how many true boxes reached beyond their image.
    """

    found: RelationMetrics | None
    on_true_boxes: RelationMetrics
    clipped: int

    def table(self) -> str:
        """A text table, one row for each kind of boxes."""
        rows = [("detected boxes", self.found)] if self.found else []
        lines = [f"{'':14}  precision  recall      F1  undirected F1  node F1  exact trees  accuracy"]
        for name, figures in [*rows, ("true boxes", self.on_true_boxes)]:
            edges, either, nodes = figures.directed, figures.undirected, figures.nodes
            lines.append(
                f"{name:14}  {edges.precision:9.4f}  {edges.recall:6.4f}  {edges.f1:6.4f}  {either.f1:13.4f}  "
                f"{nodes.f1:7.4f}  {figures.exact:11.4f}  {figures.accuracy:8.4f}"
            )
        return "\n".join(lines)


def evaluate_relations(
    folder: Path | str,
    *,
    split: str = "val",
    detect: Callable[[Image.Image], np.ndarray] | None = None,
    trace: bool = True,
) -> Evaluation:
    """Score the search for parents on a data set with `images/SPLIT` and `plabels/SPLIT`.

    Args:
        folder: of the data set.
        split: its part, such as val.
        detect: from an RGB image to (M, 4) left, top, right, bottom in pixels; None scores true boxes only.
        trace: follow the drawn lines; else boxes only.

    Raises:
        UserError: folders, images or labels are missing or wrong.
    """
    true_boxes, true_parents, on_true = [], [], []
    boxes, parents, clipped = [], [], 0
    for path, labels in list_diagrams(folder, split):
        diagram = read_diagram(labels)
        image = open_image(path, 3)
        clipped += diagram.clipped
        true_boxes.append(diagram.in_pixels(*image.size))
        true_parents.append(diagram.parents)
        on_true.append(find_parent_nodes(true_boxes[-1], image if trace else None))
        if detect:
            boxes.append(detect(image))
            parents.append(find_parent_nodes(boxes[-1], image if trace else None))
    return Evaluation(
        found=relation_metrics(true_boxes, boxes, true_parents, parents) if detect else None,
        on_true_boxes=relation_metrics(true_boxes, true_boxes, true_parents, on_true),
        clipped=clipped,
    )


def list_diagrams(folder: Path | str, split: str) -> list[tuple[Path, Path]]:
    """The images of a split in the order of their names, each with its label file.

    Raises:
        UserError: a folder is missing, holds no image, or two images share one label file.
    """
    folder = Path(folder)
    for kind in ("images", "plabels"):
        if not (folder / kind / split).is_dir():
            there = sorted(path.name for path in (folder / kind).glob("*") if path.is_dir())
            known = f"; there are: {', '.join(there)}" if there else ""
            raise UserError(f"no such folder: a data set of diagrams has {kind}/{split}{known}",
                            where=folder / kind / split)  # fmt: skip
    images = sorted(p for p in (folder / "images" / split).iterdir() if p.suffix.lower() in _SUFFIXES)
    if not images:
        raise UserError("holds no image (.png, .webp, .jpg)", where=folder / "images" / split)
    for before, after in pairwise(images):
        if before.stem == after.stem:
            raise UserError(f"and {after.name} would share one label file: rename one", where=before)
    return [(path, folder / "plabels" / split / f"{path.stem}.txt") for path in images]
