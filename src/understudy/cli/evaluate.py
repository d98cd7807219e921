"""`understudy evaluate`: score a saved model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from understudy.cli.options import Import, import_packages, section
from understudy.errors import UserError, did_you_mean

_SPLITS = ("test", "validation", "train")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="The folder of a saved model or of a run.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Such as path=DIR.")] = None,
    data: Annotated[str | None, typer.Option(help="A data set by name [default: the run's own].")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    packages: Import = None,
) -> None:
    """Print accuracy and loss of a model on a data set."""
    from understudy.recipe.reader import read_data, read_recipe

    import_packages(packages)
    if split not in _SPLITS:
        raise UserError(f"there is no split '{split}', {did_you_mean(split, _SPLITS)}", where="--split")
    if not Path(model).is_dir():
        raise UserError("no such folder: give that of a saved model or of a run", where=model)
    if data is None:
        home = next((place for place in (Path(model), *Path(model).parents) if (place / "recipe.yaml").is_file()), None)
        if home is None:
            raise UserError("name the data with --data: the model is in no run folder", where=model)
        recipe: Any = read_recipe(home / "recipe.yaml", files=False)
        described = recipe.data.model_dump(mode="json")
        origin = str(home / "recipe.yaml")
    else:
        described, origin = {"name": data}, f"--data {data}"
    read_data(section("data", described, options or [], name=origin))

    from understudy.evaluate import evaluate as score

    scores = score(model, data=described, split=split)
    print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
