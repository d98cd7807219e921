"""How every chart looks: colours, axes, legends, and what they share."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from understudy.report.contents import Run

Spec = dict[str, Any]

# CSS variables, not colours: one drawing is right in the light theme, the dark theme and on paper.
SERIES = [f"var(--series-{index})" for index in range(1, 8)]
ROLES = {"teacher": "var(--teacher)", "control": "var(--control)"}

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--line)",
        "domainColor": "var(--edge)",
        "tickColor": "var(--edge)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 180,
        "titlePadding": 10,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "labelFontSize": 12,
        "labelLimit": 260,
        "symbolStrokeWidth": 3,
        "symbolOpacity": 1,
    },
}


def colours(run: Run) -> dict[str, str]:
    """The colour of every arm, the same in all charts and in the table.

    Args:
        run: the run.

    Returns:
        A CSS colour for each arm.
    """
    others = [arm for arm, role in run.roles.items() if role not in ROLES]
    return {arm: ROLES.get(role) or SERIES[others.index(arm) % len(SERIES)] for arm, role in run.roles.items()}


def by_arm(run: Run, *, legend: bool, arms: list[str] | None = None) -> alt.Color:
    """The colour channel for rows with an `arm`.

    Args:
        run: the run.
        legend: whether to draw a legend.
        arms: the arms that are drawn; all by default.

    Returns:
        The channel.
    """
    palette = {arm: colour for arm, colour in colours(run).items() if arms is None or arm in arms}
    scale = alt.Scale(domain=list(palette), range=list(palette.values()))
    if not legend:
        return alt.Color("arm:N", scale=scale, legend=None)
    shown = alt.Legend(orient="top", title=None, symbolType="stroke")
    return alt.Color("arm:N", scale=scale, legend=shown)


def dots(base: alt.Chart) -> alt.Chart:
    """Points that show under the pointer: a line answers with its first point only, these with the nearest.

    Args:
        base: the chart whose rows they mark, with its tooltip.

    Returns:
        The layer to lay on top.
    """
    near = alt.selection_point(on="pointerover", clear="pointerout", empty=False)
    shown = alt.condition(near, alt.value(1), alt.value(0))
    return base.mark_circle(size=70).encode(opacity=shown).add_params(near)


def specification(
    chart: alt.LayerChart | alt.FacetChart, *, height: int, description: str, names: Iterable[str] = ()
) -> Spec:
    """A chart as the Vega-Lite specification that fills the width of its place on the page.

    Args:
        chart: the chart.
        height: its height in pixels.
        description: what it shows, for those who cannot see it.
        names: the names in its legend, whose width page.js sets out in columns.

    Returns:
        The specification.
    """
    return dressed(chart.to_dict(), height=height, description=description, names=names)


def dressed(spec: Spec, *, height: int, description: str, names: Iterable[str] = ()) -> Spec:
    """A Vega-Lite specification in the looks of the page.

    Args:
        spec: a chart of one view or of layers.
        height: its height in pixels.
        description: what it shows, for those who cannot see it.
        names: the names in its legend.

    Returns:
        Another specification.
    """
    return {
        **spec,
        "width": "container",
        "height": height,
        "description": description,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        "usermeta": {"nameWidth": 40 + 7 * max(map(len, names), default=0)},
    }
