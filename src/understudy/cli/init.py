"""`understudy init`: start a recipe of one's own from a shipped one."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import RecipeName
from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)


def init(
    recipe: RecipeName,
    to: Annotated[Path | None, typer.Argument(help="The file to write [default: NAME.yaml here].")] = None,
) -> None:
    """Copy a shipped recipe, with its comments, to a file of yours."""
    from understudy.recipe.reader import find_recipe

    source = find_recipe(recipe)
    target = to or Path(source.name)
    if target.exists():
        raise UserError("exists already: name another file", where=target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    print(f"wrote {target}; next: understudy check {target}")
