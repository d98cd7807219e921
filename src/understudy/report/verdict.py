"""The verdict in words: did distillation help, and how surely is that known."""

from html import escape

from understudy.report import markup
from understudy.report.contents import Run, Verdict
from understudy.report.format import DASH, difference

_HEADLINES = {
    "helped": "Distillation helped",
    "none": "No difference shown",
    "hurt": "Distillation hurt",
    "untested": "Not tested",
}
_MARKS = {"helped": "▲", "none": "◆", "hurt": "▼", "untested": "○"}


def outcome(verdict: Verdict | None) -> str:
    """What a verdict comes to.

    Args:
        verdict: the verdict; None when there is none.

    Returns:
        helped, none, hurt or untested, as the comparison decided.
    """
    return "untested" if verdict is None else verdict.outcome


def verdict_panel(run: Run, chart: str) -> str:
    """The first thing to read: the outcome, its size and interval, and a chart of it against zero.

    Args:
        run: the run.
        chart: the interval chart, as HTML; empty when nothing was tested.

    Returns:
        HTML.
    """
    outcomes = [outcome(verdict) for verdict in run.verdicts]
    if len(outcomes) < 2:
        only = run.verdicts[0] if run.verdicts else None
        overall, title = outcome(only), _HEADLINES[outcome(only)]
        content = _figures(only) if only else ""
        content += f"<p>{escape(_words(run, only))}</p>"
    else:
        overall = next((kind for kind in ("helped", "hurt", "none") if kind in outcomes), "untested")
        total = len(outcomes)
        title = _HEADLINES["untested"]
        if overall != "untested":
            title = f"{outcomes.count('helped')} of {total} distilled students beat the control"
        parts = [f"{verdict.arm}: {_HEADLINES[kind].lower()}" for verdict, kind in _paired(run, outcomes)]
        content = f"<p>{escape('; '.join(parts))}.</p>"
    mark = f'<span aria-hidden="true">{_MARKS[overall]}</span>'
    heading = f'<h2 id="verdict-title">{mark} {escape(title)}</h2>'
    return (
        f'<section id="verdict" class="verdict {overall}" aria-labelledby="verdict-title">'
        f"{heading}{content}{chart}</section>"
    )


def verdict_table(run: Run) -> str:
    """All verdicts of a run, a row each; empty when there is only one.

    Args:
        run: the run.

    Returns:
        HTML.
    """
    if len(run.verdicts) < 2:
        return ""
    rows = []
    for verdict in run.verdicts:
        kind = outcome(verdict)
        rows.append(
            f'<tr><th scope="row">{escape(verdict.arm)}</th>'
            f'<td class="word">{_MARKS[kind]} {escape(_HEADLINES[kind])}</td>'
            f"<td>{escape(difference(verdict.metric, verdict.difference))}</td>"
            f"<td>{escape(_interval(verdict))}</td><td>{verdict.seeds or DASH}</td>"
            f'<td class="word long">{escape(verdict.text)}</td></tr>'
        )
    columns = ["Arm", "Outcome", "Difference", "95 % interval", "Seeds", "In words"]
    return markup.table(columns, rows, caption=f"Each distilled arm against the control, {run.metric}", words=(0, 1, 5))


def _paired(run: Run, outcomes: list[str]) -> list[tuple[Verdict, str]]:
    return list(zip(run.verdicts, outcomes, strict=True))


def _interval(verdict: Verdict) -> str:
    if verdict.ci95 is None:
        return DASH
    low, high = (difference(verdict.metric, end) for end in verdict.ci95)
    return f"{low.removesuffix(' pp')} to {high}"


def _figures(verdict: Verdict) -> str:
    figures = [("difference", difference(verdict.metric, verdict.difference))]
    if verdict.ci95:
        figures.append(("95 % interval", _interval(verdict)))
    if verdict.seeds:
        figures.append(("paired seeds", str(verdict.seeds)))
    figures.append(("metric", verdict.metric))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    return f'<dl class="figures">{items}</dl>'


def _words(run: Run, verdict: Verdict | None) -> str:
    if verdict is not None and verdict.text:
        return verdict.text
    if not run.finished:
        return "The run is unfinished: there is nothing to compare yet."
    if verdict is None and run.control is not None:
        return "The run was not tested against its control."
    if verdict is None:
        return "No control was trained or reused, so nothing says what distillation changed."
    if verdict.ci95 is None:
        return "One seed gives a difference but no interval; more seeds would tell it from chance."
    where = "holds" if outcome(verdict) == "none" else "excludes"
    return f"The interval of the difference to the student trained alone {where} zero."
