"""Boxes drawn on images, folders of them, or the frames of a video."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from understudy.errors import UserError
from understudy.tasks.detect.guest import open_yolo, quiet, threads_kept


def predict(
    weights: str | Path,
    source: str | Path,
    folder: Path,
    *,
    most: int | None = None,
    trust_pickle: bool = False,
    **arguments: Any,
) -> list[Path]:
    """Draw what a model finds; one picture an image or frame.

    Args:
        weights: `.pt` or an exported file.
        source: an image, a folder, a glob or a video.
        folder: where the pictures go.
        most: stop after so many.
        trust_pickle: read a `.pt` that holds other classes than ultralytics'.
        arguments: ultralytics' own, such as `conf`, `iou`, `imgsz`, `device`.

    Returns:
        The pictures, in order.

    Raises:
        UserError: no such source, or nothing in it.
    """
    pictures = []
    for number, result in enumerate(detections(weights, source, trust_pickle=trust_pickle, **arguments)):
        if number == most:
            break
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:05d}-{Path(result.path).stem}.jpg"
        result.save(filename=str(path))
        pictures.append(path)
    return pictures


def detections(
    weights: str | Path, source: str | Path, *, trust_pickle: bool = False, **arguments: Any
) -> Iterator[Any]:
    """What a model finds, image by image, as ultralytics' results.

    Args:
        weights: `.pt` or an exported file.
        source: an image, a folder, a glob or a video.
        trust_pickle: read a `.pt` that holds other classes than ultralytics'.
        arguments: ultralytics' own.

    Raises:
        UserError: no such source, or nothing in it.
    """
    yolo = open_yolo(weights, trust_pickle=trust_pickle)
    if not any(sign in str(source) for sign in "*?[") and not Path(source).exists():
        raise UserError("no such image, folder or video", where=source)
    with quiet(), threads_kept():
        try:
            yield from yolo.predict(source=str(source), stream=True, verbose=False, save=False, **arguments)
        except FileNotFoundError:
            raise UserError("no images or videos there", where=source) from None


def sheet(pictures: Sequence[Path], path: Path, *, columns: int = 3, width: int = 320) -> None:
    """Put pictures side by side into one.

    Args:
        pictures: image files.
        path: of the PNG to write.
        columns: how many stand beside each other.
        width: of each, in pixels.
    """
    tiles = []
    for picture in pictures:
        with Image.open(picture) as image:
            tiles.append(image.convert("RGB").resize((width, round(width * image.height / image.width))))
    if not tiles:
        return
    height = max(tile.height for tile in tiles)
    rows = -(-len(tiles) // columns)
    whole = Image.new("RGB", (min(columns, len(tiles)) * width, rows * height), "white")
    for index, tile in enumerate(tiles):
        whole.paste(tile, (index % columns * width, index // columns * height))
    whole.save(path)
