"""Frames without labels: images of a folder, or a video, as batches without end."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.tasks.detect.guest import LetterBox

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class Frames:
    """Unlabelled images at the training size, flipped at random.

    Args:
        source: a folder of images and videos, one of either, or a text file that lists them.
        imgsz: the side of the square that they are fitted into.
        seed: of order and flips; give each process of a distributed training its own.

    Raises:
        UserError: there is nothing to read.
    """

    def __init__(self, source: str, imgsz: int, seed: int) -> None:
        self.files = _files(Path(source).expanduser())
        self.seed = seed
        self._fit = LetterBox((imgsz, imgsz))
        self._stream = self._frames(0)

    def at_epoch(self, epoch: int) -> None:
        """Go on from the start of an epoch: a resumed training sees what the uninterrupted one saw."""
        self._stream = self._frames(epoch)

    def batch(self, count: int) -> Tensor:
        """(count, 3, imgsz, imgsz) uint8 RGB."""
        return torch.stack([next(self._stream) for _ in range(count)])

    def _frames(self, epoch: int) -> Iterator[Tensor]:
        draw = random.Random(f"{self.seed}/{epoch}")  # noqa: S311 (no secret)
        while True:
            order = draw.sample(self.files, len(self.files))
            count = 0
            for file in order:
                for image in _read(file):
                    count += 1
                    fitted = np.asarray(self._fit(image=image))
                    fitted = fitted[:, ::-1] if draw.random() < 0.5 else fitted
                    yield torch.from_numpy(np.ascontiguousarray(fitted[..., ::-1].transpose(2, 0, 1)))
            if count == 0:
                raise UserError("none of the frames can be read", where=self.files[0].parent)


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        found = sorted(file for file in source.rglob("*") if file.suffix.lower() in (*_IMAGES, *_VIDEOS))
    elif source.suffix == ".txt" and source.is_file():
        found = [Path(line) for line in source.read_text().split("\n") if line.strip()]
    else:
        found = [source] if source.suffix.lower() in (*_IMAGES, *_VIDEOS) and source.is_file() else []
    if not found:
        raise UserError("no images or videos there", where=f"unlabelled={source}")
    return found


def _read(file: Path) -> Iterator[np.ndarray]:
    """The image or the frames of a file, (H, W, 3) uint8 BGR; nothing of one that cannot be read."""
    import cv2

    if file.suffix.lower() in _IMAGES:
        image = cv2.imread(str(file))
        if image is not None:
            yield image
        return
    video = cv2.VideoCapture(str(file))
    try:
        while True:
            there, frame = video.read()
            if not there:
                return
            yield frame
    finally:
        video.release()
