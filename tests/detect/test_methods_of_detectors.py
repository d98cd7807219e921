"""Methods by name: what a detector can be trained by, with which weights, and what is refused."""

from itertools import pairwise

import pytest

pytest.importorskip("ultralytics")

from understudy.errors import UserError
from understudy.losses.table import LOSSES
from understudy.tasks.detect.catalogue import check_method
from understudy.tasks.detect.guest import YOLO
from understudy.tasks.detect.methods import make_objectives, read_method
from understudy.tasks.detect.taps import check_pairs, tap_paths


def test_bare_names_take_the_settings_made_for_maps():
    cwd, mgd = read_method("cwd").objectives[0], read_method("mgd").objectives[0]
    assert (cwd["temperature"], cwd["standardize"], cwd["weight"]) == (1.0, True, 1.0)
    assert (mgd["mask"], mgd["ratio"], mgd["weight"]) == ("positions", 0.65, 2e-5)
    assert read_method("mgd:seed-002").objectives[0]["align"] is False


def test_the_weight_of_mgd_means_the_same_at_any_image_size():
    (at_640,) = make_objectives(read_method("mgd"), 3, 640)
    (at_320,) = make_objectives(read_method("mgd"), 3, 320)
    assert at_640.weight_at(0) == pytest.approx(2e-5)
    assert at_320.weight_at(0) == pytest.approx(4 * 2e-5)  # a quarter of the positions are summed over


def test_one_schedule_runs_over_the_whole_training():
    method = read_method({"name": "cwd", "schedule": "cosine", "end": 0.1, "weight": 2.0})
    (objective,) = make_objectives(method, 11, 640)
    weights = [objective.weight_at(epoch) for epoch in range(11)]
    assert weights[0] == pytest.approx(2.0)
    assert weights[5] == pytest.approx(2 * (1 + 0.1) / 2)  # the article's curve, which it restarted in every epoch
    assert weights[10] == pytest.approx(0.2)
    assert all(one > next_one for one, next_one in pairwise(weights))


def test_several_methods_add_up():
    assert [each["loss"] for each in read_method("mgd+kd").objectives] == ["mgd", "kd"]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("mgdd", "did you mean 'mgd'"),
        ("dkd", "a label for each image"),
        ("crd", "embeddings of whole images"),
        ({"name": "cwd", "lambda": 0.5}, "no option 'lambda'"),
        ({"name": "mgd", "ratio": "half"}, "ratio"),
        ({"name": "cwd", "on": "boxes"}, "compares features"),
        ({"name": "kd", "on": "pixels"}, "scores, classes or boxes"),
        ({"name": "cwd", "schedule": "step"}, "schedule"),
        ({"name": "native", "layers": "neck"}, "native has no 'layers'"),
    ],
)
def test_what_a_detector_cannot_be_trained_by_is_said(method, said):
    with pytest.raises(UserError, match=said):
        read_method(method)


def test_every_row_of_the_catalogue_is_taken_or_refused_with_a_reason():
    taken = [name for name in LOSSES if check_method({"name": name}) is None]
    assert {"cwd", "mgd", "pkd", "fitnet", "at", "kd", "dist", "reviewkd"} <= set(taken)
    for name in set(LOSSES) - set(taken):
        assert name in str(check_method({"name": name}))


def numbers(paths):
    return [int(path.split(".")[1]) for path in paths]


@pytest.mark.parametrize(
    ("family", "article", "neck"),
    [
        ("yolov8n", [6, 8, 12, 15, 18, 21], [15, 18, 21]),
        ("yolo11n", [6, 8, 13, 16, 19, 22], [16, 19, 22]),
        ("yolo12n", [6, 8, 11, 14, 17, 20], [14, 17, 20]),
        ("yolo26n", [6, 8, 13, 16, 19, 22], [16, 19, 22]),
    ],
)
def test_taps_are_found_in_every_family(family, article, neck):
    model = YOLO(f"{family}.yaml").model
    assert numbers(tap_paths(model, "article")) == article
    assert numbers(tap_paths(model, "neck")) == neck
    assert numbers(tap_paths(model, "backbone"))[:2] == [4, 6]
    assert tap_paths(model, [6, "model.8"]) == ("model.6", "model.8")


def test_a_tap_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"no module 'model\.99'"):
        tap_paths(YOLO("yolov8n.yaml").model, [99])


def test_pairs_that_do_not_fit_are_refused():
    own = {"model.4": (1, 8, 8, 8), "model.6": (1, 8, 4, 4)}
    with pytest.raises(UserError, match="2 places"):
        check_pairs(own, {"model.4": (1, 8, 8, 8)})
    with pytest.raises(UserError, match=r"model\.6 gives maps of 4x4"):
        check_pairs(own, {"model.4": (1, 8, 8, 8), "model.5": (1, 8, 8, 8)})
