"""The rows behind the charts: scores, losses and times of a run, as lists of small dicts."""

from statistics import fmean, median
from typing import Any

from understudy.report.contents import Run
from understudy.report.read import number

Rows = list[dict[str, Any]]

# More points than this per chart only make the file larger, not the line clearer.
LIMIT = 5000


def splits(run: Run) -> list[str]:
    """The splits whose score was logged by epoch, of validation and test.

    Args:
        run: the run.

    Returns:
        Their names, validation first.
    """
    return [split for split in ("validation", "test") if _scores(run, split)]


def curves(run: Run, split: str) -> Rows:
    """The score by epoch, a line per arm and seed, and their mean where an arm has several seeds.

    Args:
        run: the run.
        split: validation or test.

    Returns:
        Rows with arm, line ("mean" or "seed 3"), epoch and score, in the order of the table.
    """
    rows = _thinned(_scores(run, split))
    return [row for arm in run.roles for row in _with_mean([row for row in rows if row["arm"] == arm])]


def losses(run: Run, arm: str) -> Rows:
    """The loss of each objective by epoch, averaged over the steps of an epoch and over seeds.

    Args:
        run: the run.
        arm: the arm.

    Returns:
        Rows with objective, epoch and loss; the total is among them when there is more than one objective.
    """
    found: dict[tuple[str, float], list[float]] = {}
    for log in run.logs:
        for row in log.train if log.arm == arm else []:
            parts = row.get("losses") or {}
            named = {**parts, "total": row.get("loss")} if len(parts) != 1 else parts
            for objective, value in named.items():
                epoch, loss = number(row.get("epoch")), number(value)
                if epoch is not None and loss is not None:
                    found.setdefault((objective, epoch), []).append(loss)
    rows = [{"objective": key[0], "epoch": key[1], "loss": _short(fmean(found[key]))} for key in found]
    return _thinned(rows)


def shares(run: Run, arm: str) -> Rows:
    """The share of each objective in an arm's gradient by epoch: its weighted norm among all, averaged over seeds.

    Args:
        run: the run.
        arm: the arm.

    Returns:
        Rows with objective, epoch and share, which sum to 1 in an epoch.
    """
    found: dict[tuple[str, float], list[float]] = {}
    for log in run.logs:
        for row in log.gradients if log.arm == arm else []:
            norms = {name: number(value) or 0.0 for name, value in (row.get("norms") or {}).items()}
            epoch, total = number(row.get("epoch")), sum(norms.values())
            for name, norm in norms.items():
                if epoch is not None and total > 0:
                    found.setdefault((name, epoch), []).append(norm / total)
    rows = [{"objective": key[0], "epoch": key[1], "share": _short(fmean(found[key]))} for key in found]
    return _thinned(rows)


def pairs(run: Run) -> Rows:
    """The last score of the control and of each distilled arm, by seed.

    Args:
        run: the run.

    Returns:
        Rows with arm, seed, score, gain over the control of the same seed, and order; empty without two arms.
    """
    arms = [model for role in ("control", "distilled") for model in run.models if model.role == role]
    seeds = {model.name: model.metrics[run.metric].seeds for model in arms if run.metric in model.metrics}
    if len(seeds) < 2:
        return []
    control = run.control
    base = {score.seed: score.last for score in seeds.get(control.name, [])} if control else {}
    rows = []
    for order, (arm, scores) in enumerate(seeds.items()):
        for score in scores:
            if score.last is None:
                continue
            alone = base.get(score.seed)
            gain = None if alone is None else _short(score.last - alone)
            rows.append({"arm": arm, "seed": score.seed, "score": score.last, "gain": gain, "order": order})
    return rows


def times(run: Run) -> Rows:
    """The seconds each epoch took.

    Args:
        run: the run.

    Returns:
        Rows with arm, seed, epoch, seconds, median (of the arm) and images (a second).
    """
    rows = []
    for log in run.logs:
        for row in log.timing:
            seconds, epoch = number(row.get("seconds")), number(row.get("epoch"))
            if seconds is not None and epoch is not None:
                images = number(row.get("images_per_second"))
                rows.append({"arm": log.arm, "seed": log.seed, "epoch": epoch, "seconds": seconds, "images": images})
    middle = {arm: median(row["seconds"] for row in rows if row["arm"] == arm) for arm in _arms(rows)}
    return _thinned([{**row, "median": middle[row["arm"]]} for row in rows])


def _arms(rows: Rows) -> set[str]:
    return {row["arm"] for row in rows}


def _scores(run: Run, split: str) -> Rows:
    rows = []
    for log in run.logs:
        for row in log.evaluations:
            score, epoch = number((row.get(split) or {}).get(run.metric)), number(row.get("epoch"))
            if score is not None and epoch is not None:
                rows.append({"arm": log.arm, "line": f"seed {log.seed}", "epoch": epoch, "score": _short(score)})
    return rows


def _with_mean(rows: Rows) -> Rows:
    lines = {row["line"] for row in rows}
    if len(lines) < 2:
        return [{**row, "line": "mean"} for row in rows]
    means = []
    for epoch in sorted({row["epoch"] for row in rows}):
        scores = [row["score"] for row in rows if row["epoch"] == epoch]
        # A mean over fewer seeds than before would draw a jump that nothing learned.
        if len(scores) == len(lines):
            mean = _short(fmean(scores))
            means.append({"arm": rows[0]["arm"], "line": "mean", "epoch": epoch, "score": mean})
    return rows + means


def _thinned(rows: Rows) -> Rows:
    epochs = sorted({row["epoch"] for row in rows})
    stride = -(-len(rows) // LIMIT)
    if stride < 2:
        return rows
    kept = {*epochs[::stride], epochs[-1]}
    return [row for row in rows if row["epoch"] in kept]


def _short(x: float) -> float:
    return float(f"{x:.6g}")
