"""Data YAMLs and labels: what is wrong is one clear line, what is merely dirty is counted."""

import pytest
import yaml
from detect_helpers import paint

from understudy.errors import UserError
from understudy.tasks.detect.data import check_labels, images_of, label_file, read_data


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("cv2")
    for seed, split in enumerate(("train", "val")):
        paint(tmp_path, split, 3, seed)
    write(tmp_path)
    return tmp_path


def write(folder, **changes):
    plain = {"path": ".", "train": "images/train", "val": "images/val", "names": ["square", "disc"], **changes}
    plain = {key: value for key, value in plain.items() if value is not None}
    (folder / "data.yaml").write_text(yaml.safe_dump(plain))


def test_relative_paths_are_those_of_the_file_whatever_the_present_folder(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    data = read_data(folder / "data.yaml")
    assert data.splits["train"] == (folder / "images/train",)
    written = yaml.safe_load(data.write(folder / "copy" / "data.yaml").read_text())
    assert written["train"] == [str(folder / "images/train")]
    assert written["names"] == {0: "square", 1: "disc"}
    assert data.test_split == "val"


def test_labels_are_beside_the_images_folder(folder):
    data = read_data(folder / "data.yaml")
    first = next(images_of(data, "train"))
    assert label_file(first) == folder / "labels/train/0.txt"


def test_a_list_of_files_is_a_split_too(folder):
    (folder / "train.txt").write_text("images/train/0.png\nimages/train/2.png\n")
    write(folder, train="train.txt")
    assert [image.name for image in images_of(read_data(folder / "data.yaml"), "train")] == ["0.png", "2.png"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": None}, "'train' is missing"),
        ({"train": "images/nowhere"}, "there is no .*nowhere"),
        ({"names": None}, "'names' is missing"),
        ({"nc": 3}, "nc is 3, but names lists 2"),
        ({"names": {0: "a", 2: "b"}}, "without gaps"),
    ],
)
def test_a_yaml_that_cannot_be_used_says_why(folder, changes, said):
    write(folder, **changes)
    with pytest.raises(UserError, match=said):
        read_data(folder / "data.yaml")


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such data YAML"):
        read_data(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="a mapping"):
        read_data(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("row", "said"),
    [("2 0.5 0.5 0.1 0.1", "class 2 is beyond the list"), ("-1 0.5 0.5 0.1 0.1", "class -1 is beyond"),
     ("0 0.5 0.5 0.1", "a label row is"), ("disc 0.5 0.5 0.1 0.1", "a class number"),
     ("0.5 0.5 0.5 0.1 0.1", "a label row is"), ("0 nan 0.5 0.1 0.1", "a label row is")],
)  # fmt: skip
def test_a_row_that_is_none_is_named_by_file_and_line(folder, row, said):
    (folder / "labels/train/1.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{row}\n")
    with pytest.raises(UserError, match=rf"labels/train/1\.txt:2: .*{said}"):
        check_labels(read_data(folder / "data.yaml"))


def test_dirt_is_counted_and_told(folder):
    (folder / "labels/train/0.txt").write_text("0 0.95 0.5 0.2 0.2\n1 0.5 0.5 0 0.1\n1 0.5 0.5 0 0.1\n")
    (folder / "labels/train/1.txt").write_text("")
    (folder / "labels/train/2.txt").unlink()
    dirt = check_labels(read_data(folder / "data.yaml"))["train"]
    assert (dirt.images, dirt.boxes, dirt.unlabelled, dirt.outside, dirt.flat, dirt.twice) == (3, 3, 2, 1, 2, 1)
    lines = dirt.in_words("train")
    assert len(lines) == 4
    assert lines[0].startswith("train: 2 images have no boxes")
    assert check_labels(read_data(folder / "data.yaml"))["val"].in_words("val") == []


def test_training_data_without_a_single_box_are_refused(folder):
    for file in (folder / "labels/train").iterdir():
        file.write_text("")
    with pytest.raises(UserError, match="none of 3 images has a box"):
        check_labels(read_data(folder / "data.yaml"))


def test_a_split_without_images_is_refused(folder):
    for file in (folder / "images/val").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="val: no images"):
        check_labels(read_data(folder / "data.yaml"))
