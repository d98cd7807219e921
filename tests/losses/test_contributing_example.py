"""The example of CONTRIBUTING is a loss that conforms, explained by its row of the table."""

import re
import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from conformance import CHECKS, Member

from understudy.losses.document import explanation
from understudy.losses.table import LOSSES, Loss

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
LOSS, ROW, TEST = (
    textwrap.dedent(block) for block in re.findall(r"    ```python\n(.*?)    ```", TEXT, flags=re.DOTALL)
)


@pytest.fixture
def module(tmp_path):
    (tmp_path / "angle.py").write_text(LOSS)
    spec = spec_from_file_location("angle_of_contributing", tmp_path / "angle.py")
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_conforms(module, check):
    names = {"np": pytest.importorskip("numpy")}
    exec(TEST.split("MEMBERS")[0], names)
    check(Member("angle", module.Angle, names["angle"]))


def test_its_row_is_one(module, monkeypatch):
    row = eval("{" + ROW.strip() + "}", {"Loss": Loss})["angle"]
    assert hasattr(module, row.class_name)
    monkeypatch.setitem(LOSSES, "angle", row)
    monkeypatch.setattr("understudy.losses.document.find_spec", lambda _: module.__spec__)
    assert "power: float = 1.0" in explanation("angle")
