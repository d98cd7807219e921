"""float16: steps that overflow are skipped and lower the scale; what no scale helps ends the run by name."""

import pytest
import torch
from stepping import step_each

from understudy.errors import Interrupted, RunError
from understudy.recipe.reader import Source, build_recipe
from understudy.tasks.classify.stages import student_stage
from understudy.tasks.classify.task import Classify
from understudy.train.folder import RunFolder, read_log
from understudy.train.guard import StopRequest
from understudy.train.loop import _Keeper, fit
from understudy.train.precision import PERSISTENT
from understudy.train.progress import Display


@pytest.fixture
def make(small_recipe):
    def task(student=None, **train):
        described = {
            **small_recipe,
            "data": {"name": "digits", "train": 100, "validation": 30},
            "student": student or {"name": "mlp", "hidden": [8]},
            "train": {**small_recipe["train"], "epochs": 2, "threads": 1, "precision": "fp16", **train},
        }
        return Classify(build_recipe(Source("test", described)), {}, torch.device("cpu"))

    return task


def students(task):
    return student_stage(task, 0, {"teacher": task.as_teacher(task.build("teacher", 0))})


def do_step(stage, step=0):
    step_each(stage, step=step)


def weights(arm):
    return {name: tensor.clone() for name, tensor in arm.distiller.state_dict().items()}


@pytest.mark.parametrize(
    "student",
    [
        {"name": "mlp", "hidden": [8]},
        {"name": "cnn", "widths": [4, 4], "depth": 1},
        {"name": "cifar/resnet8"},
        {"name": "vit", "patch": 2, "width": 12, "depth": 1, "heads": 2, "tokens": 2},
    ],
    ids=lambda student: student["name"],
)
def test_networks_learn_in_float16_on_a_cpu(make, student, tmp_path):
    pytest.importorskip("timm")
    stage = students(make(student, optimizer="adamw", epochs=6))
    folder = RunFolder(tmp_path)
    fit(stage, folder, Display(None), StopRequest())
    for arm in stage.arms:
        rows = read_log(tmp_path / "arms" / arm.name / "seed-0" / "metrics.jsonl")
        losses = [row["loss"] for row in rows if row["kind"] == "train"]
        assert losses[-1] < losses[0]
        assert all(parameter.dtype == torch.float32 for parameter in arm.trained)


def test_the_losses_are_those_of_single_precision_to_three_digits(make):
    half, single = students(make()), students(make())
    for arm in single.arms:
        arm.settings = arm.settings.model_copy(update={"precision": "fp32"})
        arm.scale = arm.tally.scale = None
    for step in range(3):
        for stage in (half, single):
            do_step(stage, step)
    for arm, other in zip(half.arms, single.arms, strict=True):
        assert arm.mean_losses(0) == pytest.approx(other.mean_losses(0), rel=2e-3)
        assert arm.gradients == pytest.approx(other.gradients, rel=2e-2)


def test_a_gradient_that_overflows_skips_the_step_and_halves_the_scale(make):
    stage = students(make(optimizer="adam", ema=0.5))
    arm = stage.arms[0]
    do_step(stage, 0)
    before, scale = weights(arm), arm.scale.factor
    state = {name: value.clone() for name, value in arm.optimizer.state[arm.trained[0]].items()}
    hook = arm.trained[0].register_hook(lambda gradient: gradient * float("inf"))
    do_step(stage, 1)
    hook.remove()
    assert arm.scale.factor == scale / 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(arm).items())
    assert all(torch.equal(arm.optimizer.state[arm.trained[0]][name], value) for name, value in state.items())
    do_step(stage, 2)
    assert not torch.equal(weights(arm)["student.fc1.weight"], before["student.fc1.weight"])
    assert arm.scale.skipped == 0
    assert all(map(torch.isfinite, map(torch.tensor, arm.mean_losses(0).values())))


def poison(arm, steps):
    """The teacher's part of the loss is infinite in these steps."""
    original = arm.distiller.objective_list()[-1].loss.forward

    def forward(student, teacher, **more):
        value = original(student, teacher, **more)
        return value * float("inf") if next(steps) else value

    arm.distiller.objective_list()[-1].loss.forward = forward


def test_a_loss_that_overflows_now_and_then_is_left_out_of_the_mean(make):
    stage = students(make())
    arm = stage.arms[1]
    poison(arm, iter([False, True, False]))
    scale = arm.scale.factor
    for step in range(3):
        do_step(stage, step)
    assert arm.scale.factor == scale / 2
    means = arm.mean_losses(0)
    assert all(map(torch.isfinite, map(torch.tensor, means.values())))
    assert means["labels"] > 1  # of two steps, not of three


def test_a_loss_that_no_scale_makes_finite_ends_the_run_by_its_name(make):
    stage = students(make())
    arm = stage.arms[1]
    poison(arm, iter([True] * 1000))
    before = weights(arm)
    for step in range(PERSISTENT):
        do_step(stage, step)
    with pytest.raises(
        RunError, match=rf"student_distilled: the loss 'kd' is not finite .* {PERSISTENT} times in a row"
    ):
        do_step(stage, PERSISTENT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(arm).items())


def test_an_epoch_without_a_finite_loss_ends_the_run(make, tmp_path):
    stage = students(make())
    poison(stage.arms[1], iter([True] * 1000))
    with pytest.raises(RunError, match="the loss 'kd' is not finite in every step in epoch 1"):
        fit(stage, RunFolder(tmp_path), Display(None), StopRequest())


def test_the_scale_is_in_the_checkpoint(make, tmp_path, monkeypatch):
    def stage():
        made = students(make())
        for arm in made.arms:
            arm.scale.scaler._growth_interval = 3  # so that it changes within this test
        return made

    def train(stage, name):
        fit(stage, RunFolder(tmp_path / name), Display(None), StopRequest())
        return stage.arms[0]

    undisturbed = train(stage(), "undisturbed")
    original, done = _Keeper.after_step, []

    def after_step(self, step):
        done.append(step)
        if len(done) == 2:
            self.stop.notice(15, None)
        original(self, step)

    monkeypatch.setattr(_Keeper, "after_step", after_step)
    with pytest.raises(Interrupted):
        train(stage(), "stopped")
    resumed = train(stage(), "stopped")
    assert resumed.scale.factor == undisturbed.scale.factor != 65536
    assert all(torch.equal(tensor, weights(undisturbed)[name]) for name, tensor in weights(resumed).items())
