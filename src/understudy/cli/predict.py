"""`understudy predict`: what a model says to images."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Import, import_packages, section
from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(predict)


def predict(
    model: Annotated[str, typer.Argument(help="A saved model or run; or a name, such as timm/deit_tiny_patch16_224.")],
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders of them, URLs; of a model by name KEY=VALUE, weights=FILE."),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes: a text file, one a line, or a folder of class folders.")
    ] = None,
    packages: Import = None,
) -> None:
    """Print the likeliest classes of images."""
    from understudy.cli.evaluate import check_name

    import_packages(packages)
    is_folder = Path(model).is_dir()
    if not is_folder:
        check_name(model)
    options = [word for word in images if _is_option(word)] if not is_folder else []
    places = [word for word in images if word not in options]
    for place in places:
        if not _is_remote(place) and not Path(place).exists():
            raise UserError("there is no such image or folder", where=place)
    if not places:
        raise UserError("name at least one image, folder or URL")
    described = section("model", {}, options, name=model).data["model"]

    from understudy.data.folder import image_files
    from understudy.evaluate import best_device
    from understudy.predict import predict as answer
    from understudy.tasks.classify.imagenet import read_names
    from understudy.tasks.classify.named import open_model

    files: list[str | Path] = []
    for place in places:
        is_place = not _is_remote(place) and Path(place).is_dir()
        files += image_files(Path(place)) if is_place else [place]
    if not files:
        raise UserError("holds no images", where=", ".join(places))
    module = open_model(model, described).to(best_device())
    names = None if classes is None else read_names(classes, len(module.card.classes))  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    for file, found in zip(files, answer(module, files, top=top, names=names), strict=True):
        print(f"{file}: " + "  ".join(f"{name} {chance:.3f}" for name, chance in found))


def _is_remote(word: str) -> bool:
    return "://" in word


def _is_option(word: str) -> bool:
    """`weights=FILE` is an option unless there is a file of that name; URLs have their own `=`."""
    return "=" in word and not _is_remote(word.partition("=")[0]) and not Path(word).exists()
