"""`understudy compare`: a recipe with several methods, seeds or settings."""

from typing import Annotated

import typer

from understudy.cli.options import Import, Out, Overrides, Quiet, RecipeName, import_packages
from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    methods: Annotated[str | None, typer.Option(help="Methods in place of the recipe's: kd,logits,hard")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds in place of the recipe's.")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Values to try: temperature=2,4,8 (may be repeated).")] = None,
    out: Out = None,
    packages: Import = None,
    quiet: Quiet = False,
) -> None:
    """Run a recipe with several methods, seeds or settings.

    All students of a seed see the same batches and share each pass of the teacher.
    """
    from understudy.cli.run import execute

    import_packages(packages)
    more = list(overrides or [])
    if methods:
        more.append(f"method=[{methods}]")
    if seeds:
        more.append(f"seeds={seeds}")
    for entry in grid or []:
        key, equals, values = entry.partition("=")
        if not equals or not values:
            raise UserError(
                "a grid has the form option=value,value, such as temperature=2,4,8", where=f"--grid {entry}"
            )
        more.append(f"grid.{key}=[{values}]")
    execute(recipe, more, out=out, quiet=quiet)
