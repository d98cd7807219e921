"""The recorded cases of the original, and that the comparison can fail."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from understudy.errors import UserError
from understudy.parity import run_parity

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion"


def test_every_recorded_case_passes():
    outcomes = run_parity(GOLDEN)
    assert len(outcomes) == len(json.loads((GOLDEN / "manifest.json").read_text())["cases"])
    assert {outcome.id: outcome.reason for outcome in outcomes if outcome.status != "pass"} == {}


@pytest.fixture
def some(tmp_path):
    """A folder with two of the cases."""
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    manifest["cases"] = [
        case for case in manifest["cases"] if case["id"] in ("ddim_step_v_N8_i2_clip1_f64", "loss_distill_v_N2_f64")
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for case in manifest["cases"]:
        shutil.copyfile(GOLDEN / case["file"], tmp_path / case["file"])
    return tmp_path


def change(path, name, by):
    with np.load(path) as file:
        arrays = dict(file)
    arrays[name] = arrays[name] + by
    np.savez(path, **arrays)


@pytest.mark.parametrize("name", ["loss_snr", "grad_mean_loss_v_mse", "x_target"])
def test_a_case_fails_when_its_record_is_another(some, name):
    change(some / "loss_distill_v_N2_f64.npz", name, 1e-6)
    outcomes = {outcome.id: outcome for outcome in run_parity(some)}
    assert outcomes["loss_distill_v_N2_f64"].status == "fail"
    assert name in outcomes["loss_distill_v_N2_f64"].reason
    assert outcomes["ddim_step_v_N8_i2_clip1_f64"].status == "pass"


def test_an_array_that_nothing_computes_fails_its_case(some):
    path = some / "ddim_step_v_N8_i2_clip1_f64.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays, another=arrays["out"])
    outcome = next(outcome for outcome in run_parity(some) if outcome.id.startswith("ddim"))
    assert outcome.status == "fail"
    assert "another" in outcome.reason


def test_a_missing_or_damaged_file_is_named(some):
    path = some / "ddim_step_v_N8_i2_clip1_f64.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"f64\.npz: is no readable"):
        run_parity(some)
    path.unlink()
    with pytest.raises(UserError, match="no such file, though the manifest names it"):
        run_parity(some)


def test_a_case_of_a_family_we_do_not_know_is_not_implemented(some):
    manifest = json.loads((some / "manifest.json").read_text())
    manifest["cases"][0]["id"] = "another_thing"
    (some / "manifest.json").write_text(json.dumps(manifest))
    assert run_parity(some)[0].status == "not implemented"
