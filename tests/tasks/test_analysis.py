"""The article's analyses of a finished run, against the saved models read by plain timm and counted in NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import vl_convert
from sklearn.metrics import accuracy_score
from torch import nn

import understudy as us
from understudy.data import load_source, split
from understudy.errors import UserError
from understudy.recipe.schema import Data
from understudy.run import measure
from understudy.run import start as engine
from understudy.tasks.classify.analysis import tables
from understudy.tasks.classify.analysis.analyse import analyse
from understudy.tasks.classify.analysis.finished import token_layers
from understudy.tasks.classify.analysis.settings import changes
from understudy.tasks.classify.analysis.tables import nearness

timm = pytest.importorskip("timm")

RECIPE = {
    "name": "deit",
    "data": {"name": "digits", "train": 200, "validation": "none"},
    "teacher": [
        {"name": "mlp", "hidden": [16], "train": {"epochs": 3}},
        {"name": "mlp", "hidden": [4], "train": {"epochs": 1}},
    ],
    "student": {"name": "vit", "patch": 4, "width": 12, "depth": 2, "heads": 2},
    "method": [
        {"name": "hard", "loss": "hard", "taught_by": "teacher_1"},
        {"name": "token", "loss": "hard", "taught_by": "teacher_2", "model": {"tokens": 2}},
        {"name": "two", "labels": 1, "objectives": [], "model": {"tokens": 2}},
    ],
    "train": {"epochs": 1, "batch_size": 64, "lr": 0.01, "threads": 1},
    "seeds": 2,
}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Drawing reports and measuring latency take seconds and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "write_report", lambda folder: folder)
        patch.setattr(measure, "latency", lambda *_: 1.0)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return us.run(RECIPE, out=tmp_path_factory.mktemp("runs") / "1", quiet=True).folder


@pytest.fixture(scope="module")
def sections(run: Path) -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "throughput", lambda *_: 1000.0)
        return {section["title"]: section for section in analyse([run])}


def cells(section: dict) -> dict[str, dict[str, str]]:
    """A table by row and column."""
    columns = section["table"]["columns"]
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in section["table"]["rows"]}


def digits() -> tuple[torch.Tensor, np.ndarray]:
    """The test images of the run, from 0 to 1, with their labels."""
    part = split(load_source(Data(name="digits")), Data(name="digits", train=200, validation="none")).test
    return part.read(np.arange(len(part))).float() / 255, part.labels


@pytest.fixture(scope="module")
def by_hand(run: Path) -> list[dict[str, np.ndarray]]:
    """Decisions by seed of everyone, by plain timm and `understudy.load`, on the test images."""
    images, truth = digits()
    everyone = []
    for seed in (0, 1):
        found = {"truth": truth}
        for number in (1, 2):
            found[f"teacher_{number}"] = decided(us.load(run / "arms" / f"teacher_{number}" / "seed-0/student"), images)
        for arm in ("alone", "hard", "token", "two"):
            folder = run / "arms" / f"student_{arm}" / f"seed-{seed}" / "student"
            model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            if arm in ("alone", "hard"):
                found[f"student_{arm}"] = decided(model, images)
                continue
            model.set_distilled_training(True)
            with torch.no_grad():
                heads = model.train()(images)
            for name, logits in zip(("class", "distillation", "both"), (*heads, sum(heads)), strict=True):
                found[f"student_{arm} {name}"] = logits.argmax(1).numpy()
        everyone.append(found)
    return everyone


@torch.no_grad()
def decided(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    return model.eval()(images).argmax(1).numpy()


def test_all_analyses_of_the_article_are_made_and_drawn(run: Path, sections):
    assert list(sections) == ["Strategies", "Disagreement", "Tokens", "Teachers", "Accuracy and speed"]
    for section in sections.values():
        assert section["text"]
        assert vl_convert.vegalite_to_vega(section["chart"])["marks"]
        assert all(len(row) == len(section["table"]["columns"]) for row in section["table"]["rows"])
    page = (run / "report.html").read_text()
    assert all(f"<h2>{title}</h2>" in page for title in sections)


def test_disagreement_is_the_share_of_images_decided_otherwise(sections, by_hand):
    matrix = cells(sections["Disagreement"])
    everyone = list(by_hand[0])
    assert [name for name in matrix if name != "teacher"] == everyone
    for one in everyone:
        for other in everyone:
            wanted = np.mean([(found[one] != found[other]).mean() for found in by_hand])
            assert float(matrix[one][other]) == pytest.approx(wanted, abs=2e-4), (one, other)


def test_strategies_are_scored_by_head(sections, by_hand):
    table = cells(sections["Strategies"])
    for name, column, head in (
        ("student_alone", "class head", ""),
        ("student_token", "class head", " class"),
        ("student_token", "distillation head", " distillation"),
        ("student_two", "both, mean of logits", " both"),
    ):
        wanted = np.mean([accuracy_score(found["truth"], found[name + head]) for found in by_hand])
        assert float(table[name][column].split()[0]) == pytest.approx(wanted, abs=6e-5)
    assert table["student_alone"]["distillation head"] == ""
    assert table["student_alone"]["against the student alone"] == ""
    assert "points" in table["student_hard"]["against the student alone"]


def test_tokens_are_compared_layer_by_layer(run: Path, sections):
    images, _ = digits()
    table = cells(sections["Tokens"])
    assert list(table) == ["input", "blocks.0", "blocks.1", "norm"]
    wanted = {layer: [] for layer in table}
    for seed in (0, 1):
        folder = run / "arms" / "student_token" / f"seed-{seed}" / "student"
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            tokens = {"input": torch.cat([model.cls_token, model.dist_token], 1)}
            tokens["blocks.0"] = model.blocks[0](model._pos_embed(model.patch_embed(images)))
            tokens["blocks.1"] = model.blocks[1](tokens["blocks.0"])
            tokens["norm"] = model.forward_features(images)
        for layer, found in tokens.items():
            pair = found[:, :2].numpy().astype(float)
            norms = np.linalg.norm(pair, axis=2)
            wanted[layer].append((np.sum(pair[:, 0] * pair[:, 1], axis=1) / norms.prod(1)).mean())
    for layer, values in wanted.items():
        assert float(table[layer]["student_token"]) == pytest.approx(np.mean(values), abs=6e-4)
    assert set(table["norm"]) == {"student_token", "student_two"}


def test_teachers_are_compared_by_what_their_students_reach(run: Path, sections):
    table = cells(sections["Teachers"])
    models = json.loads((run / "results.json").read_text())["models"]
    assert table["student_hard"]["taught by"] == "teacher_1"
    assert float(table["student_token"]["its accuracy"]) == pytest.approx(
        models["teacher_2"]["metrics"]["accuracy"]["last"], abs=6e-5
    )


def test_an_analysis_takes_the_place_of_its_earlier_self_and_leaves_the_rest(run: Path, sections):
    before = json.loads((run / "results.json").read_text())
    (found,) = analyse([run], only=["tokens"], samples=16)
    after = json.loads((run / "results.json").read_text())
    assert "16 test images" in found["text"]
    assert after["extra"][-1] == found
    assert {entry["title"] for entry in after["extra"]} == set(sections)
    assert {**after, "extra": None} == {**before, "extra": None}
    assert sections["Disagreement"] in after["extra"]


def test_the_articles_order_is_told_where_it_holds_and_where_not():
    names = ["teacher", "student_alone", "s class", "s distillation"]
    near = np.array([[0, 0.3, 0.2, 0.1]] * 4)
    assert "0.1000, s class 0.2000, student_alone 0.3000: this is the" in nearness(["s"], names, [near])
    assert "this is not the article's order (in 1 of 3 seeds)" in nearness(["s"], names, [near, 1 - near, 1 - near])
    assert nearness(["one-headed"], names, [near]) == ""


def test_only_transformers_with_both_tokens_have_tokens_to_compare():
    assert token_layers(timm.create_model("test_vit")) == []
    assert token_layers(nn.Linear(2, 2)) == []


# Several runs


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory, small_recipe_once: dict) -> list[Path]:
    root = tmp_path_factory.mktemp("ablation")
    settings = {"base": [], "sgd": ["train.optimizer=sgd"], "erase": ["data.augment.erase=0.5", "train.epochs=1"]}
    return [
        us.run(small_recipe_once, overrides, out=root / name, quiet=True).folder for name, overrides in settings.items()
    ]


@pytest.fixture(scope="module")
def small_recipe_once() -> dict:
    return {
        "name": "small",
        "data": {"name": "digits", "train": 100, "validation": "none"},
        "teacher": {"name": "mlp", "hidden": [8], "train": {"epochs": 1}},
        "student": {"name": "mlp", "hidden": [4]},
        "method": "kd",
        "train": {"epochs": 2, "batch_size": 50, "lr": 0.01},
        "seeds": 2,
    }


def test_runs_are_compared_by_what_they_changed_and_seed_by_seed(ablation: list[Path]):
    (found,) = analyse(ablation)
    table = cells(found)
    scores = []
    for folder in ablation:
        metric = json.loads((folder / "results.json").read_text())["models"]["student_distilled"]["metrics"]["accuracy"]
        scores.append(np.array([entry["last"] for entry in metric["seeds"]]))
    rows = list(table.values())
    assert [row["changed"] for row in rows][:2] == ["as it is", "train.optimizer=sgd"]
    assert set(rows[2]["changed"].split()) == {"data.augment.erase=0.5", "train.epochs=1"}
    for row, score in zip(rows[1:], scores[1:], strict=True):
        assert float(row["difference"].split()[0]) == pytest.approx(100 * (score - scores[0]).mean(), abs=0.006)
    assert found["title"] in (ablation[0] / "report.html").read_text()
    (alone,) = analyse([*ablation[:2], ablation[0]], student="student_alone")
    assert len(cells(alone)) == 2
    assert all(row["model"] == "student_alone" for row in cells(alone).values())


def test_changes_are_written_as_on_the_command_line():
    assert changes({"a": 1, "seeds": 3, "name": "x"}, {"a": 2, "seeds": 5, "name": "y"}) == "a=2"
    assert changes({"a": 1}, {"a": 1}) == "nothing"
    assert changes({}, {"a" * 90: 1}).endswith("…")


def test_what_cannot_be_analysed_is_one_line(run: Path, ablation: list[Path], tmp_path: Path):
    for folders, settings, message in (
        ([], {}, "name at least one run folder"),
        ([tmp_path], {}, "is no run folder"),
        ([run], {"only": ["tokns"]}, "there is no analysis 'tokns', did you mean 'tokens'"),
        (ablation, {"only": ["tokens"]}, "are of one run"),
        (ablation, {"student": "student_kd"}, "has no model 'student_kd'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            analyse(folders, **settings)
        assert "\n" not in str(caught.value)
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(UserError, match="is not finished: continue it with `understudy resume`"):
        analyse([tmp_path])
