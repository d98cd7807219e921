"""Scores over folders of images, by head, by any number of processes, and of models that have a name only."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn

import understudy as us
from understudy.data import Preprocess
from understudy.errors import UserError
from understudy.evaluate import evaluate
from understudy.models import Card, build, save
from understudy.predict import predict
from understudy.recipe.schema import Model
from understudy.tasks.classify.named import open_model

timm = pytest.importorskip("timm")

CLASSES = tuple("abcdefghijkl")
TINY = {"patch": 8, "width": 12, "depth": 1, "heads": 2, "tokens": 2}
TINY_DEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five noisy images of each of twelve classes."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for number in range(5):
            pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}{number}.png")
    return root


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer with two heads and random weights."""
    torch.manual_seed(0)
    described = Model.model_validate({"name": "vit", **TINY})
    module = build(described, classes=12, shape=(3, 16, 16))
    for head in ("head", "head_dist"):
        nn.init.normal_(module.get_parameter(f"{head}.weight"), std=0.3)
    folder = tmp_path_factory.mktemp("model") / "student"
    save(module, folder, Card(described.model_dump(mode="json"), CLASSES, (3, 16, 16), Preprocess()))
    return folder


def by_hand(student: Path, images: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Chances of each head and of both together, by Pillow and plain timm; the class of each image."""
    files = sorted(images.rglob("*.png"))
    stack = []
    for file in files:  # the middle 7/8, as ImageNet is evaluated
        whole = Image.open(file).convert("RGB")
        stack.append(np.array(whole.resize((16, 16), Image.Resampling.BICUBIC)) if whole.size != (16, 16) else whole)
    inputs = torch.from_numpy(np.stack([np.array(image) for image in stack]).transpose(0, 3, 1, 2)).float() / 255
    model = timm.create_model(f"local-dir:{student}", pretrained=True).train()
    model.set_distilled_training(True)
    with torch.no_grad():
        of_class, of_teacher = (logits.double() for logits in model(inputs))
    chances = {
        "class": of_class.softmax(1),
        "distillation": of_teacher.softmax(1),
        "mean": ((of_class + of_teacher) / 2).softmax(1),
        "sum_softmax": (of_class.softmax(1) + of_teacher.softmax(1)) / 2,
    }
    labels = np.array([CLASSES.index(file.parent.name) for file in files])
    return {name: values.numpy() for name, values in chances.items()}, labels


@pytest.mark.parametrize("heads", ["mean", "sum_softmax", "class", "distillation"])
def test_each_head_is_scored_as_scikit_learn_does_with_plain_timm(student: Path, images: Path, heads):
    chances, labels = by_hand(student, images)
    found = evaluate(student, images=images, heads=heads)
    for suffix, head in {"": heads, "[class]": "class", "[distillation]": "distillation"}.items():
        decided = chances[head].argmax(1)
        assert found[f"accuracy{suffix}"] == pytest.approx(accuracy_score(labels, decided), abs=1e-12)
        assert found[f"top5{suffix}"] == pytest.approx(top_k_accuracy_score(labels, chances[head], k=5), abs=1e-12)
        assert found[f"loss{suffix}"] == pytest.approx(log_loss(labels, chances[head]), rel=1e-5)


def test_any_right_class_counts_where_labels_are_corrected(student: Path, images: Path, tmp_path: Path):
    chances, labels = by_hand(student, images)
    draw = np.random.default_rng(1)
    accepted = [draw.choice(12, draw.integers(0, 4), replace=False).tolist() for _ in labels]
    (tmp_path / "real.json").write_text(json.dumps(accepted))
    found = evaluate(student, images=images, labels=tmp_path / "real.json")
    firsts = np.argsort(-chances["mean"], axis=1)
    kept = [number for number, right in enumerate(accepted) if right]
    assert 10 < len(kept) < len(labels)
    assert found["accuracy"] == pytest.approx(np.mean([firsts[n, 0] in accepted[n] for n in kept]))
    assert found["top5"] == pytest.approx(np.mean([bool(set(firsts[n, :5]) & set(accepted[n])) for n in kept]))
    assert not any(name.startswith("loss") for name in found)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(student: Path, images: Path, processes, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["understudy.evaluate"], "CHUNK", 7)
    monkeypatch.setattr(sys.modules["understudy.evaluate"], "ProcessPoolExecutor", _Here)
    assert evaluate(student, images=images, processes=processes) == evaluate(student, images=images)


class _Here:
    """A pool that does everything in this process, through the same pickles: what is shared out is what is tested."""

    def __init__(self, *_, **__) -> None:
        pass

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_) -> None:
        pass

    def submit(self, work, *arguments):
        done = work(*arguments)
        return type("Done", (), {"result": lambda _: done})()


@pytest.mark.slow
def test_two_real_processes_give_the_same_bits(student: Path, images: Path):
    assert evaluate(student, images=images, processes=2) == evaluate(student, images=images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either data, a data set, or images, a folder"),
        ({"data": "digits", "images": "x"}, "give either data"),
        ({"data": "digits", "labels": "real.json"}, "labels: belong to a folder of images"),
        ({"images": "x", "heads": "both"}, "heads: there is no 'both'"),
        ({"images": "nowhere"}, "nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(student: Path, given, message):
    with pytest.raises(UserError, match=message):
        evaluate(student, **given)


# Models that have a name only


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A small checkpoint laid out as DeiT's training writes them, and the plain timm module that it is of."""
    torch.manual_seed(1)
    module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=12, **TINY_DEIT).eval()
    path = tmp_path_factory.mktemp("deit") / "checkpoint.pth"
    torch.save({"model": module.state_dict(), "epoch": 3}, path)
    return path, module


