import numpy as np
import pytest

from understudy.errors import UserError
from understudy.tasks.detect.diagrams import Diagram, read_diagram, write_diagram

GOOD = "0 0.5 0.2 0.2 0.1 0 0 0 0 -1\n0 0.3 0.6 0.2 0.1 0.5 0.2 0.2 0.1 0\n"


def test_a_file_in_the_articles_form_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(GOOD)
    diagram = read_diagram(path)
    assert diagram.parents == [-1, 0]
    assert diagram.classes == [0, 0]
    assert diagram.in_pixels(200, 100) == pytest.approx(np.array([[80, 15, 120, 25], [40, 55, 80, 65]]))


def test_what_is_written_is_what_is_read(tmp_path):
    random = np.random.default_rng(0)
    corner = random.uniform(0, 0.7, (12, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0.05, 0.3, (12, 2))], axis=1)
    parents = [-1, 0, 0, 1, 3, -1, 5, 5, 6, 0, 9, 10]
    write_diagram(tmp_path / "a.txt", Diagram([3] * 12, boxes, parents))
    again = read_diagram(tmp_path / "a.txt")
    assert again.parents == parents
    assert again.classes == [3] * 12
    assert again.boxes == pytest.approx(boxes, abs=2e-6)
    assert again.clipped == 0
    for line in (tmp_path / "a.txt").read_text().splitlines():  # as the article reads it: nine numbers after the class
        *_, px, py, pw, ph, p = map(float, line.split()[1:])
        parent = boxes[int(p)]
        expected = [0, 0, 0, 0] if p < 0 else [*(parent[:2] + parent[2:]) / 2, *(parent[2:] - parent[:2])]
        assert len(line.split()) == 10
        assert [px, py, pw, ph] == pytest.approx(expected, abs=2e-6)


def test_an_empty_file_is_a_diagram_without_nodes(tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    diagram = read_diagram(tmp_path / "a.txt")
    assert diagram.parents == []
    assert diagram.boxes.shape == (0, 4)


def test_boxes_beyond_the_image_are_cut_off_and_counted(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.02 0.5 0.1 0.1 0 0 0 0 -1\n0 0.5 0.5 0.1 0.1 0.02 0.5 0.1 0.1 0\n")
    diagram = read_diagram(tmp_path / "a.txt")
    assert diagram.clipped == 1
    assert diagram.boxes[0] == pytest.approx([0, 0.45, 0.07, 0.55])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.2 0.2 0.1\n", r"a\.txt:1: has 5 fields, not the 10 .*labels/"),
        ("0 0.5 0.2 0.2 0.1 0 0 0 0\n", "has 9 fields"),
        ("0 0.5 0.2 0.2 x 0 0 0 0 -1\n", "something else than numbers"),
        ("0 0.5 0.2 0.2 nan 0 0 0 0 -1\n", "all others finite"),
        ("0 0.5 0.2 0.2 0.1 0 0 0 0 0.5\n", "whole numbers"),
        ("0 0.5 0.2 0 0.1 0 0 0 0 -1\n", "positive width and height"),
        ("0 1.5 0.2 0.2 0.1 0 0 0 0 -1\n", "no area inside the image"),
        (GOOD.replace(" 0\n", " 2\n"), r"a\.txt:2: parent 2 is none of the 2 nodes \(0 to 1, or -1 for a root\)"),
        (GOOD.replace(" 0\n", " -2\n"), "parent -2 is none of"),
        (GOOD.replace(" 0\n", " 1\n"), r"a\.txt:2: is its own ancestor \(cycle 1 -> 1\)"),
        (GOOD.replace("0 0 0 0 -1", "0.3 0.6 0.2 0.1 1"), r"a\.txt:1: is its own ancestor \(cycle 0 -> 1 -> 0\)"),
        (GOOD.replace("0.1 0.5 0.2", "0.1 0.6 0.2"), r"a\.txt:2: the parent's box is not that of node 0 \(line 1\)"),
    ],
)
def test_wrong_lines_are_named_in_one_line(tmp_path, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_diagram(tmp_path / "a.txt")
    assert "\n" not in str(error.value)


def test_blank_lines_do_not_shift_the_numbers_of_messages_or_parents(tmp_path):
    first, second = GOOD.splitlines()
    (tmp_path / "a.txt").write_text(f"{first}\n\n{second}\n")
    assert read_diagram(tmp_path / "a.txt").parents == [-1, 0]
    (tmp_path / "a.txt").write_text(f"{first}\n\n{second[:-1]}7\n")
    with pytest.raises(UserError, match=r"a\.txt:3: parent 7"):
        read_diagram(tmp_path / "a.txt")


def test_a_class_beyond_the_list_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.txt").write_text(GOOD.replace("0 0.3", "4 0.3"))
    with pytest.raises(UserError, match=r"a\.txt:2: class 4 is none of the 2 classes"):
        read_diagram(tmp_path / "a.txt", classes=2)
    with pytest.raises(UserError, match="no such label file"):
        read_diagram(tmp_path / "b.txt")


def test_a_cycle_is_not_written(tmp_path):
    boxes = np.array([[0, 0, 0.1, 0.1], [0.2, 0, 0.3, 0.1]])
    with pytest.raises(UserError, match="cycle 0 -> 1 -> 0"):
        write_diagram(tmp_path / "a.txt", Diagram([0, 0], boxes, [1, 0]))
    assert not (tmp_path / "a.txt").exists()
