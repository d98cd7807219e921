"""Runs for tests: in this process, without the report and the latency measurement, below their own folder."""

import copy

import pytest

from understudy.recipe.reader import Source, build_recipe
from understudy.run import measure
from understudy.run import start as engine


def merged(base: dict, changes: dict) -> dict:
    """A mapping with another laid over it, sections within sections."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A working directory without earlier runs, and nothing that only costs time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "latency", lambda *_: 1.0)
    monkeypatch.setattr(engine, "write_report", lambda folder: folder)


@pytest.fixture
def tiny(small_recipe):
    """Make a recipe of one seed and a few steps, with changes."""

    def make(**changes):
        base = merged(
            small_recipe,
            {
                "seeds": 1,
                "data": {"train": 100, "validation": 30},
                "teacher": {"train": {"epochs": 1}},
                "train": {"epochs": 2, "threads": 1},
            },
        )
        return build_recipe(Source("test", merged(base, changes)))

    return make


@pytest.fixture
def run(tmp_path):
    """Run a recipe in a folder of its own and give the result."""

    def start(recipe, name="run", **more):
        return engine.start(recipe, out=tmp_path / name, objects={}, console=None, **more)

    return start


@pytest.fixture
def resume(tmp_path):
    """Resume a run of `run`."""
    return lambda name="run": engine.resume(tmp_path / name, objects={}, console=None)
