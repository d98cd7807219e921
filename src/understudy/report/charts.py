"""The charts of a report, each from a run to a Vega-Lite specification."""

import altair as alt

from understudy.report import series
from understudy.report.contents import Run
from understudy.report.format import difference, is_fraction
from understudy.report.looks import ROLES, SERIES, Spec, by_arm, dots, specification


def verdict_chart(run: Run) -> Spec | None:
    """The interval of every tested difference against zero.

    Args:
        run: the run.

    Returns:
        The specification, None when nothing was tested.
    """
    tested = [verdict for verdict in run.verdicts if verdict.ci95 and verdict.difference is not None]
    if not tested:
        return None
    scale = 100 if is_fraction(run.metric) else 1
    rows = [
        {
            "arm": verdict.arm,
            "difference": scale * (verdict.difference or 0),
            "low": scale * (verdict.ci95 or (0, 0))[0],
            "high": scale * (verdict.ci95 or (0, 0))[1],
            "shown": difference(verdict.metric, verdict.difference),
        }
        for verdict in tested
    ]
    title = f"{run.metric} against the control" + ", points" * (scale == 100)
    arms = alt.Y("arm:N", title=None, sort=None, axis=None if len(rows) == 1 else alt.Axis(grid=False))
    tooltip = [
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("shown:N", title="difference"),
        alt.Tooltip("low:Q", title="low end", format="+.3~f"),
        alt.Tooltip("high:Q", title="high end", format="+.3~f"),
    ]
    chart = alt.Chart(alt.Data(values=rows)).encode(y=arms, color=by_arm(run, legend=False), tooltip=tooltip)
    ends = alt.X(
        "low:Q",
        title=title,
        axis=alt.Axis(tickCount=9),
        scale=alt.Scale(zero=True),
    )
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeDash=[4, 4], color="var(--ink)")
    layers = alt.layer(
        chart.mark_rule(strokeWidth=4, strokeCap="round").encode(x=ends, x2="high:Q"),
        chart.mark_circle(size=170, opacity=1).encode(x="difference:Q"),
        zero.encode(x="zero:Q"),
    )
    return specification(layers, height=max(48, 34 * len(rows)), description="Differences with intervals, and zero")


def pairs_chart(run: Run) -> Spec | None:
    """Each seed as a line from the control to the distilled arms, with the teacher as a dashed rule.

    Args:
        run: the run.

    Returns:
        The specification, None when there are no pairs.
    """
    rows = series.pairs(run)
    if not rows:
        return None
    tooltip = ["arm:N", "seed:N", alt.Tooltip("score:Q", title=run.metric, format=".4f")]
    tooltip.append(alt.Tooltip("gain:Q", title="difference to the control", format="+.4f"))
    wide = alt.Scale(zero=False, padding=16)
    score = alt.X("score:Q", title=f"test {run.metric}, last epoch", scale=wide, axis=alt.Axis(tickCount=8))
    names = alt.Y("arm:N", title=None, sort=None, axis=alt.Axis(grid=False), scale=alt.Scale(padding=0.4))
    base = alt.Chart(alt.Data(values=rows)).encode(x=score, y=names, tooltip=tooltip)
    seeds = base.mark_line(strokeWidth=1.5, color="var(--muted)", opacity=0.6)
    layers = [
        seeds.encode(detail="seed:N", order="order:Q"),
        base.mark_circle(size=90, opacity=1).encode(color=by_arm(run, legend=False)),
    ]
    teachers = [
        {"teacher": model.metrics[run.metric].last, "name": model.name}
        for model in run.models
        if model.role == "teacher" and run.metric in model.metrics
    ]
    teacher = alt.Chart(alt.Data(values=teachers)).encode(x="teacher:Q")
    tip = [alt.Tooltip("name:N", title="arm"), alt.Tooltip("teacher:Q", title=run.metric, format=".4f")]
    rule = teacher.mark_rule(strokeDash=[6, 4], strokeWidth=2, color=ROLES["teacher"]).encode(tooltip=tip)
    label = teacher.mark_text(align="right", baseline="top", dx=-6, fontSize=12, color=ROLES["teacher"])
    layers += [rule, label.encode(text="name:N", y=alt.value(4))] if teachers else []
    arms = len({row["arm"] for row in rows})
    return specification(
        alt.layer(*layers), height=70 * arms, description=f"{run.metric} by seed, control and distilled"
    )


