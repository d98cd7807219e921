"""The Keras losses: against the authors' numbers, against the torch front, in Keras' own Distiller, with weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("keras")
import keras
from keras_helpers import convolutional, dense, images, softmax, vectors

from understudy.keras import losses as keras_losses
from understudy.keras.parity import run_parity

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"
# Every family that the Keras front promises, by the ids of its recorded cases.
FAMILIES = (
    "kd_", "deit_hard", "logits_", "dkd_", "nkd_", "dist_", "lskd_kd", "lskd_dkd", "wsld_", "at_", "hint_rep", "sp_",
    "rkd_", "pkt_zoo", "cc_zoo", "cwd_mmrazor", "mgd_", "reviewkd_", "kd_seed4", "kd_keras_",
)  # fmt: skip


def test_every_loss_agrees_with_its_authors_in_value_and_gradient():
    outcomes = run_parity(GOLDEN)
    assert [f"{outcome.id}: {outcome.reason}" for outcome in outcomes if outcome.status == "fail"] == []
    passed = [outcome for outcome in outcomes if outcome.status == "pass"]
    for family in FAMILIES:
        assert any(outcome.id.startswith(family) for outcome in passed), family
    assert all(outcome.gradients for outcome in passed if not outcome.id.startswith("pkt_author_supervised"))


def test_parity_notices_a_wrong_loss(monkeypatch, tmp_path):
    from understudy.keras.losses.relational import CC

    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    few = [case for case in manifest["cases"] if case["id"] in ("cc_zoo", "sp_zoo")]
    for case in few:
        shutil.copy(GOLDEN / case["file"], tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "cases": few}))
    true = CC.call
    monkeypatch.setattr(CC, "call", lambda self, student, teacher: 1.001 * true(self, student, teacher))
    wrong = [outcome for outcome in run_parity(tmp_path) if outcome.status == "fail"]
    assert [outcome.id for outcome in wrong] == ["cc_zoo"]
    assert re.search(r"loss is off by 1.0e-03.*gradient student_feat", wrong[0].reason)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("KD", {"temperature": 3.0, "reduction": "mean", "cross_entropy": True}),
        ("KD", {"standardize": True}),
        ("DKD", {"beta": 2.0}),
        ("NKD", {"temperature": 2.0}),
        ("DIST", {"temperature": 2.0}),
        ("WSLD", {}),
        ("HardLabel", {"label_smoothing": 0.1}),
        ("LogitMSE", {}),
    ],
)
def test_losses_on_logits_are_those_of_the_torch_front(name, options):
    torch = pytest.importorskip("torch")
    import understudy as us

    random = np.random.default_rng(1)
    student, teacher = (3 * random.normal(size=(8, 5)).astype("float32") for _ in range(2))
    labels = np.arange(8) % 5
    ours, theirs = getattr(keras_losses, name)(**options), getattr(us.losses, name)(**options)
    needs = {"labels": labels} if ours.needs() else {}
    wanted = theirs(
        torch.tensor(student), torch.tensor(teacher), **{key: torch.tensor(value) for key, value in needs.items()}
    )
    assert float(ours(student, teacher, **needs)) == pytest.approx(wanted.item(), rel=2e-5)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("AT", ((4, 8, 8, 3), (4, 4, 4, 5))),
        ("CWD", ((4, 6, 5, 3), (4, 6, 5, 3))),
        ("SP", ((4, 8, 8, 3), (4, 4, 4, 5))),
        ("RKD", ((4, 7), (4, 9))),
        ("PKT", ((4, 7), (4, 9))),
        ("CC", ((4, 7), (4, 9))),
        ("FeatureRegression", ((4, 7), (4, 7))),
    ],
)
def test_losses_on_features_are_those_of_the_torch_front_with_channels_last(name, shapes):
    torch = pytest.importorskip("torch")
    import understudy as us

    random = np.random.default_rng(2)
    sides = [random.normal(size=shape).astype("float32") for shape in shapes]
    first = [torch.tensor(side.transpose(0, 3, 1, 2) if side.ndim == 4 else side) for side in sides]
    wanted = getattr(us.losses, name)()(*first).item()
    assert float(getattr(keras_losses, name)()(*sides)) == pytest.approx(wanted, rel=1e-4)


def test_options_have_the_names_and_defaults_of_the_torch_front():
    from understudy.keras.methods import known_losses
    from understudy.losses.table import LOSSES
    from understudy.recipe.signature import options

    assert set(known_losses()) >= {
        "kd", "hard", "logits", "dkd", "nkd", "dist", "lskd", "wsld", "at", "fitnet", "sp", "rkd", "pkt", "cc", "cwd",
        "mgd", "reviewkd",
    }  # fmt: skip
    for loss in known_losses():
        theirs = set(options(LOSSES[loss].module, LOSSES[loss].class_name))
        assert set(getattr(keras_losses, LOSSES[loss].class_name).options()) - {"data_format"} == theirs, loss


def test_sample_weights_multiply_each_samples_share():
    random = np.random.default_rng(3)
    student, teacher = random.normal(size=(2, 6, 4)).astype("float32")
    weight = np.array([1, 0, 2, 0.5, 1, 3], "float32")
    p, q = softmax(teacher / 2), softmax(student / 2)
    per_sample = 4 * (p * np.log(p / q)).sum(-1)
    value = keras_losses.KD(temperature=2.0)(student, teacher, sample_weight=weight)
    assert float(value) == pytest.approx((weight * per_sample).mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["KD", "DKD", "NKD", "WSLD", "HardLabel", "LogitMSE", "DIST", "FeatureRegression"])
def test_a_sample_of_weight_zero_changes_nothing(name):
    random = np.random.default_rng(4)
    student, teacher = random.normal(size=(2, 6, 4)).astype("float32")
    weight = np.array([1, 1, 1, 1, 1, 0], "float32")
    loss = getattr(keras_losses, name)()
    labels = {"labels": np.arange(6) % 4} if loss.needs() else {}
    value = float(loss(student, teacher, sample_weight=weight, **labels))
    student[5] = 9 * random.normal(size=4)
    assert float(loss(student, teacher, sample_weight=weight, **labels)) == pytest.approx(value, rel=1e-5)


def test_losses_stay_finite_in_half_precision_and_for_huge_logits():
    student, teacher = np.array([[1e4, -1e4, 0]], "float16"), np.array([[-1e4, 1e4, 0]], "float16")
    for loss in (keras_losses.KD(), keras_losses.DKD(), keras_losses.NKD(), keras_losses.DIST()):
        labels = {"labels": np.array([0])} if loss.needs() else {}
        value = loss(keras.ops.convert_to_tensor(student), keras.ops.convert_to_tensor(teacher), **labels)
        assert np.isfinite(float(value)), loss.name
        assert keras.backend.standardize_dtype(value.dtype) == "float32"


def test_losses_survive_their_configuration():
    loss = keras_losses.DKD(temperature=3.0, beta=2.0)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert (again.temperature, again.alpha, again.beta) == (3.0, 1.0, 2.0)


def test_kd_works_in_keras_own_distiller():
    x, y = vectors()
    student, teacher = dense(4), dense(16)
    distiller = keras.distillation.Distiller(
        teacher, student, keras_losses.KD(temperature=4.0), student_loss_weight=0.0
    )
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher_logits, student_logits = teacher.predict(x, verbose=0), student.predict(x, verbose=0)
    p, q = softmax(teacher_logits / 4), softmax(student_logits / 4)
    logs = distiller.evaluate(x, y, batch_size=48, verbose=0, return_dict=True)
    assert logs["distillation_loss"] == pytest.approx(16 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-4)


def test_a_regressor_is_trained_in_keras_own_distiller():
    x, y = images()
    loss = keras_losses.FitNet(student_layer_name="second", teacher_layer_name="second")
    distiller = keras.distillation.Distiller(convolutional((4, 6)), convolutional((2, 3)), loss)
    before = keras.ops.convert_to_numpy(loss.regressors[0].conv.kernel).copy()
    distiller.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(x, y, verbose=0)
    assert not np.array_equal(before, keras.ops.convert_to_numpy(loss.regressors[0].conv.kernel))


def test_a_loss_with_labels_says_that_keras_own_distiller_has_none():
    with pytest.raises(ValueError, match=r"DKD needs labels.*use understudy.keras.Distiller"):
        keras.distillation.Distiller(dense(4), dense(4), keras_losses.DKD())
