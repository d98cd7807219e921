"""The whole page, from top to bottom."""

import base64
import hashlib
import re
import shlex
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import vl_convert

from understudy.report import charts, markup, series
from understudy.report.contents import Extra, Run
from understudy.report.format import bytes as size
from understudy.report.looks import Spec, dressed
from understudy.report.scores import further_metrics, score_table
from understudy.report.verdict import verdict_panel, verdict_table

# A picture above this is named rather than embedded.
_LARGEST_PICTURE = 1_000_000


def page(run: Run) -> str:
    """The report of a run as one HTML file that needs nothing else, not even a network.

    Args:
        run: what its folder holds.

    Returns:
        The HTML.
    """
    drawn: dict[str, Spec] = {}
    panel = verdict_panel(run, _chart(drawn, "chart-verdict", charts.verdict_chart(run)))
    sections = [
        markup.section("scores", "Scores and costs", score_table(run), further_metrics(run)),
        markup.section("notes", "Notes", _notes(run)),
        markup.section("pairs", "Seed by seed", *_pairs(run, drawn)),
        markup.section("curves", "Learning curves", *_curves(run, drawn)),
        markup.section("losses", "Losses by objective", _losses(run, drawn)),
        markup.section("gradients", "Shares of the gradient", *_shares(run, drawn)),
        *(_extra(extra, place, drawn) for place, extra in enumerate(run.extra)),
        markup.section("batch", "The first batch", _first_batch(run)),
        markup.section("time", "Time per epoch", *_times(run, drawn)),
        markup.section("verdicts", "All verdicts", verdict_table(run)),
        markup.section("recipe", "Recipe", _recipe(run)),
        markup.section("environment", "Environment", _environment(run)),
        markup.section("reproduce", "How to reproduce", _reproduce(run)),
    ]
    return _document(run, "\n".join([panel, *filter(None, sections)]), drawn)


def _document(run: Run, body: str, drawn: dict[str, Spec]) -> str:
    library, drawing = _bundle(), _asset("page.js")
    # Only these two scripts may run and nothing may be fetched, whatever a file of the run holds.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
    policy += _hashes(library, drawing)
    badge = "" if run.finished else '<span class="badge">unfinished</span>'
    task = f" · {escape(run.task)}" if run.task else ""
    about = f'<p class="about">{escape(run.about)}</p>' if run.about else ""
    anchors = [part.split('"')[0] for part in body.split('<section id="')[1:]]
    links = "".join(f'<a href="#{anchor}">{escape(anchor.replace("-", " ").capitalize())}</a>' for anchor in anchors)
    started = run.environment.get("started")
    source = f"<code>{escape(run.folder.resolve().name)}</code>"
    source += f", started {escape(str(started))}" if started else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(run.name)} · understudy</title>
