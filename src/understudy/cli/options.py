"""Arguments that several commands share."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.errors import UserError

if TYPE_CHECKING:
    from understudy.recipe.source import Source

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as train.lr=3e-4.")
]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder; by default the next number below runs/NAME.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the last line only.")]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="PACKAGE", help="A package of yours that registers models or data. Its code runs."
    ),
]


def section(which: str, described: dict[str, Any], options: list[str], *, name: str) -> "Source":
    """A recipe's section put together on the command line, ready to be checked.

    Args:
        which: `data` or `model`.
        described: what is known of it; the options are laid over it.
        options: `key=value` texts.
        name: what to call its origin in messages.

    Raises:
        UserError: an option is not of that form.
    """
    from understudy.recipe.source import Source, parse_value

    source = Source(name, {which: described})
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError("options have the form key=value", where=f"'{text}'")
        described[key] = parse_value(value, f"'{text}'")
        source.overrides[which, key] = text
    return source


def import_packages(packages: list[str] | None) -> None:
    """Import what the user named with --import, from the present folder too.

    Raises:
        UserError: there is no such package, or it fails when imported.
    """
    if not packages:
        return
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for package in packages:
        try:
            import_module(package)
        except Exception as error:  # it is the user's code: whatever it raises is theirs to know about
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise UserError(
                f"cannot be imported ({reason}): name a package in this folder or an installed one",
                where=f"--import {package}",
            ) from error
