"""Schemes in whole runs: who taught whom, which rows there are, and what is saved."""

import pytest
import torch

from understudy.models import load
from understudy.recipe.reader import Source, build_recipe
from understudy.tasks.classify import run as classify
from understudy.train.folder import read_log


@pytest.fixture
def stages(monkeypatch):
    """The stages of students that runs train, as they begin."""
    seen = {}
    original = classify.student_stage

    def student_stage(*arguments, **more):
        stage = original(*arguments, **more)
        seen[stage.name] = {arm.name: arm.distiller.teacher for arm in stage.arms}
        return stage

    monkeypatch.setattr(classify, "student_stage", student_stage)
    return seen


def equal(first, second) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_generation_is_taught_by_the_student_before_it(tiny, run, stages):
    result = run(tiny(method={"name": "kd", "generations": 3}))
    assert list(result.results["models"]) == [
        "teacher", "student_alone", "student_kd", "student_kd-generation-2", "student_kd-generation-3",
    ]  # fmt: skip
    second, third = "student_kd-generation-2", "student_kd-generation-3"
    first_student = load(result.folder / "arms" / "student_kd" / "seed-0" / "student")
    second_student = load(result.folder / "arms" / second / "seed-0" / "student")
    assert equal(stages["seed-0-generation-2"][second].model, first_student)
    assert equal(stages["seed-0-generation-3"][third].model, second_student)
    assert set(result.results["verdicts"]) == {"student_kd", second, third}


def test_students_are_taught_by_the_last_assistant_unless_told_otherwise(tiny, run, stages):
    result = run(
        tiny(
            assistants=[{"name": "mlp", "hidden": [24]}, {"name": "mlp", "hidden": [12]}],
            method=["kd", {"name": "direct", "loss": "kd", "taught_by": "teacher"}],
        )
    )
    taught = stages["seed-0"]
    assert equal(taught["student_kd"].model, load(result.folder / "arms" / "assistant_2" / "seed-0" / "student"))
    assert equal(taught["student_direct"].model, load(result.folder / "teacher"))
    assert result.results["models"]["assistant_1"]["role"] == "other"


def test_an_ensemble_is_saved_and_teaches_another_run(tiny, run, small_recipe):
    members = [{"name": "mlp", "hidden": [16], "copies": 2}, {"name": "mlp", "hidden": [8], "share": 2.0}]
    described = {**small_recipe, "teacher": members, "seeds": 1, "method": ["kd"]}
    described["train"] = {**small_recipe["train"], "epochs": 1, "threads": 1}
    first = run(build_recipe(Source("test", described)), "first")
    rows = first.results["models"]
    assert [name for name in rows if name.startswith("teacher")] == ["teacher", "teacher_1", "teacher_2", "teacher_3"]
    assert rows["teacher"]["parameters"] == sum(rows[f"teacher_{number}"]["parameters"] for number in (1, 2, 3))
    assert load(first.folder / "teacher").shares == (0.25, 0.25, 0.5)
    assert not equal(*(load(first.folder / "teacher" / number) for number in "12"))

    described["teacher"] = {"name": str(first.folder / "teacher")}
    second = run(build_recipe(Source("test", described)), "second")
    score = rows["teacher"]["metrics"]["accuracy"]["last"]
    assert second.results["models"]["teacher"]["metrics"]["accuracy"]["last"] == score
    assert equal(second.teacher, first.teacher)


def test_a_student_that_starts_from_the_teacher_does_so_in_the_control_too(tiny, run, monkeypatch):
    starts = {}
    original = classify.fit

    def fit(stage, *more):
        starts.update({arm.name: arm.model.state_dict()["fc1.weight"].clone() for arm in stage.arms})
        original(stage, *more)

    monkeypatch.setattr(classify, "fit", fit)
    result = run(tiny(student={"name": "mlp", "hidden": [32], "init": "teacher"}))
    teacher = load(result.folder / "teacher").state_dict()["fc1.weight"]
    assert torch.equal(starts["student_alone"], teacher)
    assert torch.equal(starts["student_distilled"], teacher)
    assert any("starts from the teacher" in note for note in result.results["notes"])


