"""The pieces of HTML that sections are made of; what is text is escaped here, what is HTML by its caller."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def section(identifier: str, title: str, *parts: str) -> str:
    """A section with its heading, empty when there is nothing to show.

    Args:
        identifier: the anchor of the section.
        title: its heading, as text.
        parts: its content, as HTML.

    Returns:
        HTML.
    """
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    return f'<section id="{escape(identifier)}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'


def hint(text: str) -> str:
    """A quiet line that says how to read what follows.

    Args:
        text: the line, as text.

    Returns:
        HTML.
    """
    return f'<p class="hint">{escape(text)}</p>'


def figure(identifier: str, specification: dict[str, Any], *, title: str = "") -> str:
    """The place where a chart is drawn.

    Args:
        identifier: the key of the chart among the specifications of the page.
        specification: the chart, whose description is read aloud in its place.
        title: a heading above it, as text.

    Returns:
        HTML.
    """
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    label = escape(specification["description"])
    chart = f'<div class="chart" id="{escape(identifier)}" role="img" aria-label="{label}"></div>'
    return f"<figure>{heading}{chart}</figure>"


def table(
    columns: Sequence[str],
    rows: Iterable[str],
    *,
    caption: str,
    words: Sequence[int] = (0,),
    classes: str = "",
) -> str:
    """A table that scrolls sideways where the page is narrow.

    Args:
        columns: the headers, as text.
        rows: the rows, as HTML.
        caption: what the table shows, as text.
        words: which columns hold words and not numbers.
        classes: CSS classes of the table.

    Returns:
        HTML.
    """
    headers = "".join(
        f'<th scope="col"{" class=word" if index in words else ""}>{escape(column)}</th>'
        for index, column in enumerate(columns)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{classes}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{headers}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def details(title: str, content: str) -> str:
    """A part that is folded until asked for.

    Args:
        title: what is inside, as text.
        content: what is inside, as HTML.

    Returns:
        HTML.
    """
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def json_for_script(content: object) -> str:
    """JSON that is safe inside a `<script>` element, whatever strings it holds.

    Args:
        content: what to write.

    Returns:
        The text, with no `<`, `>` or `&` in it.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
