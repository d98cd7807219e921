"""Options read from source text are those that importing the code would show."""

import inspect
from importlib import import_module

import pytest

from understudy.data.table import SOURCES
from understudy.losses.table import LOSSES
from understudy.models.table import MODELS
from understudy.recipe.methods import expand_method
from understudy.recipe.signature import Option, options, wrong_type

PLACES = {
    **{f"loss {name}": (row.module, row.class_name, {}) for name, row in LOSSES.items()},
    **{f"model {name}": (row.module, row.function, row.fixed) for name, row in MODELS.items()},
    **{f"data {name}": (row.module, row.function, row.fixed) for name, row in SOURCES.items()},
}


def parameters(module: str, name: str):
    real = getattr(import_module(module), name)
    if inspect.isclass(real) and "__init__" not in vars(real):
        return {}
    return inspect.signature(real).parameters


@pytest.mark.parametrize("row", PLACES)
def test_options_read_from_source_are_those_of_the_object(row):
    module, name, fixed = PLACES[row]
    real = parameters(module, name)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in real.values())
    found = options(module, name)
    assert list(found) == list(real)
    assert set(fixed) <= set(found)
    for key, parameter in real.items():
        assert found[key].required == (parameter.default is parameter.empty)
        annotation = parameter.annotation
        shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        assert found[key].annotation.replace("'", "") == shown.replace("typing.", "").replace("'", "")


@pytest.mark.parametrize("row", PLACES)
def test_every_default_passes_its_own_type_check(row):
    module, name, _ = PLACES[row]
    for key, parameter in parameters(module, name).items():
        if parameter.default is not parameter.empty:
            assert wrong_type(options(module, name)[key], parameter.default) is None


@pytest.mark.parametrize("word", [f"{name}:{preset}" for name, row in LOSSES.items() for preset in row.presets])
def test_every_preset_sets_options_that_exist(word):
    (objective,) = expand_method(word)["objectives"]
    row = LOSSES[objective.pop("loss")]
    accepted = options(row.module, row.class_name)
    for key, value in objective.items():
        if key not in ("weight", "student", "teacher"):
            assert key in accepted
            assert wrong_type(accepted[key], value) is None


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [3], [True, 3.0, "3", None]),
        ("float", [3, 0.5], [True, "0.5", float("inf"), float("nan")]),
        ("bool", [True], [1, "true"]),
        ("str", ["a"], [1, None]),
        ("int | None", [3, None], [True, "3"]),
        ("tuple[int, ...]", [[1, 2], []], [[True], ["1"], 1, "12"]),
        ("tuple[float, float]", [[1, 0.5]], [[1], [1, 2, 3], [1, True]]),
        ("Literal['a', 'b']", ["a"], ["c", 1]),
        ("Something", [1, "a"], []),
    ],
)
def test_nothing_is_converted(annotation, good, bad):
    option = Option(annotation, required=False)
    assert [value for value in good if wrong_type(option, value)] == []
    assert [value for value in bad if not wrong_type(option, value)] == []
