"""Our losses against the authors' numbers, and that a wrong number does not pass."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy.cli import main
from understudy.errors import UserError
from understudy.parity import run_parity
from understudy.parity.recorded import load, recorded_draws
from understudy.parity.table import CASES, DIFFERENCES, Difference

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
ENTRIES = {entry["id"]: entry for entry in MANIFEST["cases"]}
IDS = {name.split("__v")[0] for name in ENTRIES}
TOLERANCE = ENTRIES["kd_zoo_softtarget"]["tolerance"]


@pytest.fixture(scope="module")
def outcomes():
    return {outcome.id: outcome for outcome in run_parity(GOLDEN)}


def write_folder(folder, *cases):
    """A folder of cases, each (entry of the manifest, arrays)."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry, arrays in cases:
        np.savez(folder / entry["file"], **arrays)
    (folder / "manifest.json").write_text(json.dumps({"cases": [entry for entry, _ in cases]}))
    return folder


def recorded(name):
    """An entry of the shipped manifest and its arrays, to be changed."""
    with np.load(GOLDEN / ENTRIES[name]["file"]) as arrays:
        return json.loads(json.dumps(ENTRIES[name])), dict(arrays)


def only_outcome(folder, entry, arrays):
    (outcome,) = run_parity(write_folder(folder, (entry, arrays)))
    return outcome


# The shipped cases


def test_every_case_is_listed_in_the_order_of_the_manifest(outcomes):
    assert list(outcomes) == list(ENTRIES)


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.split("__v")[0] in CASES])
def test_case_passes(outcomes, name):
    outcome = outcomes[name]
    assert outcome.status in ("pass", "declared difference"), outcome.reason
    assert outcome.error is None or outcome.error <= 10 * ENTRIES[name]["tolerance"]["loss_rtol"]


def test_hinton_logits_and_deit_are_all_computed(outcomes):
    families = {name: outcome for name, outcome in outcomes.items() if name.startswith(("kd_", "logits_", "deit_"))}
    counts = Counter(outcome.status for outcome in families.values())
    assert counts == {"pass": 24, "declared difference": 1}
    for name, outcome in families.items():
        recorded_gradients = [key for key in ENTRIES[name]["shapes"] if key.startswith("grad_")]
        assert ["grad_" + key for key in outcome.gradients] == recorded_gradients


def test_the_rest_is_said_not_to_be_implemented(outcomes):
    for name, outcome in outcomes.items():
        if name.split("__v")[0] not in CASES | DIFFERENCES:
            assert (outcome.status, outcome.error, outcome.gradients) == ("not implemented", None, {})


def test_the_tables_name_cases_that_exist():
    assert CASES.keys() <= IDS
    assert DIFFERENCES.keys() <= IDS


def test_the_defect_of_the_keras_default_is_understood(outcomes):
    outcome = outcomes["kd_keras_logitsdistillation_default"]
    assert outcome.status == "declared difference"
    assert outcome.error is not None
    assert outcome.error < 1e-6
    assert "raw logits" in outcome.reason


def test_a_declared_difference_whose_rewrite_misses_the_record_fails(tmp_path):
    entry, arrays = recorded("kd_keras_logitsdistillation_default")
    arrays["out_loss"] *= 1.01
    assert only_outcome(tmp_path, entry, arrays).status == "fail"


def test_a_declared_difference_may_have_only_a_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(DIFFERENCES, "sp_rep", Difference("on purpose"))
    monkeypatch.delitem(CASES, "sp_rep", raising=False)
    outcome = only_outcome(tmp_path, *recorded("sp_rep"))
    assert (outcome.status, outcome.reason, outcome.error) == ("declared difference", "on purpose", None)


def other_keras(*, error=0.0):
    """Probabilities down to 1e-30, by Keras's formula and its derivative."""
    student, teacher = draw(5, 7, seed=12), draw(5, 7, seed=13)
    student[:, 0], teacher[:, 0] = -70.0, 0.0
    of_student, of_teacher = softmax(student), softmax(teacher)
    clipped = [np.maximum(each, 1e-7) for each in (of_student, of_teacher)]
    slope = np.where(of_student >= 1e-7, -clipped[1] / clipped[0], 0.0)
    gradient = of_student * (slope - (slope * of_student).sum(axis=1, keepdims=True)) / len(student)
    loss = (clipped[1] * np.log(clipped[1] / clipped[0])).sum() / len(student)
    arrays = {"input_student_logits": student, "input_teacher_logits": teacher}
    arrays |= {"out_loss": np.array(loss * (1 + error)), "grad_student_logits": gradient}
    return entry_of("kd_keras_logitsdistillation_instance", temperature=1.0), arrays


