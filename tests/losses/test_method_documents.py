"""The table of losses says what the classes are, and the page and the command say what the table does."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from understudy.cli import main
from understudy.errors import UserError
from understudy.losses import KD, CrossEntropy, document
from understudy.losses.catalogue.schemes import SCHEMES
from understudy.losses.table import FAMILIES, LOSSES
from understudy.losses.temperature import gradient_ratios
from understudy.recipe.reader import read_recipe

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def class_of(name):
    return getattr(import_module(LOSSES[name].module), LOSSES[name].class_name)


def test_the_page_is_what_the_table_says(capsys):
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(), "run: understudy methods --markdown > docs/methods.md"


def test_every_loss_stands_in_one_family():
    assert sum(len(rows) for rows in FAMILIES.values()) == len(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_every_preset_is_one_of_its_class(name):
    kind = class_of(name)
    given = {"samples": 10} if "samples" in inspect.signature(kind).parameters else {}
    assert "default" in LOSSES[name].presets
    for settings in LOSSES[name].presets.values():
        assert {"labels", "weight"} <= settings.keys()
        kind(**given, **{key: value for key, value in settings.items() if key not in ("labels", "weight")})


@pytest.mark.parametrize("name", LOSSES)
def test_the_needs_are_those_of_the_class(name):
    kind, said = class_of(name), document.needs(LOSSES[name])
    parameters = inspect.signature(kind.forward).parameters.values()
    keywords = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert {words for key, words in document._NEEDS.items() if key in keywords} <= set(said)
    assert (
        len(said)
        == len(set(said))
        == len(keywords)
        + sum(("teacher" not in [each.name for each in parameters], hasattr(kind, "prepare")))
        + hasattr(kind, "needs_input_gradients")
    )
    assert ("weights of its own" in said) == hasattr(kind, "prepare")


@pytest.mark.parametrize("name", LOSSES)
def test_every_explanation_has_a_recipe_that_is_one(name, tmp_path, capsys):
    assert main(["methods", name]) == 0
    printed = capsys.readouterr().out
    row = LOSSES[name]
    assert all(
        part in printed for part in (row.formula, row.paper, row.link, row.source, *row.presets.keys() - {"default"})
    )
    example = document.example_recipe(name)
    assert all(f"    {line}\n" in printed for line in example.splitlines())
    (tmp_path / "example.yaml").write_text(example)
    recipe = read_recipe(tmp_path / "example.yaml", files=False)
    assert [each.loss for method in recipe.method for each in method.objectives] == [name]


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_a_word_that_means_what_its_explanation_says(name, tmp_path, capsys):
    assert main(["methods", name]) == 0
    printed = capsys.readouterr().out
    example = document.example_recipe(name)
    assert all(f"    {line}\n" in printed for line in example.splitlines())
    written_out = next(line for line in printed.splitlines() if "means" in line).partition("{")[2]
    methods = []
    for place, text in enumerate((example, example.replace(f"method: {name}", "method: {" + written_out))):
        (tmp_path / f"{place}.yaml").write_text(text)
        methods.append(read_recipe(tmp_path / f"{place}.yaml").method)
    assert methods[0] == methods[1]
    (tmp_path / "other.yaml").write_text(example.replace(f"method: {name}", f"method: {{name: {name}, weight: 3}}"))
    (changed,) = read_recipe(tmp_path / "other.yaml").method
    assert changed.objectives[0].weight == 3
    assert changed.labels == methods[0][0].labels


def test_assistants_by_a_word_are_asked_for(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(document.example_recipe("takd").replace("assistants: ", "# "))
    with pytest.raises(UserError, match="'takd' is taught by 'assistant'"):
        read_recipe(path)


def test_papers_are_named_in_short():
    short = {name: document.short_paper(row) for name, row in LOSSES.items()}
    assert short["kd"] == "Hinton et al. 2015"
    assert short["nst"] == "Huang and Wang 2017"
    assert short["hard"] == "Touvron et al. 2021"


def test_nothing_of_it_imports_torch():
    script = "import sys, understudy.losses.document as d; d.markdown(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# The gradient of kd over the temperature

TEMPERATURES = (1.0, 2.0, 5.0, 40.0)


@pytest.mark.parametrize("t_squared", [True, False])
def test_the_ratios_are_those_of_the_losses(t_squared):
    import numpy as np

    student, teacher = (torch.from_numpy(each) for each in np.random.default_rng(0).normal(0, 3, (2, 1000, 10)))
    student.requires_grad_()

    def size(loss):
        (gradient,) = torch.autograd.grad(loss * len(student), student)
        return gradient.norm(dim=1).mean().item()

    hard = size(CrossEntropy()(student, labels=teacher.argmax(dim=1)))
    soft = [size(KD(temperature=each, t_squared=t_squared)(student, teacher)) for each in TEMPERATURES]
    assert gradient_ratios(TEMPERATURES, t_squared=t_squared) == pytest.approx([each / hard for each in soft], rel=1e-9)


def test_without_t_squared_the_ratio_falls_as_its_inverse_and_with_it_it_stays():
    large = (100.0, 1000.0, 10_000.0)
    with_it, without = gradient_ratios(large), gradient_ratios(large, t_squared=False)
    for temperature, ratio, bare in zip(large, with_it, without, strict=True):
        assert bare * temperature**2 == pytest.approx(ratio, rel=1e-9)
        assert ratio == pytest.approx(with_it[-1], rel=0.01)
    assert without[0] / without[1] == pytest.approx(100, rel=0.01)
    assert without[1] / without[2] == pytest.approx(100, rel=0.001)
    assert abs(gradient_ratios([1.0])[0] / with_it[-1] - 1) > 0.1  # a constant in the limit, not from the start
