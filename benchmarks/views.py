"""Accuracy with 16 views of each image against new views in each epoch: a part of CIFAR-10, five seeds, one teacher.

Within a seed both students start alike and see the same order of images; the difference is paired over seeds.

    UNDERSTUDY_DATA=... python benchmarks/views.py [--epochs 32] [--images 3000]
"""

import argparse
import os
import tempfile
from pathlib import Path

import understudy
from common import describe_machine, record
from understudy.compare import verdicts

VIEWS = ("all", 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    data = {
        "name": "hub",
        "path": str(Path(os.environ["UNDERSTUDY_DATA"]) / "cifar10"),
        "train": arguments.images,
        "validation": "none",
        "mean": [0.491, 0.482, 0.447],
        "std": [0.247, 0.243, 0.262],
        "augment": {"crop": 4, "flip": True},
    }
    train = {"epochs": arguments.epochs, "batch_size": 64, "lr": 2e-3, "schedule": "cosine", "evaluate_every": 1000}
    scores: dict[str, dict[int, float]] = {}
    known: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = {"name": "cnn", "widths": [32, 64, 128]}
        teacher = understudy.train(model=model, data=data, out=Path(folder) / "teacher", quiet=True, **train)
        for views in VIEWS:
            recipe = {
                "name": "views",
                "data": {**data, "views": views},
                "teacher": str(teacher.folder / "teacher"),
                "student": {"name": "cnn", "widths": [8, 16]},
                "method": {"name": "kd", "temperature": 4, "labels": 0.1, "weight": 0.9},
                "train": train,
                "seeds": arguments.seeds,
                "control": "none",
                "cache": {"path": str(Path(folder) / "answers")},
            }
            result = understudy.run(recipe, out=Path(folder) / f"views-{views}", quiet=True)
            seeds = result.results["models"]["student_distilled"]["metrics"]["accuracy"]["seeds"]
            scores[str(views)] = {seed["seed"]: seed["last"] for seed in seeds}
            known[str(views)] = sum(cache["known"] for cache in result.results["cache"])
    (found,) = verdicts("accuracy", scores["all"], {"16": scores["16"]}).values()
    means = {views: sum(by_seed.values()) / len(by_seed) for views, by_seed in scores.items()}
    low, high = found.ci95 or (float("nan"),) * 2
    text = (
        f"CIFAR-10, {arguments.images:,} training images, {arguments.epochs} epochs, {arguments.seeds} seeds: test "
        f"accuracy {means['all']:.4f} with new views in each epoch, {means['16']:.4f} with 16 of each image; "
        f"difference {100 * found.difference:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}. With "
        f"16 views {known['16']:.0%} of the teacher's answers were known."
    )
    print(text)
    record("views", text, describe_machine())


if __name__ == "__main__":
    main()
