"""The table of a report: every model, what it costs and how well it does its job."""

from html import escape
from statistics import fmean

import yaml

from understudy.report import format as shown
from understudy.report import markup
from understudy.report.contents import Metric, Model, Run
from understudy.report.looks import colours
from understudy.report.verdict import outcome

_COSTS = ["Parameters", "MACs", "Latency, batch 1", "Size on disk"]

_MOST_EPOCHS = 4


def score_table(run: Run) -> str:
    """The models of a run, a row each: cost, scores, and the difference to the control.

    Args:
        run: the run.

    Returns:
        HTML; empty before there are results.
    """
    if not run.models:
        return ""
    epochs = sorted({epoch for model in run.models for seed in _seeds(model, run) for epoch in seed.at})
    if len(epochs) > _MOST_EPOCHS:  # the learning curves show them all: columns are for those the recipe asks for
        epochs = [epoch for epoch in epochs if epoch in _read_at(run)]
    columns = ["Model", "Role", *_COSTS, f"{run.metric}, last epoch", "best epoch"]
    columns += [f"epoch {epoch}" for epoch in epochs] + ["to the control"]
    rows = [_row(run, model, epochs) for model in run.models]
    caption = "Test scores: the mean over seeds, ± the half-width of its 95 % interval"
    return markup.table(columns, rows, caption=caption, words=(0, 1), classes="scores") + _selection_hint(run)


def further_metrics(run: Run) -> str:
    """Every other metric of every model at the last epoch, folded.

    Args:
        run: the run.

    Returns:
        HTML; empty when there is one metric only.
    """
    names = dict.fromkeys(name for model in run.models for name in model.metrics if name != run.metric)
    if not names:
        return ""
    rows = []
    for name in names:
        found = (model.metrics.get(name) for model in run.models)
        cells = "".join(f"<td>{escape(_last(metric))}</td>" for metric in found)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    columns = ["Metric", *(model.name for model in run.models)]
    table = markup.table(columns, rows, caption="Test scores at the last epoch, the mean over seeds")
    return markup.details(f"{len(names)} further metric{'s' * (len(names) > 1)}", table)


def difference_to_control(run: Run, model: Model) -> float | None:
    """How much a model's last score differs from the control's.

    Args:
        run: the run.
        model: one of its models.

    Returns:
        The difference the verdict states, or that of the means; None for the control itself.
    """
    stated = next((verdict for verdict in run.verdicts if verdict.arm == model.name), None)
    if stated is not None and stated.metric == run.metric:
        return stated.difference
    if run.control is None or model.role == "control":
        return None
    metrics = [other.metrics.get(run.metric) for other in (model, run.control)]
    lasts = [metric.last for metric in metrics if metric is not None and metric.last is not None]
    return lasts[0] - lasts[1] if len(lasts) == 2 else None


def _seeds(model: Model, run: Run) -> list:
    metric = model.metrics.get(run.metric)
    return metric.seeds if metric else []


def _last(metric: Metric | None) -> str:
    return shown.interval(metric.last, metric.ci95) if metric else shown.DASH


def _row(run: Run, model: Model, epochs: list[int]) -> str:
    metric = model.metrics.get(run.metric)
    costs = [shown.count(model.parameters), shown.count(model.macs)]
    costs += [shown.milliseconds(model.latency_ms), shown.bytes(model.size_bytes)]
    scores = [_last(metric), shown.score(metric.best if metric else None)]
    for epoch in epochs:
        found = [seed.at[epoch] for seed in _seeds(model, run) if epoch in seed.at]
        scores.append(shown.score(fmean(found) if found else None))
    gain = difference_to_control(run, model)
    # Colour is for what was shown, not for what merely came out higher.
    stated = next((verdict for verdict in run.verdicts if verdict.arm == model.name), None)
    tone = outcome(stated)
    cells = "".join(f"<td>{escape(text)}</td>" for text in costs + scores)
    dot = f'<span class="dot" style="background:{colours(run)[model.name]}"></span>'
    return (
        f'<tr class="{"distilled" if model.role == "distilled" else ""}">'
        f'<th scope="row">{dot}{_breakable(model.name)}</th><td class="word">{escape(model.role)}</td>'
        f'{cells}<td class="{tone}">{escape(shown.difference(run.metric, gain))}</td></tr>'
    )


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>")


def _selection_hint(run: Run) -> str:
    if run.selection == "test":
        text = "The best epoch was chosen on the test set itself, as papers do: that column flatters."
    elif run.selection:
        text = f"The best epoch was chosen on {run.selection}; scores are those of the test set."
    else:
        return ""
    return markup.hint(text + " The verdict compares last epochs.")


def _read_at(run: Run) -> list[int]:
    """The epochs whose scores the recipe wants to be read."""
    try:
        return list(yaml.safe_load(run.recipe)["train"]["read_at"])
    except (yaml.YAMLError, KeyError, TypeError):
        return []
