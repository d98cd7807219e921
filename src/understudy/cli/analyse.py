"""`understudy analyse`: what finished runs tell beyond their scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from understudy.cli.options import Import, import_packages


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(analyse)


def analyse(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A finished run, or several to compare.")],
    only: Annotated[
        str | None, typer.Option(help="strategies, disagreement, tokens, teachers, speed; several with commas.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Of several runs the model to compare [default: the best distilled one].")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Ask about so many test images only.")] = None,
    packages: Import = None,
) -> None:
    """Analyse a finished run as the DeiT article does.

    Of several runs it compares what they changed. Tables and plots go to the report of the first; nothing is trained.
    """
    import_packages(packages)
    from understudy.tasks.classify.analysis.analyse import analyse as found

    names = [name.strip() for name in only.split(",")] if only else []
    for section in found(folders, only=names, student=student, samples=samples):
        print(f"{section['title']}: {section['text']}")
        print("\n".join(_in_columns(section["table"])))
        print()
    print(folders[0] / "report.html")


def _in_columns(table: Mapping[str, Any]) -> list[str]:
    """A table as lines of text, words to the left and what follows to the right."""
    rows = [table["columns"], *table["rows"]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(table["columns"]))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