def curves_chart(run: Run, split: str) -> Spec | None:
    """The score by epoch: a thin line per seed, a thick one for the mean, arms toggled by the legend.

    Args:
        run: the run.
        split: validation or test.

    Returns:
        The specification, None when the split was not evaluated.
    """
    rows = series.curves(run, split)
    if not rows:
        return None
    arms = [arm for arm in run.roles if any(row["arm"] == arm for row in rows)]
    picked = alt.selection_point(fields=["arm"], bind="legend", toggle="true")
    score = alt.Y("score:Q", title=f"{split} {run.metric}", scale=alt.Scale(zero=False))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1), scale=alt.Scale(zero=False, nice=False)),
        y=score,
        color=by_arm(run, legend=True, arms=arms),
    )
    tooltip = ["arm:N", "line:N", "epoch:Q", alt.Tooltip("score:Q", title=run.metric, format=".4f")]
    thin = base.transform_filter("datum.line != 'mean'").mark_line(strokeWidth=1).encode(detail="line:N")
    thick = base.transform_filter("datum.line == 'mean'").mark_line(strokeWidth=2.75)
    seen = alt.condition(picked, alt.value(0.45), alt.value(0.04))
    layers = alt.layer(
        thin.encode(opacity=seen),
        thick.encode(opacity=alt.condition(picked, alt.value(1), alt.value(0.06))).add_params(picked),
        dots(base.encode(tooltip=tooltip)),
    )
    description = f"{split} {run.metric} by epoch, a line per arm and seed"
    return specification(layers, height=300, description=description, names=arms)


def losses_chart(run: Run, arm: str) -> Spec | None:
    """The loss of every objective of one arm by epoch.

    Args:
        run: the run.
        arm: the arm.

    Returns:
        The specification, None when the arm logged no loss.
    """
    rows = series.losses(run, arm)
    if not rows:
        return None
    mine, colour = _by_objective(run, [row["objective"] for row in rows])
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "epoch:Q",
            title="epoch",
            axis=alt.Axis(tickMinStep=1, tickCount=6),
            scale=alt.Scale(zero=False, nice=False),
        ),
        y=alt.Y("loss:Q", title="training loss", axis=alt.Axis(tickCount=5)),
        color=colour,
    )
    tooltip = ["objective:N", "epoch:Q", alt.Tooltip("loss:Q", format=".4~g")]
    layers = alt.layer(base.mark_line(strokeWidth=2), dots(base.encode(tooltip=tooltip)))
    description = f"training loss of {arm} by objective and epoch"
    return specification(layers, height=200, description=description, names=mine)


def shares_chart(run: Run, arm: str) -> Spec | None:
    """How an arm's gradient is shared among its objectives, by epoch.

    Args:
        run: the run.
        arm: the arm.

    Returns:
        The specification, None when the arm logged no gradients.
    """
    rows = series.shares(run, arm)
    if not rows:
        return None
    mine, colour = _by_objective(run, [row["objective"] for row in rows])
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("epoch:O", title="epoch", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("share:Q", title="share of the gradient", stack=True, axis=alt.Axis(format="%", tickCount=5)),
        color=colour,
        tooltip=["objective:N", "epoch:O", alt.Tooltip("share:Q", format=".1%")],
    )
    description = f"share of each objective in the gradient of {arm} by epoch"
    return specification(alt.layer(base.mark_bar()), height=200, description=description, names=mine)


def _by_objective(run: Run, present: list[str]) -> tuple[list[str], alt.Color]:
    """One colour an objective in all arms, so that the same term is found again: the names present, and the channel."""
    named = dict.fromkeys(row["objective"] for name in run.roles for row in series.losses(run, name))
    others = [name for name in named if name != "total"]
    palette = {name: SERIES[index % len(SERIES)] for index, name in enumerate(others)} | {"total": "var(--teacher)"}
    mine = [name for name in palette if name in present]
    scale = alt.Scale(domain=mine, range=[palette[name] for name in mine])
    return mine, alt.Color("objective:N", scale=scale, legend=alt.Legend(orient="top", title=None))


def times_chart(run: Run) -> Spec | None:
    """A tick for the seconds of every epoch, and the median of each arm.

    Args:
        run: the run.

    Returns:
        The specification, None when no time was logged.
    """
    rows = series.times(run)
    if not rows:
        return None
    arms = [arm for arm in run.roles if any(row["arm"] == arm for row in rows)]
    tooltip = ["arm:N", "seed:N", "epoch:Q", alt.Tooltip("seconds:Q", format=".3~g")]
    tooltip.append(alt.Tooltip("images:Q", title="images a second", format=",.0f"))
    names = alt.Y("arm:N", title=None, sort=arms, axis=alt.Axis(grid=False))
    base = alt.Chart(alt.Data(values=rows)).encode(y=names, color=by_arm(run, legend=False))
    ticks = base.mark_tick(thickness=2, opacity=0.4, size=18).encode(
        x=alt.X("seconds:Q", title="seconds an epoch", axis=alt.Axis(tickCount=8)), tooltip=tooltip
    )
    middle = alt.Tooltip("median(seconds):Q", title="median seconds", format=".3~g")
    medians = base.mark_circle(size=110, opacity=1).encode(x="median(seconds):Q", tooltip=["arm:N", middle])
    chart = alt.layer(ticks, medians)
    return specification(chart, height=34 * len(arms), description="seconds of every epoch, by arm")
