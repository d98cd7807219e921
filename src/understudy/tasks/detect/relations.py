"""Boxes and their parents: a detector and the search for parents, one after the other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from understudy.tasks.detect.diagrams import draw_relations, evaluate_relations, find_parent_nodes
from understudy.tasks.detect.guest import open_yolo, quiet, threads_kept
from understudy.tasks.detect.predict import detections


def boxes_of(result: Any) -> np.ndarray:
    """(N, 4) left, top, right, bottom in pixels of one of ultralytics' results; boxes without a size are left out."""
    boxes = result.boxes.xyxy.cpu().numpy().astype(float)
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]


def detector(
    weights: str | Path, *, trust_pickle: bool = False, **arguments: Any
) -> Callable[[Image.Image], np.ndarray]:
    """A function from an RGB image to the boxes that a model finds on it.

    Args:
        weights: `.pt` or an exported file.
        trust_pickle: read a `.pt` that holds other classes than ultralytics'.
        arguments: ultralytics' own, such as `conf`, `iou`, `imgsz`, `device`.
    """
    yolo = open_yolo(weights, trust_pickle=trust_pickle)

    def detect(image: Image.Image) -> np.ndarray:
        with quiet(), threads_kept():
            return boxes_of(next(iter(yolo.predict(image, verbose=False, save=False, **arguments))))

    return detect


def predict_relations(
    weights: str | Path, source: str | Path, folder: Path, *, most: int | None = None, **arguments: Any
) -> list[Path]:
    """Draw boxes and their parents; one picture an image or frame.

    Args:
        weights: `.pt` or an exported file.
        source: an image, a folder, a glob or a video.
        folder: where the pictures go.
        most: stop after so many.
        arguments: ultralytics' own.

    Returns:
        The pictures, in order.
    """
    pictures = []
    for number, result in enumerate(detections(weights, source, **arguments)):
        if number == most:
            break
        image = Image.fromarray(np.ascontiguousarray(result.orig_img[..., ::-1]))
        boxes = boxes_of(result)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:05d}-{Path(result.path).stem}.png"
        draw_relations(image, boxes, find_parent_nodes(boxes, image)).save(path)
        pictures.append(path)
    return pictures


def evaluate_weights(
    weights: str | Path, folder: str | Path, *, split: str = "val", trace: bool = True, **arguments: Any
) -> str:
    """Precision, recall and F1 of boxes with parents on a data set of diagrams, as a text table.

    Args:
        weights: `.pt` or an exported file.
        folder: with `images/SPLIT` and `plabels/SPLIT`.
        split: its part.
        trace: follow the drawn lines; else the search has boxes only.
        arguments: ultralytics' own.
    """
    detect = detector(weights, **arguments)
    return evaluate_relations(Path(folder), split=split, detect=detect, trace=trace).table()


def score_relations(
    models: Mapping[str, str | Path], folder: str | Path, *, split: str, trace: bool = True, **arguments: Any
) -> dict[str, dict[str, float]]:
    """Scores of boxes with parents for several models, and for the search alone on `true boxes`.

    Args:
        models: weights by name.
        folder: with `images/SPLIT` and `plabels/SPLIT`.
        split: its part.
        trace: follow the drawn lines; else the search has boxes only.
        arguments: ultralytics' own.
    """
    found = {}
    for name, weights in models.items():
        result = evaluate_relations(folder, split=split, detect=detector(weights, **arguments), trace=trace)
        assert result.found is not None
        found[name] = result.found.to_dict()
        found["true boxes"] = result.on_true_boxes.to_dict()
    return {name: found[name] for name in [*models, "true boxes"]}


def relations_table(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What `score_relations` found, for the report."""
    shown = {
        "precision": "directed_precision", "recall": "directed_recall", "F1": "directed_f1",
        "undirected F1": "undirected_f1", "node F1": "nodes_f1", "exact trees": "exact", "accuracy": "accuracy",
    }  # fmt: skip
    rows = [[name, *(f"{figures[key]:.3f}" for key in shown.values())] for name, figures in scores.items()]
    return {"columns": ["boxes of", *shown], "rows": rows}
