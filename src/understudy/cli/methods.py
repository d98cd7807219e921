"""`understudy methods`: which there are, and one explained."""

from typing import Annotated

import typer

from understudy.errors import UserError, did_you_mean


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="A method to explain.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All of them, as the page docs/methods.md.")] = False,
) -> None:
    """List the distillation methods, or explain one.

    Of one: formula, paper, what it needs, options, presets, an example recipe.
    """
    from understudy.losses import document
    from understudy.losses.catalogue.schemes import SCHEMES
    from understudy.losses.table import LOSSES

    if markdown:
        print(document.markdown(), end="")
    elif name is None:
        _list()
    elif name in LOSSES or name in SCHEMES:
        print(document.explanation(name))
    else:
        raise UserError(f"unknown method '{name}', {did_you_mean(name, [*LOSSES, *SCHEMES])}")


def _list() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    from understudy.losses.catalogue.schemes import SCHEMES
    from understudy.losses.document import needs, short_paper
    from understudy.losses.table import FAMILIES

    table = Table(
        Column("method", no_wrap=True),
        Column("compares", no_wrap=True),
        *(Column(name, overflow="fold") for name in ("needs", "costs", "paper")),
        box=box.SIMPLE,
    )
    for rows in FAMILIES.values():
        for word, row in rows.items():
            table.add_row(word, row.taps, ", ".join(needs(row)), row.cost, short_paper(row))
        table.add_section()
    for word, scheme in SCHEMES.items():
        table.add_row(word, "logits", scheme.needs, scheme.cost, short_paper(scheme))
    Console().print(table)
    print("understudy methods NAME explains one: formula, paper, options, presets, a recipe")
