"""The whole chain as one run, in miniature: stages, results, report; killed and resumed; damage named."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

from detect_helpers import SMALL

import understudy as us
from understudy.cli import main
from understudy.errors import UserError
from understudy.run.measure import parameter_count
from understudy.tasks.detect.diagrams import evaluate_relations, generate_diagrams

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::UserWarning:ultralytics"),
]


@pytest.fixture
def recipe(shapes, narrow_yaml):
    own = {key: value for key, value in SMALL.items() if key not in ("imgsz", "device", "workers", "verbose")}
    return {
        "name": "mini",
        "task": "detect",
        "data": str(shapes),
        "model": str(narrow_yaml),
        "imgsz": 64,
        "args": own,
        "stages": {
            "train": {"epochs": 1},
            "sparsify": {"epochs": 1},
            "sensitivity": {"images": 4, "ratios": [0.5]},
            "prune": {"parameters": 0.6, "round_to": 2},
            "finetune": {"epochs": 1},
            "distill": {"epochs": 1, "methods": ["cwd", "mgd"]},
            "predict": {"images": 2, "conf": 0.01},
        },
        "train": {"device": "cpu", "threads": 1},
        "seeds": 1,
    }


def test_the_chain_ends_in_table_verdict_report_and_pictures(recipe, tmp_path):
    pytest.importorskip("onnxruntime")
    recipe["stages"]["export"] = {"formats": ["onnx"]}
    result = us.run(recipe, out=tmp_path / "run", quiet=True)
    models = result.results["models"]
    assert list(models) == [
        "teacher", "sparse", "pruned", "finetuned", "student_alone", "student_cwd", "student_mgd",
        f"{result.results['best']}.onnx",
    ]  # fmt: skip
    assert models["pruned"]["parameters"] <= 0.6 * models["teacher"]["parameters"]
    assert models["student_mgd"]["parameters"] == models["pruned"]["parameters"]
    assert [row["seed"] for row in models["student_alone"]["metrics"]["mAP50"]["seeds"]] == [0]
    assert set(result.results["verdicts"]) == {"student_cwd", "student_mgd"}
    titles = [extra["title"] for extra in result.results["extra"]]
    assert titles == [
        "Cost and score", "By class", "BatchNorm scales", "Sensitivity of the layers", "Widths", "Predictions",
    ]  # fmt: skip
    assert (tmp_path / "run" / "report.html").stat().st_size > 50_000
    assert len(list((tmp_path / "run" / "predictions").iterdir())) == 2
    assert parameter_count(result.student.model) == models["pruned"]["parameters"]
    logged = (tmp_path / "run" / "arms" / "student_mgd" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(logged[0])["losses"]["mgd_loss"] > 0
    assert {"trained.pt", "sparse.pt", "pruned.pt", "finetuned.pt"} <= {
        path.name for path in (tmp_path / "run" / "weights").iterdir()
    }


def test_diagrams_end_in_precision_recall_and_f1_of_relations(recipe, tmp_path):
    recipe["data"] = str(generate_diagrams(tmp_path / "diagram", count=16, val=0.25, test=0.25))
    recipe["stages"] = {
        "train": {"epochs": 1},
        "distill": {"epochs": 1, "methods": ["mgd"]},
        "relations": {"images": 2, "conf": 0.01},
    }
    result = us.run(recipe, out=tmp_path / "run", quiet=True)
    relations = next(extra for extra in result.results["extra"] if extra["title"] == "Relations")
    assert [row[0] for row in relations["table"]["rows"]] == ["teacher", "student_alone", "student_mgd", "true boxes"]
    figures = dict(zip(relations["table"]["columns"], relations["table"]["rows"][-1], strict=True))
    alone = evaluate_relations(tmp_path / "diagram", split="test").on_true_boxes
    assert figures["F1"] == f"{alone.directed.f1:.3f}"
    assert figures["node F1"] == "1.000"
    assert len(list((tmp_path / "run" / "relations").iterdir())) == 2
    assert (tmp_path / "run" / "relations.png").exists()


def test_a_killed_run_goes_on_and_repeats_no_finished_stage(recipe, tmp_path):
    recipe["stages"] = {"train": {"epochs": 12}, "distill": {"epochs": 1, "methods": ["cwd"]}}
    recipe["seeds"] = 1
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    words = [sys.executable, "-m", "understudy", "run", str(tmp_path / "mini.yaml"), "--out", str(run), "--quiet"]
    process = subprocess.Popen(words, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    manifest = run / "stages" / "train" / "checkpoint.json"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (manifest.exists() and json.loads(manifest.read_text())["epoch"] >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads(manifest.read_text())["epoch"]
    assert before < 11
    # What stands where ultralytics looks is damaged, too: the guarded copy counts.
    (run / "stages" / "train" / "weights" / "last.pt").write_bytes(b"half a file")
    assert main(["resume", str(run), "--quiet"]) == 0
    rows = (run / "stages" / "train" / "results.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 13))
    finished = json.loads((run / "stages.json").read_text())["finished"]
    assert finished == ["train", "student_alone-seed-0", "student_cwd-seed-0", "compare"]
    stamp = (run / "weights" / "trained.pt").stat().st_mtime_ns
    (run / "results.json").unlink()
    assert main(["resume", str(run), "--quiet"]) == 0
    assert (run / "weights" / "trained.pt").stat().st_mtime_ns == stamp


def test_a_changed_file_of_a_finished_stage_is_named(recipe, tmp_path):
    recipe["stages"] = {"train": {"epochs": 1}, "distill": {"epochs": 1, "methods": ["cwd"]}}
    recipe["seeds"] = 1
    us.run(recipe, out=tmp_path / "run", quiet=True)
    weights = tmp_path / "run" / "weights" / "trained.pt"
    weights.write_bytes(weights.read_bytes() + b"x")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(UserError, match=r"trained\.pt: is not what the stage 'train' left"):
        us.resume(tmp_path / "run", quiet=True)


def test_what_cannot_work_is_said_before_anything_is_written(recipe, tmp_path):
    recipe["stages"]["prune"] = {"ratio": 0.4}
    recipe["model"] = "yolov9t.yaml"
    with pytest.raises(UserError, match="ELAN1"):
        us.run(recipe, out=tmp_path / "run", quiet=True)
    recipe["model"] = "yolov8n.yaml"
    recipe["stages"]["distill"]["methods"] = [{"name": "cwd", "layers": [99]}]
    with pytest.raises(UserError, match=r"no module 'model\.99'"):
        us.run(recipe, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
