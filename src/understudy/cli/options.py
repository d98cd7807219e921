"""Arguments that several commands share."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from understudy.errors import UserError

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as train.lr=3e-4.")
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder [default: runs/NAME/N].")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the last line only.")]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="PACKAGE", help="A package of yours that registers models or data. Its code runs."
    ),
]


def import_packages(packages: list[str] | None) -> None:
    """Import what the user named with --import, from the present folder too.

    Raises:
        UserError: there is no such package.
    """
    if not packages:
        return
    sys.path.insert(0, str(Path.cwd()))
    for package in packages:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(f"cannot be imported ({error})", where=f"--import {package}") from None
