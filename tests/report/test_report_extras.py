"""What a task adds to the report, and how objectives share the gradient."""

import json

import pytest
from report_reading import change, png, read, values


def test_a_tasks_own_sections_are_drawn_in_order(make_run):
    chart = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"values": [{"steps": 4, "distance": 1.5}]},
        "mark": "point",
        "encoding": {"x": {"field": "steps", "type": "quantitative"}},
    }
    table = {"columns": ["steps", "distance"], "rows": [["4", "<b>1.5</b>"]]}
    extra = [
        {"title": "Quality against steps", "text": "Lower is better.", "table": table, "chart": chart},
        {"title": "Samples", "image": "grid.png"},
    ]
    folder = change(make_run(epochs=3), extra=extra)
    (folder / "grid.png").write_bytes(png())
    report = read(folder)
    assert "Lower is better." in report.sections["quality-against-steps"]
    assert "<b>1.5</b>" in report.sections["quality-against-steps"]  # as text: `read` gives what a person sees
    assert values(report.charts["chart-extra-0"]) == [{"steps": 4, "distance": 1.5}]
    assert "data:image/png;base64," in (folder / "report.html").read_text()
    assert list(report.sections).index("quality-against-steps") < list(report.sections).index("samples")


def test_a_picture_outside_the_run_folder_is_not_read(make_run, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(7, 7))
    folder = change(make_run(epochs=3), extra=[{"title": "Samples", "image": "../secret.png"}])
    (folder / "first_batch.png").unlink()
    read(folder)
    assert "data:image/png" not in (folder / "report.html").read_text()


def test_shares_of_the_gradient_are_means_over_seeds_and_sum_to_one(make_run):
    folder = make_run(epochs=3, seeds=2)
    norms = {0: {"labels": 1.0, "kd": 3.0}, 1: {"labels": 1.0, "kd": 1.0}}
    for seed, found in norms.items():
        log = folder / "arms" / "student_distilled" / f"seed-{seed}" / "metrics.jsonl"
        row = {"kind": "gradients", "epoch": 1, "step": 38, "norms": found, "weights": {}}
        log.write_text(log.read_text() + json.dumps(row) + "\n")
    rows = values(read(folder).charts["chart-shares-2"])
    assert {row["objective"]: row["share"] for row in rows} == pytest.approx({"labels": 0.375, "kd": 0.625})
