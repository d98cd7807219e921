"""Recipes: what fits together, and one clear line for what does not; without loading torch."""

import subprocess
import sys

import pytest

from understudy.errors import UserError
from understudy.recipe.reader import Source, build_recipe, read_recipe
from understudy.tasks.diffusion.recipe import DiffusionRecipe


def build(tiny_recipe, **changes):
    return build_recipe(Source("test", {**tiny_recipe, **changes}))


@pytest.mark.parametrize("name", ["diffusion-digits", "diffusion-mnist", "diffusion-cifar10", "diffusion-imagenet64"])
def test_shipped_recipes_are_sound(name):
    recipe = read_recipe(name, files=False)
    assert isinstance(recipe, DiffusionRecipe)
    assert recipe.verdict_steps == 4


def test_reading_a_recipe_imports_neither_torch_nor_diffusers():
    code = (
        "import sys; from understudy.recipe.reader import read_recipe; read_recipe('diffusion-digits'); "
        "import understudy.tasks.diffusion; print([name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [8, 4, 3]}, "steps: 4 to 3 is no halving: each round takes half the steps"),
        ({"steps": [20, 10, 5, 2]}, "steps: 5 to 2 is no halving"),
        ({"steps": [4]}, "steps: wants at least two numbers"),
        ({"method": {"name": "tract", "steps": [8, 3]}}, "'tract' goes from a number of steps to one that divides it"),
        ({"method": "progresive"}, "should be 'progressive', 'tract' or 'consistency', not 'progresive'"),
        ({"method": []}, "method: is empty"),
        ({"method": ["tract", "tract"]}, "'tract' is named twice"),
        ({"method": {"updates_at": {"16": 4}}}, "there is no round to 16 steps"),
        ({"teacher": {"name": "tny", "train": {"updates": 2}}}, "unknown model 'tny', did you mean 'tiny'"),
        ({"teacher": {"name": "tiny"}}, "has neither 'weights' nor 'train'"),
        ({"teacher": {"name": "tiny", "chanels": 8, "train": {"updates": 2}}}, "unknown key, did you mean 'channels'"),
        (
            {"teacher": {"name": "tiny", "channels": 12, "train": {"updates": 2}}},
            "12 channels cannot be divided into 8",
        ),
        ({"teacher": {"weights": "nowhere"}}, "there is no file or folder 'nowhere'"),
        ({"teacher": {"name": "tiny", "train": {"updates": 9, "warmup": 9}}}, "warmup: must be below updates"),
        ({"guidance": {}}, "needs a teacher that knows classes"),
        ({"data": "teacher"}, "'teacher' is for one with weights"),
        ({"data": {"name": "images", "size": 8}}, "path: is missing"),
        ({"data": {"name": "images", "path": "x"}}, "there is no folder 'x'"),
        ({"process": {"logsnr_min": 3, "logsnr_max": 1}}, "logsnr_min: must be below logsnr_max"),
        ({"evaluate": {"verdict": 3}}, "no student of 3 steps"),
        ({"evaluate": {"inception": "none.pth"}}, "there is no file 'none.pth'"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tiny_recipe, changes, message):
    with pytest.raises(UserError) as error:
        build(tiny_recipe, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_survives_being_written_and_read(tiny_recipe):
    import yaml

    from understudy.train.folder import resolved

    recipe = build(tiny_recipe, method={"name": "progressive", "updates": 3, "updates_at": {"1": 9}})
    again = build_recipe(Source("again", yaml.safe_load(resolved(recipe))))
    assert again == recipe
    assert again.method[0].updates_to(1) == 9
    assert again.method[0].updates_to(2) == 3
