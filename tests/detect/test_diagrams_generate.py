import time

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFont

from understudy.cli import main
from understudy.errors import UserError
from understudy.tasks.detect.diagrams import (
    draw_diagram,
    evaluate_relations,
    find_parent_nodes,
    generate_diagrams,
    read_diagram,
    relation_metrics,
    style,
)
from understudy.tasks.detect.diagrams.forest import children_of, depths_of, find_fault


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return generate_diagrams(tmp_path_factory.mktemp("made") / "diagram", count=20, seed=5, val=0.2, test=0.2)


def draw(seed, count):
    return [draw_diagram(np.random.default_rng([seed, number])) for number in range(count)]


def test_the_folder_has_the_form_that_detectors_and_evaluations_read(dataset):
    root = dataset.parent
    described = yaml.safe_load(dataset.read_text())
    assert described["names"] == {0: "node"}
    sizes = {}
    for split in ("train", "val", "test"):
        images = sorted((root / described[split]).iterdir())
        sizes[split] = len(images)
        for path in images:
            plain = np.loadtxt(root / "labels" / split / f"{path.stem}.txt", ndmin=2)
            full = np.loadtxt(root / "plabels" / split / f"{path.stem}.txt", ndmin=2)
            assert plain.shape[1] == 5
            assert full.shape[1] == 10
            assert (plain == full[:, :5]).all()
            assert (plain[:, 1:3] - plain[:, 3:] / 2 >= 0).all()
            assert (plain[:, 1:3] + plain[:, 3:] / 2 <= 1).all()
            for row in full:
                if row[9] >= 0:
                    assert (row[5:9] == full[int(row[9]), 1:5]).all()
            assert find_fault(read_diagram(root / "plabels" / split / f"{path.stem}.txt", classes=1).parents) is None
    assert sizes == {"train": 12, "val": 4, "test": 4}
    assert len({path.suffix for path in root.glob("images/*/*")}) > 1


def test_a_seed_gives_the_same_bytes_and_another_seed_others(dataset, tmp_path):
    def contents(root):
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    first = contents(dataset.parent)
    again = contents(generate_diagrams(tmp_path / "again", count=20, seed=5, val=0.2, test=0.2).parent)
    assert first == again
    other = contents(generate_diagrams(tmp_path / "other", count=3, seed=6, val=0, test=0).parent)
    assert not {bytes_ for path, bytes_ in other.items() if path.parts[0] == "images"} & set(first.values())


def test_a_larger_set_holds_the_smaller_one(dataset, tmp_path):
    generate_diagrams(tmp_path / "small", count=4, seed=5, val=0, test=0)
    for path in (tmp_path / "small/images/train").iterdir():
        assert path.read_bytes() == (dataset.parent / "images/train" / path.name).read_bytes()


def test_every_way_of_growing_occurs_and_diagrams_differ():
    drawings = draw(11, 90)
    assert {drawing.growth for drawing in drawings} == {"down", "up", "right", "left", "both", "indented", "radial"}
    assert len({drawing.image.size for drawing in drawings}) > 80
    assert min(len(drawing.parents) for drawing in drawings) <= 3
    assert max(len(drawing.parents) for drawing in drawings) >= 25
    assert any(drawing.parents.count(-1) > 1 for drawing in drawings)
    assert max(max(depths_of(drawing.parents)) for drawing in drawings) >= 4
    papers = {drawing.image.getpixel((1, 1)) for drawing in drawings}
    assert any(sum(colour) < 250 for colour in papers)
    assert any(sum(colour) > 700 for colour in papers)


def test_nodes_stand_apart_and_inside_the_image():
    for drawing in draw(12, 40):
        left, top, right, bottom = drawing.boxes.T
        width, height = drawing.image.size
        assert min(left.min(), top.min()) >= 0
        assert right.max() <= width
        assert bottom.max() <= height
        apart = (
            (left[:, None] >= right[None]) | (left[None] >= right[:, None])
            | (top[:, None] >= bottom[None]) | (top[None] >= bottom[:, None])
        )  # fmt: skip
        assert (apart | np.eye(len(left), dtype=bool)).all()


def test_a_nodes_index_does_not_betray_its_place():
    drawings = [drawing for drawing in draw(13, 60) if len(drawing.parents) > 5]
    later = [
        child > parent for d in drawings for parent, family in enumerate(children_of(d.parents)) for child in family
    ]
    assert 0.4 < np.mean(later) < 0.6


def test_every_box_is_drawn_to_its_edges():
    """Outlined and filled nodes differ from the paper just inside of each side, and plain paper is all around."""
    tight = 0
    for drawing in draw(14, 25):
        pixels = np.array(drawing.image).astype(int)
        busy = np.abs(pixels - np.median(pixels.reshape(-1, 3), axis=0)).max(axis=2) > 60
        for left, top, right, bottom in drawing.boxes.astype(int):
            node = busy[top:bottom, left:right]
            assert node.any()
            tight += node[:, :3].any() and node[:, -3:].any() and node[:3].any() and node[-3:].any()
    assert tight > 150


def test_no_font_file_is_needed(monkeypatch):
    from_file = ImageFont.truetype

    def no_files(font=None, *arguments, **options):
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return from_file(font, *arguments, **options)

    monkeypatch.setattr(ImageFont, "truetype", no_files)
    style.installed_fonts.cache_clear()
    style.load_font.cache_clear()
    drawing = draw_diagram(np.random.default_rng([15, 1]))
    style.installed_fonts.cache_clear()
    style.load_font.cache_clear()
    left, top, right, bottom = drawing.boxes[0].astype(int)
    inside = np.array(drawing.image.convert("L"))[top + 4 : bottom - 4, left + 4 : right - 4]
    assert np.ptp(inside) > 80  # there are letters