def test_where_keras_clips_the_difference_is_declared(tmp_path):
    outcome = only_outcome(tmp_path, *other_keras())
    assert outcome.status == "declared difference", outcome
    assert "1e-7" in outcome.reason


def test_a_declared_difference_excuses_no_other_error(tmp_path):
    outcome = only_outcome(tmp_path, *other_keras(error=0.01))
    assert outcome.status == "fail"
    assert outcome.error is not None


# Wrong numbers


@pytest.mark.parametrize("name", ["kd_zoo_softtarget", "kd_keras_distiller", "deit_soft", "logits_zoo"])
def test_a_scaled_loss_fails(tmp_path, name):
    entry, arrays = recorded(name)
    arrays["out_loss"] = arrays["out_loss"] * (1 + 100 * entry["tolerance"]["loss_rtol"])
    outcome = only_outcome(tmp_path, entry, arrays)
    assert outcome.status == "fail"
    assert outcome.reason.startswith("loss is off by")
    assert outcome.error == pytest.approx(100 * entry["tolerance"]["loss_rtol"], rel=0.05)


@pytest.mark.parametrize("name", ["kd_zoo_softtarget", "kd_keras_distiller", "deit_hard__v2", "logits_zoo"])
def test_a_flipped_gradient_fails(tmp_path, name):
    entry, arrays = recorded(name)
    gradient = next(key for key in arrays if key.startswith("grad_"))
    arrays[gradient][0, 0] *= -1
    outcome = only_outcome(tmp_path, entry, arrays)
    assert outcome.status == "fail"
    assert f"gradient {gradient.removeprefix('grad_')} is off by" in outcome.reason


def test_a_gradient_where_there_should_be_none_fails(tmp_path):
    entry, arrays = recorded("deit_seed3__v3")
    arrays["grad_student_dist_logits"][0, 0] = 1e-3
    assert only_outcome(tmp_path, entry, arrays).status == "fail"


@pytest.mark.parametrize("array", ["out_hard_weight", "out_loss"])
def test_nan_in_the_record_fails(tmp_path, array):
    entry, arrays = recorded("kd_clskd_ce")
    arrays[array] = np.array(np.nan)
    assert only_outcome(tmp_path, entry, arrays).status == "fail"


def test_every_output_is_compared(tmp_path):
    entry, arrays = recorded("kd_clskd_ce")
    arrays["out_hard_weight"] = arrays["out_hard_weight"] + 1e-6
    assert "output hard_weight is off by" in only_outcome(tmp_path, entry, arrays).reason


def test_an_output_that_we_do_not_compute_fails(tmp_path):
    entry, arrays = recorded("kd_zoo_softtarget")
    outcome = only_outcome(tmp_path, entry, arrays | {"out_part": np.array(1.0)})
    assert outcome.status == "fail"
    assert "no output 'part'" in outcome.reason


@pytest.mark.parametrize("settings", [{"T": 4.001}, {}, {"T": -1}])
def test_settings_that_are_wrong_or_missing_fail_that_case_alone(tmp_path, settings):
    entry, arrays = recorded("kd_zoo_softtarget")
    entry["hyperparameters"] = settings
    other = recorded("logits_zoo")
    assert [outcome.status for outcome in run_parity(write_folder(tmp_path, (entry, arrays), other))] == [
        "fail",
        "pass",
    ]


def test_what_is_only_right_in_float64_fails(tmp_path, monkeypatch):
    def cancelling(inputs, settings, weights):
        return {"loss": (((inputs["student_logits"] + 1e4) - (inputs["teacher_logits"] + 1e4)) ** 2).mean()}

    monkeypatch.setitem(CASES, "logits_zoo", cancelling)
    entry, arrays = recorded("logits_zoo")
    outcome = only_outcome(tmp_path / "strict", entry, arrays)
    assert outcome.status == "fail"
    assert "in float32" in outcome.reason
    del entry["tolerance"]["float32_loss_rtol"], entry["tolerance"]["float32_grad_rtol_of_max"]
    assert only_outcome(tmp_path / "lenient", entry, arrays).status == "pass"