<style>
{_asset("style.css")}</style>
</head>
<body>
<header>
<p class="kicker">understudy report{task}{badge}</p>
<h1>{escape(run.name)}</h1>
{about}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
<noscript><p class="hint">The charts need JavaScript; it is in this file.</p></noscript>
</main>
<footer>Drawn from the files of the run folder {source}.</footer>
<script type="application/json" id="charts">{markup.json_for_script(drawn)}</script>
<script>{library}</script>
<script>{drawing}</script>
</body>
</html>
"""


@cache
def _bundle() -> str:
    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]


def _asset(name: str) -> str:
    return files("understudy.report").joinpath(name).read_text(encoding="utf-8")


def _hashes(*scripts: str) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _chart(drawn: dict[str, Spec], identifier: str, chart: Spec | None, *, title: str = "") -> str:
    if chart is None:
        return ""
    drawn[identifier] = chart
    return markup.figure(identifier, chart, title=title)


def _notes(run: Run) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _pairs(run: Run, drawn: dict[str, Spec]) -> list[str]:
    chart = _chart(drawn, "chart-pairs", charts.pairs_chart(run))
    text = "A line is one seed: its arms saw the same batches."
    text += " The dashed line is the teacher." if "teacher" in run.roles.values() else ""
    return [markup.hint(text), chart] if chart else []


def _curves(run: Run, drawn: dict[str, Spec]) -> list[str]:
    splits = series.splits(run)
    figures = [_chart(drawn, f"chart-{split}", charts.curves_chart(run, split), title=split) for split in splits]
    text = "Thin lines are seeds, thick ones their mean. Click names in the legend to pick out arms."
    return [markup.hint(text), f'<div class="grid">{"".join(figures)}</div>'] if figures else []


def _losses(run: Run, drawn: dict[str, Spec]) -> str:
    parts = [(f"chart-loss-{index}", arm) for index, arm in enumerate(run.roles)]
    figures = [_chart(drawn, name, charts.losses_chart(run, arm), title=arm) for name, arm in parts]
    return f'<div class="grid small">{"".join(figures)}</div>' if any(figures) else ""


def _shares(run: Run, drawn: dict[str, Spec]) -> list[str]:
    parts = [(f"chart-shares-{index}", arm) for index, arm in enumerate(run.roles)]
    figures = [_chart(drawn, name, charts.shares_chart(run, arm), title=arm) for name, arm in parts]
    text = "How strongly each objective pulls: the norm of its weighted gradient at an epoch's first step, among all."
    return [markup.hint(text), f'<div class="grid small">{"".join(figures)}</div>'] if any(figures) else []


def _extra(extra: Extra, place: int, drawn: dict[str, Spec]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in extra.rows
        if row
    ]
    height = (extra.chart or {}).get("height")
    chart = extra.chart and dressed(
        extra.chart, height=height if isinstance(height, int) else 260, description=extra.title
    )
    parts = [
        markup.hint(extra.text) if extra.text else "",
        _chart(drawn, f"chart-extra-{place}", chart),
        markup.table(extra.columns, rows, caption=extra.title) if rows else "",
        _picture(extra.picture, extra.title),
    ]
    return markup.section(_anchor(extra.title) or f"part-{place + 1}", extra.title, *parts)


def _anchor(title: str) -> str:
    """A title as the end of an address: `Cost and score` is `cost-and-score`."""
    return "-".join(re.findall("[a-z0-9]+", title.lower()))


def _first_batch(run: Run) -> str:
    caption = "What the models saw at step 1 of the first seed, augmentation included."
    return _picture(run.first_batch, "The images of the first batch", caption)


def _picture(content: bytes, alternative: str, caption: str = "") -> str:
    if not content.startswith(b"\x89PNG"):
        return ""
    if len(content) > _LARGEST_PICTURE:
        return markup.hint(f"{alternative}: the picture is in the run folder ({size(len(content))}).")
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img class="picture" src="data:image/png;base64,{data}" alt="{escape(alternative)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _times(run: Run, drawn: dict[str, Spec]) -> list[str]:
    chart = _chart(drawn, "chart-time", charts.times_chart(run))
    return [markup.hint("A tick is one epoch of one seed, the dot their median."), chart] if chart else []


def _recipe(run: Run) -> str:
    pre = f'<pre tabindex="0"><code>{escape(run.recipe)}</code></pre>'
    return markup.details("recipe.yaml, as resolved", pre) if run.recipe else ""


def _environment(run: Run) -> str:
    facts = _flat(run.environment)
    rows = [f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in facts.items()]
    columns, caption = ["Fact", "Value"], "The machine, versions and settings the run was made with"
    content = markup.table(columns, rows, caption=caption, words=(0, 1), classes="facts")
    return markup.details(f"environment.json, {len(facts)} facts", content) if facts else ""


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            listed = isinstance(value, list)
            flat[f"{prefix}{key}"] = " ".join(map(str, value)) if listed else str(value)
    return flat


def _reproduce(run: Run) -> str:
    command = run.environment.get("command")
    text = shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")
    started = f"<p>It was started with <code>{escape(text)}</code>.</p>" if text else ""
    fingerprint = f"<p>The hash of its results is <code>{escape(run.hash)}</code>.</p>" if run.hash else ""
    lead = "<p>With the recipe of this folder, on the same versions:</p>"
    return f'{lead}<pre tabindex="0"><code>understudy run recipe.yaml</code></pre>{started}{fingerprint}'
