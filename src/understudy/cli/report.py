"""`understudy report`: draw a run's report again."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(folder: Annotated[Path, typer.Argument(help="The run folder.")]) -> None:
    """Draw a run's report again, finished or not."""
    from understudy.report import write_report

    if not (folder / "recipe.yaml").is_file():
        raise UserError("is no run folder: it has no recipe.yaml", where=folder)
    print(write_report(folder))
