"""`understudy sample`: images drawn from a distilled diffusion model."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sample)


def sample(
    run: Annotated[Path, typer.Argument(help="The folder of a diffusion run, or of one saved model.")],
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps [default: the fewest there are].")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names or numbers of classes: truck,7. A row each; with --n in turn.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="How many images [default: a row for each of --classes, else 64].")
    ] = None,
    grid: Annotated[Path | None, typer.Option(help="Write a picture of them all.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write them as samples.npz, in the layout of ADM's evaluator.")
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="Images in a row of the grid.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise: the same seed, the same images.")] = 0,
    model: Annotated[str | None, typer.Option(help="One of --list by name, such as teacher.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, noisy or consistency [default: the model's].")] = None,
    variance: Annotated[
        float, typer.Option(min=0, max=1, help="Of noisy: between the small variance (0) and the large one (1).")
    ] = 1.0,
    guidance: Annotated[float | None, typer.Option(min=0, help="Another strength, for a model that learnt it.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    listing: Annotated[bool, typer.Option("--list", help="Only list the models there are.")] = False,
) -> None:
    """Draw images in few steps, by class where the model knows classes."""
    if not run.is_dir():
        raise UserError("no such folder: give that of a diffusion run", where=run)
    if not listing and grid is None and out is None:
        raise UserError("say where the images shall go: --grid out.png, or --out samples.npz")
    for option, path, suffixes in (("--grid", grid, (".png", ".jpg", ".jpeg", ".webp")), ("--out", out, (".npz",))):
        _check_target(option, path, suffixes)

    from rich.console import Console

    from understudy.recipe.schema import Machine
    from understudy.report.format import counted
    from understudy.tasks.diffusion import samples
    from understudy.train.machine import device as device_of
    from understudy.train.progress import Display

    console = Console()
    if listing:
        for one in samples.saved(run):
            by_class = f"  {len(one.card.classes)} classes" if one.card.classes else ""
            console.print(
                f"{one.name:24} {counted(one.card.steps, 'step'):>11}{by_class}  {one.folder}",
                highlight=False,
                soft_wrap=True,
            )
        return
    words = [word.strip() for word in classes.split(",") if word.strip()] if classes else None
    if words and n is None:
        words = [word for word in words for _ in range(columns)]  # a row of the grid for each class
    count = n or (len(words) if words else 64)
    one = samples.choose(run, steps=steps, name=model)
    with Display(console) as display:
        images, labels = samples.sample_images(
            one,
            count=count,
            steps=steps,
            classes=words,
            seed=seed,
            sampler=sampler,
            variance=variance,
            guidance=guidance,
            device=device_of(Machine(device=device)),
            display=display,
        )
    if grid is not None:
        import torch

        from understudy.tasks.diffusion.pictures import grid as picture

        picture(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, columns).save(grid)
        print(grid)
    if out is not None:
        samples.write_npz(out, images, labels)
        print(out)


def _check_target(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuse before anything is drawn what could not be written after."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"ends in none of {', '.join(suffixes)}", where=f"{option} {path}")
    if not path.absolute().parent.is_dir():
        raise UserError("its folder does not exist", where=f"{option} {path}")
