"""How cost grows: steps a second and memory with more objectives, more classes and more cached samples.

Each setting is measured in a process of its own, for its peak memory. The plot goes to docs/growth.svg.

    python benchmarks/growth.py [--seconds 5]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import describe_machine, record
from pairs import BATCH, CLASSES, KD, stage_of, stepping, task_of, teacher_of, training
from understudy.distill import Teacher
from understudy.distill.cache import AnswerCache, Kept
from understudy.distill.teacher import Place

SETTINGS = {
    "objectives": (1, 4, 16),
    "classes": (10, 100, 1000),
    "cached samples": (10_000, 100_000, 1_000_000),
}
PAIR = ("cifar/resnet20", "cifar/resnet8")


def of_training(seconds: float, **changes: Any) -> float:
    """Steps a second of a distilled student, its teacher asked each time."""
    task = task_of(*PAIR, cache="off", control="none", **changes)
    stage, _, distilled = stage_of(task, teacher_of(task))
    return rate(stepping(training(stage, distilled)), stage.ahead, seconds)


def of_objectives(count: int, seconds: float) -> float:
    objectives = [{"loss": "kd", "temperature": 1 + number, "weight": 1 / count} for number in range(count)]
    return of_training(seconds, method={"name": "several", "labels": 0.1, "objectives": objectives})


def of_samples(count: int, seconds: float, root: Path) -> float:
    """Batches a second of answers from a full cache, in random order."""
    cache = AnswerCache(root, {}, count, Kept(precision="fp16"))
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)), chunk=1000)
    images = torch.randn(1000, 3, 8, 8)
    for start in range(0, count, 1000):
        cache.answer(teacher, images, [Place("plain", torch.arange(start, start + 1000))])
    random = torch.Generator().manual_seed(0)

    def look_up() -> None:
        ids = torch.randint(0, count, (BATCH,), generator=random)
        cache.answer(teacher, images[ids % 1000], [Place("plain", ids)])

    found = rate(look_up, 100, seconds)
    assert cache.counts.misses == count, "the cache was not warm"
    return found


def rate(step: Any, group: int, seconds: float) -> float:
    for _ in range(group):
        step()
    done, began = 0, time.process_time()
    while done < group or time.process_time() - began < seconds:
        for _ in range(group):
            step()
        done += group
    return done / (time.process_time() - began)


def measured(kind: str, value: int, seconds: float) -> dict[str, float]:
    """What a process of its own finds."""
    words = [sys.executable, __file__, "--one", kind, str(value), "--seconds", str(seconds)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one(kind: str, value: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if kind == "objectives":
            found = of_objectives(value, seconds)
        elif kind == "classes":
            found = of_training(seconds, classes=value, method=KD)
        else:
            found = of_samples(value, seconds, Path(folder))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"steps a second": found, "MiB": memory}))


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    import altair

    def panel(kind: str, measure: str) -> altair.Chart:
        of_kind = altair.Data(values=[row for row in rows if row["kind"] == kind])
        return (
            altair.Chart(of_kind, width=220, height=150)
            .mark_line(point=True)
            .encode(
                x=altair.X("value:Q", title=kind, scale=altair.Scale(type="log")),
                y=altair.Y(f"{measure}:Q", title=measure, scale=altair.Scale(zero=True)),
            )
        )

    columns = [altair.vconcat(panel(kind, "steps a second"), panel(kind, "MiB")) for kind in SETTINGS]
    altair.hconcat(*columns).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "VALUE"))
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], int(arguments.one[1]), arguments.seconds)
        return
    rows = []
    for kind, values in SETTINGS.items():
        for value in values:
            rows.append({"kind": kind, "value": value, **measured(kind, value, arguments.seconds)})
            print(rows[-1], flush=True)
    draw(rows, Path(__file__).parents[1] / "docs" / "growth.svg")
    lines = ["| what grows | to | steps a second | peak MiB |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row['kind']} | {row['value']:,} | {row['steps a second']:,.3g} | {row['MiB']:,.0f} |" for row in rows
    ]
    lines += [
        "",
        f"Objectives and classes: {' to '.join(PAIR)}, batch {BATCH}, the teacher asked in each step. Cached samples: "
        f"batches of {BATCH} random answers of {CLASSES} classes in fp16 looked up in a full cache; what is mapped of "
        "its files counts as memory too. Plotted in docs/growth.svg.",
    ]
    record("growth", "\n".join(lines), describe_machine())


if __name__ == "__main__":
    main()
