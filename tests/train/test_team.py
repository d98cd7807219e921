"""Several seeds stepped at once, and compiled steps: each arm ends as if it had been trained by itself."""

from dataclasses import dataclass

import pytest
import torch

from understudy.distill import Distiller
from understudy.errors import Interrupted, RunError, UserError
from understudy.recipe.reader import Source, build_recipe
from understudy.tasks.classify.pace import seeds_at_once
from understudy.tasks.classify.stages import stage_of_seeds, student_stage
from understudy.tasks.classify.task import Classify
from understudy.train import settle as settling
from understudy.train.folder import RunFolder, read_log
from understudy.train.guard import StopRequest
from understudy.train.loop import _Keeper, fit
from understudy.train.progress import Display
from understudy.train.settle import form_teams
from understudy.train.team import Team

PLAIN = {"name": "digits", "train": 100, "validation": 30}
SETTINGS = {
    "dropout": {},
    "decay": {"train": {"optimizer": "adamw", "weight_decay": 0.05, "decay": "weights", "schedule": "cosine"}},
    "momentum": {"train": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "lr": 0.05, "clip": 0.5}},
    "average": {"train": {"ema": 0.9, "warmup_epochs": 1}},
    "unlabelled": {"data": {**PLAIN, "labels": 30, "transfer": "rest"}},
    "augmented": {"data": {**PLAIN, "augment": {"crop": 1, "flip": True}}},
    "mixed": {"data": {**PLAIN, "augment": {"mixup": 0.4}}},
    "scheduled": {"method": {"name": "late", "labels": 1.0, "objectives": [{"loss": "kd", "weight": [0.0, 0.5, 1.0]}]}},
    "features": {"method": [{"name": name, "student": "fc2", "teacher": "fc1"} for name in ("sp", "feature")]},
    "bf16": {"train": {"precision": "bf16"}},
}


@dataclass(frozen=True)
class Doubled:
    """A preprocessing in float64."""

    inner: object

    def __call__(self, images):
        return self.inner(images).double()  # pyright: ignore[reportCallIssue]


class Noisy(torch.nn.Module):
    """Draws random numbers in its forward."""

    def forward(self, values):
        return values + torch.rand_like(values)


@pytest.fixture
def make(small_recipe):
    """Make a task with its teacher."""

    def task(train=None, **changes):
        described = {
            **small_recipe,
            "data": PLAIN,
            "student": {"name": "mlp", "hidden": [8, 8], "dropout": 0.3},
            "train": {"epochs": 3, "batch_size": 32, "lr": 0.01, **(train or {})},
            "seeds": 3,
            **changes,
        }
        built = Classify(build_recipe(Source("test", described)), {}, torch.device("cpu"))
        return built, {"teacher": built.as_teacher(built.build("teacher", 0))}

    return task


def in_float64(stage):
    """The same stage with all models and inputs in float64."""
    teachers = {id(arm.distiller.teacher): arm.distiller.teacher for arm in stage.arms if arm.distiller.teacher}
    for teacher in teachers.values():
        if not isinstance(teacher.preprocess, Doubled):
            teacher.preprocess = Doubled(teacher.preprocess)
    for arm in stage.arms:
        arm.distiller.double()
        arm.preprocess = Doubled(arm.preprocess)
        if arm.average is not None:
            arm.average.module.double()
    return stage


def weights(arm):
    return torch.cat([parameter.detach().flatten() for parameter in arm.distiller.parameters()])


