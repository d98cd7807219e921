"""`understudy parity DIR`: our losses against recorded numbers of their authors' code."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from understudy.parity import Outcome

_COLOURS = {"pass": "green", "fail": "bold red", "not implemented": "dim", "declared difference": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(parity)


def parity(
    folder: Annotated[Path, typer.Argument(help="A folder with manifest.json and the recorded cases.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows as a list of objects too.")] = None,
) -> None:
    """Compare our losses with numbers recorded from their authors' code: one row a case, exit 1 if one fails."""
    from rich.console import Console

    from understudy.parity import run_parity

    outcomes = run_parity(folder)
    if json_file:
        _write(json_file, outcomes)
    console = Console()
    # In a pipe rich takes 80 columns, too few for a row of this table.
    console = console if console.is_terminal else Console(width=160)
    console.print(_table(outcomes))
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in _COLOURS}
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    console.print(f"{len(outcomes)} cases: {said}", highlight=False)
    if counts["fail"]:
        raise typer.Exit(1)


def _table(outcomes: list[Outcome]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        Column("case", no_wrap=True),
        "method",
        "loss",
        "gradients",
        "status",
        "why",
        title="relative error against the original",
    )
    for outcome in outcomes:
        row = (
            outcome.id,
            outcome.method,
            _shown(outcome.error),
            _shown(_worst(outcome.gradients)),
            outcome.status,
            # That a case is not implemented needs no second sentence in every row.
            outcome.reason if outcome.status in ("fail", "declared difference") else "",
        )
        cells = [Text(cell) for cell in row]
        cells[4].stylize(_COLOURS[outcome.status])
        table.add_row(*cells)
    return table


def _worst(gradients: dict[str, float]) -> float | None:
    # NaN is the worst there is, and max would pass over it.
    return max(gradients.values(), key=lambda error: math.inf if math.isnan(error) else error, default=None)


def _shown(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _write(path: Path, outcomes: list[Outcome]) -> None:
    try:
        path.write_text(
            json.dumps([_plain(asdict(outcome)) for outcome in outcomes], indent=2) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=path) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
