"""The distiller: one forward of each model, the teacher beside it, losses that ask for what they need."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from understudy.distill import Answer, Distiller, Objective, Schedule, Signals, Teacher
from understudy.errors import UserError
from understudy.losses import KD, CrossEntropy
from understudy.losses.logits import LogitMSE


class Features(nn.Module):
    """Compares what was tapped."""

    def forward(self, student, teacher):
        pairs = zip(student, teacher, strict=True) if isinstance(student, tuple) else [(student, teacher)]
        return sum((one - other).square().mean() for one, other in pairs)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images


def model(width: int = 6, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            one=nn.Linear(4, width), two=nn.Linear(width, width), norm=nn.BatchNorm1d(width), after=Counter(),
            head=nn.Linear(width, classes),
        )
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


IMAGES, LABELS = torch.arange(20.0).view(5, 4) / 20, torch.tensor([0, 1, 2, 0, 1])


def distiller(*objectives, student=None, teacher=None):
    return Distiller(
        student=student or model(), teacher=teacher or model(), objectives=objectives, example=torch.zeros(2, 4)
    )


# The teacher beside the student


def test_parameters_and_state_hold_nothing_of_the_teacher():
    student = model()
    made = distiller(Objective(CrossEntropy()), Objective(KD()), student=student)
    assert {id(p) for p in made.parameters()} == {id(p) for p in student.parameters()}
    assert all(name.startswith("student.") for name in made.state_dict())
    assert not any(name.startswith("teacher") for name, _ in made.named_modules())


def test_moving_and_casting_take_the_teacher_along():
    made = distiller(Objective(KD()))
    assert made.teacher is not None
    made.double()
    assert next(made.teacher.model.parameters()).dtype == torch.float64
    made.to("meta")
    assert next(made.teacher.model.parameters()).device.type == "meta"


def test_training_mode_leaves_the_teacher_in_evaluation_mode():
    teacher = model()
    made = distiller(Objective(KD()), teacher=teacher).train()
    before = copy.deepcopy(teacher.state_dict())
    made(IMAGES, LABELS).total.backward()
    assert not teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_it_works_in_distributed_data_parallel(tmp_path):
    made, alone = (distiller(Objective(CrossEntropy()), Objective(KD())) for _ in range(2))
    alone.load_state_dict(made.state_dict())
    assert made.teacher is not None
    assert alone.teacher is not None
    alone.teacher.model.load_state_dict(made.teacher.model.state_dict())
    try:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    except RuntimeError as error:
        pytest.skip(f"no process group: {error}")
    try:
        wrapped = nn.parallel.DistributedDataParallel(made)
        wrapped(IMAGES, LABELS).total.backward()
        alone(IMAGES, LABELS).total.backward()
        for (name, mine), other in zip(made.named_parameters(), alone.parameters(), strict=True):
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad, other.grad, msg=name)
    finally:
        torch.distributed.destroy_process_group()


def test_two_distillers_on_the_same_models_do_not_meet():
    student, teacher = model(), model()
    first = distiller(Objective(Features(), student_tap="one"), student=student, teacher=teacher)
    second = distiller(Objective(Features(), student_tap=("one", "two")), student=student, teacher=teacher)
    alone = first(IMAGES).total
    second(IMAGES)
    assert torch.equal(first(IMAGES).total, alone)
    assert not any(part._forward_hooks for part in [*student.modules(), *teacher.modules()])


# Taps and chunks


@pytest.mark.parametrize("chunk", [None, 2, 5, 8])
def test_a_teacher_without_logits_stops_at_the_deepest_tap_in_every_chunk(chunk):
    whole = model().eval()
    teacher = Teacher(whole, chunk=chunk)
    answer = teacher(IMAGES, taps=("two", "one"), logits=False)
    assert answer.logits is None
    assert whole.after.calls == 0
    torch.testing.assert_close(answer.features["one"], whole.one(IMAGES))
    torch.testing.assert_close(answer.features["two"], whole.two(whole.one(IMAGES)))


@pytest.mark.parametrize("chunk", [None, 2, 5, 8])
def test_a_teacher_with_logits_gives_them_and_the_features(chunk):
    whole = model().eval()
    answer = Teacher(whole, chunk=chunk)(IMAGES, taps=("two",))
    torch.testing.assert_close(answer.logits, whole(IMAGES))
    assert answer.features["two"].shape == (5, 6)
    assert torch.equal(answer.at(torch.tensor([3])).features["two"], answer.features["two"][3:4])


def test_a_tap_that_no_forward_reaches_is_found_at_construction():
    student = model()
    student.one.register_module("unused", nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"the student's forward never calls 'one\.unused'"):
        distiller(Objective(Features(), student_tap="one.unused", teacher_tap="one"), student=student)


def test_a_wrong_tap_is_found_at_construction():
    with pytest.raises(UserError, match="no module 'onee' in Sequential, did you mean 'one'"):
        distiller(Objective(Features(), student_tap="onee", teacher_tap="one"))


# Outputs


def test_class_counts_must_agree_where_logits_are_compared():
    with pytest.raises(UserError, match="the teacher gives 4 classes, the student 3"):
        distiller(Objective(KD()), teacher=model(classes=4))
    distiller(Objective(Features(), student_tap="one"), teacher=model(classes=4))


def test_a_teachers_probabilities_become_logits_and_a_students_are_refused():
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    made = distiller(Objective(KD()), teacher=teacher)
    assert made.teacher is not None
    assert made.teacher.gives_probabilities
    logits = made.teacher(IMAGES).logits
    assert logits is not None
    torch.testing.assert_close(logits.softmax(1), teacher(IMAGES))
    with pytest.raises(UserError, match="take the softmax out"):
        distiller(Objective(KD()), student=nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)))


def test_a_teachers_columns_are_put_in_the_students_order():
    teacher = model(classes=3).eval()
    answer = Teacher(teacher, columns=[2, 0])(IMAGES)
    assert torch.equal(answer.logits, teacher(IMAGES)[:, [2, 0]])


def test_a_missing_teacher_is_said():
    with pytest.raises(UserError, match="give one"):
        Distiller(student=model(), objectives=[Objective(KD())], example=torch.zeros(2, 4))


# Objectives


class Asks(nn.Module):
    """Notes what it is given."""

    def forward(self, student, teacher, *, labels, sample_ids, epoch, step, inputs):
        self.given = {"labels": labels, "sample_ids": sample_ids, "epoch": epoch, "step": step, "inputs": inputs}
        return (student - teacher).square().mean()


def test_a_loss_gets_what_it_names_by_keyword():
    loss = Asks()
    ids = torch.arange(5)
    distiller(Objective(loss))(IMAGES, LABELS, sample_ids=ids, epoch=3, step=17)
    assert (loss.given["epoch"], loss.given["step"]) == (3, 17)
    assert loss.given["labels"] is LABELS
    assert loss.given["sample_ids"] is ids
    assert loss.given["inputs"] is IMAGES


def test_a_loss_whose_need_is_not_met_says_so():
    with pytest.raises(UserError, match="the loss 'crossentropy' needs labels"):
        distiller(Objective(CrossEntropy()))(IMAGES)


def test_a_loss_that_names_something_unknown_is_refused():
    class Odd(nn.Module):
        def forward(self, student, *, weather):
            return student.sum()

    with pytest.raises(ValueError, match=r"Odd asks for \['weather'\]"):
        Objective(Odd())


def test_objectives_of_one_name_are_numbered_and_weighted():
    made = distiller(Objective(KD(), 2.0), Objective(KD(temperature=1.0), 3.0), Objective(CrossEntropy(), 0.0))
    losses = made(IMAGES, LABELS)
    assert sorted(losses.parts) == ["kd", "kd_2"]
    torch.testing.assert_close(losses.total, 2 * losses.parts["kd"] + 3 * losses.parts["kd_2"])


def test_labels_are_averaged_over_the_samples_that_have_one():
    made = distiller(Objective(CrossEntropy(), name="labels"), Objective(LogitMSE())).eval()
    some = torch.tensor([1, 3])
    hidden = LABELS.clone()
    hidden[[0, 2, 4]] = -1
    losses = made(IMAGES, hidden, labelled=some)
    torch.testing.assert_close(losses.parts["labels"], made(IMAGES[some], LABELS[some]).parts["labels"])
    torch.testing.assert_close(losses.parts["logitmse"], made(IMAGES, LABELS).parts["logitmse"])


def test_a_batch_without_labels_has_a_loss_and_a_gradient_of_zero():
    made = distiller(Objective(CrossEntropy()))
    losses = made(IMAGES, torch.full((5,), -1), labelled=torch.tensor([], dtype=torch.int64))
    assert losses.total.item() == 0
    losses.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


def test_a_teacher_that_was_asked_already_is_not_asked_again():
    teacher = model()
    made = distiller(Objective(KD()), teacher=teacher)
    calls = teacher.after.calls
    made(IMAGES, answer=Answer(torch.zeros(5, 3), {}))
    assert teacher.after.calls == calls
    made(IMAGES)
    assert teacher.after.calls == calls + 1


def test_schedules():
    linear, cosine = Schedule.ramp(0.0, 1.0, 4), Schedule.ramp(1.0, 0.0, 4, "cosine")
    assert [linear.at(epoch) for epoch in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [cosine.at(epoch) for epoch in range(6)] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0, 0], abs=1e-6)
    objective = Objective(KD(), Schedule((0.5, 0.1)))
    assert [objective.weight_at(epoch) for epoch in range(3)] == [0.5, 0.1, 0.1]


def test_signals_hold_every_name_that_a_loss_may_ask_for():
    assert {"labels", "sample_ids", "inputs", "epoch", "step"} <= set(Signals.__dataclass_fields__)