def test_gradient_norms_and_held_weights_are_logged_each_epoch(tiny, run):
    method = {"name": "both", "objectives": [{"loss": "kd", "weight": "30%"}, {"loss": "logits", "weight": 0.1}]}
    result = run(tiny(method=method, train={"epochs": 3}))
    rows = read_log(result.folder / "arms" / "student_distilled" / "seed-0" / "metrics.jsonl")
    rows = [row for row in rows if row["kind"] == "gradients"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["norms"]["kd"] / sum(row["norms"].values()) == pytest.approx(0.3)
    assert len({row["weights"]["kd"] for row in rows}) == 3
    control = read_log(result.folder / "arms" / "student_alone" / "seed-0" / "metrics.jsonl")
    assert not [row for row in control if row["kind"] == "gradients"]


def test_held_weights_replay_as_a_list(tiny, run):
    held = {"name": "both", "objectives": [{"loss": "kd", "weight": "30%"}]}
    first = run(tiny(method=held), "held")
    log = first.folder / "arms" / "student_distilled" / "seed-0" / "metrics.jsonl"
    values = [row["weights"]["kd"] for row in read_log(log) if row["kind"] == "gradients"]
    listed = {"name": "both", "objectives": [{"loss": "kd", "weight": values}]}
    again = run(tiny(method=listed), "listed")
    assert equal(first.student, again.student)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "a", "loss": "kd", "taught_by": "nobody"}}, "taught by 'nobody'"),
        ({"method": {"name": "a", "loss": "kd", "peers": 1, "generations": 2}}, "peers: teach each other"),
        ({"method": "mlkd:release"}, "set data.second_view"),
        ({"data": {"second_view": {"crop": 1}, "augment": {"mixup": 0.2}}}, "second_view: cannot be had"),
        ({"teacher": {"copies": 2}, "teacher_seeds": 2}, "teacher_seeds"),
        ({"student": {"name": "mlp", "hidden": [9], "init": "teacher"}, "teacher": {"hidden": [7, 7]}}, "no tensor"),
        ({"method": {"name": "a", "loss": "kd", "weight": "130%"}}, "share of the gradient"),
        ({"method": {"name": "a", "loss": "at", "peers": 1, "student": "1"}}, "compares features"),
    ],
)
def test_schemes_that_cannot_be_are_refused_in_one_line(tiny, run, changes, message, tmp_path):
    from understudy.errors import UserError

    with pytest.raises(UserError, match=message) as caught:
        run(tiny(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_ends_with_the_same_bits_whatever_the_cache_knew(tiny, run, capsys):
    from rich.console import Console

    from understudy.run import start as engine

    hashes = [run(tiny(cache="off"), "off").results["hash"]]
    for name in ("cold", "warm"):
        recipe = tiny(cache="auto")
        hashes.append(engine.start(recipe, out=None, objects={}, console=Console()).results["hash"])
        told = capsys.readouterr().out
        known = {"cold": "50% of 200 answers were known", "warm": "100% of 200 answers were known"}[name]
        assert known in told
    assert len(set(hashes)) == 1


def test_fixed_views_repeat_and_random_ones_do_not(tiny):
    from understudy.tasks.classify.run import prepare

    random = prepare(tiny(data={"augment": {"crop": 2}}), {}).task.feed("students", 0)
    fixed = prepare(tiny(data={"augment": {"crop": 2}, "views": 2}), {}).task
    feeds = [fixed.feed("students", seed) for seed in (0, 1)]
    steps = random.steps_per_pass

    def by_id(feed, number):
        batches = [feed[step] for step in range(number * steps, (number + 1) * steps)]
        order = torch.cat([batch.sample_ids for batch in batches]).argsort()
        return torch.cat([batch.images for batch in batches])[order]

    assert not torch.equal(by_id(random, 0), by_id(random, 2))
    assert torch.equal(by_id(feeds[0], 0), by_id(feeds[0], 2))
    assert torch.equal(by_id(feeds[0], 1), by_id(feeds[1], 3))
    assert not torch.equal(by_id(feeds[0], 0), by_id(feeds[0], 1))
    assert feeds[0][0].view == feeds[1][2 * steps].view != random[0].view