# Another folder: other seeds, shapes and settings, from formulas written anew


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def divergence(student, teacher, temperature):
    """KL summed over classes and samples, and its gradient."""
    of_student, of_teacher = softmax(student / temperature), softmax(teacher / temperature)
    return (of_teacher * np.log(of_teacher / of_student)).sum(), (of_student - of_teacher) / temperature


def cross_entropy(student, targets):
    """The mean over samples, and its gradient."""
    of_student = softmax(student)
    return -(targets * np.log(of_student)).sum() / len(student), (of_student - targets) / len(student)


def draw(*shape, seed):
    return 3 * np.random.default_rng(seed).standard_normal(shape)


def entry_of(name, method="any", **hyperparameters):
    file = f"other_{name}.npz"
    return {"id": name, "file": file, "method": method, "hyperparameters": hyperparameters, "tolerance": TOLERANCE}


def other_kd(name="kd_zoo_softtarget", *, temperature=2.5, seed=0):
    student, teacher = draw(5, 7, seed=seed), draw(5, 7, seed=seed + 1)
    value, gradient = divergence(student, teacher, temperature)
    scale = temperature**2 / len(student)
    arrays = {"input_student_logits": student, "input_teacher_logits": teacher}
    arrays |= {"out_loss": np.array(scale * value), "grad_student_logits": scale * gradient}
    return entry_of(name, T=temperature), arrays


def other_mmrazor(reduction):
    student, teacher = draw(3, 4, 2, 5, seed=2), draw(3, 4, 2, 5, seed=3)
    temperature, weight = 1.7, 0.3
    value, gradient = divergence(student, teacher, temperature)
    scale = weight * temperature**2 / {"batchmean": len(student), "mean": student.size, "sum": 1}[reduction]
    arrays = {"input_student_logits": student, "input_teacher_logits": teacher}
    arrays |= {"out_loss": np.array(scale * value), "grad_student_logits": scale * gradient}
    return entry_of("kd_mmrazor_kl__v7", tau=temperature, reduction=reduction, loss_weight=weight), arrays


def other_deit(base, *, alpha=0.3, temperature=1.9):
    of_class, of_teacher_head, teacher = (draw(6, 4, seed=seed) for seed in (4, 5, 6))
    labels = np.random.default_rng(7).integers(4, size=6)
    targets = np.eye(4)[labels]
    arrays = {"input_labels": labels}
    if base == "smooth":
        targets = 0.9 * targets + 0.1 / 4
    if base == "soft":
        targets = softmax(draw(6, 4, seed=8))
        arrays = {"input_soft_labels": targets}
    hard, hard_gradient = cross_entropy(of_class, targets)
    soft, soft_gradient = divergence(of_teacher_head, teacher, temperature)
    scale = alpha * temperature**2 / teacher.size
    arrays |= {"input_student_cls_logits": of_class, "input_student_dist_logits": of_teacher_head}
    arrays |= {"input_teacher_logits": teacher, "out_loss": np.array((1 - alpha) * hard + scale * soft)}
    arrays |= {"grad_student_cls_logits": (1 - alpha) * hard_gradient}
    arrays |= {"grad_student_dist_logits": scale * soft_gradient}
    return entry_of(f"deit_soft__v{len(base)}", alpha=alpha, tau=temperature, base=base), arrays


def other_seed_0():
    student, teacher, temperature, alpha = draw(9, 3, seed=9), draw(9, 3, seed=10), 5.0, 0.8
    labels = np.random.default_rng(11).integers(3, size=9)
    hard, hard_gradient = cross_entropy(student, np.eye(3)[labels])
    soft, soft_gradient = divergence(student, teacher, temperature)
    scale = 2 * alpha * temperature**2 / student.size
    arrays = {"input_student_logits": student, "input_teacher_logits": teacher, "input_labels": labels}
    arrays |= {"out_loss": np.array(scale * soft + (1 - alpha) * hard)}
    arrays |= {"grad_student_logits": scale * soft_gradient + (1 - alpha) * hard_gradient}
    return entry_of("kd_seed0_function", temp=temperature, alpha=alpha), arrays


def test_another_folder_is_read_from_its_own_manifest(tmp_path):
    cases = [
        other_kd(),
        other_kd("kd_mdistiller__v9", temperature=20.0, seed=5),
        *map(other_mmrazor, ("batchmean", "mean", "sum")),
        *map(other_deit, ("ce", "soft", "smooth")),
        other_seed_0(),
    ]
    for number, (entry, _) in enumerate(cases):
        entry["file"] = f"{number}.npz"
    for outcome in run_parity(write_folder(tmp_path, *cases)):
        assert outcome.status == "pass", outcome


