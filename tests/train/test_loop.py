"""What the one loop promises: arms see the same, disturb nobody, and a bad step changes nothing."""

import numpy as np
import pytest
import torch
from stepping import step_each

from understudy.distill import Teacher
from understudy.errors import RunError
from understudy.recipe.reader import Source, build_recipe
from understudy.tasks.classify.stages import student_stage
from understudy.tasks.classify.task import Classify
from understudy.train.arm import Arm
from understudy.train.folder import read_log

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make(small_recipe):
    """Make a task with its teacher."""

    def task(train=None, teacher=None, **changes):
        described = {
            **small_recipe,
            "data": {"name": "digits", "train": 100, "validation": 30},
            "teacher": teacher or {"name": "mlp", "hidden": [16]},
            **changes,
            "train": {**small_recipe["train"], "epochs": 2, **(train or {})},
        }
        built = Classify(build_recipe(Source("test", described)), {}, CPU)
        return built, built.as_teacher(built.build("teacher", 0))

    return task


def weights(arm: Arm) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in arm.distiller.student.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def do_steps(stage, count: int) -> None:
    for step in range(count):
        step_each(stage, step=step)


# Pairing


def test_the_arms_of_a_seed_start_equal_and_see_equal_pixels_and_masks(make, monkeypatch):
    task, teacher = make(method=["kd", "logits"], data={"name": "digits", "train": 100, "augment": {"crop": 1}})
    stage = student_stage(task, 0, {"teacher": teacher})
    start = weights(stage.arms[0])
    assert len(stage.arms) == 3
    assert all(same(start, weights(arm)) for arm in stage.arms)
    seen = []
    original = Arm.step

    def step(self, batch, images, answer, **more):
        seen.append((self.name, more["step"], images.clone(), batch.sample_ids))
        original(self, batch, images, answer, **more)
        seen[-1] += (torch.rand(3),)  # what the generator stands at after the step: dropout drew alike

    monkeypatch.setattr(Arm, "step", step)
    do_steps(stage, 2)
    for number in (0, 1):
        images, ids, draws = zip(*[row[2:] for row in seen if row[1] == number], strict=True)
        assert all(torch.equal(images[0], other) for other in images)
        assert all(torch.equal(ids[0], other) for other in ids)
        assert all(torch.equal(draws[0], other) for other in draws)
    assert not torch.equal(seen[0][2], seen[3][2])


def test_the_control_is_the_same_whoever_stands_beside_it(make, fitted):
    ends = []
    for method in ("kd", ["kd", "logits", "hard"]):
        task, teacher = make(method=method)
        stage = student_stage(task, 0, {"teacher": teacher})
        fitted(stage)
        ends.append(weights(stage.arms[0]))
    assert same(*ends)


def test_seeds_differ_in_weights_and_batches(make):
    task, teacher = make()
    first, second = student_stage(task, 0, {"teacher": teacher}), student_stage(task, 1, {"teacher": teacher})
    assert not same(weights(first.arms[0]), weights(second.arms[0]))
    assert not torch.equal(first.feeds["students"][0].sample_ids, second.feeds["students"][0].sample_ids)


# The teacher


def count_calls(module) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda _module, _inputs: calls.append(1))
    return calls


@pytest.mark.parametrize("method", ["kd", ["kd", "logits", "hard"]])
def test_one_teacher_forward_and_one_student_forward_a_step(make, method):
    task, teacher = make(method=method)
    stage = student_stage(task, 0, {"teacher": teacher})
    asked = count_calls(teacher.model)
    students = [count_calls(arm.distiller.student) for arm in stage.arms]
    do_steps(stage, 3)
    assert len(asked) == 3
    assert all(len(calls) == 3 for calls in students)


def test_the_teacher_is_the_same_to_the_bit_after_a_run_and_stays_in_evaluation_mode(make, fitted):
    task, teacher = make(teacher={"name": "cnn", "widths": [4], "depth": 1, "dropout": 0.2})
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    stage = student_stage(task, 0, {"teacher": teacher})
    stage.arms[1].distiller.train()
    assert not any(module.training for module in teacher.model.modules())
    fitted(stage)
    assert same(before, teacher.model.state_dict())
    assert not any(module.training for module in teacher.model.modules())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_the_teacher_is_not_asked_while_all_its_weights_are_zero(make):
    method = {"name": "late", "labels": 1.0, "objectives": [{"loss": "kd", "weight": [0.0, 1.0]}]}
    task, teacher = make(method=method)
    stage = student_stage(task, 0, {"teacher": teacher})
    asked = count_calls(teacher.model)
    step_each(stage)
    assert not asked
    step_each(stage, epoch=1, step=1)
    assert len(asked) == 1


# A step


def test_a_loss_that_is_not_finite_names_arm_objective_and_step_and_changes_nothing(make):
    task, teacher = make()
    stage = student_stage(task, 0, {"teacher": teacher})
    control, distilled = stage.arms
    do_steps(stage, 1)
    before = (weights(distilled), distilled.optimizer.state_dict()["state"][0]["exp_avg"].clone())
    batch = stage.feeds["students"][1]
    images = distilled.preprocess(batch.images)
    answer = teacher(batch.images)
    assert answer.logits is not None
    answer.logits[0, 0] = torch.nan
    with pytest.raises(RunError, match=r"student_distilled: the loss 'kd' is not finite at step 8 \(epoch 2\)"):
        distilled.step(batch, images, answer, epoch=1, step=7)
    assert same(before[0], weights(distilled))
    assert torch.equal(before[1], distilled.optimizer.state_dict()["state"][0]["exp_avg"])
    assert control.tally.steps == 1


