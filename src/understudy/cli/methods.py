"""`understudy methods`: which there are, and one explained."""

from typing import Annotated

import typer

from understudy.errors import UserError, did_you_mean


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(methods)


def methods(name: Annotated[str | None, typer.Argument(help="A method to explain.")] = None) -> None:
    """List the distillation methods, or explain one.

    Of one: formula, paper, options, presets, an example.
    """
    from understudy.losses.table import LOSSES

    if name is None:
        _list()
        return
    if name not in LOSSES:
        raise UserError(f"unknown method '{name}', {did_you_mean(name, LOSSES)}")
    _explain(name)


def _list() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    from understudy.losses.table import LOSSES

    table = Table(Column("method", no_wrap=True), Column("compares", no_wrap=True), "what it does", box=box.SIMPLE)
    for word, entry in LOSSES.items():
        table.add_row(word, entry.taps, entry.summary)
    Console().print(table)
    print("understudy methods NAME explains one: formula, paper, options, presets")


def _explain(name: str) -> None:
    from understudy.losses.table import LOSSES
    from understudy.recipe.signature import options

    entry = LOSSES[name]
    accepted = options(entry.module, entry.class_name)
    lines = [
        name,
        f"  {entry.summary}",
        f"  formula  {entry.formula}",
        f"  paper    {entry.paper}",
        f"           {entry.link}",
        f"  compares {entry.taps}; costs {entry.cost}",
        "  options  " + (", ".join(f"{key}: {option.annotation}" for key, option in accepted.items()) or "none"),
        "  presets (labels: weight of cross entropy on the labels; weight: of this loss)",
    ]
    for preset, settings in entry.presets.items():
        word = name if preset == "default" else f"{name}:{preset}"
        lines.append(f"    {word:<24}" + ", ".join(f"{key} {value}" for key, value in settings.items()))
    lines += ["  in a recipe", f"    method: {name}", f"    method: {{name: {name}, weight: 0.5}}"]
    print("\n".join(lines))
