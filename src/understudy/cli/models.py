"""`understudy models`: which names a recipe may use, and how large the networks behind them are."""

import fnmatch
from typing import Annotated

import typer

from understudy.cli.options import Import, import_packages
from understudy.errors import UserError, did_you_mean

# Sizes are read from the network itself, which is made without memory for its weights; so many take half a minute.
_MOST_MEASURED = 60


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(models)


def models(
    pattern: Annotated[str, typer.Argument(help="Names with globs, such as 'cifar/*' or 'timm/*vit*'.")] = "*",
    speed: Annotated[bool, typer.Option("--speed", help="Measure images per second too, here and now.")] = False,
    packages: Import = None,
) -> None:
    """List the names of models that a recipe may use.

    Those of timm and torchvision when the pattern asks for them, with parameters, width, heads, layers and resolution.
    Nothing is downloaded.
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
    of_library = pattern.startswith(("timm", "torchvision"))
    if speed and (not of_library or len(matching) > _MOST_MEASURED):
        raise UserError(
            f"measures at most {_MOST_MEASURED} models of timm or torchvision, such as 'timm/deit_*'", where="--speed"
        )
    if of_library and len(matching) <= _MOST_MEASURED:
        _print_sizes(list(matching), speed=speed)
        return
    width = max(map(len, matching))
    for name, about in matching.items():
        print(f"{name:<{width}}  {about}".rstrip())
    if of_library:
        print(f"{len(matching)} names: with at most {_MOST_MEASURED} their sizes are shown")
    if pattern == "*":
        print("and timm/NAME, torchvision/NAME, hf/NAME, or the folder of a saved model;")
        print("understudy models 'timm/*vit*' lists those of timm with vit in their name")


def _print_sizes(names: list[str], *, speed: bool) -> None:
    from understudy.tasks.classify.sizes import describe, images_per_second, where

    width = max(map(len, names))
    headings = f"{'model':<{width}} {'params':>8} {'width':>6} {'heads':>6} {'layers':>7} {'pixels':>7}"
    print(f"{headings} {'images/s':>9}" if speed else headings)
    for name in names:
        size = describe(name)
        cells = f"{size.parameters / 1e6:7.1f}M {size.width or '-':>6} {size.heads or '-':>6} {size.layers or '-':>7}"
        line = f"{name:<{width}} {cells} {size.resolution:>7}"
        print(f"{line} {images_per_second(name, size.resolution):9,.1f}" if speed else line, flush=True)
    if speed:
        print(f"images/s on {where()}, in batches, random weights, 32-bit numbers")
    else:
        print("images per second, measured on this machine: --speed")
