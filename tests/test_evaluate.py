"""Scores against scikit-learn, and the two functions that read a saved model."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss, recall_score, top_k_accuracy_score
from torch import nn

import understudy as us
from understudy.data import Preprocess, Subset, from_object
from understudy.errors import UserError
from understudy.evaluate import asking, evaluate, score
from understudy.models import Card, build, save
from understudy.predict import predict
from understudy.recipe.schema import Model

CPU = torch.device("cpu")


def part(count: int, classes: int, unlabelled: int = 0) -> Subset:
    draw = np.random.default_rng(classes)
    labels = draw.integers(0, classes, count)
    labels[draw.permutation(count)[:unlabelled]] = -1
    train = from_object(
        {"train": (draw.standard_normal((count, 1, 4, 4), np.float32), labels), "classes": classes}, name="x"
    ).train
    return Subset(train, np.arange(count), train.labels)


def linear(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


@pytest.mark.parametrize("classes", [2, 10, 11, 40])
@pytest.mark.parametrize("unlabelled", [0, 300])
def test_scores_are_those_of_scikit_learn(classes: int, unlabelled: int):
    given, model = part(1203, classes, unlabelled), linear(classes)
    found = score(asking(model, Preprocess()), given, classes=classes, device=CPU, recall_of=(1, 0))
    known = given.labels >= 0
    labels = given.labels[known]
    with torch.no_grad():
        chances = model(given.read(np.flatnonzero(known))).double().softmax(1).numpy()
    decided, every = chances.argmax(1), np.arange(classes)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, decided), abs=1e-12)
    assert found["loss"] == pytest.approx(log_loss(labels, chances, labels=every), rel=1e-6)
    recalls = recall_score(labels, decided, average=None, labels=every)
    assert [found["recall[0]"], found["recall[1]"]] == pytest.approx(recalls[:2].tolist())  # pyright: ignore[reportIndexIssue]
    assert ("top5" in found) == (classes > 10)
    if classes > 10:
        assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, chances, k=5, labels=every))


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_scores_do_not_depend_on_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch):
    given, ask = part(311, 12), asking(linear(12), Preprocess())
    wanted = score(ask, given, classes=12, device=CPU)
    monkeypatch.setattr(sys.modules["understudy.evaluate"], "CHUNK", chunk)
    assert score(ask, given, classes=12, device=CPU) == pytest.approx(wanted, rel=1e-6)


def test_nothing_labelled_scores_nothing():
    found = score(asking(linear(3), Preprocess()), part(20, 3, 20), classes=3, device=CPU, recall_of=(0,))
    assert found == {"accuracy": 0.0, "loss": 0.0, "recall[0]": 0.0}


def test_a_model_is_scored_in_evaluation_mode_whatever_it_returns():
    class Tuple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.inner = nn.Dropout(0.9), linear(3)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, int]:
            return self.inner(self.dropout(images)), 1

    found = score(asking(Tuple().train(), Preprocess()), part(50, 3), classes=3, device=CPU)
    assert found == score(asking(linear(3), Preprocess()), part(50, 3), classes=3, device=CPU)


# A saved model


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A model of 8x8 grey images that says how bright they are: of 0 to 9, the one whose level is nearest."""
    model = Model.model_validate({"name": "mlp", "hidden": []})
    module = build(model, classes=10, shape=(1, 8, 8))
    levels = torch.arange(10) / 10 + 0.05
    with torch.no_grad():
        module.get_parameter("fc1.weight").copy_((20 * levels / 64)[:, None].expand(-1, 64))
        module.get_parameter("fc1.bias").copy_(-10 * levels**2)
    card = Card(model.model_dump(mode="json"), tuple("0123456789"), (1, 8, 8), Preprocess())
    save(module, tmp_path / "student", card)
    return tmp_path / "student"


def bright(levels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([round(255 * (level / 10 + 0.05)) for level in levels], np.uint8)
    return np.broadcast_to(values[:, None, None], (len(levels), 8, 8)).copy(), np.array(levels)


def test_arrays_are_scored_whole(student: Path):
    images, labels = bright([3, 1, 4, 1, 5, 9, 2, 6])
    assert evaluate(student, data=(images, labels))["accuracy"] == 1
    labels[:2] = 0
    assert evaluate(str(student), data=(images, labels))["accuracy"] == 0.75
    assert us.evaluate(us.load(student), data=torch.utils.data.TensorDataset(*map(torch.tensor, (images, labels)))) == (
        evaluate(student, data=(images, labels))
    )


def test_splits_are_chosen(student: Path):
    data = {"train": bright([1, 2, 3, 4]), "test": bright([5, 6]), "classes": 10}
    wrong = {**data, "test": (data["test"][0], np.array([0, 0]))}
    assert evaluate(student, data=wrong)["accuracy"] == 0
    assert evaluate(student, data=wrong, split="train")["accuracy"] == 1
    with pytest.raises(UserError, match="no split 'tset'"):
        evaluate(student, data=data, split="tset")


def test_data_by_name_and_as_in_a_recipe(student: Path):
    wanted = evaluate(student, data="digits")
    assert 0 <= wanted["accuracy"] < 0.5
    assert evaluate(student, data={"name": "digits", "validation": "none"}) == wanted
    assert evaluate(student, data="digits", split="validation") != wanted


def test_classes_in_another_order_are_put_in_order(student: Path):
    images, labels = bright([3, 1, 4, 1, 5, 9, 2, 6])
    part = (images, 9 - labels)
    assert evaluate(student, data={"train": part, "test": part, "classes": "9876543210"})["accuracy"] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": bright([1, 2]), "test": bright([1]), "classes": 3}, "knows 10 classes, the data has 3"),
        ({"train": bright([1, 2]), "classes": "abcdefghij", "test": bright([1])}, "does not know the class 'a'"),
        ((np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4)), r"takes images \(C, H, W\) of \(1, 8, 8\), .* \(3, 8, 8\)"),
        ((np.zeros((4, 9, 9), np.uint8), np.zeros(4)), r"takes images \(C, H, W\) of \(1, 8, 8\), .* \(1, 9, 9\)"),
        ("digts", "unknown data set 'digts', did you mean 'digits'"),
        ({"name": "digits", "validaton": 3}, "validaton: unknown key"),
        ({"name": "digits", "validation": "x"}, r"data\.validation: should be a number or 'none', not 'x'"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(student: Path, data, message: str):
    with pytest.raises(UserError, match=message):
        evaluate(student, data=data)


def test_image_files_are_predicted(student: Path, tmp_path: Path):
    levels = [3, 8, 0, *range(10)] * 7  # more than are read at once
    files = []
    for number, image in enumerate(bright(levels)[0]):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).convert("RGB").resize((16, 12)).save(files[-1])
    found = predict(student, files, top=3)
    assert [classes[0][0] for classes in found] == [str(level) for level in levels]
    for classes in found:
        assert len(classes) == 3
        chances = [chance for _, chance in classes]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) <= 1
    assert predict(us.load(student), files[:1])[0][:3] == [
        (name, pytest.approx(chance, rel=1e-5)) for name, chance in found[0]
    ]
    assert sum(chance for _, chance in predict(student, files[:1], top=99)[0]) == pytest.approx(1)


def test_what_cannot_be_predicted_is_said(student: Path, tmp_path: Path):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UserError, match=r"x\.png: is no image"):
        predict(student, [tmp_path / "x.png"])
    with pytest.raises(UserError, match=r"nope\.png: no such image"):
        predict(student, ["nope.png"])
    with pytest.raises(UserError, match="give one loaded by"):
        predict(linear(3), ["x.png"])
    assert predict(student, []) == []
