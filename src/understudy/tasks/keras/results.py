"""What a Keras run came to, put together from its folder."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from understudy.compare import mean_interval, untested, verdicts
from understudy.tasks.keras.recipe import KerasRecipe
from understudy.train.folder import RunFolder, read_log

METRIC = "accuracy"


def summarise(
    folder: RunFolder,
    recipe: KerasRecipe,
    facts: Mapping[str, Mapping[str, Any]],
    *,
    teacher_score: float | None,
    notes: list[str],
    only_teacher: bool,
) -> dict[str, Any]:
    """Make results.json from the metrics that the models wrote.

    Args:
        folder: of the run.
        recipe: that was run.
        facts: for `teacher` and each student: role, parameters, macs, latency_ms, size_bytes.
        teacher_score: of a teacher that was not trained here.
        notes: what a reader of the table must know.
        only_teacher: no student was trained.
    """
    models: dict[str, Any] = {}
    for name, about in facts.items():
        if name == "teacher" and teacher_score is not None:
            seeds = [{"seed": recipe.seed, "best": teacher_score, "last": teacher_score}]
        else:
            seeds = [_seed(folder, name, seed) for seed in ([recipe.seed] if name == "teacher" else recipe.all_seeds)]
        mean, interval = mean_interval([each["last"] for each in seeds])
        best = fmean(each["best"] for each in seeds)
        models[name] = {**about, "metrics": {METRIC: {"best": best, "last": mean, "ci95": interval, "seeds": seeds}}}
    scores = {
        name: {each["seed"]: each["last"] for each in about["metrics"][METRIC]["seeds"]}
        for name, about in models.items()
    }
    distilled = {name: scores[name] for name, about in models.items() if about["role"] == "distilled"}
    control = scores.get("student_alone")
    found = verdicts(METRIC, control, distilled) if control else {name: untested(METRIC) for name in distilled}
    best = max(distilled, key=lambda name: fmean(distilled[name].values())) if not only_teacher else None
    return {
        "name": recipe.name,
        "task": recipe.task,
        "about": recipe.about,
        "finished": True,
        "selection": "test" if recipe.data.validation == "none" else "validation",
        "models": models,
        "verdict": None if best is None else found[best].to_json(),
        "verdicts": {name: verdict.to_json() for name, verdict in found.items()},
        "best": best,
        "notes": [*notes, *_notes(recipe, models)],
        "hash": folder.fingerprint(),
    }


def _seed(folder: RunFolder, name: str, seed: int) -> dict[str, Any]:
    log = [row for row in read_log(folder.arm(name, seed) / "metrics.jsonl") if row["kind"] == "eval"]
    best = max(log, key=lambda row: row.get("validation", row["test"])[METRIC])
    return {
        "seed": seed,
        "best": best["test"][METRIC],
        "last": log[-1]["test"][METRIC],
        "at": {str(row["epoch"]): row["test"][METRIC] for row in log},
    }


def _notes(recipe: KerasRecipe, models: Mapping[str, Any]) -> list[str]:
    notes = []
    if recipe.data.validation == "none":
        notes.append(
            "The recipe holds out no validation images: the best epoch was chosen on test images. The verdict reads "
            "the last epoch, which nothing was chosen for."
        )
    if recipe.control == "none":
        notes.append("No control was trained (control: none), so whether distillation helped was not tested.")
    elif "student_alone" in models:
        last = {name: models[name]["metrics"][METRIC]["last"] for name in ("teacher", "student_alone")}
        if last["teacher"] <= last["student_alone"]:
            notes.append("The teacher is no better than the student alone: little can be learnt from it.")
    notes.append("One teacher taught all seeds: the interval is about students of this teacher.")
    return notes
