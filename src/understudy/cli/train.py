"""`understudy train`: the recipe's teacher alone."""

import typer

from understudy.cli.options import Import, Out, Overrides, Quiet, RecipeName, import_packages


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    recipe: RecipeName, overrides: Overrides = None, out: Out = None, packages: Import = None, quiet: Quiet = False
) -> None:
    """Train a recipe's teacher and nothing else.

    A later run of the recipe finds it.
    """
    from understudy.recipe.reader import read_recipe

    import_packages(packages)
    described = read_recipe(recipe, overrides or [])

    from rich.console import Console

    from understudy.run.start import start

    result = start(described, out=out, objects={}, console=None if quiet else Console(), only_teacher=True)
    print(result.folder)
