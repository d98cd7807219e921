"""Where a step's time goes."""

import json

import pytest

import understudy as us
from understudy.report.write import write_report


@pytest.mark.parametrize("at_once", [True, False])
def test_a_profile_splits_a_step_changes_no_bit_and_is_reported(at_once, small_recipe, tmp_path):
    recipe = {**small_recipe, "seeds_at_once": at_once, "train": {**small_recipe["train"], "threads": 1}}
    result = us.run(recipe, ["profile=true"], out=tmp_path / "profiled")
    found = json.loads((result.folder / "profile.json").read_text())
    spent = found["milliseconds"]
    busy = [
        "data",
        "teacher",
        *(["steps as one function"] if at_once else ["student forward", "losses", "backward", "optimiser"]),
    ]
    assert all(spent[part] > 0 for part in busy)
    assert sum(spent.values()) > 0
    assert found["steps"] > 0
    assert "Where a step's time goes" in write_report(result.folder).read_text().replace("&#x27;", "'")
    plain = us.run(recipe, out=tmp_path / "plain")
    assert plain.results["hash"] == result.results["hash"]
