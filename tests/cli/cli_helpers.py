"""Small models and data on disk, and how a command line ended."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from understudy.data import Preprocess
from understudy.models import Card, save
from understudy.models.mlp import mlp

torch.set_num_threads(1)  # small steps: two threads would mostly wait for each other


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str


def saved_model(folder: Path, *, classes: int = 10, hidden: int = 8, side: int = 8) -> Path:
    """A perceptron with random weights, saved as a run saves its student."""
    torch.manual_seed(0)
    module = mlp(classes=classes, shape=(1, side, side), hidden=(hidden,))
    names = tuple(str(number) for number in range(classes))
    described = {"name": "mlp", "hidden": [hidden]}
    save(module, folder, Card(described, names, (1, side, side), Preprocess()))
    return folder


def image_folder(root: Path, *, splits: tuple[str, ...] = ("train", "val"), each: int = 6) -> Path:
    """Two classes of small PNGs."""
    random = np.random.default_rng(0)
    for split in splits:
        for name in ("cat", "dog"):
            place = root / split / name
            place.mkdir(parents=True)
            for number in range(each):
                pixels = random.integers(0, 255, (10, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return root
