"""`evaluate`, `predict`, `models` and `analyse` as a person types them."""

import re
from pathlib import Path

import pytest
import torch
import typer
from cli_helpers import image_folder, saved_model
from PIL import Image

from understudy.cli import analyse as analyse_command
from understudy.cli.evaluate import divide
from understudy.run import measure
from understudy.run import start as engine
from understudy.tasks.classify import sizes

timm = pytest.importorskip("timm")

SMALL = ("patch_size=8", "embed_dim=12", "depth=1", "num_heads=2", "size=32")
NAME = "timm/deit_tiny_distilled_patch16_224"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "write_report", lambda folder: folder)
    monkeypatch.setattr(measure, "latency", lambda *_: 1.0)


@pytest.fixture
def weights(here: Path) -> str:
    """A small distilled DeiT of twelve classes, in a file as its authors write them."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=12, **options)
    torch.save({"model": module.state_dict()}, here / "deit.pth")
    return "weights=deit.pth"


def numbered(root: Path, count: int = 12) -> Path:
    """A folder as ImageNet-V2's: numbers in place of names."""
    for number in range(count):
        (root / str(number)).mkdir(parents=True)
        Image.new("RGB", (20, 20), (20 * number, 9, 9)).save(root / str(number) / "a.jpeg")
    return root


# evaluate


def test_a_named_model_with_weights_is_scored_by_head(call, here, weights):
    numbered(here / "v2")
    ended = call("evaluate", NAME, weights, *SMALL, "--images", "v2")
    assert ended.code == 0, ended
    figures = r"  Acc@1 +\d+\.\d{3}  Acc@5 +\d+\.\d{3}  loss \d\.\d{4}"
    assert re.fullmatch(rf"both \(mean\) {figures}\nclass +{figures}\ndistillation{figures}\n", ended.out)
    alone = call("evaluate", NAME, weights, *SMALL, "--images", "v2", "--heads", "class").out.splitlines()
    assert alone[0].split()[1:] == alone[1].split()[1:] == ended.out.splitlines()[1].split()[1:]


def test_labels_that_were_corrected_have_no_loss(call, here, weights):
    numbered(here / "val")
    (here / "real.json").write_text(str([[number] for number in range(12)]))
    ended = call("evaluate", NAME, weights, *SMALL, "--images", "val", "--labels", "real.json")
    assert ended.code == 0, ended
    assert "loss" not in ended.out
    assert "Acc@5" in ended.out


def test_a_named_model_is_scored_on_a_data_set(call, here, weights):
    numbered(here / "set" / "train")
    numbered(here / "set" / "val")
    words = ("evaluate", NAME, weights, *SMALL[:-1], "model.size=32", "--data", "folder", "path=set", "size=32")
    ended = call(*words)
    assert ended.code == 0, ended
    assert "Acc@1" in ended.out


@pytest.mark.parametrize(
    ("options", "data", "of_model", "of_data"),
    [
        (["weights=a", "size=3"], None, ["weights=a", "size=3"], []),
        (["weights=a", "size=3", "path=p"], "folder", ["weights=a"], ["size=3", "path=p"]),
        (["model.size=3", "data.size=4", "drop_path=1"], "folder", ["size=3", "drop_path=1"], ["size=4"]),
        (["path=a.b/c"], "folder", [], ["path=a.b/c"]),
    ],
)
def test_options_go_to_the_data_where_it_has_them_else_to_the_model(options, data, of_model, of_data):
    assert divide(options, data) == (of_model, of_data)


def test_a_saved_model_is_scored_on_a_folder_of_images(call, here):
    saved_model(here / "model", classes=2)
    saved_model(here / "other", classes=3)
    assert "'cat' is no class" in call("evaluate", "other", "--images", str(image_folder(here / "x") / "val")).err
    numbered(here / "set", 2)
    assert re.fullmatch(r"Acc@1 +\d+\.000  loss \d\.\d{4}\n", call("evaluate", "model", "--images", "set").out)


