"""The article's tables and figures of one finished run, each a section of its report."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import altair as alt
import numpy as np

from understudy.compare import mean_interval
from understudy.report import format as written
from understudy.report.looks import SERIES
from understudy.tasks.classify.analysis.finished import BOTH, CLASS, DISTILLATION, SOFTMAXES, Finished
from understudy.tasks.classify.sizes import batch, throughput
from understudy.tasks.classify.task import METRIC
from understudy.tasks.classify.variants import distilled_arms

Section = dict[str, Any]
_HEADS = (CLASS, DISTILLATION, BOTH, SOFTMAXES)
_CONTROL = "student_alone"


def strategies(run: Finished) -> Section | None:
    """The article's table 3: each strategy's accuracy by the head that answers.

    Args:
        run: a finished run.
    """
    truth = run.test.labels
    rows, points = [], []
    for name in run.students:
        found: dict[str, list[float]] = {}
        for seed in run.seeds:
            for head, decisions in run.ask(name, seed).decisions.items():
                found.setdefault(head or CLASS, []).append(float((decisions == truth).mean()))
        cells = []
        for head in _HEADS:
            if head not in found:
                cells.append("")
                continue
            mean, interval = mean_interval(found[head])
            cells.append(written.interval(mean, interval))
            low, high = interval or (mean, mean)
            points.append({"strategy": name, "head": head, "accuracy": mean, "low": low, "high": high})
        rows.append([name, *cells, _difference(run, name)])
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("strategy:N", title=None, sort=list(run.students)),
        yOffset=alt.YOffset("head:N", sort=list(_HEADS)),
        color=_coloured("head", _HEADS),
        tooltip=["strategy:N", "head:N", alt.Tooltip("accuracy:Q", format=".4f")],
    )
    scale = alt.Scale(zero=False)
    chart = alt.layer(
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="test accuracy", scale=scale), x2="high:Q"),
        base.mark_circle(size=70, opacity=1).encode(x="accuracy:Q"),
    )
    text = (
        f"Accuracy on {len(truth):,} test images by the head that answers, last epoch, with its 95 % interval over "
        f"{len(run.seeds)} seeds. A student with one head has its class head alone."
    )
    heads = ["class head", "distillation head", "both, mean of logits", "both, sum of softmaxes"]
    return _section("Strategies", text, ["student", *heads, "against the student alone"], rows, chart)


def _difference(run: Finished, name: str) -> str:
    verdict = run.results["verdicts"].get(name)
    if verdict is None or verdict["difference"] is None:
        return ""
    interval = verdict["ci95"]
    spread = f" ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})" if interval else ""
    return f"{100 * verdict['difference']:+.2f} points{spread}"


def disagreement(run: Finished) -> Section | None:
    """The article's table 4: on what share of the test images two classifiers decide otherwise.

    Args:
        run: a finished run.
    """
    by_seed = [_decisions(run, seed) for seed in run.seeds]
    names = list(by_seed[0])
    matrices = [
        np.array([[float((one[row] != one[column]).mean()) for column in names] for row in names]) for one in by_seed
    ]
    mean = np.mean(matrices, axis=0)
    rows = [[name, *(f"{value:.4f}" for value in values)] for name, values in zip(names, mean, strict=True)]
    cells = [
        {"one": names[row], "other": names[column], "share": float(mean[row, column])}
        for row in range(len(names))
        for column in range(len(names))
    ]
    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X("other:N", sort=names, title=None, axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("one:N", sort=names, title=None),
        tooltip=["one:N", "other:N", alt.Tooltip("share:Q", format=".4f")],
    )
    shade = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, max(float(mean.max()), 1e-9)], range=[0.04, 0.75]))
    chart = alt.layer(
        base.mark_rect(color=SERIES[0]).encode(opacity=shade.legend(None)),
        base.mark_text(color="var(--ink)", fontSize=11).encode(text=alt.Text("share:Q", format=".3f")),
    )
    text = f"Share of {len(run.test):,} test images that two classify differently; mean of {len(run.seeds)} seeds. "
    taught = [name for name, planned in distilled_arms(run.recipe).items() if planned.method.objectives]
    text += nearness(taught, names, matrices)
    return _section("Disagreement", text, ["", *names], rows, chart)


def nearness(students: Sequence[str], names: Sequence[str], matrices: Sequence[np.ndarray]) -> str:
    """Whether heads are as near to the teacher as in the article: distillation, class, then the student alone.

    Args:
        students: that a teacher taught; those with one head are passed over.
        names: of rows and columns.
        matrices: one for each seed.

    Returns:
        A sentence for each student with two heads.
    """
    said = []
    at = {name: number for number, name in enumerate(names)}
    for student in students:
        chain = [one for one in (f"{student} {DISTILLATION}", f"{student} {CLASS}", _CONTROL) if one in at]
        if chain[:1] != [f"{student} {DISTILLATION}"]:
            continue
        distances = [[matrix[at["teacher"], at[one]] for one in chain] for matrix in matrices]
        held = sum(all(near < far for near, far in pairwise(row)) for row in distances)
        means = np.mean(distances, axis=0)
        order = ", ".join(f"{one} {value:.4f}" for one, value in zip(chain, means, strict=True))
        as_wanted = "is" if all(near < far for near, far in pairwise(means)) else "is not"
        said.append(
            f"From the teacher: {order}: this {as_wanted} the article's order (in {held} of {len(matrices)} seeds)."
        )
    return " ".join(said)


def _decisions(run: Finished, seed: int) -> dict[str, np.ndarray]:
    """What everyone decided, in the article's order: truth, teachers, the student alone, the others by head."""
    found = {"truth": run.test.labels}
    for name in run.teachers:
        decisions = run.ask(name, seed).decisions
        found[name] = decisions.get("", decisions.get(BOTH, run.test.labels))
    for name in run.students:
        for head, decided in run.ask(name, seed).decisions.items():
            if head != SOFTMAXES:
                found[f"{name} {head}".strip()] = decided
    return found


