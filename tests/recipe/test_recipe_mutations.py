"""However a recipe is broken: it is valid, or one line says what is wrong. Nothing else, and soon."""

import copy
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import UserError
from understudy.recipe.reader import Source, build_recipe, parse
from understudy.recipe.schema import Recipe

WHOLE = {
    "name": "whole",
    "about": "words",
    "data": {
        "name": "digits",
        "train": 240,
        "validation": 40,
        "labels": 100,
        "transfer": "rest",
        "without": ["3"],
        "mean": [0.5],
        "std": [0.2],
        "augment": {"crop": 1, "flip": True, "rand_augment": {"ops": 2, "magnitude": 5.0}, "mixup": 0.2},
    },
    "teacher": {"name": "cnn", "widths": [8, 16], "train": {"epochs": 2, "lr": 1e-3}},
    "student": {"name": "mlp", "hidden": [8], "dropout": 0.1},
    "method": [
        "kd",
        {"name": "sum", "labels": 0.5, "objectives": [{"loss": "kd", "temperature": 2.0}, {"loss": "logits"}]},
        {"name": "ramp", "loss": "kd", "weight": {"start": 0.0, "end": 1.0, "epochs": 2}},
    ],
    "train": {"epochs": 3, "batch_size": 32, "lr": 0.01, "schedule": "step", "milestones": [2], "read_at": [1, 3]},
    "control": ["train", "equal_time"],
    "grid": {"temperature": [2, 4]},
    "seeds": 2,
    "seed": 1,
}
VALUES: list[Any] = [
    None, True, -1, 0, 3, 10**25, 0.5, -2.5, float("nan"), float("inf"), "", "words", "none", "all", "kd", "../x",
    "a\nb", "é" * 300, [], [[]], ["a"], [1, 2, 3], [True], {}, {"name": "kd"}, {"name": 3}, {"": 1}, {"start": 1},
]  # fmt: skip
KEYS = ["", "name", "epochz", "weight", "loss", "objectives", "train", "0", "a.b", "options", "model_config"]


def mutated(number: int) -> dict[str, Any]:
    """The whole recipe after one to three changes, drawn by the number."""
    pick = random.Random(f"mutation {number}").choice
    recipe = copy.deepcopy(WHOLE)
    for _ in range(pick([1, 1, 2, 3])):
        places = list(containers(recipe))
        place = pick(places)
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            continue
        key, change = pick(keys), pick(["delete", "rename", "value", "value", "move"])
        if change == "delete":
            del place[key]
        elif change == "rename" and isinstance(place, dict):
            place[pick(KEYS)] = place.pop(key)
        elif change == "move":
            place[key] = copy.deepcopy(pick(places))
        else:
            place[key] = copy.deepcopy(pick(VALUES))
    return recipe


def containers(value: Any):
    if isinstance(value, (dict, list)):
        yield value
        for below in value.values() if isinstance(value, dict) else value:
            yield from containers(below)


def outcome(number: int) -> Recipe | str:
    try:
        return build_recipe(Source("r.yaml", mutated(number)))
    except UserError as error:
        return str(error)


def test_200_broken_recipes_are_valid_or_refused_in_one_line():
    assert isinstance(build_recipe(Source("r.yaml", copy.deepcopy(WHOLE))), Recipe)
    outcomes = []
    for number in range(200):
        began = time.perf_counter()
        outcomes.append(outcome(number))
        assert time.perf_counter() - began < 1, number
    refused = [text for text in outcomes if isinstance(text, str)]
    assert 100 < len(refused) < 200
    for text in refused:
        assert text.startswith("r.yaml: "), text
        assert len(text) < 600, text
        assert len(text.splitlines()) == 1, text


@pytest.mark.parametrize(
    "text", ["a: [", "train: {epochs: [[[", 'name: "\\0"', "method: {name: kd, <<: {a: 1}}", "? a"]
)
def test_broken_text_is_refused_too(text):
    with pytest.raises(UserError):
        build_recipe(parse(text.encode(), "r.yaml"))


def test_reading_recipes_never_imports_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_recipe_mutations import outcome\n"
        "from understudy.recipe.reader import read_recipe, shipped\n"
        "[outcome(number) for number in range(40)]\n"
        "[read_recipe(name, files=False) for name in shipped()]\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'timm', 'altair', 'scipy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