def test_a_name_with_weights_gives_timms_logits_and_knows_as_many_classes_as_the_head(original):
    path, plain = original
    opened = open_model("timm/deit_tiny_distilled_patch16_224", {"weights": str(path), "size": 32, **_options()})
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.equal(opened(inputs), plain(inputs))
    assert opened.card.classes == tuple(str(number) for number in range(12))
    assert opened.card.preprocess.mean == (0.485, 0.456, 0.406)


def _options() -> dict[str, int]:
    return {key: value for key, value in TINY_DEIT.items() if key != "img_size"}


def test_a_head_of_1000_classes_is_imagenets(tmp_path: Path):
    torch.save(timm.create_model("test_vit", num_classes=1000).state_dict(), tmp_path / "w.pth")
    opened = open_model("timm/test_vit", {"weights": str(tmp_path / "w.pth")})
    assert opened.card.classes[:2] == ("n01440764", "n01443537")
    Image.new("RGB", (200, 170), "red").save(tmp_path / "a.png")
    (found,) = predict(opened, [tmp_path / "a.png"], top=1000)
    assert {"tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue"} <= {name for name, _ in found}


def test_a_model_without_names_takes_the_classes_of_the_data_in_their_order(original):
    path, plain = original
    opened = open_model("timm/deit_tiny_distilled_patch16_224", {"weights": str(path), "size": 32, **_options()})
    pixels = np.random.default_rng(2).integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        said = plain((torch.from_numpy(pixels).movedim(3, 1) / 255 - mean) / std).argmax(1).numpy()
    data = {"train": (pixels, said), "test": (pixels, said), "classes": [f"class {n}" for n in range(12)]}
    assert us.evaluate(opened, data=data)["accuracy"] == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/deit_tiny_patch16_224", {}, "comes without weights: give weights=FILE or pretrained=true"),
        ("timm/deit_tiny_patch16_224", {"weights": "nope.pth"}, "nope.pth"),
        ("timm/deit_tyni_patch16_224", {"pretrained": True}, "timm has no model 'deit_tyni_patch16_224', did you mean"),
    ],
)
def test_a_name_that_cannot_be_opened_is_one_line(name, options, message):
    with pytest.raises(UserError, match=message):
        open_model(name, options)


def test_weights_of_another_width_are_one_line(original):
    with pytest.raises(UserError, match=r"holds the weights of another model: .* is \(1, 1, 12\), not \(1, 1, 24\)"):
        open_model(
            "timm/deit_tiny_distilled_patch16_224",
            {"weights": str(original[0]), "size": 32, **_options(), "embed_dim": 24},
        )


def test_a_saved_model_takes_no_options(student: Path):
    with pytest.raises(UserError, match="is saved with what it needs: leave weights out"):
        open_model(str(student), {"weights": "x"})
