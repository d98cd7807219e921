"""The recorded cases of DeiT: all are computed, and what is wrong is found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from understudy.errors import UserError
from understudy.parity import run_parity

pytest.importorskip("timm")

GOLDEN = Path(__file__).parents[1] / "golden" / "deit"
ENTRIES = json.loads((GOLDEN / "manifest.json").read_text())["entries"]
DECLARED = {"rasampler", "lr_cosine_E300_W5", "lr_cosine_E30_W5"}


def test_every_case_passes_or_is_declared():
    outcomes = {outcome.id: outcome for outcome in run_parity(GOLDEN)}
    assert outcomes.keys() == {entry["id"] for entry in ENTRIES}
    assert {name for name, outcome in outcomes.items() if outcome.status != "pass"} == DECLARED
    for name in DECLARED:
        assert outcomes[name].status == "declared difference"
        assert outcomes[name].reason
    # Losses and gradients of the original to float64's rounding, its position embeddings bit for bit.
    for name, outcome in outcomes.items():
        if name.startswith(("distloss", "cosub", "distilled_vit", "timm_logit", "timm_token", "timm_feature")):
            assert outcome.error < 1e-14, name
            assert outcome.gradients, name
            assert max(outcome.gradients.values()) < 1e-14, name
        if name.startswith("posembed"):
            assert outcome.error == 0, name


def folder_with(path: Path, *names: str, change=None, **settings) -> Path:
    """A folder with these cases alone, their arrays or conventions changed."""
    path.mkdir()
    entries = [json.loads(json.dumps(entry)) for entry in ENTRIES if entry["id"] in names]
    for entry in entries:
        entry["conventions"] |= settings
        shutil.copy(GOLDEN / entry["file"], path / entry["file"])
        if change is not None:
            arrays = dict(np.load(path / entry["file"]))
            change(arrays)
            np.savez(path / entry["file"], **arrays)
    (path / "manifest.json").write_text(json.dumps({"project": "x", "split": "x", "entries": entries}))
    return path


def largest_off(name: str, by: float):
    def change(arrays):
        place = np.unravel_index(np.abs(arrays[name]).argmax(), arrays[name].shape)
        arrays[name][place] = arrays[name][place] + by if arrays[name].dtype.kind == "i" else arrays[name][place] * by

    return change


@pytest.mark.parametrize(
    ("case", "array", "by"),
    [
        ("distloss_01_soft_ce", "loss", 1 + 1e-8),
        ("distloss_05_hard_ce", "grad_outputs_kd", 1 + 1e-8),
        ("posembed_14to24_extra2_float64", "new_pos_embed", 1 + 1e-8),
        ("timm_posembed_14to24_extra2_aa1", "new_pos_embed", 1 + 1e-3),
        ("timm_repeataug", "idx_1", 1),
        ("distilled_vit_32p8", "eval_logits", 1 + 1e-7),
        ("distilled_vit_32p8", "grad.pos_embed", 1 + 1e-7),
        ("mixup_target", "target_1", 1 + 1e-4),
        ("lr_cosine_E30_W5", "applied_lr", 1 + 1e-7),
        ("model_ema", "ema.1.running_var", 1 + 1e-8),
        ("model_ema", "ema.1.num_batches_tracked", 1),
        ("cosub_bce", "grad", 1 + 1e-8),
        ("timm_token_12", "kd_loss", 1 + 1e-5),
        ("timm_feature_24", "grad_student_feat", 1 + 1e-5),
        ("timm_logit_05", "teacher_input", 1 + 1e-5),
        ("rasampler", "idx_3", 1),
    ],
)
def test_another_number_fails_and_is_named(tmp_path: Path, case: str, array: str, by: float):
    (outcome,) = run_parity(folder_with(tmp_path / "x", case, change=largest_off(array, by)))
    assert outcome.status == "fail"
    assert array in outcome.reason


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("distloss_02_soft_ce", {"tau": 2.0}),
        ("distloss_07_hard_soft_target", {"alpha": 0.4}),
        ("distloss_06_hard_ls0.1", {"base": "ls0.2"}),
        ("posembed_14to24_extra2_float64", {"antialias": True}),
        ("timm_logit_03", {"resolved": [0.4, 0.8]}),
        ("timm_token_16", {"distill_type": "soft", "temperature": 1.0}),
        ("lr_cosine_E30_W5", {"warmup_lr": 2e-6}),
        ("model_ema", {"decay": 0.8}),
        ("timm_logit_03", {"student_norm": "mean=std=.4"}),
        ("timm_feature_24", {"teacher_norm": "mean=std=.5"}),
        ("distilled_vit_32p8", {"loss": "hard, alpha .4, CE base"}),
        ("distilled_vit_32p8", {"loss": "soft, alpha .5, tau 3, CE base"}),
        ("distilled_vit_32p8", {"loss": "hard, alpha .5, ls0.1 base"}),
    ],
)
def test_the_settings_are_read_from_the_manifest(tmp_path: Path, case: str, settings):
    (outcome,) = run_parity(folder_with(tmp_path / "x", case, **settings))
    assert outcome.status == "fail"


def test_an_array_of_an_unknown_name_is_no_pass(tmp_path: Path):
    def change(arrays):
        arrays["further"] = np.ones(3)

    (outcome,) = run_parity(folder_with(tmp_path / "x", "cosub_bce", change=change))
    assert outcome.status == "fail"
    assert "no 'further' is computed" in outcome.reason


def test_nan_fails(tmp_path: Path):
    (outcome,) = run_parity(folder_with(tmp_path / "x", "cosub_bce", change=largest_off("outputs", float("nan"))))
    assert outcome.status == "fail"


def test_a_group_that_nobody_knows_is_not_implemented(tmp_path: Path):
    folder = folder_with(tmp_path / "x", "cosub_bce")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"id": "cosub_bce"', '"id": "other_01"'))
    (outcome,) = run_parity(folder)
    assert outcome.status == "not implemented"


def test_a_short_epoch_is_declared_only_where_there_is_one(tmp_path: Path):
    def longer(arrays):
        arrays.pop("idx_6")

    cases = [case for entry in ENTRIES if entry["id"] == "rasampler" for case in entry["conventions"]["cases"]]
    kept = [case for case in cases if case["key"] != "idx_6"]
    (outcome,) = run_parity(folder_with(tmp_path / "x", "rasampler", change=longer, cases=kept))
    assert outcome.status == "pass"


def test_missing_and_damaged_files_are_named(tmp_path: Path):
    folder = folder_with(tmp_path / "x", "cosub_bce")
    (folder / "cosub_bce.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"cosub_bce\.npz: is no readable"):
        run_parity(folder)
    (folder / "cosub_bce.npz").unlink()
    with pytest.raises(UserError, match=r"cosub_bce\.npz: no such file"):
        run_parity(folder)
    (folder / "manifest.json").write_text('{"entries": [{"id": "cosub_bce"}]}')
    with pytest.raises(UserError, match="no manifest of DeiT's cases"):
        run_parity(folder)
