"""What a run of the chain came to, put together from its folder: scores, verdicts, tables and plots."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from understudy.compare import mean_interval, untested, verdicts
from understudy.tasks.detect.comparison import Comparison
from understudy.tasks.detect.data import Dirt
from understudy.tasks.detect.measure import Measured
from understudy.tasks.detect.recipe import DetectRecipe
from understudy.tasks.detect.relations import relations_table
from understudy.tasks.detect.sparse import histogram_chart
from understudy.train.folder import Log, RunFolder

METRIC = "mAP50"


def write_log(folder: Path) -> None:
    """Turn ultralytics' results.csv into metrics.jsonl and timing.jsonl."""
    metrics, timing = Log(folder / "metrics.jsonl"), Log(folder / "timing.jsonl")
    for log in (metrics, timing):
        log.path.unlink(missing_ok=True)
    before = 0.0
    with (folder / "results.csv").open() as file:
        for row in csv.DictReader(file):
            values = {key.strip(): float(value) for key, value in row.items()}
            epoch, seconds = int(values["epoch"]), values["time"]
            losses = {key.removeprefix("train/"): value for key, value in values.items() if key.startswith("train/")}
            scores = {
                key.removeprefix("metrics/").removesuffix("(B)"): value
                for key, value in values.items()
                if key.startswith("metrics/")
            }
            metrics.write(kind="train", epoch=epoch, step=epoch, lr=values.get("lr/pg0"), loss=sum(losses.values()),
                          losses=losses)  # fmt: skip
            metrics.write(kind="eval", epoch=epoch, validation=scores)
            timing.write(epoch=epoch, seconds=max(seconds - before, 0.0))
            before = seconds


def summarise(
    folder: RunFolder,
    recipe: DetectRecipe,
    dirt: Mapping[str, Dirt],
    measured: Mapping[str, Any],
    exported: Mapping[str, Any],
    best: str,
    *,
    split: str,
) -> dict[str, Any]:
    """Make results.json.

    Args:
        folder: of the run.
        recipe: that was run.
        dirt: what is merely dirty in the data.
        measured: costs and scores of each model, from the stage `compare`.
        exported: likewise of each exported file.
        best: the distilled arm that is kept as `student/`.
        split: what the scores were read on.
    """
    found = {arm: _of_seeds(folder, recipe, arm) for arm in [*recipe.controls, *recipe.arms]}
    models = {}
    for name, row in {**measured, **exported}.items():
        metrics = found[name] if name in found else _constant(row["metrics"])
        models[name] = {
            "role": _role(name, recipe),
            **{key: row[key] for key in ("parameters", "macs", "size_bytes")},
            "latency_ms": row["onnxruntime_ms"] or row["torch_ms"],
            "metrics": metrics,
        }
    compared = {arm: _last(found[arm], METRIC) for arm in recipe.arms}
    if recipe.controls:
        told = verdicts(METRIC, _last(found[recipe.controls[0]], METRIC), compared)
    else:
        told = {arm: untested(METRIC) for arm in compared}
    shown = max(compared, key=lambda arm: fmean(compared[arm].values()))
    comparison = Comparison(tuple(_measured(row) for row in {**measured, **exported}.values()), recipe.imgsz, split)
    comparison.save(folder.path)
    return {
        "name": recipe.name,
        "task": recipe.task,
        "about": recipe.about,
        "finished": True,
        "selection": "validation",
        "models": models,
        "verdict": told[shown].to_json(),
        "verdicts": {arm: verdict.to_json() for arm, verdict in told.items()},
        "best": best,
        "notes": _notes(folder, dirt, exported),
        "hash": folder.fingerprint(),
        "extra": _extra(folder, comparison),
    }


def _role(name: str, recipe: DetectRecipe) -> str:
    if name in recipe.arms:
        return "distilled"
    return "control" if name in recipe.controls else "teacher" if name == "teacher" else "other"


def _measured(row: Mapping[str, Any]) -> Measured:
    return Measured(**{key: row[key] for key in Measured.__dataclass_fields__})


def _constant(scores: Mapping[str, float]) -> dict[str, Any]:
    """The scores of a model that was made once."""
    return {
        name: {"best": value, "last": value, "ci95": None, "seeds": [{"seed": 0, "best": value, "last": value}]}
        for name, value in _shown(scores).items()
    }


