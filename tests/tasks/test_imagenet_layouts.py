"""Folders laid out like ImageNet, its second test set and its corrected labels; names of classes; images by URL."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.errors import UserError
from understudy.tasks.classify import imagenet
from understudy.tasks.classify.imagenet import class_numbers, in_words, open_any, read_folder, read_names

SHAPE = (3, 8, 8)
SYNSETS = ("n01440764", "n01443537", "n01484850")


def grey(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 12), (level, level, level)).save(path)
    return path


def levels(part) -> list[int]:
    return part.read(np.arange(len(part)))[:, 0, 4, 4].tolist()


def test_folders_are_found_by_the_names_of_the_classes_and_may_be_a_part_of_them(tmp_path: Path):
    for number, name in enumerate(("dog", "ant")):
        grey(tmp_path / "val" / name / "deep" / "1.png", 10 * number)
    part, accepted = read_folder(tmp_path / "val", ("ant", "cat", "dog"), shape=SHAPE)
    assert accepted is None
    assert dict(zip(levels(part), part.labels.tolist(), strict=True)) == {0: 2, 10: 0}


def test_numbered_folders_are_in_the_order_of_numbers_not_of_words(tmp_path: Path):
    for number in range(12):
        grey(tmp_path / str(number) / "x.jpeg", 20 * number)
    part, _ = read_folder(tmp_path, tuple("abcdefghijkl"), shape=SHAPE)
    assert [round(level / 20) for level in levels(part)] == part.labels.tolist()
    assert sorted(part.labels.tolist()) == list(range(12))


def test_numbers_mean_imagenets_classes_whatever_order_a_model_has_them_in():
    pytest.importorskip("timm")
    assert class_numbers(["0", "2"], SYNSETS[::-1], where="x") == [2, 0]
    with pytest.raises(UserError, match="its folder '3' is no class of the model"):
        class_numbers(["0", "3"], SYNSETS, where="x")


def test_a_model_without_names_has_its_classes_in_the_order_of_as_many_folders():
    assert class_numbers(["n1", "n2"], ("0", "1"), where="x") == [0, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dgo"], "x: its folder 'dgo' is no class of the model, which knows 2: did you mean 'dog'"),
        (["n1", "n2"], "its folder 'n1' is no class"),
        (["0", "1", "2"], "its folder '2' is no class of the model, which knows 2"),
    ],
)
def test_a_folder_that_is_no_class_is_named(names, message):
    with pytest.raises(UserError, match=message):
        class_numbers(names, ("cat", "dog"), where="x")


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Four validation images, in folders whose order is not that of the file names."""
    for number, folder in ((1, "z"), (2, "a"), (3, "z"), (4, "b")):
        grey(tmp_path / "val" / folder / f"ILSVRC2012_val_{number:08d}.JPEG", 30 * number)
    return tmp_path


def test_corrected_labels_go_by_file_name_and_images_without_any_are_left_out(real: Path):
    (real / "real.json").write_text(json.dumps([[0], [], [2, 1], [1]]))
    part, accepted = read_folder(real / "val", ("a", "b", "c"), shape=SHAPE, labels=real / "real.json")
    assert [round(level / 30) for level in levels(part)] == [1, 3, 4]
    assert accepted is not None
    assert accepted.tolist() == [[True, False, False], [False, True, True], [False, True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[0], [1]]", r"real\.json: has labels for 2 images, .*val holds 4"),
        ("[[0], [1], [7], [1]]", "image 2 has label 7, the model has 3 classes"),
        ("[0, 1, 2, 1]", "is no list of lists of class numbers"),
        ('[[0], [1], ["a"], [1]]', "is no list of lists"),
        ("[[], [], [], []]", "has a label for no image"),
        ("{", "is no JSON"),
        (None, "there is no such file"),
    ],
)
def test_corrected_labels_that_do_not_fit_are_one_line(real: Path, text, message):
    if text is not None:
        (real / "real.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_folder(real / "val", ("a", "b", "c"), shape=SHAPE, labels=real / "real.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "there is no such folder"),
        (lambda root: grey(root / "set" / "1.png", 0), "holds no folders: wanted one of images for each class"),
        (lambda root: (root / "set" / "a").mkdir(parents=True), "holds no images"),
    ],
)
def test_a_folder_without_images_of_classes_is_refused(tmp_path: Path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path / "set", ("a",), shape=SHAPE)


# Names


def test_names_come_from_a_text_file_or_from_folders(tmp_path: Path):
    (tmp_path / "names.txt").write_text("\ufefftench, Tinca tinca\r\n goldfish \n\n", encoding="utf-8")
    assert read_names(tmp_path / "names.txt", 2) == ["tench, Tinca tinca", "goldfish"]
    for name in ("b", "a", "unlabelled"):
        (tmp_path / "set" / "train" / name).mkdir(parents=True)
    assert read_names(tmp_path / "set", 2) == read_names(tmp_path / "set" / "train", 2) == ["a", "b"]


@pytest.mark.parametrize(("count", "said"), [(3, "names 2 classes, the model has 3"), (1000, "the model has 1,000")])
def test_a_list_of_names_of_the_wrong_length_is_one_line(tmp_path: Path, count, said):
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=rf"names\.txt: .*{said}"):
        read_names(tmp_path / "names.txt", count)
    with pytest.raises(UserError, match="there is no such file or folder of class names"):
        read_names(tmp_path / "nope.txt", count)


def test_imagenets_classes_are_told_in_words():
    pytest.importorskip("timm")
    assert in_words(SYNSETS[:2]) == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    assert in_words(("n01440764", "cat")) == ["n01440764", "cat"]


# URLs


def test_an_image_is_opened_by_path_or_url(tmp_path: Path):
    file = grey(tmp_path / "a.png", 77)
    for place in (file, str(file), file.as_uri()):
        assert open_any(place, 1).getpixel((0, 0)) == 77


def test_what_cannot_be_fetched_is_one_line_with_the_url(tmp_path: Path):
    with pytest.raises(UserError, match=r"file:///nope/x\.png: could not be fetched \(.*No such file"):
        open_any("file:///nope/x.png", 3)
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UserError, match=r"file://.*x\.png: is no image"):
        open_any((tmp_path / "x.png").as_uri(), 3)


def test_without_a_network_a_url_is_refused(monkeypatch: pytest.MonkeyPatch):
    def offline(*_, **__):
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(imagenet.urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"^https://example\.org/a\.jpg: could not be fetched \(.*name resolution\)$"):
        open_any("https://example.org/a.jpg", 3)


def test_nothing_is_fetched_for_a_path_that_only_looks_remote(tmp_path: Path):
    with pytest.raises(UserError, match="no such image"):
        open_any(tmp_path / "https:" / "a.jpg", 3)


def test_a_fetched_file_has_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(imagenet, "_LARGEST", 10)
    with pytest.raises(UserError, match="is larger than"):
        open_any(grey(tmp_path / "a.png", 1).as_uri(), 3)
