"""The report is safe to open, needs nothing but itself, and can be read by everyone."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise

from report_reading import Report, change, read, results_of

from understudy.report import write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


def test_hostile_strings_stay_text(make_run):
    folder = make_run(epochs=3)
    results = results_of(folder)
    results["models"][HOSTILE] = results["models"].pop("student_distilled")
    results["models"][HOSTILE]["metrics"][HOSTILE] = results["models"][HOSTILE]["metrics"]["loss"]
    results["models"][HOSTILE]["role"] = "distilled"
    verdicts = {HOSTILE: results["verdict"] | {"text": HOSTILE}, "b": results["verdict"]}
    change(folder, **results | {"name": HOSTILE, "about": HOSTILE, "notes": [HOSTILE], "hash": HOSTILE})
    change(folder, task=HOSTILE, selection=HOSTILE, verdicts=verdicts)
    (folder / "recipe.yaml").write_text(HOSTILE)
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "command": HOSTILE, "started": HOSTILE}))
    row = {"kind": "train", "epoch": 1, "losses": {HOSTILE: 1.0}}
    (folder / "arms" / "teacher" / "seed-0" / "metrics.jsonl").write_text(json.dumps(row))
    report = read(folder)
    assert report.text.count(HOSTILE) >= 10
    assert len(report.named("script")) == 3
    assert all("onerror" not in attributes for _, attributes in report.tags)
    assert [image["src"][:22] for image in report.named("img")] == ["data:image/png;base64,"]


def test_the_page_fetches_nothing_and_forbids_fetching(make_run):
    path = write_report(make_run(methods=("kd", "dkd", "at"), gains=(0.03, 0.0, -0.02)))
    report = Report(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 2_500_000
    targets = [attributes.get(key) for _, attributes in report.tags for key in ("src", "href", "srcset", "data")]
    assert all(target.startswith(("#", "data:")) for target in targets if target)
    assert report.named("link") == []
    styles = next(text for text in report.scripts.values() if ":root" in text)
    assert not re.search(r"@import|url\(", styles)
    assert all("data" not in chart or "url" not in chart["data"] for chart in report.charts.values())
    policy = next(meta["content"] for meta in report.named("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert "unsafe-eval" not in policy


def test_the_page_can_be_read_aloud(make_run):
    report = read(make_run(epochs=3))
    assert report.named("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in report.named("img"))
    assert all(header["scope"] in ("row", "col") for header in report.named("th"))
    charts = [place for place in report.named("div") if place.get("class") == "chart"]
    assert [place["id"] for place in charts] == list(report.charts)
    assert all(place["role"] == "img" and place["aria-label"] for place in charts)
    levels = [int(tag[1]) for tag, _ in report.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_writing_a_report_never_imports_torch(make_run):
    folder = make_run(epochs=3)
    code = (
        "import sys, pathlib; from understudy.report import format, write_report; "
        "assert 'altair' not in sys.modules; write_report(pathlib.Path(sys.argv[1])); "
        "assert not {'torch', 'pandas'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
