"""A run folder as plain data: what is there is read, what is not there yet is left empty."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from understudy.errors import UserError
from understudy.report.contents import Extra, Log, Metric, Model, Run, SeedScore, Verdict


def read_run(folder: Path) -> Run:
    """Reads a run folder, finished or not.

    Args:
        folder: the folder a run wrote.

    Returns:
        Its content; a file that is missing leaves its field empty.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    if not any((folder / name).exists() for name in ("results.json", "recipe.yaml", "arms")):
        raise UserError("holds no run: neither results.json nor recipe.yaml nor arms/", where=folder)
    results = _json(folder / "results.json")
    recipe = _text(folder / "recipe.yaml")
    said = _recipe_fields(recipe) | {key: value for key, value in results.items() if value is not None}
    models = [_model(name, entry) for name, entry in _dict(results.get("models")).items()]
    picture = folder / "first_batch.png"
    return Run(
        folder=folder,
        name=str(said.get("name") or folder.resolve().name),
        about=str(said.get("about") or ""),
        task=str(said.get("task") or ""),
        finished=bool(results.get("finished")),
        selection=str(results.get("selection") or ""),
        hash=str(results.get("hash") or ""),
        notes=[str(note) for note in results.get("notes") or []],
        models=models,
        verdicts=_verdicts(results, models),
        logs=_logs(folder / "arms"),
        recipe=recipe,
        environment=_json(folder / "environment.json"),
        first_batch=picture.read_bytes() if picture.is_file() else b"",
        extra=[_extra(entry, folder) for entry in results.get("extra") or [] if isinstance(entry, dict)],
    )


def number(value: object) -> float | None:
    """A value of a file as a finite number.

    Args:
        value: anything JSON can hold.

    Returns:
        The number, None for what is absent, not finite or no number at all.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        content = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise UserError(f"is not JSON: {error}", where=path) from error
    if not isinstance(content, dict):
        raise UserError("is not a JSON object", where=path)
    return content


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = _text(path).splitlines()
    rows = []
    for line_number, line in enumerate(lines, start=1):
        try:
            rows.append(_dict(json.loads(line)))
        except ValueError as error:
            # A run that is being written, or was killed, may end in half a line.
            if line_number < len(lines):
                raise UserError(f"is not JSON: {error}", where=f"{path}:{line_number}") from error
    return rows


def _recipe_fields(recipe: str) -> dict[str, Any]:
    try:
        fields = _dict(yaml.safe_load(recipe))
    except yaml.YAMLError:
        return {}  # the recipe is shown as text all the same
    return {key: fields[key] for key in ("name", "about", "task") if isinstance(fields.get(key), str)}


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _metric(entry: dict[str, Any]) -> Metric:
    seeds = []
    for position, row in enumerate(entry.get("seeds") or []):
        found = {int(epoch): number(value) for epoch, value in _dict(row.get("at")).items()}
        at = {epoch: value for epoch, value in found.items() if value is not None}
        seed = int(row.get("seed", position))
        seeds.append(SeedScore(seed, number(row.get("best")), number(row.get("last")), at))
    return Metric(number(entry.get("best")), number(entry.get("last")), _pair(entry.get("ci95")), seeds)


def _model(name: str, entry: dict[str, Any]) -> Model:
    costs = {key: number(entry.get(key)) for key in ("parameters", "macs", "latency_ms", "size_bytes")}
    metrics = {metric: _metric(_dict(found)) for metric, found in _dict(entry.get("metrics")).items()}
    return Model(name, str(entry.get("role") or "other"), **costs, metrics=metrics)


def _verdicts(results: dict[str, Any], models: list[Model]) -> list[Verdict]:
    distilled = next((model.name for model in models if model.role == "distilled"), "student_distilled")
    entries = _dict(results.get("verdicts")) or {distilled: results.get("verdict")}
    return [
        Verdict(
            arm=arm,
            metric=str(entry.get("metric") or "accuracy"),
            difference=number(entry.get("difference")),
            ci95=_pair(entry.get("ci95")),
            seeds=int(number(entry.get("seeds")) or 0) or None,
            outcome=entry["outcome"] if entry.get("outcome") in ("helped", "hurt", "none") else "untested",
            text=str(entry.get("text") or ""),
        )
        for arm, entry in entries.items()
        if isinstance(entry, dict)
    ]


def _extra(entry: dict[str, Any], folder: Path) -> Extra:
    table = _dict(entry.get("table"))
    name = str(entry.get("image") or "")
    # Only a file of the run folder itself: results.json may come from somewhere else.
    picture = folder / Path(name).name
    return Extra(
        title=str(entry.get("title") or ""),
        text=str(entry.get("text") or ""),
        columns=[str(column) for column in table.get("columns") or []],
        rows=[[str(cell) for cell in row] for row in table.get("rows") or [] if isinstance(row, list)],
        chart=entry["chart"] if isinstance(entry.get("chart"), dict) else None,
        picture=picture.read_bytes() if name and picture.is_file() else b"",
    )


def _logs(arms: Path) -> list[Log]:
    logs = []
    for folder in sorted(arms.glob("*/seed-*")):
        seed = folder.name.removeprefix("seed-")
        if not seed.isdigit():
            continue
        rows = _rows(folder / "metrics.jsonl")
        train = [row for row in rows if row.get("kind") == "train"]
        evaluations = [row for row in rows if row.get("kind") == "eval"]
        gradients = [row for row in rows if row.get("kind") == "gradients"]
        timing = _rows(folder / "timing.jsonl")
        logs.append(Log(folder.parent.name, int(seed), train, evaluations, timing, gradients))
    return sorted(logs, key=lambda log: (log.arm, log.seed))