def scores(seed, count, **jitter):
    drawings = draw(seed, count)
    random = np.random.default_rng(seed)
    boxes = [d.boxes + random.normal(0, jitter["pixels"], d.boxes.shape) if jitter else d.boxes for d in drawings]
    found = [find_parent_nodes(box, d.image) for box, d in zip(boxes, drawings, strict=True)]
    return relation_metrics([d.boxes for d in drawings], boxes, [d.parents for d in drawings], found)


def test_tracing_finds_the_relations_of_generated_diagrams():
    metrics = scores(777_001, 40)
    assert metrics.directed.f1 >= 0.93
    assert metrics.undirected.f1 >= 0.97


def test_boxes_alone_tell_more_than_the_nearest_neighbour_does():
    drawings = draw(777_002, 60)
    truth = [d.parents for d in drawings]
    boxes = [d.boxes for d in drawings]

    def nearest(box):
        """The parent is the nearest box above: a plain rule for the commonest way of growing."""
        middle = (box[:, :2] + box[:, 2:]) / 2
        apart = np.linalg.norm(middle[:, None] - middle[None], axis=2)
        apart[box[:, 3][None] > box[:, 1][:, None]] = np.inf  # (child, parent): not above
        return [int(np.argmin(row)) if np.isfinite(row).any() else -1 for row in apart]

    guessed = relation_metrics(boxes, boxes, truth, [find_parent_nodes(box) for box in boxes])
    plain = relation_metrics(boxes, boxes, truth, [nearest(box) for box in boxes])
    assert guessed.directed.f1 > 0.6
    assert guessed.directed.f1 > plain.directed.f1 + 0.2


@pytest.mark.slow
def test_tracing_on_many_diagrams_and_on_boxes_as_detectors_give_them():
    metrics = scores(777_003, 300)
    assert metrics.directed.f1 >= 0.93
    assert metrics.undirected.f1 >= 0.97
    assert scores(777_003, 100, pixels=1.5).directed.f1 >= 0.9


@pytest.mark.slow
def test_five_hundred_images_take_less_than_half_a_minute(tmp_path):
    began = time.process_time()  # of this process: others on the machine do not count
    generate_diagrams(tmp_path / "set", count=500)
    assert time.process_time() - began < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: at least 1 image"),
        ({"seed": -1}, "seed: must be 0 or more"),
        ({"val": 0.6, "test": 0.4}, "leave some for training"),
        ({"val": -0.1}, "leave some for training"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        generate_diagrams(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_command_makes_what_the_function_makes(dataset, tmp_path, capsys):
    out = tmp_path / "made"
    assert main(["detect", "generate", str(out), "count=20", "seed=5", "val=0.2", "test=0.2"]) == 0
    assert capsys.readouterr().out.strip().endswith("diagram.yaml")
    first, again = ({path.name: path.read_bytes() for path in root.rglob("*.*")} for root in (dataset.parent, out))
    assert first == again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["counts=3"], "did you mean 'count'"),
        (["count=many"], "count: should be a whole number"),
        (["count=0"], "at least 1 image"),
    ],
)
def test_wrong_words_of_the_command_end_in_one_line(tmp_path, capsys, words, said):
    assert main(["detect", "generate", str(tmp_path / "made"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="not an empty folder"):
            generate_diagrams(out, count=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_evaluation_with_a_perfect_detector_equals_true_boxes(dataset):
    truth = {}
    for path in (dataset.parent / "images/val").iterdir():
        image = Image.open(path)
        truth[image.convert("RGB").tobytes()] = read_diagram(
            dataset.parent / "plabels/val" / f"{path.stem}.txt"
        ).in_pixels(*image.size)
    evaluation = evaluate_relations(dataset.parent, split="val", detect=lambda image: truth[image.tobytes()])
    assert evaluation.found is not None
    assert evaluation.found.to_dict() == evaluation.on_true_boxes.to_dict()
    assert evaluation.found.nodes.f1 == 1
    assert evaluation.found.directed.f1 > 0.8
    assert "detected boxes" in evaluation.table()


def test_evaluation_with_a_blind_detector_finds_nothing(dataset):
    evaluation = evaluate_relations(dataset.parent, split="test", detect=lambda image: np.zeros((0, 4)))
    assert evaluation.found is not None
    assert evaluation.found.directed.f1 == evaluation.found.nodes.f1 == 0
    assert evaluation.on_true_boxes.nodes.f1 == 1
    without = evaluate_relations(dataset.parent, split="test", trace=False)
    assert without.found is None
    assert without.on_true_boxes.directed.f1 <= evaluation.on_true_boxes.directed.f1


def test_missing_parts_of_a_data_set_are_named(dataset, tmp_path):
    with pytest.raises(UserError, match=r"images/valid: no such folder.*there are: test, train, val"):
        evaluate_relations(dataset.parent, split="valid")
    (tmp_path / "images/val").mkdir(parents=True)
    with pytest.raises(UserError, match=r"plabels/val: no such folder"):
        evaluate_relations(tmp_path, split="val")
    (tmp_path / "plabels/val").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        evaluate_relations(tmp_path, split="val")
    Image.new("RGB", (64, 64)).save(tmp_path / "images/val/a.png")
    with pytest.raises(UserError, match=r"a\.txt: no such label file"):
        evaluate_relations(tmp_path, split="val")
    (tmp_path / "plabels/val/a.txt").write_text("")
    assert evaluate_relations(tmp_path, split="val").on_true_boxes.exact == 1
    Image.new("RGB", (64, 64)).save(tmp_path / "images/val/a.jpg")
    with pytest.raises(UserError, match="share one label file"):
        evaluate_relations(tmp_path, split="val")
