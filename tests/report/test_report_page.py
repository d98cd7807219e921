"""The report says what the files of the run folder say, safely, and needs nothing but itself."""

import os
from statistics import fmean

import pytest
from report_reading import Report, change, read, results_of, values

from understudy.errors import UserError
from understudy.report import format as shown
from understudy.report import write_report


def test_the_table_holds_the_numbers_of_the_folder(make_run):
    folder = make_run()
    report, results = read(folder), results_of(folder)
    distilled = results["models"]["student_distilled"]
    accuracy = distilled["metrics"]["accuracy"]
    row = report.row("student_distilled")
    assert row[1:6] == ["distilled", "21.9 k", "1.23 M", "0.214 ms", "89.0 kB"]
    assert row[6] == shown.interval(accuracy["last"], tuple(accuracy["ci95"]))
    assert row[7] == shown.score(accuracy["best"])
    assert row[8] == shown.score(fmean(seed["at"]["3"] for seed in accuracy["seeds"]))
    assert row[10] == shown.points(results["verdict"]["difference"])
    assert report.row("student_alone")[10] == shown.DASH
    assert report.row("loss")[1:] == [
        shown.score(model["metrics"]["loss"]["last"]) for model in results["models"].values()
    ]


def test_the_verdict_comes_first_with_difference_interval_and_seeds(make_run):
    folder = make_run()
    report, verdict = read(folder), results_of(folder)["verdict"]
    said = report.sections["verdict"]
    assert list(report.sections)[1] == "verdict"
    low, high = (shown.points(end) for end in verdict["ci95"])
    for part in ["Distillation helped", shown.points(verdict["difference"]), verdict["text"]]:
        assert part in said
    assert f"{low.removesuffix(' pp')} to {high}" in said
    assert "paired seeds5" in said


@pytest.mark.parametrize(
    ("metric", "ci95", "words", "kind"),
    [
        ("accuracy", [0.01, 0.03], "Distillation helped", "helped"),
        ("accuracy", [-0.01, 0.03], "No difference shown", "none"),
        ("accuracy", [-0.03, -0.01], "Distillation hurt", "hurt"),
        ("accuracy", None, "Not tested", "untested"),
        ("fid", [-3.0, -1.0], "Distillation helped", "helped"),
    ],
)
def test_the_panel_shows_the_outcome_that_the_comparison_decided(make_run, metric, ci95, words, kind):
    verdict = {"metric": metric, "difference": 0.0, "ci95": ci95, "seeds": 5, "outcome": kind, "text": ""}
    report = read(change(make_run(epochs=3), verdict=verdict))
    assert words in report.sections["verdict"]
    panel = next(section for section in report.named("section") if section["id"] == "verdict")
    assert panel["class"] == f"verdict {kind}"


def test_without_a_control_nothing_was_tested(make_run):
    folder = make_run(epochs=3)
    models = results_of(folder)["models"]
    del models["student_alone"]
    report = read(change(folder, verdict=None, models=models))
    assert "Not tested" in report.sections["verdict"]
    assert "No control was trained" in report.sections["verdict"]
    assert "chart-verdict" not in report.charts


def test_one_seed_gives_a_difference_but_no_test(make_run):
    report = read(make_run(seeds=1, epochs=3))
    assert "Not tested" in report.sections["verdict"]
    assert " pp" in report.sections["verdict"]
    assert "±" not in "".join(report.row("student_distilled"))


def test_several_verdicts_have_a_row_each(make_run):
    folder = make_run(methods=("kd", "dkd", "at"), gains=(0.034, 0.0, -0.02))
    report, verdicts = read(folder), results_of(folder)["verdicts"]
    assert "1 of 3 distilled students beat the control" in report.sections["verdict"]
    rows = {row[0]: row for row in report.rows if len(row) == 6 and row[0].startswith("student")}
    assert list(rows) == list(verdicts)
    for arm, verdict in verdicts.items():
        assert rows[arm][2] == shown.points(verdict["difference"])
        assert rows[arm][4] == "5"
    assert [row["arm"] for row in values(report.charts["chart-verdict"])[: len(verdicts)]] == list(verdicts)
    assert [key for key in report.charts if key.startswith("chart-loss")] == [f"chart-loss-{i}" for i in range(5)]


def test_charts_are_drawn_from_the_rows_of_the_arms(make_run):
    folder = make_run()
    charts = read(folder).charts
    assert set(charts) == {
        *("chart-verdict", "chart-pairs", "chart-validation", "chart-test", "chart-time"),
        *("chart-loss-0", "chart-loss-1", "chart-loss-2"),
    }
    rows = values(charts["chart-test"])
    last = [row["score"] for row in rows if (row["arm"], row["line"]) == ("student_alone", "mean")][-1]
    accuracy = results_of(folder)["models"]["student_alone"]["metrics"]["accuracy"]
    assert last == pytest.approx(accuracy["last"], abs=1e-5)
    gains = [row["gain"] for row in values(charts["chart-pairs"]) if row.get("arm") == "student_distilled"]
    assert fmean(gains) == pytest.approx(results_of(folder)["verdict"]["difference"], abs=1e-5)
    assert {row["objective"] for row in values(charts["chart-loss-2"])} == {"labels", "kd", "total"}


def test_choosing_on_the_test_set_is_said(make_run):
    assert "chosen on validation" in read(make_run("a", epochs=3)).text
    assert "chosen on the test set itself" in read(change(make_run("b", epochs=3), selection="test")).text


def test_how_to_reproduce_quotes_the_command(make_run):
    said = read(make_run(epochs=3)).sections["reproduce"]
    assert "understudy run recipe.yaml" in said
    assert "understudy run 'my recipe.yaml'" in said
    assert "9f2c41d07b" in said


def test_an_unfinished_run_shows_what_there_is(make_run):
    folder = make_run()
    (folder / "results.json").unlink()
    (folder / "first_batch.png").unlink()
    log = folder / "arms" / "student_alone" / "seed-1" / "metrics.jsonl"
    log.write_text(log.read_text()[:-40])
    report = read(folder)
    assert "unfinished" in report.sections[""]
    assert "Not tested" in report.sections["verdict"]
    assert "digits-quickstart" in report.sections[""]
    assert "scores" not in report.sections
    assert {"chart-validation", "chart-test", "chart-time"} <= set(report.charts)


def test_a_recipe_alone_is_enough(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: just-begun\n")
    report = read(tmp_path)
    assert "just-begun" in report.sections[""]
    assert report.charts == {}


def test_missing_and_non_finite_fields_are_dashes(make_run):
    folder = make_run(epochs=3)
    models = {"student_alone": {"role": "control", "latency_ms": float("nan")}, "bare": {}}
    models["empty"] = {"metrics": {"accuracy": {"last": None}}, "parameters": None}
    report = read(change(folder, models=models, verdict=None))
    for name in models:
        assert set(report.row(name)[2:]) == {shown.DASH}


def test_a_folder_without_a_run_and_a_damaged_file_are_named(tmp_path, make_run):
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    folder = make_run(epochs=3)
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: is not JSON"):
        write_report(folder)


def test_the_report_replaces_the_old_one_and_leaves_nothing_else(make_run):
    folder = make_run(epochs=3)
    before = set(os.listdir(folder))
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert set(os.listdir(folder)) - before == {"report.html"}


def test_long_runs_are_thinned_and_keep_their_last_epoch(make_run):
    path = write_report(make_run(epochs=900, seeds=4))
    rows = values(Report(path.read_text(encoding="utf-8")).charts["chart-test"])
    assert path.stat().st_size < 2_500_000
    assert max(row["epoch"] for row in rows) == 900
