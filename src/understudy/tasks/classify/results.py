"""What a run came to, put together from its folder."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from understudy.compare import Verdict, mean_interval, untested, verdicts
from understudy.errors import UserError
from understudy.recipe.schema import ClassifyRecipe
from understudy.tasks.classify.variants import groups
from understudy.train.folder import RunFolder, read_log

Facts = dict[str, Any]
Evaluations = dict[int, list[dict[str, Any]]]

# What of `train` changes no result, so that another run's control may differ in it.
_IRRELEVANT = {"workers", "threads", "device", "checkpoint_seconds", "deterministic", "compile"}


def summarise(
    folder: RunFolder,
    recipe: ClassifyRecipe,
    facts: Mapping[str, Facts],
    *,
    metric: str,
    given: Mapping[str, Mapping[str, float]],
    notes: list[str],
) -> dict[str, Any]:
    """Make results.json from the metrics that the arms wrote.

    Args:
        folder: of the run.
        recipe: that was run.
        facts: for `teacher` and each arm: role, parameters, macs, latency_ms, size_bytes.
        metric: the score that the verdict is about.
        given: test scores of the models that were not trained here, by name.
        notes: what a reader of the table must know.
    """
    teachers = {**recipe.teachers, **recipe.all_assistants}
    models: dict[str, Any] = {}
    logs: dict[str, Evaluations] = {}
    for name, about in facts.items():
        if name in given:
            models[name] = {**about, "metrics": _constant(given[name])}
            continue
        settings = recipe.train_of(teachers[name]) if name in teachers else recipe.train
        logs[name] = {seed: _evaluations(folder, name, seed) for seed in _seeds_of(name, recipe)}
        models[name] = {**about, "metrics": _metrics(logs[name], metric, settings.early_stop is not None)}
    if not set(models) - set(teachers) - {"teacher"}:
        return _told(recipe, models, {}, None, "validation", notes, folder.fingerprint())
    students = {name: log for name, log in logs.items() if name not in teachers}
    selection = "validation" if "validation" in next(iter(students.values()))[recipe.seed][-1] else "test"
    if recipe.grid:
        _mark_chosen(recipe, models, students, metric)
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


def _seeds_of(name: str, recipe: ClassifyRecipe) -> range:
    if name in recipe.teachers:
        return range(recipe.seed, recipe.seed + recipe.teacher_seeds)
    return range(recipe.seed, recipe.seed + 1) if name in recipe.all_assistants else recipe.all_seeds


def _told(
    recipe: ClassifyRecipe,
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


def _evaluations(folder: RunFolder, name: str, seed: int) -> list[dict[str, Any]]:
    return [row for row in read_log(folder.arm(name, seed) / "metrics.jsonl") if row["kind"] == "eval"]


def _selection_score(row: Mapping[str, Any], metric: str) -> float:
    return row.get("validation", row["test"])[metric]


def _best(log: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The evaluation with the best score on the selection data, the first of equal ones."""
    return max(log, key=lambda row: _selection_score(row, metric))


def _final(log: list[dict[str, Any]], metric: str, stops_early: bool) -> dict[str, Any]:
    """The evaluation of the weights that an arm ends with: early stopping goes back to the best."""
    return _best(log, metric) if stops_early else log[-1]


def _metrics(logs: Evaluations, metric: str, stops_early: bool) -> dict[str, Any]:
    found = {}
    for name in next(iter(logs.values()))[-1]["test"]:
        seeds = []
        for seed, log in logs.items():
            # The epoch is chosen by the metric on the selection data, whichever score is then read there.
            best, last = _best(log, metric), _final(log, metric, stops_early)
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


def _mark_chosen(recipe: ClassifyRecipe, models: dict[str, Any], logs: Mapping[str, Evaluations], metric: str) -> None:
    """Of each method's grid points choose the one with the best mean score on the selection data."""
    stops_early = recipe.train.early_stop is not None

    def mean_score(name: str) -> float:
        return fmean(_selection_score(_final(log, metric, stops_early), metric) for log in logs[name].values())

    for names in groups(recipe):
        chosen = max(names, key=mean_score)
        for name in names:
            models[name]["chosen"] = name == chosen


def check_control(recipe: ClassifyRecipe) -> None:
    """Refuse a control of another run that cannot be compared, before anything is trained.

    Raises:
        UserError: that run has no finished control, shares no seed, or trained its control otherwise.
    """
    if isinstance(recipe.control, tuple) or recipe.control == "none":
        return
    path = Path(recipe.control)
    folder = RunFolder.open(path)
    results = folder.results()
    if results is None or "student_alone" not in results["models"]:
        raise UserError("holds no finished control to compare with", where=path)
    other = folder.recipe()
    for section in ("data", "student", "train"):
        wanted, found = (getattr(one, section).model_dump(mode="json") for one in (recipe, other))
        for key in sorted({*wanted, *found} - _IRRELEVANT):
            if wanted.get(key) != found.get(key):
                raise UserError(
                    f"its control was made with {section}.{key} {found.get(key)}, here it is {wanted.get(key)}: "
                    "the difference would not be the method's",
                    where=path,
                )
    if not range(max(recipe.seed, other.seed), min(recipe.seed + recipe.seeds, other.seed + other.seeds)):
        raise UserError(
            f"its control has seeds {other.seed} to {other.seed + other.seeds - 1}, none of these", where=path
        )


def _control_scores(
    recipe: ClassifyRecipe, models: Mapping[str, Any], metric: str
) -> tuple[dict[int, float], list[str]]:
    if isinstance(recipe.control, tuple):
        return _last(models["student_alone"], metric), []
    if recipe.control == "none":
        return {}, ["No control was trained (control: none), so whether distillation helped was not tested."]
    results = RunFolder.open(Path(recipe.control)).results()
    assert results is not None  # `check_control` looked
    return _last(results["models"]["student_alone"], metric), [f"The control's scores come from {recipe.control}."]


def _notes(recipe: ClassifyRecipe, models: Mapping[str, Any], metric: str, selection: str) -> list[str]:
    notes = []
    if selection == "test":
        notes.append(
            "The recipe holds out no validation images: the best epoch was chosen on test images, as the articles do. "
            "The verdict reads the last epoch, which nothing was chosen for."
        )
    if recipe.grid and selection == "validation":
        notes.append("Grid points were chosen on validation; the verdict is about the chosen ones, on test.")
    teacher, control = models.get("teacher"), models.get("student_alone")
    if recipe.teacher.is_recorded:
        teacher = None  # its score is no test score
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
