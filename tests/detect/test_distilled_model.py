"""Student and teacher as one model: gradients, frozen teacher, strength, frames without labels, logits of detectors."""

import copy

import pytest

pytest.importorskip("ultralytics")

import torch
import torch.nn.functional as F
from detect_helpers import lively, narrow

from understudy.errors import UserError
from understudy.losses.table import LOSSES
from understudy.tasks.detect.catalogue import check_method
from understudy.tasks.detect.guest import YOLO, DistillationModel, get_cfg, load_checkpoint
from understudy.tasks.detect.methods import read_method
from understudy.tasks.detect.outputs import compared_logits
from understudy.tasks.detect.wrapper import Distillation, DistilledModel


def network(path, seed=0):
    torch.manual_seed(seed)
    model = lively(YOLO(str(path)).model, seed)
    model.args = get_cfg(overrides={"imgsz": 64})
    return model


def pair(tmp_path, method, *, width=0.25, epochs=4):
    student = network(narrow(tmp_path), 0)
    teacher = network(narrow(tmp_path, width=width), 1)
    model = DistilledModel(student, teacher, Distillation("", read_method(method)), epochs=epochs)
    return model.train()


def batch(count=4, seed=0, size=64):
    draw = torch.Generator().manual_seed(seed)
    return {
        "img": torch.rand(count, 3, size, size, generator=draw),
        "batch_idx": torch.arange(count).float(),
        "cls": torch.zeros(count, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(count, 1),
    }


@pytest.mark.parametrize("method", ["cwd", "mgd", "kd", {"name": "kd", "on": "boxes"}])
def test_gradients_reach_student_and_every_connector_and_never_the_teacher(tmp_path, method):
    model = pair(tmp_path, method)
    before = copy.deepcopy(model.teacher_model.state_dict())
    losses, items = model.loss(batch())
    losses.sum().backward()
    assert items[f"{method if isinstance(method, str) else 'kd'}_loss"] > 0
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.projector.parameters()
    )
    assert (sum(1 for _ in model.projector.parameters()) > 0) == (method in ("cwd", "mgd"))
    assert all(parameter.grad is None for parameter in model.teacher_model.parameters())
    assert not model.teacher_model.training
    assert all(torch.equal(value, model.teacher_model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("method", ["cwd", "mgd", "kd", "feature"])
def test_strength_does_not_depend_on_the_batch_size(tmp_path, method):
    """The same images again and again: a loss is what it is for one image times the batch size, as ultralytics' are."""
    model = pair(tmp_path, method)
    for module in model.student_model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # whose statistics of a batch would differ
    if method == "mgd":
        model.objectives[0].loss.ratio = 0.0  # no random holes
    found = []
    for copies in (1, 2, 4):
        many = {key: torch.cat([value] * copies) for key, value in batch(2).items()}
        many["batch_idx"] = torch.arange(2 * copies).float()
        losses, items = model.loss(many)
        found.append(float(losses[-1].detach()) / (2 * copies))
        assert found[-1] == pytest.approx(float(items[next(key for key in items if key.startswith(method))]), rel=1e-4)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


def test_frames_without_labels_change_the_distillation_loss_alone(tmp_path):
    model = pair(tmp_path, "cwd")
    for module in model.student_model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    plain, items = model.loss(batch())
    with_frames, items_with = model.loss({**batch(), "unlabelled": torch.rand(3, 3, 64, 64)})
    torch.testing.assert_close(with_frames[:-1], plain[:-1])
    assert items_with["cwd_loss"] != items["cwd_loss"]


def test_a_schedule_that_has_ended_asks_the_teacher_nothing(tmp_path):
    model = pair(tmp_path, {"name": "cwd", "weight": [1.0, 0.0]})
    model.epoch = 1
    model.teacher_model.forward = None  # calling it would fail
    losses, items = model.loss(batch())
    assert items["cwd_loss"] == 0
    assert losses[-1] == 0


def test_validation_has_the_same_columns_and_no_distillation(tmp_path):
    model = pair(tmp_path, "mgd")
    _, training = model.loss(batch())
    model.eval()
    with torch.no_grad():
        _, validation = model.loss(batch())
    assert set(training) == set(validation)
    assert validation["mgd_loss"] == 0


def test_teacher_and_student_of_other_families_are_paired_by_resolution(tmp_path):
    student, teacher = network(narrow(tmp_path), 0), network("yolo11n.yaml", 1)
    model = DistilledModel(
        student, teacher, Distillation("", read_method({"name": "cwd", "layers": "article"})), epochs=2
    )
    assert model.taps != model.teacher_taps
    _, items = model.train().loss(batch())
    assert items["cwd_loss"] > 0


def test_other_image_sizes_than_the_example_work(tmp_path):
    model = pair(tmp_path, "cwd")
    _, items = model.loss(batch(size=96))
    assert torch.isfinite(items["cwd_loss"])


def test_layers_of_unlike_resolution_are_refused(tmp_path):
    with pytest.raises(UserError, match="name layers of one resolution"):
        pair(tmp_path, {"name": "cwd", "layers": [15], "teacher_layers": [18]})


def test_outputs_for_other_classes_are_refused_features_are_not(tmp_path):
    student, teacher = network(narrow(tmp_path), 0), network("yolov8n.yaml", 1)
    with pytest.raises(UserError, match="2 classes"):
        DistilledModel(student, teacher, Distillation("", read_method("kd")), epochs=1)
    DistilledModel(student, teacher, Distillation("", read_method("cwd")), epochs=1)


def heads(anchors=5, classes=3, bins=4):
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "scores": torch.randn(2, classes, anchors, generator=draw),
            "boxes": torch.randn(2, 4 * bins, anchors, generator=draw),
        }
        for _ in range(2)
    ]


