"""A run folder as a small digits experiment would leave it, without training one."""

import json
import math
import random
import statistics
from pathlib import Path

import pytest
from report_reading import png

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def interval(values):
    half = T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return [mean - half, mean + half]


def write_arm(folder, name, seed, reached, objectives, epochs, draw):
    arm = folder / "arms" / name / f"seed-{seed}"
    arm.mkdir(parents=True)
    scores, metrics, timing = [], [], []
    for epoch in range(1, epochs + 1):
        score = reached - (reached - 0.35) * math.exp(-epoch / (epochs / 6)) + draw.gauss(0, 0.002)
        score = reached if epoch == epochs else score
        parts = {key: (2.2 + i) * math.exp(-epoch / 6) + 0.05 for i, key in enumerate(objectives)}
        step = 38 * epoch
        row = {"kind": "train", "epoch": epoch, "step": step, "lr": 0.01, "loss": sum(parts.values())}
        metrics.append({**row, "losses": parts})
        found = {"accuracy": score, "loss": 1 - score}
        validation = {"accuracy": score - 0.008 + draw.gauss(0, 0.004), "loss": 1.05 - score}
        metrics.append({"kind": "eval", "epoch": epoch, "step": step, "validation": validation, "test": found})
        seconds = 0.4 + 0.2 * len(objectives) + draw.expovariate(30) + (0.3 if epoch == 1 else 0)
        timing.append({"epoch": epoch, "seconds": seconds, "images_per_second": 1203 / seconds})
        scores.append(score)
    (arm / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (arm / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timing))
    return scores


def build(folder: Path, *, methods=("distilled",), gains=(0.034,), seeds=5, epochs=20) -> Path:
    """Writes a finished run with the control and the methods, each `gain` above it on average."""
    draw = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    levels = {"teacher": 0.978, "student_alone": 0.9205}
    levels |= {f"student_{method}": 0.9205 + gain for method, gain in zip(methods, gains, strict=True)}
    models, lasts = {}, {}
    luck = [draw.gauss(0, 0.004) for _ in range(seeds)]
    for name, level in levels.items():
        role = {"teacher": "teacher", "student_alone": "control"}.get(name, "distilled")
        rows = []
        for seed in range(1 if role == "teacher" else seeds):
            reached = level if role == "teacher" else level + luck[seed] + draw.gauss(0, 0.002)
            objectives = ["labels"] if role != "distilled" else ["labels", "kd"]
            scores = write_arm(folder, name, seed, reached, objectives, epochs, draw)
            at = {str(epoch): scores[epoch - 1] for epoch in (3, 20) if epoch <= epochs}
            rows.append({"seed": seed, "best": max(scores), "last": scores[-1], "at": at})
        lasts[name] = [row["last"] for row in rows]
        accuracy = {
            "best": statistics.fmean(row["best"] for row in rows),
            "last": statistics.fmean(lasts[name]),
            "ci95": interval(lasts[name]) if len(rows) > 1 else None,
            "seeds": rows,
        }
        loss = {"best": 0.1, "last": 1 - accuracy["last"], "ci95": None, "seeds": []}
        models[name] = {
            "role": role,
            "parameters": 272_474 if role == "teacher" else 21_930,
            "macs": 41_220_000 if role == "teacher" else 1_234_000,
            "latency_ms": 1.8412 if role == "teacher" else 0.2137,
            "size_bytes": 1_093_120 if role == "teacher" else 88_976,
            "metrics": {"accuracy": accuracy, "loss": loss},
        }
    verdicts = {}
    for method in methods:
        gained = [a - b for a, b in zip(lasts[f"student_{method}"], lasts["student_alone"], strict=True)]
        ci95 = interval(gained) if seeds > 1 else None
        verdicts[f"student_{method}"] = {
            "metric": "accuracy",
            "difference": statistics.fmean(gained),
            "ci95": ci95,
            "seeds": seeds,
            "outcome": outcome_of(ci95),
            "text": f"At the last epoch the distilled student differs by {statistics.fmean(gained):.4f} "
            "in accuracy from the same student trained alone.",
        }
    results = {
        "name": "digits-quickstart",
        "task": "classify",
        "about": "A convolutional teacher and a small student on handwritten digits.",
        "finished": True,
        "selection": "validation",
        "notes": ["The teacher was trained in this run.", "One teacher: the interval is conditional on it."],
        "hash": "9f2c41d07b",
        "models": models,
        "verdict": verdicts[f"student_{methods[0]}"] if len(methods) == 1 else None,
    }
    if len(methods) > 1:
        results["verdicts"] = verdicts
    (folder / "results.json").write_text(json.dumps(results))
    recipe = "name: digits-quickstart\ntask: classify\nseeds: 5\ntrain:\n  lr: 0.01\n"
    (folder / "recipe.yaml").write_text(recipe)
    environment = {
        "python": "3.11.7",
        "torch": "2.9.1",
        "machine": {"cpu": "two cores", "memory_gb": 8},
        "threads": 2,
        "command": ["understudy", "run", "my recipe.yaml"],
        "started": "2025-11-03T09:12:44+00:00",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "first_batch.png").write_bytes(png())
    return folder


def outcome_of(ci95) -> str:
    if ci95 is None:
        return "untested"
    return "helped" if ci95[0] > 0 else "hurt" if ci95[1] < 0 else "none"


@pytest.fixture
def make_run(tmp_path):
    """Builds a run folder, with what `build` can be told."""

    def make(name="run", **choices):
        return build(tmp_path / name, **choices)

    return make
