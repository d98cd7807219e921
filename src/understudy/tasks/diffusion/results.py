"""What a run came to: the table, the verdict, and what the report shows beyond them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from understudy.compare import Verdict, mean_interval, untested, verdicts
from understudy.report.format import counted
from understudy.report.looks import CONFIG, SERIES
from understudy.tasks.diffusion.contest import Contender, Row
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.train.folder import RunFolder

# Scores of which less is better.
_DISTANCES = ("fid", "frechet", "paired_mse")
_CHART = "https://vega.github.io/schema/vega-lite/v5.json"


def summarise(
    folder: RunFolder,
    recipe: DiffusionRecipe,
    contenders: Sequence[Contender],
    rows: Mapping[int, Sequence[Row]],
    *,
    facts: Mapping[str, Mapping[str, float]],
    floor: Row | None,
    pictures: Sequence[Mapping[str, str]],
    notes: list[str],
) -> dict[str, Any]:
    """Make results.json.

    Args:
        folder: of the run.
        recipe: that was run.
        contenders: of one seed.
        rows: for each seed one row a contender.
        facts: parameters, multiply-adds and bytes by contender.
        floor: what real images come to.
        pictures: title, text and file of each.
        notes: what a reader must know.
    """
    metric = _metric(rows)
    models = {one.name: _model(one, place, rows, facts[one.name]) for place, one in enumerate(contenders)}
    found = _verdicts(recipe, metric, models)
    best = min(found, key=lambda name: models[name]["metrics"][metric]["last"]) if found else None
    return {
        "name": recipe.name,
        "task": recipe.task,
        "about": recipe.about,
        "finished": True,
        "selection": "",
        "models": models,
        "verdict": (found[best] if best else untested(metric)).to_json(),
        "verdicts": {name: verdict.to_json() for name, verdict in found.items()},
        "best": best,
        "columns": _columns(rows, metric),
        "notes": [*_notes(recipe, floor), *notes],
        "hash": fingerprint(folder),
        "floor": floor,
        "extra": [_curve(metric, contenders, models, floor), *({**picture} for picture in pictures)],
    }


def _metric(rows: Mapping[int, Sequence[Row]]) -> str:
    """What the verdict is about: FID where it could be had, else the distance in features, else the paired error."""
    return next(name for name in _DISTANCES if name in next(iter(rows.values()))[0])


def _columns(rows: Mapping[int, Sequence[Row]], metric: str) -> list[str]:
    """What the terminal's narrow table shows beside the metric of the verdict."""
    known = next(iter(rows.values()))[0]
    return [name for name in ("recognised", "paired_mse") if name in known and name != metric][:1]


def _model(one: Contender, place: int, rows: Mapping[int, Sequence[Row]], facts: Mapping[str, float]) -> dict[str, Any]:
    names = [name for name in next(iter(rows.values()))[place] if name not in ("name", "ms_per_image")]
    metrics = {}
    for name in names:
        values = {seed: of_seed[place][name] for seed, of_seed in rows.items()}
        mean, interval = mean_interval(list(values.values()))
        seeds = [{"seed": seed, "best": value, "last": value} for seed, value in values.items()]
        metrics[name] = {"best": mean, "last": mean, "ci95": interval, "seeds": seeds}
    times = [of_seed[place]["ms_per_image"] for of_seed in rows.values() if of_seed[place].get("ms_per_image")]
    return {
        "role": one.role,
        "steps": one.steps,
        "sampler": one.sampler,
        **facts,
        "latency_ms": sum(times) / len(times) if times else None,
        "metrics": metrics,
    }


