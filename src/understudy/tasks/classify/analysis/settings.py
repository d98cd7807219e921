"""Several finished runs beside each other: an ablation, a transfer table, the same recipe at another resolution."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from understudy.compare import mean_interval
from understudy.errors import UserError
from understudy.report import format as written
from understudy.report.looks import SERIES
from understudy.tasks.classify.analysis.finished import read_finished
from understudy.tasks.classify.task import METRIC

# What of a recipe changes no result, or nothing but the run's name.
_IRRELEVANT = (
    "name",
    "about",
    "seed",
    "seeds",
    "train.workers",
    "train.threads",
    "train.device",
    "train.deterministic",
)
_LONGEST = 60


def settings(folders: Sequence[Path], student: str | None = None) -> dict[str, Any]:
    """What changed between runs, and what came of it: the section of a report.

    Differences are to the first run, seed by seed, so far as both have the seeds.

    Args:
        folders: of finished runs, the one that the others are held against first.
        student: which model of each run; by default the best distilled one.

    Raises:
        UserError: a folder is no finished classification run, or has no such model.
    """
    if len(folders) < 2:
        raise UserError("one run has nothing to be compared with: name at least two")
    first: dict[int, float] = {}
    base: dict[str, Any] = {}
    rows, points = [], []
    for number, folder in enumerate(folders):
        recipe, results = read_finished(folder)
        flat = _flat(recipe.model_dump(mode="json", exclude_defaults=False))
        name = student or results["best"]
        if name not in results["models"]:
            raise UserError(f"has no model '{name}' (it has {', '.join(results['models'])})", where=folder)
        metric = results["models"][name]["metrics"][METRIC]
        scores = {entry["seed"]: entry["last"] for entry in metric["seeds"]}
        first, base = (scores, flat) if number == 0 else (first, base)
        changed = "as it is" if number == 0 else changes(base, flat)
        difference = "" if number == 0 else _paired(scores, first)
        shown = written.interval(metric["last"], metric["ci95"])
        rows.append([_label(folder), changed, name, shown, difference])
        low, high = metric["ci95"] or (metric["last"], metric["last"])
        points.append({"run": _label(folder), "accuracy": metric["last"], "low": low, "high": high, "changed": changed})
    order = [point["run"] for point in points]
    drawn = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("run:N", title=None, sort=order),
        tooltip=["run:N", "changed:N", alt.Tooltip("accuracy:Q", format=".4f")],
    )
    scale = alt.Scale(zero=False)
    chart = alt.layer(
        drawn.mark_rule(strokeWidth=3, color=SERIES[0]).encode(
            x=alt.X("low:Q", title="test accuracy", scale=scale), x2="high:Q"
        ),
        drawn.mark_circle(size=110, opacity=1, color=SERIES[0]).encode(x="accuracy:Q"),
    )
    return {
        "title": "Runs compared",
        "text": "What differs from the first run, and the paired difference to it with its 95 % interval; p values "
        "are not corrected for the number of runs.",
        "table": {"columns": ["run", "changed", "model", "accuracy", "difference"], "rows": rows},
        "chart": chart.to_dict(),
    }


def changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The keys of two flat recipes that differ, as one would write them on the command line.

    Args:
        base: what was.
        other: what is.
    """
    keys = [key for key in {**base, **other} if key not in _IRRELEVANT and base.get(key) != other.get(key)]
    text = " ".join(f"{key}={other.get(key)}" for key in keys)
    return (text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …") or "nothing"


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    flat: dict[str, Any] = {}
    for key, value in items:
        path = f"{prefix}{key}"
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))
        flat |= _flat(value, f"{path}.") if nested else {path: value}
    return flat


def _paired(scores: Mapping[int, float], first: Mapping[int, float]) -> str:
    shared = [scores[seed] - first[seed] for seed in sorted(scores) if seed in first]
    if not shared:
        return "no seed in common"
    mean, interval = mean_interval(shared)
    spread = f" ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})" if interval else ""
    return f"{100 * mean:+.2f} points{spread}"


def _label(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])
