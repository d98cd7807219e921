"""`understudy evaluate`: score a saved model."""

from typing import Annotated

import typer

from understudy.cli.options import Import, import_packages
from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="The folder of a saved model or of a run.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as path=DIR.")] = None,
    data: Annotated[str | None, typer.Option(help="A data set by name [default: the run's own].")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    packages: Import = None,
) -> None:
    """Print accuracy and loss of a model on a data set."""
    from pathlib import Path

    from understudy.evaluate import evaluate as score
    from understudy.recipe.reader import parse_value, read_recipe

    import_packages(packages)
    if data is None:
        home = next((place for place in (Path(model), *Path(model).parents) if (place / "recipe.yaml").is_file()), None)
        if home is None:
            raise UserError("name the data with --data: the model is in no run folder", where=model)
        described = read_recipe(home / "recipe.yaml").data.model_dump(mode="json")
    else:
        described = {"name": data}
    for text in options or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError("options have the form key=value", where=f"'{text}'")
        described[key] = parse_value(value, f"'{text}'")
    scores = score(model, data=described, split=split)
    print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
