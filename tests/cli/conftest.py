"""The command line called as a person calls it, in a folder of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_helpers import Ended

from understudy.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def call(here: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def run_main(*words: str) -> Ended:
        capfd.readouterr()
        code = main(list(words))
        return Ended(code, *capfd.readouterr())

    return run_main


@pytest.fixture
def recipe(here: Path, small_recipe: dict) -> Path:
    """A recipe file that runs in about a second."""
    small_recipe["train"]["epochs"] = 2
    path = here / "small.yaml"
    path.write_text(yaml.safe_dump(small_recipe, sort_keys=False))
    return path
