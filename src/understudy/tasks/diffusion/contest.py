"""The comparison of a seed: every model at every number of steps, drawn from the same noise and judged alike."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.tasks.diffusion.draw import balanced, draw, forwards
from understudy.tasks.diffusion.guidance import Guided, with_guidance
from understudy.tasks.diffusion.judge import Judge
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.quality import Fid, frechet_distance, paired_error, precision_and_recall
from understudy.tasks.diffusion.steps import Sampler
from understudy.tasks.diffusion.task import Diffusion
from understudy.train.folder import Log, read_log
from understudy.train.guard import StopRequest
from understudy.train.progress import Display

Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A model that is sampled in one way.

    Args:
        name: of the row.
        role: `teacher` (with all its steps), `control` (the teacher with the verdict's), `distilled` or `other`.
        model: called as `model(z, t, y)`.
        process: its schedule and prediction.
        steps: from noise to image.
        sampler: that draws.
        family: which line of the chart it belongs to.
        guided: whether it wants the strength of guidance beside the class.
    """

    name: str
    role: str
    model: nn.Module | Guided
    process: Process
    steps: int
    sampler: Sampler
    family: str
    guided: bool = False


@dataclass(frozen=True)
class Yardstick:
    """What samples are held against.

    Args:
        judge: gives the features; None where there are no labelled images.
        features: of the held-out images.
        fid: the distance to the held-out images by the standard network; None where its weights are not given.
        count: samples of each contender.
    """

    judge: Judge | None
    features: Tensor | None
    fid: Fid | None
    count: int


def yardstick(task: Diffusion, judge: Judge | None) -> Yardstick:
    """Make the yardstick of a run."""
    settings = task.recipe.evaluate
    if judge is None and settings.inception is None:
        return Yardstick(None, None, None, settings.images)
    images, _ = task.held_out(10_000)
    features = None if judge is None else judge.features(images)
    fid = None
    if settings.inception is not None:
        fid = Fid(images, weights=Path(settings.inception).expanduser(), device=task.device)
    return Yardstick(judge, features, fid, settings.images)


def floor(task: Diffusion, yard: Yardstick) -> Row | None:
    """What real training images come to, as many as there are samples: nothing honest is below it."""
    if yard.judge is None or yard.features is None:
        return None
    images, labels = task.training_images(yard.count)
    own = yard.judge.features(images)
    held = yard.judge.classes(yard.features)
    _, held_labels = task.held_out(10_000)
    noise = yard.judge.features(torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))
    precision, recall = precision_and_recall(yard.features, own, task.recipe.evaluate.neighbours)
    return {
        "frechet": frechet_distance(yard.features, own),
        "precision": precision,
        "recall": recall,
        "noise": frechet_distance(yard.features, noise),
        "judge_accuracy": float((held == held_labels).double().mean()),
        "judge_training_accuracy": float((yard.judge.classes(own) == labels).double().mean()),
        "images": len(images),
        "held_out": len(yard.features),
    }


def judged(
    contenders: list[Contender],
    task: Diffusion,
    yard: Yardstick,
    seed: int,
    *,
    log: Path | None,
    display: Display,
    stop: StopRequest | None = None,
) -> list[Row]:
    """Draw and judge; the first contender is the one whose images the others are paired with.

    Args:
        contenders: the teacher with all its steps first.
        task: of the run.
        yard: what samples are held against.
        seed: of the noise.
        log: where rows are written, and found again by a resumed run; None keeps nothing.
        display: shows progress.
        stop: says when a signal came.

    Returns:
        One row a contender: its scores, and the milliseconds that an image took.
    """
    known = {row["name"]: row for row in _whole_rows(log)} if log is not None else {}
    meter = display.begin(f"samples-{seed}", sum(forwards(yard.count, one.steps) for one in contenders), 0)

    def advance() -> None:
        meter.advance()
        if stop is not None:
            stop.raise_if_asked()

    reference: Tensor | None = None
    rows = []
    for contender in contenders:
        if contender.name in known and (reference is not None or len(known) == len(contenders)):
            rows.append(known[contender.name])
            continue
        began = time.perf_counter()
        images = images_of(contender, task, yard.count, seed, advance=advance)
        milliseconds = 1000 * (time.perf_counter() - began) / yard.count
        reference = images if reference is None else reference
        if contender.name not in known:
            row = {"name": contender.name, **scores(images, reference, task, yard)}
            if log is not None:
                Log(log).write(**row)
                Log(log.with_name(f"timing-{log.name}")).write(name=contender.name, ms_per_image=milliseconds)
            known[contender.name] = row | {"ms_per_image": milliseconds}
        rows.append(known[contender.name])
    meter.finish(meter.total)
    return rows if log is None else list(_with_times(rows, log))


def _whole_rows(log: Path) -> list[Row]:
    """The rows of a log; half a line, which a killed run may leave, is cut off."""
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        Log(log).truncate(sum(map(len, lines[:-1])))
    return read_log(log)


def _with_times(rows: list[Row], log: Path) -> Iterator[Row]:
    times = {row["name"]: row["ms_per_image"] for row in _whole_rows(log.with_name(f"timing-{log.name}"))}
    for row in rows:
        yield {**row, "ms_per_image": times.get(row["name"])}


def labels_for(contender: Contender, task: Diffusion, count: int) -> Tensor | None:
    """What each image is conditioned on: the classes in turn, with the strength of guidance where it is wanted."""
    if not task.conditional:
        return None
    labels = balanced(count, len(task.classes))
    guidance = task.recipe.guidance
    return with_guidance(labels, guidance.sample) if contender.guided and guidance is not None else labels


def images_of(contender: Contender, task: Diffusion, count: int, seed: int, **more: Any) -> Tensor:
    """Draw a contender's images: those of a seed start from the same noise whoever draws them."""
    return draw(
        contender.model,
        process=contender.process,
        shape=task.shape,
        count=count,
        steps=contender.steps,
        labels=labels_for(contender, task, count),
        seed=seed,
        sampler=contender.sampler,
        variance=task.recipe.evaluate.variance,
        device=task.device,
        **more,
    )


def scores(images: Tensor, reference: Tensor, task: Diffusion, yard: Yardstick) -> dict[str, float]:
    """All scores of some samples."""
    found = {"paired_mse": paired_error(images, reference)}
    if yard.judge is not None and yard.features is not None:
        features = yard.judge.features(images)
        precision, recall = precision_and_recall(yard.features, features, task.recipe.evaluate.neighbours)
        found = {
            "frechet": frechet_distance(yard.features, features),
            "precision": precision,
            "recall": recall,
            **found,
        }
        if task.conditional:
            wanted = balanced(len(images), len(task.classes))
            found["recognised"] = float((yard.judge.classes(features) == wanted).double().mean())
    return found if yard.fid is None else {"fid": yard.fid(images), **found}
