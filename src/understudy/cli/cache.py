"""`understudy cache`: ask the teacher ahead of a run."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Import, Overrides, Quiet, RecipeName, import_packages


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(cache)


def cache(
    recipe: RecipeName,
    overrides: Overrides = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE.parquet", help="Write the answers to the unchanged images as a table."),
    ] = None,
    packages: Import = None,
    quiet: Quiet = False,
) -> None:
    """Keep the answers that a recipe's teacher will be asked for.

    The teacher is trained first where no run has. Stopped, the same command goes on.
    """
    from understudy.recipe.reader import read_recipe

    import_packages(packages)
    described = read_recipe(recipe, overrides or [])

    from rich.console import Console

    from understudy.run.fill import fill

    caches = fill(described, objects={}, console=None if quiet else Console(), export=export)
    for folder in [about["folder"] for about in caches] or [export]:
        print(folder)