def test_a_temperature_of_the_shipped_folder_is_not_assumed(tmp_path):
    entry, arrays = other_kd()
    entry["hyperparameters"] = ENTRIES["kd_zoo_softtarget"]["hyperparameters"]
    assert only_outcome(tmp_path, entry, arrays).status == "fail"


def test_the_tolerance_is_that_of_the_manifest(tmp_path):
    entry, arrays = other_kd()
    arrays["out_loss"] = arrays["out_loss"] * (1 + 1e-6)
    assert only_outcome(tmp_path / "strict", entry, arrays).status == "fail"
    entry["tolerance"] = {**TOLERANCE, "loss_rtol": 1e-6}
    assert only_outcome(tmp_path / "wide", entry, arrays).status == "pass"


# What the families to come will need: adapters, buffers, random draws


class ConvRegressor(nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.conv = nn.Conv2d(student, teacher, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(teacher)

    def forward(self, maps):
        return self.norm(self.conv(maps)).relu()


def hint(inputs, settings, weights):
    rename = {key: key.replace("bn.", "norm.") for key in weights["convreg"]}
    adapter = load(ConvRegressor(settings["s"][1], settings["t"][1]), weights["convreg"], rename=rename)
    return {"loss": F.mse_loss(adapter(inputs["student_feat"]), inputs["teacher_feat"])}


def masked_generation(inputs, settings, weights):
    channels = settings["t"][1]
    layers = {"align": nn.Conv2d(settings["s"][1], channels, 1)}
    generation = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
    layers["generation"] = nn.Sequential(generation[0], nn.ReLU(), generation[1])
    modules = load(nn.ModuleDict(layers), weights["mgd"])
    aligned = modules["align"](inputs["student_feat"])
    with recorded_draws(inputs):
        draws = torch.rand(len(aligned), 1, *aligned.shape[2:], dtype=aligned.dtype)
    made = modules["generation"](aligned * (draws <= 1 - settings["lambda_mgd"]))
    loss = F.mse_loss(made, inputs["teacher_feat"], reduction="sum") / len(made)
    return {"loss": settings["alpha_mgd"] * loss}


def test_weights_gradients_and_buffers_of_an_adapter_are_compared(tmp_path, monkeypatch):
    monkeypatch.setitem(CASES, "hint_rep_convreg", hint)
    entry, arrays = recorded("hint_rep_convreg")
    outcome = only_outcome(tmp_path / "right", entry, arrays)
    assert outcome.status == "pass", outcome.reason
    assert outcome.gradients.keys() >= {"student_feat", "convreg.conv.weight", "convreg.bn.bias"}
    assert max(outcome.gradients.values()) < 1e-9
    arrays["after_convreg.bn.running_var"][0] *= 1.001
    arrays["gradparam_convreg.conv.weight"][0] *= -1
    reason = only_outcome(tmp_path / "wrong", entry, arrays).reason
    assert "gradient convreg.conv.weight" in reason
    assert "buffer convreg.bn.running_var" in reason


def test_a_gradient_that_is_zero_but_for_rounding_is_measured_against_the_largest(tmp_path, monkeypatch):
    monkeypatch.setitem(CASES, "hint_rep_convreg", hint)
    entry, arrays = recorded("hint_rep_convreg")
    # The bias of a convolution before a batch norm.
    assert 0 < np.abs(arrays["gradparam_convreg.conv.bias"]).max() < 1e-12
    assert only_outcome(tmp_path, entry, arrays).gradients["convreg.conv.bias"] < 1e-12


def test_random_draws_are_those_of_the_original(tmp_path, monkeypatch):
    monkeypatch.setitem(CASES, "mgd_author_det", masked_generation)
    outcome = only_outcome(tmp_path, *recorded("mgd_author_det"))
    assert outcome.status == "pass", outcome.reason
    assert len(outcome.gradients) == 7


def test_draws_that_the_original_did_not_make_are_refused():
    inputs = {"rand_0": torch.tensor([0.25, 0.75])}
    with recorded_draws(inputs):
        assert torch.equal(torch.rand(2), inputs["rand_0"])
        with pytest.raises(ValueError, match="draws once more"):
            torch.rand(2)
    with recorded_draws(inputs), pytest.raises(ValueError, match=r"draws \(3,\), the original \(2,\)"):
        torch.rand(3)


# Damaged folders


def no_folder(folder):
    shutil.rmtree(folder)


def no_json(folder):
    (folder / "manifest.json").write_text("{")


def no_cases(folder):
    (folder / "manifest.json").write_text('{"cases": []}')


def another_manifest(folder):
    (folder / "manifest.json").write_text('{"entries": []}')


def no_tolerance(folder):
    (folder / "manifest.json").write_text('{"cases": [{"id": "a", "file": "a.npz", "tolerance": {}}]}')


def a_file_outside(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][0]["file"] = "../logits_zoo.npz"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def no_arrays(folder):
    (folder / "logits_zoo.npz").unlink()


def cut_short(folder):
    path = folder / "logits_zoo.npz"
    path.write_bytes(path.read_bytes()[:-200])


def not_zipped(folder):
    (folder / "logits_zoo.npz").write_bytes(b"nothing of the kind")


def one_bit_flipped(folder):
    path = folder / "logits_zoo.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def pickled(folder):
    np.savez(folder / "logits_zoo.npz", input_student_logits=np.array([{}], dtype=object))


def an_array_missing(folder):
    _, arrays = recorded("logits_zoo")
    del arrays["grad_student_logits"]
    np.savez(folder / "logits_zoo.npz", **arrays)


def an_input_missing(folder):
    entry, arrays = recorded("logits_zoo")
    del arrays["input_student_logits"], entry["shapes"]
    write_folder(folder, (entry, arrays))


DAMAGES = {
    no_folder: "manifest.json: no such file",
    no_json: "manifest.json: is no manifest of recorded losses: Expecting",
    no_cases: "manifest.json: names no case",
    another_manifest: "manifest.json: names no case",
    no_tolerance: "cases.0.tolerance.loss_rtol: Field required",
    a_file_outside: "case logits_zoo names a file outside the folder",
    no_arrays: "logits_zoo.npz: no such file, though the manifest names it",
    cut_short: "logits_zoo.npz: is no readable .npz file",
    not_zipped: "logits_zoo.npz: is no readable .npz file",
    one_bit_flipped: "logits_zoo.npz: is no readable .npz file",
    pickled: "logits_zoo.npz: is no readable .npz file",
    an_array_missing: "logits_zoo.npz: lacks grad_student_logits",
    an_input_missing: "holds a gradient of student_logits but not the value",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_said_in_one_line(tmp_path, damage):
    folder = write_folder(tmp_path / "cases", recorded("logits_zoo"))
    damage(folder)
    with pytest.raises(UserError) as refused:
        run_parity(folder)
    message = str(refused.value)
    assert DAMAGES[damage] in message
    assert "\n" not in message
    assert len(message) < 400


def test_the_folder_above_names_the_folders_below():
    with pytest.raises(UserError, match=r"try .*losses"):
        run_parity(GOLDEN.parent)


# The command


def test_the_command_prints_a_row_a_case_and_writes_the_same(tmp_path, capsys):
    json_file = tmp_path / "parity.json"
    assert main(["parity", str(GOLDEN), "--json", str(json_file)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(json_file.read_text())
    assert [row["id"] for row in written] == list(ENTRIES)
    for row in written:
        assert row["id"] in printed
        assert {"id", "method", "status", "error", "gradients", "reason"} <= row.keys()
        assert row["error"] is None or isinstance(row["error"], float)
    assert "130 cases" in printed
    assert "0 fail" in printed


def test_the_command_ends_with_1_when_a_case_fails(tmp_path, capsys):
    entry, arrays = recorded("kd_zoo_softtarget")
    arrays["out_loss"] = np.array(np.nan)
    folder = write_folder(tmp_path / "cases", (entry, arrays), recorded("logits_zoo"))
    assert main(["parity", str(folder), "--json", str(tmp_path / "parity.json")]) == 1
    printed = capsys.readouterr().out
    assert "2 cases: 1 pass, 1 fail" in printed
    assert "loss is off by nan" in printed
    failed, passed = json.loads((tmp_path / "parity.json").read_text())
    assert (failed["status"], failed["error"], passed["status"]) == ("fail", None, "pass")


def test_a_file_that_cannot_be_written_is_said(tmp_path, capsys):
    folder = write_folder(tmp_path / "cases", recorded("logits_zoo"))
    assert main(["parity", str(folder), "--json", str(tmp_path / "nowhere" / "parity.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
