"""What a run shows a person: its data in words, its first batch as a picture, its results as a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from rich import box
from rich.table import Table

from understudy.report import format as written

if TYPE_CHECKING:
    from torch import Tensor

    from understudy.data import Preprocess, Splits, Subset
    from understudy.distill import Teacher
    from understudy.recipe.schema import Augment
    from understudy.tasks.classify.task import Classify

_TILE, _COLUMNS, _CAPTION = 96, 8, 30


def describe_data(name: str, splits: "Splits", augment: "Augment") -> str:
    """Say what the data are: counts, shape, type, range, samples of each class.

    Args:
        name: of the data set.
        splits: its parts.
        augment: what is done to training images.
    """
    first = splits.students.read(np.arange(min(len(splits.students), 64)))
    low, high = first.min().item(), first.max().item()
    kind = str(first.dtype).removeprefix("torch.")
    lines = [f"data: {name}, {len(splits.classes)} classes, images {splits.shape} {kind} in [{low:g}, {high:g}]"]
    parts = {
        "teacher": splits.teacher,
        "control": splits.control,
        "students": splits.students,
        "validation": splits.validation,
        "test": splits.test,
    }
    lines += [f"  {use:<11}{_counts(part, len(splits.classes))}" for use, part in parts.items() if part is not None]
    used = augment.model_dump(exclude_defaults=True)
    if used:
        lines.append("  augmented by " + ", ".join(f"{key} {value}" for key, value in used.items()))
    return "\n".join(lines)


def _counts(part: "Subset", classes: int) -> str:
    labelled = part.labels[part.labels >= 0]
    per_class = np.bincount(labelled, minlength=classes)
    hidden = len(part) - len(labelled)
    shown = " ".join(map(str, per_class)) if classes <= 20 else f"{per_class.min()} to {per_class.max()}"
    without = f" and {hidden:,} without label" if hidden else ""
    return f"{len(labelled):,} labelled{without} (per class: {shown})"


def first_batch(task: "Classify", teacher: "Teacher") -> Image.Image:
    """Draw the first training samples as student and teacher get them, with the label and the teacher's answer.

    Args:
        task: with its data read.
        teacher: answers the samples.
    """
    from understudy.data import Preprocess
    from understudy.distill.teacher import Place

    batch = task.feed("students", task.recipe.seed)[0]
    images = batch.images[: 2 * _COLUMNS].to(task.device)
    logits = teacher.answer(images, [Place(batch.view, batch.sample_ids[: 2 * _COLUMNS])]).logits
    assert logits is not None
    chances, answers = logits.softmax(1).max(1)
    labels = batch.labels.argmax(1) if batch.labels.ndim == 2 else batch.labels
    views = [_tiles(images, task.preprocess("student", task.build("student", task.recipe.seed)))]
    preprocess = teacher.preprocess or Preprocess()
    views.append(_tiles(images, preprocess))
    rows = -(-len(images) // _COLUMNS)
    height = 2 * _TILE + _CAPTION
    sheet = Image.new("RGB", (_COLUMNS * (_TILE + 4), rows * (height + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for index in range(len(images)):
        left, top = index % _COLUMNS * (_TILE + 4), index // _COLUMNS * (height + 8)
        for place, tiles in enumerate(views):
            sheet.paste(tiles[index], (left, top + place * _TILE))
        label = int(labels[index])
        known = task.splits.classes[label][:12] if label >= 0 else "no label"
        answer = f"{task.splits.classes[int(answers[index])][:9]} {float(chances[index]):.2f}"
        draw.text((left + 2, top + 2 * _TILE + 2), f"label {known}", fill="black")
        draw.text((left + 2, top + 2 * _TILE + 15), f"teacher {answer}", fill="black")
    return sheet


def _tiles(images: "Tensor", preprocess: "Preprocess") -> list[Image.Image]:
    """What a model gets, with its normalisation undone for the eye."""
    inputs = preprocess(images).cpu()
    if preprocess.mean is not None and preprocess.std is not None:
        mean, std = (inputs.new_tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
        inputs = inputs * std + mean
    pixels = (inputs.clamp(0, 1) * 255).round().byte().numpy()
    tiles = []
    for image in pixels:
        array = image[0] if len(image) in (1, 2) else image[:3].transpose(1, 2, 0)
        tiles.append(Image.fromarray(array).resize((_TILE, _TILE), Image.Resampling.NEAREST).convert("RGB"))
    return tiles


def results_table(results: Mapping[str, Any]) -> Table:
    """The table of a run for the terminal: size, cost and score of each model.

    Args:
        results: the content of results.json.
    """
    verdict = results["verdict"]
    metric = verdict["metric"] if verdict else "accuracy"
    known = next(iter(results["models"].values()))["metrics"]
    others = results.get("columns", [name for name in known if name.startswith("recall")])
    seeds = max(len(about["metrics"][metric]["seeds"]) for about in results["models"].values())
    caption = f"test {metric}: mean ± 95 % interval over {seeds} seeds, last epoch" if seeds > 1 else None
    # One line a model fits 80 columns: what a person compares; the rest is in the report.
    table = Table(box=box.SIMPLE_HEAD, caption=caption, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")  # the only column that gives way: numbers are never cut
    for heading in ("params", "MACs", "latency", "on disk", metric, *others, "best"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, about in results["models"].items():
        scores = about["metrics"][metric]
        table.add_row(
            f"{name} *" if about.get("chosen") else name,
            written.count(about["parameters"]),
            written.count(about["macs"]),
            written.milliseconds(about["latency_ms"]),
            written.bytes(about["size_bytes"]),
            written.interval(scores["last"], scores["ci95"]),
            *(written.score(about["metrics"][other]["last"]) for other in others),
            written.score(scores["best"]),
        )
    return table
