"""`understudy submit`: run a recipe on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Import, Out, RecipeName, import_packages
from understudy.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(submit)


def submit(
    recipe: RecipeName,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]... [--SLURM-OPTION VALUE]...", help="Changes; any option of sbatch."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option("--gpus-per-node", min=0, help="Of each machine, a process for every one.")
    ] = 1,
    executor: Annotated[
        str, typer.Option("--executor", help="slurm; local or debug try the job out here, and wait for its end.")
    ] = "slurm",
    out: Out = None,
    packages: Import = None,
) -> None:
    """Run a recipe on a SLURM cluster, a process a GPU.

    A job that is preempted or runs out of time saves a checkpoint, is put back into the queue and goes on. An existing
    run folder, given by --out, is resumed. The folder must lie on a disk that all machines share.
    """
    from understudy.recipe.reader import read_recipe
    from understudy.train.cluster import Submitted, read_options, wait_for
    from understudy.train.cluster import submit as hand_over
    from understudy.train.folder import next_free, runs_root

    if executor not in ("slurm", "local", "debug"):
        raise UserError("should be slurm, local or debug", where=f"--executor '{executor}'")
    import_packages(packages)
    overrides, options = read_options(words or [])
    described = read_recipe(recipe, overrides)
    folder = (out or next_free(runs_root() / described.name)).absolute()
    name = str(Path(recipe).absolute()) if Path(recipe).exists() else recipe
    job = Submitted((name, *overrides), folder, tuple(packages or ()))
    handed = hand_over(job, executor=executor, nodes=nodes, gpus_per_node=gpus_per_node, options=options)
    print(f"job {handed.job_id}, its logs in {handed.paths.folder}")
    if executor != "slurm":
        wait_for(handed)
    print(folder)
