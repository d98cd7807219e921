"""`understudy run`: do what a recipe says."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Import, Out, Overrides, Quiet, RecipeName, import_packages
from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try everything on two batches; leave nothing.")] = False,
    nproc: Annotated[
        int | None,
        typer.Option("--nproc", min=1, metavar="N", help="Train by N processes on this machine, a GPU each."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Report where a student's step spends its time.")] = False,
    packages: Import = None,
    quiet: Quiet = False,
) -> None:
    """Run a recipe; then show the table and the verdict.

    The teacher is trained or loaded, then the students, alone and distilled, with every seed.
    """
    import_packages(packages)
    overrides = [*(overrides or []), *(["profile=true"] if profile else [])]
    if nproc is not None and not dry_run and _is_to_launch(nproc):
        from understudy.recipe.reader import read_recipe
        from understudy.train.launch import launch

        read_recipe(recipe, overrides)  # what is wrong with it is said once
        words = ["run", recipe, *overrides, f"--nproc={nproc}", *(["--out", str(out)] if out else [])]
        words += [word for package in packages or [] for word in ("--import", package)] + ["--quiet"] * quiet
        raise typer.Exit(launch(words, nproc))
    if dry_run:
        from rich.console import Console

        from understudy.recipe.reader import read_recipe
        from understudy.run.start import rehearse

        rehearse(read_recipe(recipe, overrides), Console())
        return
    execute(recipe, overrides, out=out, quiet=quiet)


def _is_to_launch(nproc: int) -> bool:
    """Whether the processes are still to be started; those that a launcher started must be as many.

    Raises:
        UserError: they are not.
    """
    from understudy.train import processes

    launched = processes.launched().count
    if launched not in (1, nproc):
        raise UserError(f"a launcher started {launched} processes: leave it out, or say the same", where="--nproc")
    return launched == 1 < nproc


def execute(recipe: str, overrides: list[str], *, out: Path | None, quiet: bool) -> Path:
    """Read a recipe, run it, and print the folder as the last line.

    Returns:
        The run folder.
    """
    from understudy.recipe.reader import read_recipe

    described = read_recipe(recipe, overrides)  # before torch is imported: what is wrong is said at once

    from rich.console import Console

    from understudy.run.start import start
    from understudy.train import processes

    result = start(described, out=out, objects={}, console=None if quiet else Console())
    if processes.launched().rank:
        return result.folder
    if not quiet:
        print(f"report: {result.folder / 'report.html'}")
    print(result.folder)
    return result.folder