def test_scores_are_compared_as_the_head_has_them_yes_or_no():
    student, teacher = heads()
    own, other = compared_logits("scores", student, teacher)
    kl = F.kl_div(own.log_softmax(1), other.log_softmax(1), log_target=True, reduction="sum")
    p, q = teacher["scores"].sigmoid(), student["scores"].sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    torch.testing.assert_close(kl, expected)


def test_boxes_are_compared_side_by_side_over_their_bins():
    student, teacher = heads(bins=4)
    own, _ = compared_logits("boxes", student, teacher)
    assert own.shape == (2 * 5 * 4, 4)
    first_anchor = teacher["scores"][0].amax(0).argmax()
    torch.testing.assert_close(own[:4], student["boxes"][0, :, first_anchor].reshape(4, 4))


def test_heads_with_other_bins_and_one_class_are_refused():
    student, _ = heads(bins=4)
    with pytest.raises(UserError, match="other bins"):
        compared_logits("boxes", student, heads(bins=1)[1])
    single = {**student, "scores": student["scores"][:, :1]}
    with pytest.raises(UserError, match="nothing to compare"):
        compared_logits("classes", single, single)


def test_a_checkpoint_holds_connectors_and_options_but_no_teacher(tmp_path):
    from ultralytics.utils.torch_utils import ModelEMA

    model = pair(tmp_path, "mgd")
    average = ModelEMA(model).ema
    assert average.teacher_model is None
    assert isinstance(average, DistillationModel)
    torch.save({"ema": copy.deepcopy(average).half(), "epoch": 0, "train_args": {}}, tmp_path / "last.pt")
    again, _ = load_checkpoint(str(tmp_path / "last.pt"))
    assert again.distillation.method.name == "mgd"
    assert set(again.projector.state_dict()) == set(model.projector.state_dict())


# Taken by name: what they compare beside features can only be seen once they are made.
LATER = {"irg", "vitkd"}
TAKEN = [name for name in LOSSES if check_method({"name": name}) is None]


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(TAKEN) - LATER))
def test_every_method_that_is_taken_trains(tmp_path, method):
    losses, _ = pair(tmp_path, method).loss(batch())
    losses.sum().backward()
    assert torch.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(LATER))
def test_what_does_not_fit_a_detector_is_refused_with_its_name(tmp_path, method):
    with pytest.raises(UserError, match=method):
        pair(tmp_path, method)
