"""The commands themselves: what they print, their exit codes, what they leave behind."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli_helpers import Ended, image_folder, saved_model
from PIL import Image

from understudy.cli import app, main
from understudy.errors import Interrupted, RunError
from understudy.run import measure
from understudy.run import start as engine
from understudy.train.folder import RunFolder

COMMANDS = (
    "quickstart", "recipes", "init", "run", "resume", "compare", "train", "cache", "evaluate", "predict", "methods",
    "models", "taps", "check", "report",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing a report and measuring latency take seconds and have tests of their own."""
    if "report" not in request.node.name:
        monkeypatch.setattr(engine, "write_report", lambda folder: folder)
    monkeypatch.setattr(measure, "latency", lambda *_: 1.0)


def results(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "results.json").read_text())


def last_line(ended: Ended) -> str:
    assert ended.code == 0, ended
    return ended.out.splitlines()[-1]


# Light commands


def processor_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("words", ["--help", "check digits-quickstart", *(f"{command} --help" for command in COMMANDS)])
def test_help_and_check_are_quick_and_import_no_torch(words):
    code = (
        "import sys; from understudy.cli import main\n"
        f"code = main({words.split()!r})\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'timm', 'altair', 'scipy', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    # Half a second where the libraries that they stand on take a fifth; on a slower or busier machine in proportion.
    # Other programs on the machine only ever add, to either side: the least of several tries, taken in turn.
    libraries = taken = float("inf")
    for _ in range(8):
        libraries = min(libraries, processor_seconds("import pydantic, yaml, typer, rich.console"))
        taken = min(taken, processor_seconds(code))
        if taken < 0.5 * max(1.0, libraries / 0.2):
            return
    pytest.fail(f"{words}: {taken:.2f} s of processor time, its libraries {libraries:.2f}")


def test_help_names_every_command(call):
    ended = call("--help")
    assert ended.code == 0
    for command in COMMANDS:
        (line,) = re.findall(rf"^  {command} .*", ended.out, re.MULTILINE)
        assert not line.endswith("..."), line
    assert call().out == ended.out


def test_the_installed_command_and_the_module_are_the_same(here):
    for words in ([str(Path(sys.executable).parent / "understudy")], [sys.executable, "-m", "understudy"]):
        done = subprocess.run([*words, "check", "nope"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("understudy: nope: there is no such recipe")


@pytest.mark.parametrize("words", ["recipes", "methods", "methods kd", "models", "models cifar/*", "run --help"])
def test_what_is_listed_fits_80_columns_and_is_not_cut(call, words):
    ended = call(*words.split())
    assert ended.code == 0
    assert ended.out
    assert "…" not in ended.out.replace("/…", "")
    if words != "methods kd":
        assert max(map(len, ended.out.splitlines())) <= 80


def test_recipes_lists_each_shipped_one(call):
    from understudy.recipe.reader import shipped

    ended = call("recipes")
    assert all(f"\n{name} " in f"\n{ended.out}" for name in shipped())


def test_methods_explains_one(call):
    out = call("methods", "kd").out
    for word in ("T²", "Hinton", "https://arxiv.org", "temperature: float", "kd:seed-001", "method: kd"):
        assert word in out


def test_models_are_listed_by_glob(call):
    out = call("models", "cifar/*").out
    assert "cifar/resnet8x4" in out
    assert "mlp" not in out
    assert "torchvision/resnet18" in call("models", "torchvision/resnet1*").out


def test_taps_shows_shapes_and_what_auto_takes(call):
    out = call("taps", "cifar/resnet8").out
    assert re.search(r"^auto layer1 +16 x 32 x 32$", out, re.MULTILINE)
    assert re.search(r"^ +conv1 +16 x 32 x 32$", out, re.MULTILINE)
    out = call("taps", "mlp", "hidden=[5]", "--shape", "1,8,8", "--classes", "3").out
    assert re.search(r"fc1 +5$", out, re.MULTILINE)
    assert re.search(r"fc2 +3$", out, re.MULTILINE)


def test_init_check_and_run_lead_from_one_to_the_next(call, here):
    ended = call("init", "digits-quickstart")
    assert ended.out == "wrote digits-quickstart.yaml; next: understudy check digits-quickstart.yaml\n"
    assert "# Few labels" in Path("digits-quickstart.yaml").read_text()
    assert call("check", "digits-quickstart.yaml").out.startswith("digits-quickstart.yaml: sound. cnn teaches mlp")
    small = ("teacher.train.epochs=1", "train.epochs=1", "seeds=1", "teacher.widths=[4]")
    assert last_line(call("run", "digits-quickstart.yaml", *small)) == "runs/digits-quickstart/1"


def test_init_writes_where_it_is_told(call, here):
    assert call("init", "imagefolder-timm", "mine/first.yaml").code == 0
    assert (here / "mine" / "first.yaml").is_file()


# Runs


def test_a_run_ends_with_its_folder_and_its_verdict(call, recipe):
    ended = call("run", str(recipe))
    assert last_line(ended) == "runs/small/1"
    assert ended.out.splitlines()[-2] == "report: runs/small/1/report.html"
    assert "student_distilled" in ended.out
    assert results("runs/small/1")["verdict"]["text"] in ended.out
    assert "…" not in ended.out
    table = ended.out[ended.out.index("model") : ended.out.index("test accuracy:")]
    assert max(map(len, table.splitlines())) <= 80
    assert last_line(call("run", str(recipe), "seeds=1")) == "runs/small/2"


def test_quiet_prints_only_the_folder(call, recipe):
    for words in (("run",), ("train",), ("compare",)):
        ended = call(*words, str(recipe), "seeds=1", "--quiet", "--out", f"out-{words[0]}")
        assert ended == Ended(0, f"out-{words[0]}\n", "")
    assert call("resume", "out-run", "-q") == Ended(0, "out-run\n", "")


def test_out_names_the_folder(call, recipe):
    assert last_line(call("run", str(recipe), "seeds=1", "--out", "deep/er/mine")) == "deep/er/mine"
    assert Path("deep/er/mine/results.json").is_file()
    assert not Path("runs").exists()


def test_a_dry_run_leaves_nothing(call, here, recipe):
    before = sorted(here.rglob("*"))
    ended = call("run", str(recipe), "--dry-run")
    assert ended.code == 0
    assert "nothing was left behind" in ended.out
    assert sorted(here.rglob("*")) == before


def test_train_then_run_finds_the_teacher_and_says_so(call, recipe):
    ended = call("train", str(recipe))
    assert last_line(ended) == "runs/small/1"
    assert Path("runs/small/1/teacher/model.safetensors").is_file()
    assert "student" not in results("runs/small/1")["models"]
    ended = call("run", str(recipe), "seeds=1")
    assert "teacher: taken from runs/small/1, which trained it by the same recipe" in ended.out
    weights = [Path(f"runs/small/{number}/teacher/model.safetensors").read_bytes() for number in (1, 2)]
    assert weights[0] == weights[1]


def test_compare_takes_methods_seeds_and_a_grid(call, recipe):
    words = ("--methods", "kd,logits", "--seeds", "2", "--grid", "temperature=2,4")
    assert last_line(call("compare", str(recipe), *words)) == "runs/small/1"
    found = results("runs/small/1")
    names = {"teacher", "student_alone", "student_kd-temperature-2", "student_kd-temperature-4", "student_logits"}
    assert set(found["models"]) == names
    assert len(found["models"]["student_logits"]["metrics"]["accuracy"]["seeds"]) == 2
    assert len(found["verdicts"]) == 2
    chosen = [name for name, about in found["models"].items() if about.get("chosen")]
    assert "student_logits" in chosen
    assert len(chosen) == 2


def test_evaluate_gives_the_accuracy_of_the_results(call, recipe):
    folder = last_line(call("run", str(recipe), "seeds=1"))
    found = results(folder)["models"]["student_distilled"]["metrics"]
    expected = f"accuracy {found['accuracy']['last']:.4f}  loss {found['loss']['last']:.4f}\n"
    assert call("evaluate", folder).out == expected
    assert call("evaluate", f"{folder}/student", "--data", "digits").out == expected
    assert call("evaluate", f"{folder}/teacher", "--split", "validation").code == 0


def test_predict_names_the_likeliest_classes(call, here):
    saved_model(here / "model")
    for number in range(2):
        Image.new("L", (8, 8), 100 * number).save(here / f"{number}.png")
    ended = call("predict", "model", "0.png", "1.png", "--top", "3")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 2
    assert re.fullmatch(r"0\.png:( +\d \d\.\d{3}){3}", ended.out.splitlines()[0])
    image_folder(here / "images")
    assert len(call("predict", "model", "images").out.splitlines()) == 24


def test_report_is_drawn_again(call, recipe):
    folder = last_line(call("run", str(recipe), "seeds=1", "-q"))
    file = Path(folder) / "report.html"
    file.unlink()
    assert call("report", folder).out == f"{file}\n"
    assert "<html" in file.read_text()[:2000]


def test_resume_of_a_finished_run_shows_it_and_exits_0(call, recipe):
    folder = last_line(call("run", str(recipe), "seeds=1"))
    ended = call("resume", folder)
    assert last_line(ended) == folder
    assert "student_distilled" in ended.out


def test_a_registered_model_is_known_after_import(call, here, recipe):
    (here / "my_nets.py").write_text(
        "import understudy as us\n"
        "@us.models.add('mine/tiny')\n"
        "def tiny(*, classes, shape, width=4):\n"
        "    from understudy.models.mlp import mlp\n"
        "    return mlp(classes=classes, shape=shape, hidden=(width,))\n"
    )
    assert call("run", str(recipe), "student=mine/tiny").code == 2
    words = ("student=mine/tiny", "student.width=6", "seeds=1", "--import", "my_nets")
    assert last_line(call("run", str(recipe), *words)) == "runs/small/1"
    assert "mine/tiny" in call("models", "mine/*").out


def test_a_recipe_may_be_a_run_folder(call, recipe):
    first = last_line(call("run", str(recipe), "seeds=1"))
    second = last_line(call("run", first, "seeds=1"))
    assert results(first)["hash"] == results(second)["hash"]


# How a command ends


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RunError("the loss of 'kd' is not finite at step 3"), 1, "not finite at step 3"),
        (Interrupted(15), 143, "understudy resume FOLDER"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "model.safetensors"), 1, "the disk is full (model.safetensors)"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "lower train.batch_size"),
        (MemoryError(), 1, "lower train.batch_size"),
        (PermissionError(13, "Permission denied", "runs/x"), 2, "runs/x: permission denied"),
    ],
)
def test_every_expected_end_has_its_code_and_one_line(call, recipe, monkeypatch, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(RunFolder, "create", fail)
    ended = call("run", str(recipe), "-q")
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert ended.err.count("\n") <= 1


def test_a_bug_keeps_its_traceback(recipe, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(RunFolder, "create", fail)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        main(["run", str(recipe), "-q"])


def test_a_reader_that_goes_away_is_no_traceback(here):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "understudy", "recipes"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""


def test_every_command_has_a_sentence_of_help():
    for command in app.registered_commands:
        assert command.callback is not None
        assert (command.callback.__doc__ or "").strip().endswith("."), command.callback.__name__


def test_every_recipe_section_survives_a_round_trip_through_the_run_folder(call, recipe):
    folder = last_line(call("run", str(recipe), "seeds=1"))
    written = yaml.safe_load((Path(folder) / "recipe.yaml").read_text())
    assert written["train"]["epochs"] == 2
    assert call("check", f"{folder}/recipe.yaml").code == 0
