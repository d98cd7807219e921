"""The documentation names what exists."""

import re
from pathlib import Path

import pytest

from understudy.recipe.schema import Augment, ClassifyRecipe, Data, Method, Model, Objective, Student, Teacher, Train

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("section", [ClassifyRecipe, Data, Teacher, Student, Method, Objective, Model, Train, Augment])
def test_every_key_of_a_recipe_is_explained(section):
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert not [key for key in section.model_fields if f"`{key}" not in text and f"## {key}" not in text]


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page.name, target)


def test_every_command_of_the_readme_exists():
    from understudy.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    used = set(re.findall(r"^(?:\$ )?understudy ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert {"run", "quickstart"} <= used - {"trains"} <= commands
