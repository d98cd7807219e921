"""`understudy run`: do what a recipe says."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Import, Out, Overrides, Quiet, RecipeName, import_packages


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try everything on two batches; leave nothing.")] = False,
    packages: Import = None,
    quiet: Quiet = False,
) -> None:
    """Run a recipe; then show the table and the verdict.

    The teacher is trained or loaded, then the students, alone and distilled, with every seed.
    """
    import_packages(packages)
    if dry_run:
        from rich.console import Console

        from understudy.recipe.reader import read_recipe
        from understudy.run.start import rehearse

        rehearse(read_recipe(recipe, overrides or []), Console())
        return
    execute(recipe, overrides or [], out=out, quiet=quiet)


def execute(recipe: str, overrides: list[str], *, out: Path | None, quiet: bool) -> Path:
    """Read a recipe, run it, and print the folder as the last line.

    Returns:
        The run folder.
    """
    from understudy.recipe.reader import read_recipe

    described = read_recipe(recipe, overrides)  # before torch is imported: what is wrong is said at once

    from rich.console import Console

    from understudy.run.start import start

    result = start(described, out=out, objects={}, console=None if quiet else Console())
    if not quiet:
        print(f"report: {result.folder / 'report.html'}")
    print(result.folder)
    return result.folder