def by_label(stages):
    return {arm.label: arm for stage in stages for arm in stage.arms}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_float64_each_seed_ends_as_if_trained_alone(settings, make, fitted):
    task, teachers = make(**settings)
    at_once = in_float64(stage_of_seeds(task, task.recipe.all_seeds, teachers))
    assert [way for teams, way in form_teams(at_once) if not isinstance(teams[0], Team)] == []
    folder = fitted(at_once)
    alone = [in_float64(student_stage(task, seed, teachers)) for seed in task.recipe.all_seeds]
    tolerance = 1e-3 if "precision" in settings.get("train", {}) else 1e-12
    lone = by_label(alone)
    for stage in alone:
        lone_folder = fitted(stage)
        for arm in stage.arms:
            logs = [read_log(each.arm(arm.name, arm.seed) / "metrics.jsonl") for each in (folder, lone_folder)]
            assert [(row["kind"], row["epoch"], row["step"]) for row in logs[0]] == [
                (row["kind"], row["epoch"], row["step"]) for row in logs[1]
            ]
            for ours, theirs in zip(*logs, strict=True):
                if ours["kind"] == "train":
                    assert ours["losses"] == pytest.approx(theirs["losses"], abs=10 * tolerance)
                    assert ours["lr"] == pytest.approx(theirs["lr"])
                elif ours["kind"] == "gradients":
                    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-6 if tolerance < 1e-6 else 0.1)
    for label, arm in by_label([at_once]).items():
        assert (weights(arm) - weights(lone[label])).abs().max() < tolerance
        if arm.average is not None:
            pairs = zip(arm.average.parameters(), lone[label].average.parameters(), strict=True)
            assert max((ours - theirs).abs().max() for ours, theirs in pairs) < tolerance
            assert arm.average.n_averaged == lone[label].average.n_averaged
        states = [each.state() for each in (arm, lone[label])]
        for parameter, kept in states[0]["optimizer"]["state"].items():
            for key, value in kept.items():
                other = states[1]["optimizer"]["state"][parameter][key]
                assert value.shape == other.shape
                assert (value - other).abs().max() < tolerance
        schedules = [dict(state["schedule"] or {}) for state in states]
        rates = [schedule.pop("_last_lr", []) for schedule in schedules]
        assert rates[0] == pytest.approx(rates[1])
        assert schedules[0] == schedules[1]
        assert states[0].keys() == states[1].keys()


def test_in_float32_seeds_stay_close_over_a_hundred_steps(make, fitted):
    task, teachers = make(train={"epochs": 25})
    at_once = stage_of_seeds(task, task.recipe.all_seeds, teachers)
    fitted(at_once)
    lone = student_stage(task, 1, teachers)
    fitted(lone)
    ends = by_label([at_once])
    for arm in lone.arms:
        assert (weights(arm) - weights(ends[arm.label])).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["average", "unlabelled"])
def test_compiled_steps_are_those_that_are_not(name, make, fitted):
    settings = dict(SETTINGS[name])
    train = settings.pop("train", {})
    task, teachers = make(train={**train, "compile": True}, **settings)
    compiled = in_float64(stage_of_seeds(task, task.recipe.all_seeds, teachers))
    ways = [way.name for _, way in form_teams(compiled)]
    assert ways == ["3 seeds at once and compiled"] * len(ways)
    fitted(compiled)
    one = in_float64(student_stage(task, 0, teachers))
    assert [way.name for _, way in form_teams(one)] == ["compiled"] * len(one.arms)
    fitted(one)
    plain, teachers = make(train=train, **settings)
    alone = in_float64(student_stage(plain, 0, teachers))
    fitted(alone)
    for arm in alone.arms:
        for stage in (compiled, one):
            assert (weights(by_label([stage])[arm.label]) - weights(arm)).abs().max() < 1e-11


