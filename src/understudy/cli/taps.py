"""`understudy taps`: the places in a model whose output can be read."""

from typing import Annotated

import typer

from understudy.cli.options import Import, import_packages, section
from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(taps)


def taps(
    model: Annotated[str, typer.Argument(help="A model name, such as timm/resnet50, or a saved folder.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the model.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Image shape C,H,W [default: 3,224,224; 3,32,32 for cifar/].")
    ] = None,
    classes: Annotated[int, typer.Option(min=1)] = 10,
    depth: Annotated[int, typer.Option(min=1, help="How deep to go into the module tree.")] = 3,
    packages: Import = None,
) -> None:
    """Print a model's modules with their output shapes.

    Those that `auto` takes are marked.
    """
    from understudy.recipe.reader import read_model

    import_packages(packages)
    described = read_model(section("model", {"name": model}, options or [], name=f"'{model}'"))
    sides = _shape(shape or ("3,32,32" if model.startswith("cifar/") else "3,224,224"))

    import torch

    from understudy.distill import shapes, stage_ends
    from understudy.models import build

    module = build(described, classes=classes, shape=sides)
    found = shapes(module, torch.zeros(2, *sides))
    chosen = set(stage_ends(module))
    for path, output in found.items():
        if path.count(".") < depth or path in chosen:
            mark = "auto" if path in chosen else ""
            indent = "  " * path.count(".")
            print(f"{mark:<5}{indent}{path:<{44 - len(indent)}} {' x '.join(map(str, output[1:]))}")


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UserError("a shape has the form C,H,W, such as 3,224,224", where=f"--shape {text}")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width
