"""The Python front door: objects in place of names, results in hand."""

import ast
import copy
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import understudy as us
from understudy.errors import Interrupted
from understudy.run import measure
from understudy.run import start as engine
from understudy.train import loop

torch.set_num_threads(1)  # small steps: two threads would mostly wait for each other
FAST = {"epochs": 2, "batch_size": 32, "lr": 0.01}
MLP = {"name": "mlp", "hidden": [6]}


class Net(nn.Module):
    """A student of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.body(images))


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "latency", lambda *_: 1.0)
    monkeypatch.setattr(engine, "write_report", lambda folder: folder)


@pytest.fixture
def data():
    """Three classes of 4x4 images that a linear layer can tell apart."""
    random = np.random.default_rng(0)
    labels = np.arange(150) % 3
    images = random.normal(0, 0.3, (150, 1, 4, 4)).astype(np.float32)
    images[np.arange(150), 0, labels] += 1
    return images, labels


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    return Net()


def test_distill_takes_a_module_a_class_and_arrays(data, teacher, capsys):
    before = copy.deepcopy(teacher.state_dict())
    result = us.distill(teacher=teacher, student=Net, data=data, seeds=2, **FAST)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert result.folder == Path("runs/distill/1")
    assert isinstance(result.student, Net)
    assert isinstance(result.teacher, Net)
    assert not result.student.training
    assert torch.equal(result.teacher.state_dict()["head.weight"], before["head.weight"])
    assert [row["model"] for row in result.table] == ["teacher", "student_alone", "student_distilled"]
    assert set(result.history) == {
        f"{arm}/seed-{seed}" for arm in ("student_alone", "student_distilled") for seed in (0, 1)
    }
    assert [row["epoch"] for row in result.history["student_alone/seed-0"] if row["kind"] == "eval"] == [1, 2]
    assert result.verdict == result.results["verdict"]["text"]
    assert result.verdict in capsys.readouterr().out
    assert "python:Net" in (result.folder / "recipe.yaml").read_text()
    assert any("given as a module" in note for note in result.results["notes"])


def test_a_result_is_shown_in_a_notebook_and_in_print(data):
    result = us.distill(teacher=MLP, student=MLP, data=data, seeds=1, quiet=True, **FAST)
    html = result._repr_html_()
    assert "student_distilled" in html
    assert result.verdict in html
    assert "<script" not in html
    assert "student_distilled" in str(result)
    assert str(result).endswith(str(result.folder))
    assert len(repr(result)) < 200


def test_a_module_student_is_copied_and_every_seed_starts_from_it(data):
    student = Net()
    before = copy.deepcopy(student.state_dict())
    us.distill(teacher=MLP, student=student, data=data, seeds=1, quiet=True, **FAST)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_quiet_prints_nothing(data, capsys):
    us.distill(teacher=MLP, student=MLP, data=data, seeds=1, quiet=True, **FAST)
    assert capsys.readouterr() == ("", "")


def test_several_methods_a_dataset_and_no_control(data):
    images, labels = map(torch.as_tensor, data)
    dataset = torch.utils.data.TensorDataset(images, labels)
    parts = {"train": dataset, "test": (images[:30], labels[:30]), "classes": ["a", "b", "c"]}
    result = us.distill(
        teacher=Net, student=Net, data=parts, method=["kd", {"name": "close", "loss": "logits"}], control="none",
        seeds=1, name="mine", quiet=True, **FAST,
    )  # fmt: skip
    assert result.folder == Path("runs/mine/1")
    assert [row["model"] for row in result.table] == ["teacher", "student_kd", "student_close"]
    assert result.verdict.startswith("Not tested")
    assert result.student.card.classes == ("a", "b", "c")


def test_run_takes_a_mapping_with_overrides_and_leaves_it_alone(small_recipe):
    before = copy.deepcopy(small_recipe)
    result = us.run(small_recipe, ["train.epochs=1", "seeds=1", "teacher.train.epochs=1"], out="here", quiet=True)
    assert small_recipe == before
    assert result.folder == Path("here")
    assert "epochs: 1\n" in Path("here/recipe.yaml").read_text()


def test_run_takes_a_path_a_name_and_a_recipe_that_was_read(small_recipe):
    from understudy.recipe.reader import Source, build_recipe

    recipe = build_recipe(Source("test", small_recipe), ["train.epochs=1", "seeds=1"])
    first = us.run(recipe, out="first", quiet=True)
    second = us.run(Path("first/recipe.yaml"), out="second", quiet=True)
    assert first.results["hash"] == second.results["hash"]
    small = ["teacher.train.epochs=1", "train.epochs=1", "seeds=1", "teacher.widths=[4]"]
    assert us.run("digits-quickstart", small, out="third", quiet=True).folder == Path("third")


def test_run_takes_objects_in_place_of_the_recipes_names(small_recipe, data, teacher):
    result = us.run(small_recipe, ["seeds=1"], teacher=teacher, student=Net, data=data, quiet=True, out="mine")
    assert isinstance(result.student, Net)
    assert "train: none" in Path("mine/recipe.yaml").read_text()


def test_compare_takes_methods_seeds_and_a_grid(small_recipe):
    overrides = ["train.epochs=1", "teacher.train.epochs=1"]
    result = us.compare(
        small_recipe, overrides, methods=["kd", "logits"], seeds=2, grid={"temperature": [1, 2]}, quiet=True
    )
    names = {"student_kd-temperature-1", "student_kd-temperature-2", "student_logits"}
    assert {row["model"] for row in result.table} == {"teacher", "student_alone", *names}
    assert set(result.results["verdicts"]) < names
    assert small_recipe["method"] == "kd"


def test_a_trained_model_is_loaded_evaluated_and_used_as_teacher(data):
    trained = us.train(model=MLP, data=data, quiet=True, name="big", **FAST)
    assert trained.folder == Path("runs/big/1")
    assert trained.verdict.startswith("Nothing was distilled")
    model = us.load(trained.folder / "teacher")
    scores = us.evaluate(model, data=data)
    assert us.evaluate(trained.folder / "teacher", data=data) == scores
    assert scores["accuracy"] > 0.4
    result = us.distill(teacher=str(trained.folder / "teacher"), student=MLP, data=data, seeds=1, quiet=True, **FAST)
    theirs, ours = model.state_dict(), result.teacher.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_evaluate_gives_the_accuracy_of_the_results(small_recipe):
    result = us.run(small_recipe, ["seeds=1", "train.epochs=1"], quiet=True)
    scores = us.evaluate(result.folder, data=small_recipe["data"])
    row = next(row for row in result.table if row["model"] == "student_distilled")
    assert scores["accuracy"] == pytest.approx(row["metrics"]["accuracy"]["last"])


def test_a_run_with_objects_is_resumed_with_the_same_objects(data, teacher, monkeypatch):
    arguments = {"teacher": teacher, "student": Net, "data": data, "seeds": 1, "quiet": True, **FAST}
    whole = us.distill(out="whole", **arguments)

    save = loop._Keeper.save

    def stop(keeper, step):
        save(keeper, step)
        raise Interrupted(15)

    monkeypatch.setattr(loop._Keeper, "save", stop)
    with pytest.raises(Interrupted):
        us.distill(out="stopped", **{**arguments, "checkpoint_seconds": 0.0})
    monkeypatch.setattr(loop._Keeper, "save", save)

    with pytest.raises(us.UserError, match=r"python:.*was given as an object in Python"):
        us.resume("stopped", quiet=True)
    resumed = us.resume("stopped", teacher=teacher, student=Net, data=data, quiet=True)
    weights = [run.student.state_dict()["head.weight"] for run in (whole, resumed)]
    assert torch.equal(*weights)
    assert us.resume("stopped", quiet=True).results == resumed.results


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epoch": 3}, "arguments: train.epoch: unknown key, did you mean 'epochs'?"),
        ({"epochs": True}, "arguments: train.epochs: should be a whole number, not true"),
        ({"method": "kdd"}, "arguments: method: unknown method 'kdd'"),
        ({"student": "mlpp"}, "arguments: student.name: unknown model 'mlpp'"),
        ({"student": MLP | {"hiden": [3]}}, "arguments: student.hiden: unknown key, did you mean 'hidden'"),
        ({"data": "digit"}, "arguments: data.name: unknown data set 'digit', did you mean 'digits'?"),
        ({"student": nn.Linear(3, 3)}, "student: 'python:Linear' cannot take images"),
        ({"student": nn.Sequential(nn.Flatten(), nn.Linear(16, 5))}, "gives 5 classes, the data has 3"),
        ({"student": nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1))}, "returns probabilities"),
        ({"student": lambda: 3}, "calling it gave a int, not a torch module"),
        ({"out": "."}, "exists already"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_no_folder(data, teacher, change, said):
    Path("occupied").touch()
    arguments = {"teacher": teacher, "student": Net, "data": data, "quiet": True, "seeds": 1, **FAST, **change}
    with pytest.raises(us.UserError) as caught:
        us.distill(**arguments)
    assert said in str(caught.value)
    assert not Path("runs").exists()


def test_evaluate_refuses_unknown_data():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert 0 <= us.evaluate(module, data="digits")["accuracy"] <= 1
    with pytest.raises(us.UserError, match="did you mean 'digits'"):
        us.evaluate(module, data="digit")
    with pytest.raises(us.UserError, match=r"arguments: data\.trian: unknown key"):
        us.evaluate(module, data={"name": "digits", "trian": 3})


def test_models_are_keyword_only():
    for function, names in (
        (us.distill, ("teacher", "student", "data")),
        (us.train, ("model", "data")),
        (us.evaluate, ("data",)),
    ):
        parameters = inspect.signature(function).parameters
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names)
    for function in (us.run, us.compare, us.resume):
        parameters = inspect.signature(function).parameters
        assert all(
            parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
            for name in ("teacher", "student", "data")
            if name in parameters
        )
    with pytest.raises(TypeError):
        us.distill("mlp", "mlp", "digits")  # pyright: ignore[reportCallIssue]


def test_importing_understudy_imports_no_torch():
    code = "import sys, understudy; dir(understudy); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves_and_functions_stay_functions():
    stub = ast.parse(Path(us.__file__).with_suffix(".pyi").read_text())
    names = [alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(names) <= set(us.__all__)
    for name in names:
        assert getattr(us, name) is not None
        assert name in dir(us)
    for name in ("compare", "distill", "evaluate", "load", "resume", "run", "train"):
        assert inspect.isfunction(getattr(us, name)), name  # the folders run/, train/, distill/ are imported by now


def test_public_functions_say_what_they_take():
    for name in ("compare", "distill", "evaluate", "load", "resume", "run", "train"):
        function = getattr(us, name)
        documentation = inspect.getdoc(function) or ""
        assert "Args:" in documentation
        assert "Returns:" in documentation
        for parameter in inspect.signature(function).parameters:
            assert f"{parameter}:" in documentation, (name, parameter)
