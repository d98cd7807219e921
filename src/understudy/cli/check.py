"""`understudy check`: is a recipe sound?"""

import typer

from understudy.cli.options import Import, Overrides, RecipeName, import_packages


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(check)


def check(recipe: RecipeName, overrides: Overrides = None, packages: Import = None) -> None:
    """Check a recipe without loading torch or any data.

    Its keys, types and names, and whether the files that it names are there and sound.
    """
    from understudy.recipe.reader import read_recipe

    import_packages(packages)
    found = read_recipe(recipe, overrides or [])
    print(f"{recipe}: sound. {found.summary}")
