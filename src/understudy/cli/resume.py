"""`understudy resume`: go on where a run was stopped."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Import, Quiet, import_packages


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(resume)


def resume(
    folder: Annotated[Path, typer.Argument(help="The run folder.")], packages: Import = None, quiet: Quiet = False
) -> None:
    """Continue a run from its last checkpoint.

    It ends as if it had never been stopped; a finished run is only shown.
    """
    from rich.console import Console

    from understudy.run.start import resume as go_on

    import_packages(packages)
    result = go_on(folder, objects={}, console=None if quiet else Console())
    print(result.folder)
