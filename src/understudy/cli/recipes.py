"""`understudy recipes`: what is shipped."""

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(recipes)


def recipes() -> None:
    """List the shipped recipes."""
    from rich.console import Console
    from rich.padding import Padding

    from understudy.recipe.reader import read_recipe, shipped

    console = Console(highlight=False)
    for name in shipped():
        recipe = read_recipe(name, files=False)
        console.print(f"[bold]{name}[/bold]  [dim]{recipe.summary}[/dim]")
        console.print(Padding(recipe.about, (0, 0, 0, 4)))
    console.print("\nunderstudy run NAME, or understudy init NAME to start a recipe of your own from it")