def tokens(run: Finished) -> Section | None:
    """How alike the class and the distillation token are, layer by layer; None where no student has two tokens.

    Args:
        run: a finished run.
    """
    found = {name: [run.ask(name, seed).cosines for seed in run.seeds] for name in run.students}
    means = {name: _mean_by_key(seeds) for name, seeds in found.items() if seeds[0]}
    if not means:
        return None
    layers = list(dict.fromkeys(layer for layer_means in means.values() for layer in layer_means))
    rows = [[layer, *(f"{of[layer]:.3f}" if layer in of else "" for of in means.values())] for layer in layers]
    points = [
        {"layer": layer, "student": name, "cosine": value} for name, of in means.items() for layer, value in of.items()
    ]
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:N", sort=layers, title=None, axis=alt.Axis(labelAngle=-40)),
            y=alt.Y("cosine:Q", title="cosine of the two tokens"),
            color=_coloured("student", list(means)),
            tooltip=["student:N", "layer:N", alt.Tooltip("cosine:Q", format=".3f")],
        )
    )
    text = (
        "Cosine between class and distillation token: the learned inputs, then each block's output and the last norm, "
        f"mean over {len(run.test):,} test images and {len(run.seeds)} seeds. In the article 0.06 at the input and "
        "0.93 at the end; two tokens that both learn labels became alike, 0.999."
    )
    return _section("Tokens", text, ["layer", *means], rows, chart)


def _mean_by_key(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: fmean(row[key] for row in rows) for key in rows[0]}


def speed(run: Finished) -> Section | None:
    """Accuracy against throughput: the article's figure 1.

    Args:
        run: a finished run.
    """
    known: dict[str, float] = {}
    rows, points = [], []
    size = batch(run.device)
    pixels = run.test.read(np.arange(min(size, len(run.test)))).to(run.device)
    for name in [*run.teachers, *run.students]:
        about = run.results["models"][name]
        module: Any = run.open(name, run.recipe.seed)
        # Students of one architecture differ in nothing but their weights.
        kind = f"{type(module).__name__} {about['parameters']} {about['macs']}"
        if kind not in known:
            known[kind] = throughput(module, module.card.preprocess(pixels))
        accuracy = about["metrics"][METRIC]["last"]
        rows.append([name, f"{known[kind]:,.0f}", written.count(about["parameters"]), written.score(accuracy)])
        points.append({"model": name, "images": known[kind], "accuracy": accuracy})
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("images:Q", title="images per second", scale=alt.Scale(type="log")),
        y=alt.Y("accuracy:Q", title="test accuracy", scale=alt.Scale(zero=False)),
        tooltip=["model:N", alt.Tooltip("images:Q", format=",.0f"), alt.Tooltip("accuracy:Q", format=".4f")],
    )
    chart = alt.layer(
        base.mark_circle(size=110, opacity=1, color=SERIES[0]),
        base.mark_text(align="left", dx=8, color="var(--ink)").encode(text="model:N"),
    )
    text = f"Throughput on {run.device} in batches of {len(pixels)}, as measured now; accuracy of the last epoch."
    return _section("Accuracy and speed", text, ["model", "images/s", "parameters", "accuracy"], rows, chart)


def teachers(run: Finished) -> Section | None:
    """The article's table 2: what students of different teachers reach; None where all have one teacher.

    Args:
        run: a finished run whose methods are `taught_by` several teachers or assistants.
    """
    taught = {name: planned.taught_by for name, planned in distilled_arms(run.recipe).items()}
    if len(set(taught.values())) < 2:
        return None
    models = run.results["models"]
    rows, points = [], []
    for name, teacher in taught.items():
        of_teacher, of_student = (models[one]["metrics"][METRIC] for one in (teacher, name))
        shown = written.interval(of_student["last"], of_student["ci95"])
        parameters = written.count(models[teacher]["parameters"])
        rows.append([name, teacher, parameters, written.score(of_teacher["last"]), shown, _difference(run, name)])
        points.append({"student": name, "teacher": teacher, "its": of_teacher["last"], "accuracy": of_student["last"]})
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_circle(size=110, opacity=1)
        .encode(
            x=alt.X("its:Q", title="accuracy of the teacher", scale=alt.Scale(zero=False)),
            y=alt.Y("accuracy:Q", title="accuracy of the student", scale=alt.Scale(zero=False)),
            color=_coloured("teacher", list(dict.fromkeys(taught.values()))),
            tooltip=["student:N", "teacher:N", alt.Tooltip("accuracy:Q", format=".4f")],
        )
    )
    columns = ["student", "taught by", "its parameters", "its accuracy", "accuracy", "against the student alone"]
    return _section("Teachers", "A better teacher is not always the better one to learn from.", columns, rows, chart)


def _coloured(column: str, names: Sequence[str]) -> alt.Color:
    palette = [SERIES[number % len(SERIES)] for number in range(len(names))]
    scale = alt.Scale(domain=list(names), range=palette)
    return alt.Color(f"{column}:N", scale=scale, legend=alt.Legend(orient="top", title=None))


def _section(
    title: str, text: str, columns: list[str], rows: list[list[str]], chart: alt.Chart | alt.LayerChart | alt.FacetChart
) -> Section:
    table = {"columns": columns, "rows": rows}
    return {"title": title, "text": text.strip(), "table": table, "chart": chart.to_dict()}