def _verdicts(recipe: DiffusionRecipe, metric: str, models: Mapping[str, Any]) -> dict[str, Verdict]:
    """The distilled students of the verdict's steps against the teacher with as many."""
    steps = recipe.verdict_steps
    control = next((name for name, about in models.items() if about["role"] == "control"), None)
    students = [name for name, about in models.items() if about["role"] == "distilled" and about["steps"] == steps]
    if control is None or not students:
        return {}
    of = {name: {entry["seed"]: entry["last"] for entry in models[name]["metrics"][metric]["seeds"]} for name in models}
    found = verdicts(metric, of[control], {name: of[name] for name in students}, better="lower")
    last = {name: about["metrics"][metric]["last"] for name, about in models.items()}
    full = next(name for name, about in models.items() if about["role"] == "teacher")
    few = f"the teacher with {counted(steps, 'DDIM step')}"
    beside = f"{few} {last[control]:.3g}, with {models[full]['steps']} {last[full]:.3g}"
    return {
        name: replace(
            verdict,
            text=f"{verdict.text.replace('the student alone', few).removesuffix('.')}; "
            f"the student with {counted(steps, 'step')} has {metric} {last[name]:.3g}, {beside}.",
        )
        for name, verdict in found.items()
    }


def _notes(recipe: DiffusionRecipe, floor: Row | None) -> list[str]:
    notes = ["The control is the teacher with as many DDIM steps as the student; latency is the time of one image."]
    if floor is None:
        return [*notes, "There were no labelled images to train a classifier on: only the paired error is known."]
    notes.append(
        f"frechet is the Fréchet distance in the features of a classifier trained on these images (right on "
        f"{floor['judge_accuracy']:.1%} of those held out), {recipe.evaluate.images} samples against "
        f"{floor['held_out']:,} held-out images. It is not FID. Floor: {floor['images']} training images come to "
        f"{floor['frechet']:.3g}; pure noise to {floor['noise']:.3g}."
    )
    return notes


def fingerprint(folder: RunFolder) -> str:
    """SHA-256 over all weights, metrics and scores that the run made: equal runs have equal ones."""
    digest = hashlib.sha256()
    patterns = ("arms/*/seed-*/metrics.jsonl", "arms/*/seed-*/student/**/*.safetensors", "quality/seed-*.jsonl")
    for file in sorted(path for pattern in patterns for path in folder.path.glob(pattern)):
        digest.update(str(file.relative_to(folder.path)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _curve(
    metric: str, contenders: Sequence[Contender], models: Mapping[str, Any], floor: Row | None
) -> dict[str, Any]:
    """Quality against steps: the teacher by both samplers and the distilled students."""
    values, rows = [], []
    for one in contenders:
        metrics, about = models[one.name]["metrics"], models[one.name]
        values.append({"steps": one.steps, "way": one.family, metric: metrics[metric]["last"]})
        time = about["latency_ms"]
        shown = [f"{scores['last']:.4g}" for scores in metrics.values()]
        rows.append([one.family, one.steps, *shown, "" if time is None else f"{time:.3g}"])
    names = list(next(iter(models.values()))["metrics"])
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "line", "point": True},
            "encoding": {
                "x": {"field": "steps", "type": "quantitative", "scale": {"type": "log", "base": 2}, "title": "steps"},
                "y": {"field": metric, "type": "quantitative", "scale": {"type": "log"}, "title": metric},
                "color": {"field": "way", "type": "nominal", "title": None, "scale": {"range": SERIES}},
                "tooltip": [{"field": "way"}, {"field": "steps"}, {"field": metric, "format": ".4g"}],
            },
        }
    ]
    text = "Less is better; both axes are logarithmic."
    if floor is not None and metric == "frechet":
        layers.append({"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"y": {"datum": floor["frechet"]}}})
        text += " The dashed line is what real training images come to."
    chart = {
        "$schema": _CHART,
        "description": f"{metric} against the number of steps",
        "data": {"values": values},
        "layer": layers,
        "width": 520,
        "height": 300,
        "config": CONFIG,
    }
    table = {"columns": ["sampler", "steps", *names, "ms per image"], "rows": rows}
    return {"title": "Quality against steps", "text": text, "chart": chart, "table": table}