def _of_seeds(folder: RunFolder, recipe: DetectRecipe, arm: str) -> dict[str, Any]:
    """An arm's scores on the test data, at its best epoch on the validation data and at its last."""
    seeds = {seed: found_by(folder, f"{arm}-seed-{seed}") for seed in recipe.all_seeds}
    metrics = {}
    for name in _shown(seeds[recipe.seed]["last"]):
        rows = [
            {"seed": seed, "best": scores["best"][name], "last": scores["last"][name]} for seed, scores in seeds.items()
        ]
        mean, interval = mean_interval([row["last"] for row in rows])
        metrics[name] = {"best": fmean(row["best"] for row in rows), "last": mean, "ci95": interval, "seeds": rows}
    return metrics


def _shown(scores: Mapping[str, float]) -> dict[str, float]:
    """The verdict's metric first."""
    return {METRIC: scores[METRIC], **{key: value for key, value in scores.items() if key != METRIC}}


def _last(metrics: Mapping[str, Any], name: str) -> dict[int, float]:
    return {row["seed"]: row["last"] for row in metrics[name]["seeds"]}


def found_by(folder: RunFolder, stage: str) -> dict[str, Any]:
    """What a finished stage found; nothing where it was not done."""
    path = folder.path / "stages" / f"{stage}.json"
    return json.loads(path.read_text())["found"] if path.exists() else {}


def _notes(folder: RunFolder, dirt: Mapping[str, Dirt], exported: Mapping[str, Any]) -> list[str]:
    notes = [line for split, each in dirt.items() for line in each.in_words(split)]
    if said := found_by(folder, "prune").get("said"):
        notes.append(f"Pruned at {said}.")
    if (folder.path / "stages" / "prune.json").exists():
        notes.append("The students start from the pruned model; their interval is conditional on it and its teacher.")
    for name, row in exported.items():
        if row["difference"] is not None:
            notes.append(f"{name} differs from torch by {row['difference']:.1e} of the largest output.")
    return notes


def _extra(folder: RunFolder, comparison: Comparison) -> list[dict[str, Any]]:
    """Tables and pictures of this task for the report."""
    extra: list[dict[str, Any]] = [
        {
            "title": "Cost and score",
            "text": "Files as they were measured on one machine; a latency is the median of forwards at batch 1, the "
            "models taking turns (an exported file by itself). The models trained once a seed are shown by their first "
            "seed's best epoch.",
            "table": comparison.full_table(),
            "chart": comparison.chart(),
        },
        {"title": "By class", "text": "mAP50 / mAP50-95.", "table": comparison.class_table()},
    ]
    if scales := found_by(folder, "sparsify"):
        shares = [f"{scales[when]['zero']:.1%}" for when in ("before", "after")]
        zero = f"Scales below 0.001: {shares[0]} before, {shares[1]} after."
        chart = histogram_chart(scales["before"], scales["after"])
        extra.append({"title": "BatchNorm scales", "text": zero, "chart": chart})
    if scan := found_by(folder, "sensitivity"):
        text = "How much the detection loss rises when the least important channels of one layer are silenced."
        extra.append({"title": "Sensitivity of the layers", "text": text, "chart": scan["chart"]})
    if pruning := found_by(folder, "prune"):
        rows = [[layer, before, after] for layer, (before, after) in pruning["widths"].items()]
        reasons = dict.fromkeys(reason for reason in pruning["kept"].values())
        extra.append({
            "title": "Widths",
            "text": "Channels before and after pruning. Kept as they are: " + "; ".join(reasons) + ".",
            "table": {"columns": ["layer", "before", "after"], "rows": rows},
        })  # fmt: skip
    if pictures := found_by(folder, "predict").get("pictures"):
        names = ", ".join(Path(picture).stem for picture in pictures)
        extra.append({"title": "Predictions", "text": f"What the student finds: {names}.", "image": "predictions.png"})
    if scores := found_by(folder, "relations").get("scores"):
        extra.append({
            "title": "Relations",
            "text": "Boxes and their parents on the test diagrams. A box is found from an overlap of one half; an edge "
            "counts when both its ends are found and joined as they should be. True boxes: the search for parents "
            "alone.",
            "table": relations_table(scores),
            "image": "relations.png",
        })  # fmt: skip
    return extra
