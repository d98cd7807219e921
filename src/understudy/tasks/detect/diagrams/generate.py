"""A data set of generated diagrams: images, plain labels, labels with parents, and the data YAML."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from understudy.errors import UserError
from understudy.tasks.detect.diagrams.drawing import draw_diagram
from understudy.tasks.detect.diagrams.labels import Diagram, write_diagram, write_plain

SPLITS = ("train", "val", "test")
_YAML = """\
# Generated diagrams: boxes are the nodes of trees. plabels/ holds their parents: class x y w h px py pw ph p
train: images/train
val: images/val
test: images/test
names:
  0: node
"""


def generate_diagrams(
    out: Path | str,
    *,
    count: int = 500,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Write a data set of diagrams that trains a detector and tests relations.

    Image number n is a function of the seed and n alone, so a larger set holds the smaller one (in other splits).
    The same seed gives the same files on machines with the same fonts, Pillow and NumPy.

    Args:
        out: the folder to make; it must be new or empty.
        count: number of images.
        seed: 0 or more.
        val: share of the images for validation.
        test: share of the images for testing.
        progress: called with the number of images done.

    Returns:
        The data YAML, `OUT/diagram.yaml`.

    Raises:
        UserError: the folder holds something, or a number is out of range.
    """
    out = Path(out)
    if count < 1:
        raise UserError(f"at least 1 image is needed, not {count}", where="count")
    if seed < 0:
        raise UserError(f"must be 0 or more, not {seed}", where="seed")
    if min(val, test) < 0 or val + test >= 1:
        raise UserError(f"val ({val:g}) and test ({test:g}) must be shares that leave some for training")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("is there already and not an empty folder: name a new one", where=out)
    for kind in ("images", "labels", "plabels"):
        for split in SPLITS:
            (out / kind / split).mkdir(parents=True, exist_ok=True)
    (out / "diagram.yaml").write_text(_YAML)
    held_out = {"val": round(count * val), "test": round(count * test)}
    ends = np.cumsum([count - sum(held_out.values()), held_out["val"], held_out["test"]])
    for number in range(count):
        split = SPLITS[int(np.searchsorted(ends, number, side="right"))]
        random = np.random.default_rng([seed, number])  # keyed: no image depends on those before it
        drawing = draw_diagram(random)
        _save(drawing.image, out / "images" / split / f"{number:04d}", random)
        width, height = drawing.image.size
        classes, boxes = [0] * len(drawing.parents), drawing.boxes / [width, height, width, height]
        write_plain(out / "labels" / split / f"{number:04d}.txt", classes, boxes)
        write_diagram(out / "plabels" / split / f"{number:04d}.txt", Diagram(classes, boxes, drawing.parents))
        if progress:
            progress(number + 1)
    return out / "diagram.yaml"


def _save(image: Image.Image, path: Path, random: np.random.Generator) -> None:
    """As the web has them: lossless, or with the artefacts of JPEG and WebP."""
    kind = random.choice(["png", "jpg", "webp"], p=[0.45, 0.4, 0.15])
    quality = int(random.integers(35, 96))
    if kind == "png":
        image.save(path.with_suffix(".png"), compress_level=1)
    elif kind == "jpg":
        image.save(path.with_suffix(".jpg"), quality=quality)
    else:
        image.save(path.with_suffix(".webp"), quality=quality, method=0)
