"""`understudy predict`: what a saved model says to images."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    model: Annotated[str, typer.Argument(help="The folder of a saved model or of a run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
) -> None:
    """Print the likeliest classes of images."""
    for path in images:
        if not path.exists():
            raise UserError("there is no such image or folder", where=path)
    if not Path(model).is_dir():
        raise UserError("no such folder: give that of a saved model or of a run", where=model)

    from understudy.data.folder import image_files
    from understudy.evaluate import predict as answer

    files = [file for path in images for file in (image_files(path) if path.is_dir() else [path])]
    if not files:
        raise UserError("holds no images", where=", ".join(map(str, images)))
    for file, classes in zip(files, answer(model, files, top=top), strict=True):
        print(f"{file}: " + "  ".join(f"{name} {chance:.3f}" for name, chance in classes))
