"""`understudy models`: which names a recipe may use."""

import fnmatch
from typing import Annotated

import typer

from understudy.cli.options import Import, import_packages
from understudy.errors import UserError, did_you_mean


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(models)


def models(
    pattern: Annotated[str, typer.Argument(help="Names with globs, such as 'cifar/*' or 'timm/*vit*'.")] = "*",
    packages: Import = None,
) -> None:
    """List the names of models that a recipe may use.

    Those of timm and torchvision when the pattern asks for them.
    """
    from understudy.models.table import MODELS, REGISTERED

    import_packages(packages)
    names = {name: entry.about for name, entry in MODELS.items()} | dict.fromkeys(REGISTERED, "registered")
    if pattern.startswith("timm"):
        from understudy.models.build import extra

        names = dict.fromkeys((f"timm/{name}" for name in extra("timm", "vit").list_models()), "")
    if pattern.startswith("torchvision"):
        from torchvision import models as torchvision_models

        names = dict.fromkeys(
            (f"torchvision/{name}" for name in torchvision_models.list_models(torchvision_models)), ""
        )
    matching = {name: about for name, about in names.items() if fnmatch.fnmatch(name, pattern)}
    if not matching:
        raise UserError(f"no model has such a name, {did_you_mean(pattern, names)}", where=f"'{pattern}'")
    for name, about in matching.items():
        print(f"{name:<28} {about}".rstrip())
    if pattern == "*":
        print("and timm/NAME, torchvision/NAME, hf/NAME, or the folder of a saved model;")
        print("understudy models 'timm/*vit*' lists those of timm with vit in their name")
