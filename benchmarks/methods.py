"""Every method on one small real task, ranked against the student alone; all share the teacher and the batches.

UNDERSTUDY_DATA=... python benchmarks/methods.py                  # all methods, 3 seeds, one run sharing the teacher
UNDERSTUDY_DATA=... python benchmarks/methods.py --methods kd,at  # some of them
python benchmarks/methods.py --from runs/methods/1                # the table of a finished run
"""

import argparse
import json
from pathlib import Path
from typing import Any

import understudy as us
from common import describe_machine, record
from understudy.losses.catalogue.schemes import SCHEMES
from understudy.losses.table import LOSSES

# What a name alone does not say here, where there is an assistant as well.
SAID: dict[str, dict[str, Any]] = {
    "ft": {"init": 1},
    "ab": {"init": 1},
    "fsp": {"init": 1},
    "ban": {"taught_by": "teacher"},
    "annealed": {
        "temperature": 2.0,
        "weight": {"start": 1.0, "end": 0.0, "epochs": 2, "shape": "step"},
        "labels": {"start": 0.0, "end": 1.0, "epochs": 2, "shape": "step"},
    },
}
LEFT_OUT = {
    "vitkd": "compares the tokens of transformers",
}


def recipe(names: list[str], seeds: int, epochs: int) -> dict[str, Any]:
    """5,000 MNIST images, a convolutional pair, a short budget."""
    methods: list[Any] = [
        {"name": name, "taught_by": "teacher", **SAID.get(name, {})} for name in names if name in LOSSES
    ]
    methods += [{"name": name, **SAID.get(name, {})} for name in names if name in SCHEMES]
    return {
        "name": "methods",
        "data": {"name": "mnist", "train": 5_000, "validation": "none"},
        "teacher": {"name": "cnn", "widths": [16, 32], "train": {"epochs": 8}},
        "assistants": [{"name": "cnn", "widths": [12, 24]}] if "takd" in names else [],
        "student": {"name": "cnn", "widths": [8, 16]},
        "method": methods,
        "train": {
            "epochs": epochs, "batch_size": 64, "lr": 1e-2, "schedule": "cosine", "threads": 1, "clip": 5.0,
            "evaluate_every": epochs,
        },
        "seeds": seeds,
    }  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The methods by their mean difference to the student alone."""
    models, verdicts = results["models"], results["verdicts"]
    teacher, control = (models[name]["metrics"]["accuracy"]["last"] for name in ("teacher", "student_alone"))
    seeds = len(models["student_alone"]["metrics"]["accuracy"]["seeds"])
    rows = [
        f"Teacher {100 * teacher:.2f} %, student alone {100 * control:.2f} % of the MNIST test images, {seeds} seeds. "
        "The difference is paired by seed, in points, with its 95 % t interval; p after Holm for all methods.",
        "",
        "| method | difference | interval | p | outcome |",
        "|---|---|---|---|---|",
    ]
    for name, verdict in sorted(verdicts.items(), key=lambda entry: -entry[1]["difference"]):
        low, high = (f"{100 * end:+.2f}" for end in verdict["ci95"] or (float("nan"), float("nan")))
        p = "" if verdict["p"] is None else f"{verdict['p']:.2g}"
        method = name.removeprefix("student_")
        rows.append(f"| {method} | {100 * verdict['difference']:+.2f} | {low} to {high} | {p} | {verdict['outcome']} |")
    left = "; ".join(f"`{name}` {why}" for name, why in LEFT_OUT.items() if name in LOSSES)
    return "\n".join([*rows, "", f"Left out: {left}." if left else ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", help="names with commas; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", help="the run folder")
    parser.add_argument("--from", dest="folder", type=Path, help="a finished run")
    arguments = parser.parse_args()
    everything = [name for name in LOSSES if name not in LEFT_OUT] + list(SCHEMES)
    names = arguments.methods.split(",") if arguments.methods else everything
    if arguments.folder:
        results = json.loads((arguments.folder / "results.json").read_text())
    else:
        results = us.run(recipe(names, arguments.seeds, arguments.epochs), out=arguments.out).results
    text = table(results)
    print(text)
    if names == everything:
        record("methods", text, describe_machine())


if __name__ == "__main__":
    main()
