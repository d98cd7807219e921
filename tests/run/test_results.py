"""results.json from logs written by hand."""

import json

import pytest

from understudy.errors import UserError
from understudy.tasks.classify.results import check_control, summarise
from understudy.train.folder import Log, RunFolder, resolved

FACTS = {"role": "distilled", "parameters": 1, "macs": 1, "latency_ms": 1.0, "size_bytes": 4}


@pytest.fixture
def summary(tmp_path):
    """Write logs (validation and test score of each epoch, by arm and seed) and summarise them."""

    def make(recipe, logs, *, roles=None):
        folder = RunFolder(tmp_path / "hand")
        for arm, seeds in logs.items():
            for seed, epochs in seeds.items():
                log = Log(folder.arm(arm, seed) / "metrics.jsonl")
                for epoch, (validation, test) in enumerate(epochs, start=1):
                    log.write(kind="train", epoch=epoch, loss=1.0)
                    scores = {"test": {"accuracy": test, "loss": 1 - test}}
                    if validation is not None:
                        scores["validation"] = {"accuracy": validation, "loss": 1 - validation}
                    log.write(kind="eval", epoch=epoch, **scores)
        facts = {"teacher": {**FACTS, "role": "teacher"}}
        facts |= {arm: {**FACTS, "role": "control" if arm == "student_alone" else "distilled"} for arm in logs}
        teacher = {"accuracy": 0.99, "loss": 0.01}
        return summarise(folder, recipe, facts, metric="accuracy", given={"teacher": teacher}, notes=[])

    return make


# Validation is best at the second epoch, test at the first.
DISAGREEING = [(0.5, 0.9), (0.8, 0.6), (0.7, 0.7)]
CONTROL = [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]


def accuracy(results, name):
    return results["models"][name]["metrics"]["accuracy"]


def test_best_last_and_at_are_read_where_validation_says(tiny, summary):
    results = summary(tiny(), {"student_alone": {0: CONTROL}, "student_distilled": {0: DISAGREEING}})
    (seed,) = accuracy(results, "student_distilled")["seeds"]
    assert seed == {"seed": 0, "best": 0.6, "last": 0.7, "at": {"1": 0.9, "2": 0.6, "3": 0.7}}
    loss = results["models"]["student_distilled"]["metrics"]["loss"]["seeds"][0]
    assert loss["best"] == pytest.approx(0.4)
    assert results["selection"] == "validation"
    assert results["models"]["teacher"]["metrics"]["accuracy"]["last"] == 0.99


def test_an_early_stopped_arm_ends_with_its_best_epoch(tiny, summary):
    recipe = tiny(train={"early_stop": 1})
    results = summary(recipe, {"student_alone": {0: CONTROL}, "student_distilled": {0: DISAGREEING}})
    assert accuracy(results, "student_distilled")["seeds"][0]["last"] == 0.6


def test_without_validation_the_best_epoch_is_testss_and_it_is_said(tiny, summary):
    logs = {"student_alone": {0: [(None, 0.5)]}, "student_distilled": {0: [(None, 0.9), (None, 0.7)]}}
    results = summary(tiny(), logs)
    assert results["selection"] == "test"
    assert accuracy(results, "student_distilled")["best"] == 0.9
    assert accuracy(results, "student_distilled")["last"] == 0.7
    assert any("holds out no validation images" in note for note in results["notes"])


def test_the_verdict_reads_the_last_epoch_of_every_seed(tiny, summary):
    seeds = {number: [(0.9, 0.1), (0.1, 0.5 + number / 100)] for number in range(3)}
    logs = {"student_alone": dict.fromkeys(range(3), CONTROL), "student_distilled": seeds}
    verdict = summary(tiny(seeds=3), logs)["verdict"]
    assert verdict["difference"] == pytest.approx(0.01)
    assert verdict["seeds"] == 3


@pytest.mark.parametrize("early", [None, 2])
def test_a_grid_point_is_chosen_by_validation_never_by_test(tiny, summary, early):
    train = {"early_stop": early} if early else {}
    recipe = tiny(grid={"temperature": [2.0, 4.0]}, train=train)
    # By the last epoch the first is better on validation, by the best epoch the second; test says the opposite.
    logs = {
        "student_alone": {0: CONTROL},
        "student_kd-temperature-2": {0: [(0.6, 0.9), (0.6, 0.2)]},
        "student_kd-temperature-4": {0: [(0.7, 0.2), (0.5, 0.9)]},
    }
    results = summary(recipe, logs)
    chosen = [name for name, about in results["models"].items() if about.get("chosen")]
    assert chosen == ["student_kd-temperature-4" if early else "student_kd-temperature-2"]
    assert list(results["verdicts"]) == chosen
    assert results["best"] == chosen[0]


def test_no_control_is_untested(tiny, summary):
    results = summary(tiny(control="none"), {"student_distilled": {0: DISAGREEING}})
    assert results["verdict"]["outcome"] == "untested"
    assert any("control: none" in note for note in results["notes"])


@pytest.fixture
def other(tiny, tmp_path):
    """A finished run whose control can be used."""

    def make(**changes):
        folder = tmp_path / "other"
        folder.mkdir()
        (folder / "recipe.yaml").write_text(resolved(tiny(**changes)))
        seeds = [{"seed": number, "best": 0.5, "last": 0.4} for number in range(3)]
        models = {"student_alone": {"metrics": {"accuracy": {"seeds": seeds}}}}
        (folder / "results.json").write_text(json.dumps({"models": models}))
        return str(folder)

    return make


def test_the_control_of_another_run_is_compared_seed_by_seed(tiny, other, summary):
    path = other(train={"workers": 2, "checkpoint_seconds": 1.0})
    recipe = tiny(control=path, method="logits")
    check_control(recipe)
    results = summary(recipe, {"student_distilled": {0: DISAGREEING}})
    assert results["verdict"]["difference"] == pytest.approx(0.3)
    assert any(path in note for note in results["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"lr": 0.5}}, r"its control was made with train\.lr 0\.01, here it is 0\.5"),
        ({"student": {"hidden": [9]}}, r"student\.hidden \[8\], here it is \[9\]"),
        ({"data": {"train": 90}}, r"data\.train 100"),
        ({"seed": 7}, "its control has seeds 0 to 0, none of these"),
    ],
)
def test_a_control_that_cannot_be_compared_is_refused_before_anything_is_trained(tiny, other, changes, message):
    with pytest.raises(UserError, match=message):
        check_control(tiny(control=other(), **changes))


def test_a_run_without_a_finished_control_is_refused(tiny, other, tmp_path, run):
    path = other()
    (tmp_path / "other" / "results.json").write_text('{"models": {}}')
    with pytest.raises(UserError, match="holds no finished control"):
        run(tiny(control=path), "new")
    assert not (tmp_path / "new").exists()