@pytest.mark.parametrize("stop_at", [2, 5, 7])
def test_seeds_at_once_resume_with_the_bits_of_a_run_never_stopped(stop_at, make, fitted, tmp_path, monkeypatch):
    def stage():
        task, teachers = make(train={"ema": 0.9, "schedule": "cosine"})
        return stage_of_seeds(task, task.recipe.all_seeds, teachers)

    whole = stage()
    wanted = fitted(whole)
    original = _Keeper.after_step

    def after_step(self, step):
        if step == stop_at:
            self.save(step)
            raise Interrupted(15)
        original(self, step)

    folder = RunFolder(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(_Keeper, "after_step", after_step)
        with pytest.raises(Interrupted):
            fit(stage(), folder, Display(None), StopRequest())
    ended = stage()
    fit(ended, folder, Display(None), StopRequest())
    assert folder.fingerprint() == wanted.fingerprint()
    for label, arm in by_label([ended]).items():
        assert torch.equal(weights(arm), weights(by_label([whole])[label]))


def test_a_resume_refuses_another_way_of_taking_steps(make, fitted, monkeypatch):
    task, teachers = make()
    folder = fitted(stage_of_seeds(task, task.recipe.all_seeds, teachers))
    monkeypatch.setattr(settling, "unfit", lambda *_: "a reason")
    with pytest.raises(UserError, match=r"3 seeds at once.*one by one"):
        fit(stage_of_seeds(task, task.recipe.all_seeds, teachers), folder, Display(None), StopRequest())


def test_a_member_that_is_not_finite_is_named_and_not_changed(make, tmp_path):
    task, teachers = make()
    stage = stage_of_seeds(task, task.recipe.all_seeds, teachers)
    with torch.no_grad():
        next(iter(by_label([stage])["student_distilled/seed-1"].distiller.parameters()))[0, 0] = float("nan")
    before = weights(by_label([stage])["student_distilled/seed-1"])
    with pytest.raises(RunError, match=r"student_distilled.*not finite at step 1"):
        fit(stage, RunFolder(tmp_path), Display(None), StopRequest())
    assert torch.equal(weights(by_label([stage])["student_distilled/seed-1"]).nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"student": {"name": "cnn", "widths": [4]}}, "running statistics"),
        ({"train": {"accumulate": 2}}, "micro-batches"),
        ({"train": {"schedule": "plateau"}}, "plateau"),
        ({"train": {"early_stop": 2}}, "early stopping"),
        ({"method": {"name": "kd", "labels": 0.0, "weight": [1.0, 0.0]}}, "without an objective"),
        ({"method": {"name": "kd", "weight": "30%"}}, "shares"),
        ({"method": "crd"}, "running statistics"),
        ({"data": {**PLAIN, "labels": 30, "transfer": "rest", "augment": {"mixup": 0.2}}}, "missing labels"),
        ({"method": {"name": "dkd"}, "data": {**PLAIN, "labels": 30, "transfer": "rest"}}, "missing labels"),
    ],
)
def test_what_no_team_can_do_is_stepped_one_by_one_and_says_why(changes, reason, make):
    task, teachers = make(**changes)
    stage = stage_of_seeds(task, [0, 1], teachers)
    way = {steppers[0].arms[0].name: way for steppers, way in form_teams(stage)}["student_distilled"]
    assert way.name == "one by one"
    assert reason in way.reason
    assert not seeds_at_once(task, student_stage(task, 0, teachers))


def test_a_forward_that_draws_random_numbers_of_its_own_is_stepped_one_by_one(make):
    task, teachers = make()
    stage = stage_of_seeds(task, [0, 1], teachers)
    for arm in stage.arms:
        assert isinstance(arm.distiller, Distiller)
        arm.distiller.student.append(Noisy())
    assert [len(steppers) for steppers, _ in form_teams(stage)] == [2, 2]
    assert "random" in form_teams(stage)[0][1].reason


@pytest.mark.slow
def test_a_forward_that_draws_random_numbers_is_not_compiled(make):
    task, teachers = make(train={"compile": True})
    stage = student_stage(task, 0, teachers)
    stage.arms[0].distiller.student.append(Noisy())
    way = form_teams(stage)[0][1]
    assert way.name == "one by one"
    assert "random" in way.reason


def test_a_function_that_is_compiled_to_something_else_is_not_used(make, monkeypatch):
    def wrongly(function, **_):
        def other(*tensors):
            outcome = function(*tensors)
            return outcome._replace(gradient=outcome.gradient * 1.01)

        return other

    monkeypatch.setattr(torch, "compile", wrongly)
    task, teachers = make(train={"compile": True})
    way = form_teams(student_stage(task, 0, teachers))[0][1]
    assert way.name == "one by one"
    assert "gradient is off by 1e-02" in way.reason


def test_without_a_compiler_steps_are_not_compiled_and_it_is_said(make, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    task, teachers = make(train={"compile": True})
    assert form_teams(student_stage(task, 0, teachers))[0][1].reason == "no C++ compiler"
    way = form_teams(stage_of_seeds(task, [0, 1], teachers))[0][1]
    assert (way.name, way.reason) == ("2 seeds at once", "no C++ compiler")


def test_a_run_of_several_seeds_takes_them_at_once_and_resumes_finished(small_recipe, tmp_path):
    import understudy as us

    result = us.run({**small_recipe, "train": {**small_recipe["train"], "threads": 1}}, out=tmp_path / "run")
    steps = (tmp_path / "run" / "steps.json").read_text()
    assert "2 seeds at once" in steps
    assert us.resume(tmp_path / "run").results["hash"] == result.results["hash"]
    single = us.run({**small_recipe, "seeds_at_once": False}, out=tmp_path / "single")
    for name in ("student_alone", "student_distilled"):
        pair = [run.results["models"][name]["metrics"]["accuracy"]["seeds"] for run in (result, single)]
        assert [row["last"] for row in pair[0]] == pytest.approx([row["last"] for row in pair[1]], abs=0.02)