def test_a_run_of_another_task_is_scored_by_its_own_module(call, here, monkeypatch):
    seen = []

    class Runner:
        @staticmethod
        def evaluate(folder: Path, options: list[str]) -> str:
            seen.append((folder, options))
            return "fid 3.21"

    (here / "run").mkdir()
    (here / "run" / "recipe.yaml").write_text("task: other\n")
    other = type("Recipe", (), {"task": "other"})
    monkeypatch.setattr("understudy.recipe.reader.read_recipe", lambda *_, **__: other)
    monkeypatch.setattr(engine, "runner_of", lambda _: Runner)
    assert call("evaluate", "run", "samples=5").out == "fid 3.21\n"
    assert seen == [(Path("run"), ["samples=5"])]
    monkeypatch.setattr(engine, "runner_of", lambda _: object())
    assert "run: is a run of the task other, which is scored when it ends" in call("evaluate", "run").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "nowhere: no such folder: give that of a saved model or of a run, or a name as timm/NAME"),
        ((NAME,), "name the data with --data or --images"),
        ((NAME, "--images", "v2"), "comes without weights: give weights=FILE or pretrained=true"),
        ((NAME, "--images", "v2", "--data", "digits"), "not both"),
        ((NAME, "--data", "digits", "--labels", "x.json"), "--labels: belong to a folder of images"),
        ((NAME, "--heads", "clas", "--images", "v2"), "--heads: there is no 'clas', did you mean 'class'"),
        ((NAME, "weights=no.pth", "--images", "v2"), "no.pth"),
        ((NAME, "weights=deit.pth", *SMALL[:-1], "embed_dim=24", "size=32", "--images", "v2"), "of another model"),
        ((NAME, "weights=deit.pth", *SMALL[:-1], "size=30", "--images", "v2"), "cannot be cut into patches of 8 x 8"),
        ((NAME, "weights=deit.pth", *SMALL, "--images", "none"), "none: there is no such folder"),
        (("model", "path=x", "--images", "v2"), "with --images there are no such options"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(call, here, weights, words, said):
    numbered(here / "v2")
    saved_model(here / "model")
    ended = call("evaluate", *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


# predict


def test_files_folders_and_urls_are_predicted_with_names_from_a_file(call, here, weights):
    numbered(here / "v2")
    (here / "names.txt").write_text("".join(f"kind {number}\n" for number in range(12)))
    url = (here / "v2" / "3" / "a.jpeg").as_uri()
    ended = call("predict", NAME, weights, *SMALL, "v2/3/a.jpeg", url, "v2", "--classes", "names.txt", "--top", "2")
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert len(lines) == 14
    answers = [line.split(": ", 1)[1] for line in lines]
    assert re.fullmatch(r"kind \d+ 0\.\d{3}  kind \d+ 0\.\d{3}", answers[0])
    assert lines[1].startswith("file://")
    assert answers[0] == answers[1] == next(line.split(": ", 1)[1] for line in lines[2:] if "/3/" in line)


def test_names_may_be_those_of_folders(call, here):
    saved_model(here / "model", classes=2)
    image_folder(here / "set")
    ended = call("predict", "model", "set/val/cat/0.png", "--classes", "set")
    assert set(re.findall(r"[a-z]+(?= \d\.)", ended.out)) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model", "0.png", "--classes", "names.txt"), "names.txt: names 3 classes, the model has 10"),
        (("model", "0.png", "--classes", "no.txt"), "no.txt: there is no such file or folder of class names"),
        (("model", "nope.png"), "nope.png: there is no such image or folder"),
        (("model", "weights=x"), "weights=x: there is no such image or folder"),
        (("model", "file:///nope.png"), "file:///nope.png: could not be fetched"),
        ((NAME, "weights=deit.pth"), "name at least one image"),
        (("nowhere", "0.png"), "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(call, here, words, said):
    saved_model(here / "model")
    Image.new("L", (8, 8), 100).save(here / "0.png")
    (here / "names.txt").write_text("a\nb\nc\n")
    ended = call("predict", *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


# models


def test_models_shows_the_sizes_of_the_articles_table(call):
    out = call("models", "timm/deit_*patch16_224").out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["model"] == ["params", "width", "heads", "layers", "pixels"]
    assert rows["timm/deit_tiny_patch16_224"] == ["5.7M", "192", "3", "12", "224"]
    assert rows["timm/deit_small_distilled_patch16_224"] == ["22.4M", "384", "6", "12", "224"]
    assert rows["timm/deit_base_patch16_224"] == ["86.6M", "768", "12", "12", "224"]
    assert call("models", "timm/regnety_160").out.splitlines()[1].split()[1:] == ["83.6M", "3024", "-", "-", "224"]
    assert call("models", "torchvision/resnet18").out.splitlines()[1].split()[1] == "11.7M"


def test_models_measures_speed_when_asked(call, monkeypatch):
    monkeypatch.setattr(sizes, "_OTHER_BATCH", 2)
    out = call("models", "timm/test_vit", "--speed").out.splitlines()
    assert out[0].split()[-1] == "images/s"
    assert float(out[1].split()[-1].replace(",", "")) > 1
    assert out[2].startswith("images/s on ")
    assert "measures at most" in call("models", "timm/*vit*", "--speed").err
    assert "measures at most" in call("models", "mlp", "--speed").err


def test_many_models_are_listed_by_name_alone(call):
    lines = call("models", "timm/*vit*").out.splitlines()
    assert "timm/deit_tiny_patch16_224" not in lines
    assert "timm/vit_tiny_patch16_224" in lines
    assert lines[-1].endswith("their sizes are shown")


# analyse


def test_analyse_prints_tables_and_the_report(call, recipe, capfd):
    assert call("run", str(recipe), "seeds=1", "-q").code == 0
    app = typer.Typer(pretty_exceptions_enable=False)
    analyse_command.register(app)
    app(["runs/small/1", "--only", "strategies,disagreement", "--samples", "50"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "Strategies: Accuracy on 50 test images" in out
    assert re.search(r"^teacher +0\.\d{4} +0\.0000 ", out, re.MULTILINE)
    assert out.endswith("runs/small/1/report.html\n")
