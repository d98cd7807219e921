"""`understudy recipes`: what is shipped."""

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(recipes)


def recipes() -> None:
    """List the shipped recipes."""
    from rich.console import Console
    from rich.table import Table

    from understudy.recipe.reader import read_recipe, shipped

    table = Table("recipe", "data", "teacher", "student", "about")
    for name in shipped():
        recipe = read_recipe(name)
        table.add_row(name, recipe.data.name, recipe.teacher.name, recipe.student.name, recipe.about)
    Console().print(table)