def test_a_gradient_that_is_not_finite_changes_nothing_either(make):
    task, teacher = make()
    arm = student_stage(task, 0, {"teacher": teacher}).arms[0]
    before = weights(arm)
    arm.distiller.student.fc1.weight.register_hook(lambda gradient: gradient * torch.inf)
    batch = task.feed("students", 0)[0]
    with pytest.raises(RunError, match="student_alone: the gradient is not finite at step 1"):
        arm.step(batch, arm.preprocess(batch.images), None, epoch=0, step=0)
    assert same(before, weights(arm))


def test_accumulated_gradients_equal_those_of_one_batch(make):
    ends = []
    for accumulate in (1, 2, 3):
        task, teacher = make(
            student={"name": "mlp", "hidden": [8]}, train={"accumulate": accumulate, "optimizer": "sgd", "lr": 0.1}
        )
        stage = student_stage(task, 0, {"teacher": teacher})
        do_steps(stage, 3)
        ends.append(weights(stage.arms[1]))
    for other in ends[1:]:
        for name, tensor in ends[0].items():
            torch.testing.assert_close(tensor, other[name], atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_step(make):
    task, teacher = make(train={"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "clip": 0.01})
    stage = student_stage(task, 0, {"teacher": teacher})
    before = weights(stage.arms[1])
    do_steps(stage, 1)
    moved = [(tensor - before[name]).square().sum() for name, tensor in weights(stage.arms[1]).items()]
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_the_moving_average_follows_its_formula(make):
    task, teacher = make(train={"ema": 0.8})
    stage = student_stage(task, 0, {"teacher": teacher})
    arm = stage.arms[1]
    expected = {name: tensor.numpy().astype(np.float64) for name, tensor in weights(arm).items()}
    for step in range(4):
        step_each(stage, step=step)
        now = {name: tensor.numpy().astype(np.float64) for name, tensor in weights(arm).items()}
        expected = {name: 0.8 * expected[name] + 0.2 * now[name] for name in now}
    for name, tensor in arm.model.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-7)


def test_bfloat16_runs_on_a_cpu_with_losses_in_float32(make, fitted, monkeypatch):
    task, teacher = make(train={"precision": "bf16"})
    kinds = set()
    original = Arm._total

    def total(self, losses, *more, **settings):
        kinds.update(value.dtype for value in losses.parts.values())
        return original(self, losses, *more, **settings)

    monkeypatch.setattr(Arm, "_total", total)
    stage = student_stage(task, 0, {"teacher": teacher})
    folder = fitted(stage)
    assert kinds == {torch.float32}
    assert all(tensor.dtype == torch.float32 for tensor in weights(stage.arms[0]).values())
    rows = read_log(folder.arm("student_distilled", 0) / "metrics.jsonl")
    assert all(np.isfinite(row["loss"]) for row in rows if row["kind"] == "train")


def test_early_stopping_goes_back_to_the_best_weights(make, fitted, monkeypatch):
    task, teacher = make(train={"epochs": 6, "early_stop": 2})
    stage = student_stage(task, 0, {"teacher": teacher})
    scores = iter([0.2, 0.9, 0.5, 0.4])
    at: list[dict[str, torch.Tensor]] = []

    def evaluate(arm):
        if arm.name != "student_alone":
            return {"validation": {"accuracy": 0.0}, "test": {"accuracy": 0.0}}
        at.append(weights(arm))
        return {"validation": {"accuracy": next(scores)}, "test": {"accuracy": 1.0}}

    object.__setattr__(stage, "evaluate", evaluate)
    folder = fitted(stage)
    assert len(at) == 4
    assert same(at[1], weights(stage.arms[0]))
    assert len(read_log(folder.arm("student_alone", 0) / "metrics.jsonl")) == 8


def test_deterministic_mode_is_switched_on_for_the_run_alone(small_recipe, tmp_path, monkeypatch):
    from understudy.run import start as engine

    seen = []
    monkeypatch.setattr(engine, "_proceed", lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    for wanted in (True, False):
        train = {**small_recipe["train"], "deterministic": wanted, "threads": 2}
        recipe = build_recipe(Source("test", {**small_recipe, "train": train}))
        engine.start(recipe, out=tmp_path / str(wanted), objects={}, console=None)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
    assert seen == [True, False]


# Answers


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_an_answer_depends_on_its_image_alone(make, kind):
    options = {"hidden": [300]} if kind == "mlp" else {"widths": [8, 16]}
    task, _ = make(teacher={"name": kind, **options})
    teacher = Teacher(
        task.build("teacher", 0), preprocess=task.preprocess("teacher", task.build("teacher", 0)), chunk=32
    )
    images = task.feed("students", 0)[0].images
    images = torch.cat([images, images.flip(3), images.flip(2)])
    whole = teacher(images).logits
    assert whole is not None
    for count in (1, 5, 31, 32, 33, 70):
        part = teacher(images[:count]).logits
        assert part is not None
        assert torch.equal(part, whole[:count])
    for row in (1, 7, 40):
        alone = teacher(images[row : row + 1]).logits
        assert alone is not None
        assert torch.equal(alone[0], whole[row])
    mixed = teacher(images.flip(0)).logits
    assert mixed is not None
    assert torch.equal(mixed.flip(0), whole)
