"""Hard cases drawn here by hand, with nothing of the generator."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from understudy.errors import UserError
from understudy.tasks.detect.diagrams import draw_relations, find_parent_nodes
from understudy.tasks.detect.diagrams.forest import find_fault

# One root with three children, the second of which has two: a tree that grows downwards.
TREE = [[160, 20, 240, 50], [20, 110, 100, 140], [160, 110, 240, 140], [300, 110, 380, 140],
        [110, 200, 190, 230], [210, 200, 290, 230]]  # fmt: skip
TREE_PARENTS = [-1, 0, 0, 0, 2, 2]


def middle(box, side):
    x1, y1, x2, y2 = box
    return {"top": ((x1 + x2) / 2, y1), "bottom": ((x1 + x2) / 2, y2), "left": (x1, (y1 + y2) / 2),
            "right": (x2, (y1 + y2) / 2)}[side]  # fmt: skip


def picture(
    boxes, edges, *, size=(400, 260), paper="white", ink="black", bend=None, leave="bottom", arrive="top"
):  # fmt: skip
    """Outlined boxes and a line for each (parent, child): straight, or by an elbow at the height `bend` gives."""
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    for parent, child in edges:
        start, end = middle(boxes[parent], leave), middle(boxes[child], arrive)
        points = [start, end]
        if bend:
            turn = start[1] + bend
            points = [start, (start[0], turn), (end[0], turn), end]
        draw.line(points, fill=ink, width=2)
    for box in boxes:
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=ink, fill=paper)
    return image


def edges_of(parents):
    return [(parent, child) for child, parent in enumerate(parents) if parent >= 0]


def arrow(draw, start, end, size=10):
    draw.line([start, end], fill="black", width=2)
    way = np.subtract(end, start) / np.hypot(*np.subtract(end, start))
    back, side = np.array(end) - way * size, np.array([-way[1], way[0]]) * size / 2
    draw.polygon([tuple(end), tuple(back + side), tuple(back - side)], fill="black")


@pytest.mark.parametrize("bend", [None, 30])
@pytest.mark.parametrize(
    ("paper", "ink"), [("white", "black"), ("#182030", "#e0c040"), ("#fff4d0", "#c03030"), ("white", "#a8a8a8")]
)
def test_a_tree_is_traced_in_any_colour(bend, paper, ink):
    image = picture(TREE, edges_of(TREE_PARENTS), paper=paper, ink=ink, bend=bend)
    assert find_parent_nodes(TREE, image) == TREE_PARENTS


@pytest.mark.parametrize(
    "turn", [None, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90]
)
def test_the_direction_of_growth_is_found(turn):
    image, boxes = picture(TREE, edges_of(TREE_PARENTS), bend=30), np.array(TREE)
    if turn is not None:
        x1, y1, x2, y2 = boxes.T
        width, height = image.size
        image = image.transpose(turn)
        boxes = np.stack({
            Image.Transpose.FLIP_TOP_BOTTOM: (x1, height - y2, x2, height - y1),
            Image.Transpose.TRANSPOSE: (y1, x1, y2, x2),
            Image.Transpose.ROTATE_90: (y1, width - x2, y2, width - x1),
        }[turn], axis=1)  # fmt: skip
    assert find_parent_nodes(boxes, image) == TREE_PARENTS


def test_the_tree_is_guessed_from_boxes_alone():
    assert find_parent_nodes(TREE) == TREE_PARENTS
    sideways = [[y1, x1, y2, x2] for x1, y1, x2, y2 in TREE]
    assert find_parent_nodes(sideways) == TREE_PARENTS


def test_a_mind_map_grows_to_both_sides():
    boxes = [[180, 110, 260, 150], [320, 40, 400, 70], [320, 115, 400, 145], [320, 190, 400, 220],
             [40, 60, 120, 90], [40, 170, 120, 200]]  # fmt: skip
    right = picture(boxes, [(0, 1), (0, 2), (0, 3)], size=(440, 260), leave="right", arrive="left")
    both = ImageDraw.Draw(right)
    for child in (4, 5):
        both.line([middle(boxes[0], "left"), middle(boxes[child], "right")], fill="black", width=2)
    assert find_parent_nodes(boxes, right) == [-1, 0, 0, 0, 0, 0]
    assert find_parent_nodes(boxes) == [-1, 0, 0, 0, 0, 0]


def test_two_trees_in_one_image_stay_apart():
    second = [[x1 + 400, y1, x2 + 400, y2] for x1, y1, x2, y2 in TREE]
    parents = [*TREE_PARENTS, *(p + 6 if p >= 0 else -1 for p in TREE_PARENTS)]
    image = picture(TREE + second, edges_of(parents), size=(800, 260), bend=30)
    assert find_parent_nodes(TREE + second, image) == parents


def test_boxes_without_lines_have_no_parents():
    siblings = TREE[1:4]
    assert find_parent_nodes(siblings, picture(siblings, [])) == [-1, -1, -1]


@pytest.mark.parametrize("image", [None, Image.new("RGB", (400, 260), "white")])
def test_one_box_is_a_root_and_no_box_is_nothing(image):
    assert find_parent_nodes(TREE[:1], image) == [-1]
    assert find_parent_nodes([], image) == []
    assert find_parent_nodes(np.zeros((0, 4)), image) == []


def test_boxes_that_touch_are_not_related_by_touching():
    boxes = [[100, 20, 200, 50], [40, 120, 140, 150], [140, 120, 240, 150]]
    image = picture(boxes, [(0, 1)])
    assert find_parent_nodes(boxes, image) == [-1, 0, -1]
    image = picture(boxes, [(0, 1), (0, 2)])
    assert find_parent_nodes(boxes, image) == [-1, 0, 0]


def test_the_box_may_fill_the_image_or_reach_beyond_it():
    image = Image.new("RGB", (100, 60), "white")
    assert find_parent_nodes([[0, 0, 100, 60]], image) == [-1]
    assert find_parent_nodes([[-20, -20, 120, 80], [90, 50, 300, 300]], image) == [-1, -1]


def test_arrowheads_overrule_reading_order():
    boxes = [[40, 20, 120, 50], [40, 110, 120, 140], [40, 200, 120, 230]]
    chain = picture(boxes, [(0, 1), (1, 2)], size=(160, 250))
    assert find_parent_nodes(boxes, chain) == [-1, 0, 1]
    upwards = picture(boxes, [], size=(160, 250))
    draw = ImageDraw.Draw(upwards)
    arrow(draw, (80, 200), (80, 141))
    arrow(draw, (80, 110), (80, 51))
    assert find_parent_nodes(boxes, upwards) == [1, 2, -1]


def test_dashes_are_one_line():
    boxes = [[40, 20, 120, 50], [40, 130, 120, 160], [180, 130, 260, 160]]
    image = picture(boxes, [], size=(300, 180))
    draw = ImageDraw.Draw(image)
    for start, end in (((70, 50), (70, 130)), ((100, 50), (210, 130))):
        for at in np.arange(0, 1, 0.1):
            points = [tuple(np.array(start) + np.subtract(end, start) * share) for share in (at, at + 0.05)]
            draw.line(points, fill="black", width=2)
    assert find_parent_nodes(boxes, image) == [-1, 0, 0]


def test_a_frame_a_grid_and_a_title_are_no_relations():
    image = picture(TREE, edges_of(TREE_PARENTS), bend=30)
    draw = ImageDraw.Draw(image)
    draw.rectangle((5, 5, 394, 254), outline="black")
    draw.text((20, 12), "A title near the frame", fill="black")
    assert find_parent_nodes(TREE, image) == TREE_PARENTS
    faint = Image.new("RGB", (400, 260), "white")
    grid = ImageDraw.Draw(faint)
    for at in range(10, 400, 20):
        grid.line((at, 0, at, 260), fill="#f2f2f2")
        grid.line((0, at, 400, at), fill="#f2f2f2")
    lines = np.minimum(np.array(faint), np.array(picture(TREE, edges_of(TREE_PARENTS), bend=30)))
    assert find_parent_nodes(TREE, lines) == TREE_PARENTS


def test_noise_and_uneven_light_do_not_hide_the_lines():
    random = np.random.default_rng(3)
    clean = np.array(picture(TREE, edges_of(TREE_PARENTS), bend=30, ink="#404040", paper="#d8d8d8")).astype(float)
    light = np.linspace(-40, 30, 400)[None, :, None] + np.linspace(-20, 20, 260)[:, None, None]
    noisy = np.clip(clean + light + random.normal(0, 12, clean.shape), 0, 255).astype(np.uint8)
    assert find_parent_nodes(TREE, noisy) == TREE_PARENTS


def test_boxes_a_few_pixels_off_are_good_enough():
    random = np.random.default_rng(4)
    image = picture(TREE, edges_of(TREE_PARENTS), bend=30)
    for _ in range(10):
        assert find_parent_nodes(np.array(TREE) + random.uniform(-3, 3, (6, 4)), image) == TREE_PARENTS


@pytest.mark.parametrize("with_image", [True, False])
def test_the_order_of_the_boxes_and_of_the_channels_does_not_matter(with_image):
    image = np.array(picture(TREE, edges_of(TREE_PARENTS), ink="#2040c0"))
    random = np.random.default_rng(5)
    for _ in range(5):
        order = random.permutation(6)
        place = np.argsort(order)
        expected = [int(place[p]) if p >= 0 else -1 for p in np.array(TREE_PARENTS)[order]]
        assert find_parent_nodes(np.array(TREE)[order], image[..., ::-1] if with_image else None) == expected
    grey = np.array(ImageOps.grayscale(Image.fromarray(image)))
    assert find_parent_nodes(TREE, grey) == TREE_PARENTS


def test_whatever_the_boxes_the_answer_is_a_forest():
    random = np.random.default_rng(6)
    for _ in range(30):
        count = int(random.integers(1, 25))
        corner = random.uniform(-20, 180, (count, 2))
        boxes = np.concatenate([corner, corner + random.uniform(1, 90, (count, 2))], axis=1)
        scribble = random.integers(0, 256, (160, 200, 3)).astype(np.uint8)
        for image in (None, scribble, np.kron(scribble[:20, :25], np.ones((8, 8, 1), np.uint8))):
            parents = find_parent_nodes(boxes, image)
            assert len(parents) == count
            assert find_fault(parents) is None


@pytest.mark.parametrize(
    ("boxes", "image", "message"),
    [
        ([[0, 0, 10]], None, r"boxes: .*shape \(N, 4\)"),
        ([[0, 0, 10, float("nan")]], None, "box 0"),
        ([[0, 0, 10, 10], [9, 0, 2, 5]], None, "box 1: .*positive size"),
        ([["a", 0, 1, 1]], None, "boxes must be numbers"),
        ([[0, 0, 1, 1]], np.zeros((4, 4, 3)), r"image: must be \(H, W, 3\) uint8"),
        ([[0, 0, 1, 1]], np.zeros((3, 4, 4, 3), np.uint8), "image: must be"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(boxes, image, message):
    with pytest.raises(UserError, match=message):
        find_parent_nodes(boxes, image)


def test_relations_are_drawn_between_the_boxes():
    blank = Image.new("RGB", (400, 260), "white")
    drawn = draw_relations(blank, TREE, TREE_PARENTS)
    assert drawn.size == blank.size
    assert blank.getcolors() == [(400 * 260, (255, 255, 255))]  # the original is untouched
    without = draw_relations(blank, TREE, [-1] * 6)
    changed = (np.array(drawn) != np.array(without)).any(axis=2)
    assert changed[52:108, 195:205].any()  # between the root and its middle child
    assert not changed[150:190, 20:80].any()  # nothing below a leaf
    arrows = np.array(drawn)[:, :, 0] < 200
    box = np.array(TREE[2])
    assert arrows[box[1] - 6, box[0] : box[2]].sum() > arrows[box[1] - 30, box[0] : box[2]].sum()  # the head


@pytest.mark.parametrize(
    ("parents", "message"), [([-1, 0], "6 boxes, but 2 parents"), ([1, 0, -1, -1, -1, -1], "cycle")]
)
def test_what_is_no_forest_is_not_drawn(parents, message):
    with pytest.raises(UserError, match=message):
        draw_relations(Image.new("RGB", (400, 260)), TREE, parents)
