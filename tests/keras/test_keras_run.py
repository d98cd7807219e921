"""Runs of the task `keras`: the same folder, table and result as every other run, from Python and from a recipe."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("keras")
import keras
from keras_helpers import dense, same_weights, vectors

import understudy as us
from understudy.errors import Interrupted, UserError
from understudy.keras import compare, distill
from understudy.recipe.reader import Source, build_recipe, read_recipe


def clusters(samples=240):
    """Three classes that a small network learns in a few epochs."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, samples)
    return (random.normal(size=(samples, 6)) + 1.5 * np.eye(6)[y]).astype("float32"), y


def test_distill_gives_the_result_that_every_run_gives(tmp_path):
    x, y = clusters()
    teacher = dense(32)
    before = [w.copy() for w in teacher.get_weights()]
    result = distill(
        teacher=teacher, student=lambda: dense(4), x=x, y=y, method="kd:seed-004", epochs=2, seeds=2,
        out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert same_weights(before, teacher)
    assert [row["model"] for row in result.table] == ["teacher", "student_alone", "student_distilled"]
    assert result.results["verdict"]["seeds"] == 2
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert set(result.history) == {
        f"{name}/seed-{seed}" for name in ("student_alone", "student_distilled") for seed in (0, 1)
    }
    scored = result.results["models"]["student_distilled"]["metrics"]["accuracy"]["seeds"][0]["last"]
    held_out = np.random.default_rng(0).permutation(len(x))[: len(x) // 5]
    predicted = result.student.predict(x[held_out], verbose=0).argmax(-1)
    assert (predicted == y[held_out]).mean() == pytest.approx(scored)
    assert result.results["models"]["student_alone"]["parameters"] == 6 * 4 + 4 + 4 * 3 + 3
    assert result.results["models"]["student_alone"]["macs"] == 6 * 4 + 4 * 3


def test_students_of_a_seed_start_alike_and_see_the_same_batches(tmp_path):
    x, y = clusters()
    result = distill(
        teacher=dense(8), student=lambda: dense(4), x=x, y=y, method={"name": "kd", "labels": 1.0, "weight": 0.0},
        epochs=2, seeds=1, out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    alone, distilled = (
        keras.saving.load_model(tmp_path / "run" / "arms" / name / "seed-0" / "student" / "model.keras", compile=False)
        for name in ("student_alone", "student_distilled")
    )
    assert (
        result.results["models"]["student_alone"]["metrics"] == result.results["models"]["student_distilled"]["metrics"]
    )
    for one, other in zip(alone.get_weights(), distilled.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_compare_gives_a_verdict_for_each_method(tmp_path):
    x, y = clusters()
    result = compare(
        methods=["kd", "dkd"], teacher=lambda: dense(32), student=lambda: dense(4), x=x, y=y, epochs=1, seeds=2,
        out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert set(result.results["verdicts"]) == {"student_kd", "student_dkd"}
    assert result.results["models"]["teacher"]["metrics"]["accuracy"]["seeds"][0]["at"].keys() == {"1"}


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(tmp_path):
    x, y = clusters()
    make = {"teacher": dense(8), "student": lambda: dense(4)}
    distill(**make, x=x, y=y, epochs=1, seeds=2, out=tmp_path / "run", quiet=True)
    whole = json.loads((tmp_path / "run" / "results.json").read_text())["models"]["student_distilled"]["metrics"]
    saved = tmp_path / "run" / "arms" / "student_alone" / "seed-0" / "student" / "model.keras"
    written = saved.stat().st_mtime_ns
    (tmp_path / "run" / "results.json").unlink()
    stages = tmp_path / "run" / "stages.json"
    stages.write_text(json.dumps({"finished": json.loads(stages.read_text())["finished"][:-1]}))
    result = us.resume(tmp_path / "run", **make, data=(x, y), quiet=True)
    assert result.results["models"]["student_distilled"]["metrics"] == whole
    assert saved.stat().st_mtime_ns == written


def test_a_signal_says_what_was_kept_of_a_keras_run(tmp_path):
    x, y = clusters()

    class Interrupting(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    student = dense(4)
    fit = student.fit
    student.fit = lambda *args, callbacks, **how: fit(*args, callbacks=[Interrupting(), *callbacks], **how)
    with pytest.raises(
        Interrupted, match=r"stopped by signal 15; finished models are kept, student_alone-0 begins anew"
    ):
        distill(teacher=dense(8), student=lambda: student, x=x, y=y, epochs=1, out=tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "stages.json").read_text())["finished"] == ["teacher"]


def test_data_sets_are_taken_with_a_test_set(tmp_path):
    x, y = clusters()

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return x[40 * index : 40 * index + 40], y[40 * index : 40 * index + 40]

    models = {"teacher": dense(8), "student": lambda: dense(4)}
    with pytest.raises(UserError, match="a data set cannot be divided: give test="):
        distill(**models, x=Batches(), quiet=True)
    result = distill(**models, x=Batches(), test=(x, y), epochs=1, seeds=1, out=tmp_path / "run", quiet=True)
    assert result.results["verdict"]["outcome"] == "untested"


def test_wrong_input_is_found_before_a_folder_is_made(tmp_path):
    x, y = vectors()
    with pytest.raises(UserError, match=r"the teacher gives \(4,\)"):
        distill(teacher=dense(8, classes=4), student=lambda: dense(4), x=x, y=y, out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="'crd' has no Keras form"):
        distill(teacher=dense(8), student=lambda: dense(4), x=x, y=y, method="crd", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_model_that_could_not_be_loaded_again_is_refused_before_it_is_trained(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3)

        def build(self, shape):
            self.head.build(shape)

        def call(self, inputs):
            return self.head(inputs)

    def make():
        model = Own()
        model.build((None, 6))
        return model

    x, y = vectors()
    with pytest.raises(UserError, match=r"student: 'own.*register_keras_serializable"):
        distill(teacher=dense(8), student=make, x=x, y=y, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "minst"}, r"data.name: unknown data set 'minst', did you mean 'mnist'"),
        ({"student": "strided-cn"}, r"student.name: unknown model 'strided-cn', did you mean 'strided-cnn'"),
        ({"teacher": "none.keras"}, r"teacher.name: there is no file 'none.keras'"),
        ({"method": "nst"}, r"method: 'nst' has no Keras form, known: at, "),
        ({"method": {"name": "kd", "temperatur": 3}}, r"unknown option of 'kd', did you mean 'temperature'"),
        ({"train": {"backend": "numpy"}}, r"train.backend"),
        ({"train": {"device": "cpu"}}, r"train.device: is the backend's own affair"),
    ],
)
def test_recipes_are_checked_in_one_line(change, message):
    plain = {"name": "r", "task": "keras", "data": "digits", "teacher": "mlp", "student": "mlp", "method": "kd"}
    with pytest.raises(UserError, match=message):
        build_recipe(Source("recipe", {**plain, **change}))


def test_the_shipped_recipe_is_the_articles():
    recipe = read_recipe("keras-seed-004")
    (method,) = recipe.method
    assert (method.labels, method.objectives[0].options["temperature"]) == (0.1, 10)
    assert (recipe.teacher.widths, recipe.student.widths) == ((256, 512), (16, 32))
    assert (recipe.teacher_train.epochs, recipe.train.epochs) == (5, 3)


def _python(code, backend, **more):
    environment = {**os.environ, "KERAS_BACKEND": backend, **more}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)


def test_neither_torch_nor_keras_is_imported_before_it_is_needed():
    code = """
import sys
import understudy
assert "keras" not in sys.modules and "torch" not in sys.modules
from understudy.recipe.reader import read_recipe
read_recipe("keras-seed-004")
import understudy.keras
assert "keras" not in sys.modules and "torch" not in sys.modules
"""
    done = _python(code, "torch")
    assert done.returncode == 0, done.stderr


def test_a_recipe_chooses_the_backend_before_keras_is_imported(tmp_path):
    code = """
import os, sys
os.environ.pop("KERAS_BACKEND")
from understudy.tasks.keras import run
from understudy.tasks.keras.recipe import KerasTrain
assert "keras" not in sys.modules
with run.machine(KerasTrain(backend="torch")) as facts:
    assert facts["backend"] == "torch"
from understudy.errors import Interrupted, UserError
try:
    with run.machine(KerasTrain(backend="jax")):
        raise SystemExit("another backend was accepted")
except UserError as error:
    assert "KERAS_BACKEND=jax" in str(error)
"""
    done = _python(code, "torch", KERAS_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_a_run_on_another_backend_imports_no_torch(backend, tmp_path):
    pytest.importorskip(backend)
    code = f"""
import sys, numpy as np, understudy as us
import keras
def model(width): return keras.Sequential([keras.Input((6,)), keras.layers.Dense(width), keras.layers.Dense(3)])
x, y = np.random.rand(60, 6).astype("float32"), np.random.randint(0, 3, 60)
from understudy.keras import distill
result = distill(teacher=model(8), student=lambda: model(4), x=x, y=y, method="kd+rkd", epochs=1, seeds=1,
                 out={str(tmp_path / "run")!r}, quiet=True)
result.student.predict(x, verbose=0)
assert keras.backend.backend() == {backend!r} and "torch" not in sys.modules
"""
    done = _python(code, backend)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_everything_holds_on_the_other_backends(backend):
    pytest.importorskip(backend)
    files = [f"{os.path.dirname(__file__)}/test_keras_{part}.py" for part in ("losses", "distiller")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
