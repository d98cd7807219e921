"""`understudy quickstart`: real data, no download, under a minute."""

from typing import Annotated

import typer

from understudy.cli.options import Out, Quiet


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(quickstart)


def quickstart(
    labels: Annotated[str, typer.Option(help="How many labels there are: a number, or all.")] = "200",
    seeds: Annotated[int, typer.Option(min=1, help="How many times each student is trained.")] = 5,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """See distillation help, on real data, in under a minute.

    A teacher, a student alone and a student distilled on scikit-learn's digits: one table, one verdict, one report.
    """
    from understudy.cli.run import execute

    overrides = [f"seeds={seeds}"]
    overrides += ["data.labels=all", "data.transfer=none"] if labels == "all" else [f"data.labels={labels}"]
    folder = execute("digits-quickstart", overrides, out=out, quiet=quiet)
    if quiet:
        return
    other = "understudy quickstart --labels all" if labels != "all" else "understudy quickstart"
    print("\nnext, try:")
    print(f"  {other}    # the other case: {'all labels are there' if labels != 'all' else 'few labels'}")
    print("  understudy compare digits-quickstart --methods kd,logits,hard --seeds 5")
    print(f"  understudy predict {folder}/student image.png")
