"""What a reader of the DeiT article would try: a distilled model in plain timm, and settings that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

import understudy as us
from understudy.data import Preprocess
from understudy.data.table import REGISTERED
from understudy.errors import UserError
from understudy.models import Card, build, save
from understudy.recipe.schema import Model
from understudy.run import measure
from understudy.run import start as engine

timm = pytest.importorskip("timm")

SMALL_DEIT = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "write_report", lambda folder: folder)
    monkeypatch.setattr(measure, "latency", lambda *_: 1.0)


def images(count: int, side: int = 16) -> dict:
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (count, side, side, 3), dtype=np.uint8), draw.integers(0, 3, count)
    return {"train": (pixels, labels), "test": (pixels[:20], labels[:20]), "classes": ["a", "b", "c"]}


def recipe(**changes) -> dict:
    return {
        "name": "deit",
        "data": {"name": "deit-test", "validation": "none", **changes.pop("data", {})},
        "teacher": {"name": "cnn", "widths": [4], "train": {"epochs": 1}},
        "student": {"name": "timm/deit_tiny_patch16_224", **SMALL_DEIT},
        "method": {"name": "hard", "model": {"name": "timm/deit_tiny_distilled_patch16_224"}},
        "train": {"epochs": 1, "batch_size": 16, "lr": 1e-3, "threads": 1, **changes.pop("train", {})},
        "seeds": 1,
        **changes,
    }


def run(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch, **changes):
    monkeypatch.setitem(REGISTERED, "deit-test", lambda: images(count))
    return us.run(recipe(**changes), out=tmp_path / "run", quiet=True)


def test_a_student_distilled_here_loads_in_plain_timm_with_the_same_logits(tmp_path: Path, monkeypatch):
    result = run(tmp_path, 40, monkeypatch)
    ours = result.student
    plain = timm.create_model(f"local-dir:{result.folder / 'student'}", pretrained=True).eval()
    assert type(plain).__name__ == "VisionTransformerDistilled"
    inputs = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(plain(inputs), ours(inputs))
        plain.set_distilled_training(True)
        of_class, of_teacher = plain.train()(inputs)
        torch.testing.assert_close(ours(inputs), (of_class + of_teacher) / 2)
    assert plain.pretrained_cfg["label_names"] == ["a", "b", "c"]
    metrics = result.results["models"]["student_distilled"]["metrics"]
    assert {"accuracy", "accuracy[class]", "accuracy[distillation]"} <= set(metrics)


def test_the_articles_deit_tiny_is_saved_for_plain_timm(tmp_path: Path):
    described = Model(name="timm/deit_tiny_distilled_patch16_224")
    module = build(described, classes=1000, shape=(3, 224, 224)).eval()
    names = tuple(timm.data.ImageNetInfo().label_names())
    card = Card(described.model_dump(mode="json"), names, (3, 224, 224), Preprocess())
    save(module, tmp_path / "deit", card)
    plain = timm.create_model(f"local-dir:{tmp_path / 'deit'}", pretrained=True).eval()
    inputs = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(plain(inputs), module(inputs))
    assert sum(parameter.numel() for parameter in plain.parameters()) == 5_910_800


def test_mixup_of_odd_batches_and_repeats_of_few_images_are_handled(tmp_path: Path, monkeypatch):
    augment = {"mixup": 0.8, "cutmix": 1.0, "repeats": 3}
    result = run(tmp_path, 41, monkeypatch, data={"augment": augment}, train={"batch_size": 15})
    assert np.isfinite(result.results["models"]["student_distilled"]["metrics"]["loss"]["last"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"name": "vit", "patch": 5}}, "images of 16 x 16 pixels cannot be cut into patches of 5 x 5"),
        ({"student": {"name": "timm/deit_tiny_patch16_224", "size": 40}}, "cannot be cut into patches of 16 x 16"),
        ({"student": {"name": "vit", "weights": "other.pth"}}, "holds the weights of another model"),
        ({"method": {"name": "hard", "head": "distillation"}}, "head"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(tmp_path: Path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, 40, monkeypatch, **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
