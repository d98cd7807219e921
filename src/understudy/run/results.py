"""What a run came to, put together from its folder."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from understudy.compare import Verdict, mean_interval, untested, verdicts
from understudy.errors import UserError
from understudy.recipe.schema import Recipe
from understudy.tasks.variants import groups
from understudy.train.folder import RunFolder, read_log

Facts = dict[str, Any]


def summarise(
    folder: RunFolder,
    recipe: Recipe,
    facts: Mapping[str, Facts],
    *,
    metric: str,
    teacher_scores: Mapping[str, float] | None,
    notes: list[str],
) -> dict[str, Any]:
    """Make results.json from the metrics that the arms wrote.

    Args:
        folder: of the run.
        recipe: that was run.
        facts: for `teacher` and each arm: role, parameters, macs, latency_ms, size_bytes.
        metric: the score that the verdict is about.
        teacher_scores: test scores of a teacher that was not trained here.
        notes: what a reader of the table must know.
    """
    seeds = range(recipe.seed, recipe.seed + recipe.seeds)
    teacher_seeds = range(recipe.seed, recipe.seed + recipe.teacher_seeds)
    stops_early = recipe.train.early_stop is not None
    models: dict[str, Any] = {}
    for name, about in facts.items():
        if name == "teacher" and teacher_scores is not None:
            models[name] = {**about, "metrics": _constant(teacher_scores)}
            continue
        of_arm = teacher_seeds if name == "teacher" else seeds
        early = recipe.teacher_train.early_stop is not None if name == "teacher" else stops_early
        rows = {seed: read_log(folder.arm(name, seed) / "metrics.jsonl") for seed in of_arm}
        models[name] = {**about, "metrics": _metrics(rows, metric, early)}
    if len(models) == 1:
        return _told(recipe, models, {}, None, "validation", notes, folder.fingerprint())
    selection = "validation" if _has_validation(folder, models, seeds) else "test"
    if recipe.grid:
        models = _mark_chosen(folder, recipe, models, metric, seeds)
    control, control_note = _control_scores(recipe, models, metric)
    compared = {
        name: _last(about, metric)
        for name, about in models.items()
        if about["role"] == "distilled" and about.get("chosen", True)
    }
    found = verdicts(metric, control, compared) if control else {name: untested(metric) for name in compared}
    best = max(compared, key=lambda name: fmean(compared[name].values()))
    notes = [*notes, *control_note, *_notes(recipe, models, metric, selection)]
    return _told(recipe, models, found, best, selection, notes, folder.fingerprint())


def _told(
    recipe: Recipe,
    models: Mapping[str, Any],
    found: Mapping[str, Verdict],
    best: str | None,
    selection: str,
    notes: list[str],
    fingerprint: str,
) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "task": recipe.task,
        "about": recipe.about,
        "finished": True,
        "selection": selection,
        "models": dict(models),
        "verdict": found[best].to_json() if best is not None else None,
        "verdicts": {name: verdict.to_json() for name, verdict in found.items()},
        "best": best,
        "notes": notes,
        "hash": fingerprint,
    }


def _metrics(rows: Mapping[int, list[dict[str, Any]]], metric: str, early: bool) -> dict[str, Any]:
    evaluations = {seed: [row for row in log if row["kind"] == "eval"] for seed, log in rows.items()}
    names = next(iter(evaluations.values()))[-1]["test"]
    found = {}
    for name in names:
        seeds = []
        for seed, log in evaluations.items():
            # The epoch is chosen by the metric on the selection data, whichever score is then read there.
            best = max(log, key=lambda row: row.get("validation", row["test"])[metric])
            last = best if early else log[-1]
            at = {str(row["epoch"]): row["test"][name] for row in log}
            seeds.append({"seed": seed, "best": best["test"][name], "last": last["test"][name], "at": at})
        mean, interval = mean_interval([entry["last"] for entry in seeds])
        found[name] = {
            "best": fmean(entry["best"] for entry in seeds),
            "last": mean,
            "ci95": interval,
            "seeds": seeds,
        }
    return found


def _constant(scores: Mapping[str, float]) -> dict[str, Any]:
    return {
        name: {
            "best": value,
            "last": value,
            "ci95": None,
            "seeds": [{"seed": 0, "best": value, "last": value}],
        }
        for name, value in scores.items()
    }


def _last(about: Mapping[str, Any], metric: str) -> dict[int, float]:
    return {entry["seed"]: entry["last"] for entry in about["metrics"][metric]["seeds"]}


def _has_validation(folder: RunFolder, models: Mapping[str, Any], seeds: range) -> bool:
    name = next(name for name, about in models.items() if about["role"] == "distilled")
    return "validation" in read_log(folder.arm(name, seeds[0]) / "metrics.jsonl")[-1]


def _mark_chosen(
    folder: RunFolder, recipe: Recipe, models: dict[str, Any], metric: str, seeds: range
) -> dict[str, Any]:
    """Of each method's grid points choose the one with the best mean score on the selection data."""
    for names in groups(recipe).values():
        means = {}
        for name in names:
            last = [read_log(folder.arm(name, seed) / "metrics.jsonl")[-1] for seed in seeds]
            means[name] = fmean(row.get("validation", row["test"])[metric] for row in last)
        chosen = max(means, key=lambda name: means[name])
        for name in names:
            models[name]["chosen"] = name == chosen
    return models


def _control_scores(recipe: Recipe, models: Mapping[str, Any], metric: str) -> tuple[dict[int, float], list[str]]:
    if isinstance(recipe.control, tuple):
        return _last(models["student_alone"], metric), []
    if recipe.control == "none":
        return {}, ["No control was trained (control: none), so whether distillation helped was not tested."]
    other = RunFolder.open(Path(recipe.control))
    results = other.results()
    if results is None or "student_alone" not in results["models"]:
        raise UserError("holds no finished control to compare with", where=recipe.control)
    return _last(results["models"]["student_alone"], metric), [f"The control's scores come from {recipe.control}."]


def _notes(recipe: Recipe, models: Mapping[str, Any], metric: str, selection: str) -> list[str]:
    notes = []
    if selection == "test":
        notes.append(
            "The recipe holds out no validation images: the best epoch was chosen on test images, as the articles do. "
            "The verdict reads the last epoch, which nothing was chosen for."
        )
    if recipe.grid and selection == "validation":
        notes.append("Grid points were chosen on validation; the verdict is about the chosen ones, on test.")
    teacher, control = models.get("teacher"), models.get("student_alone")
    if teacher and control and teacher["metrics"][metric]["last"] <= control["metrics"][metric]["last"]:
        notes.append("The teacher is no better than the student alone: little can be learnt from it.")
    if recipe.data.labels != "all" and recipe.data.transfer != "none":
        notes.append(
            f"Teacher and students see {recipe.data.labels:,} labels; the distilled students also see further images "
            "without labels. The control takes as many steps on the labelled images alone."
        )
    if recipe.teacher_seeds == 1:
        notes.append("One teacher taught all seeds: the interval is about students of this teacher.")
    return notes
