"""Diffusion recipes: students of few steps beside their teacher, as a table.

python benchmarks/diffusion_rounds.py diffusion-digits                  # runs the recipe: about nine minutes a seed
UNDERSTUDY_DATA=... python benchmarks/diffusion_rounds.py diffusion-mnist
python benchmarks/diffusion_rounds.py --from runs/diffusion-digits/1    # reads a finished run
"""

import argparse
import json
import os
from pathlib import Path

import understudy as us
from common import describe_machine, record
from understudy.report.format import interval, milliseconds

COLUMNS = ("fid", "frechet", "precision", "recall", "recognised", "paired_mse")


def table(results: dict) -> str:
    models = results["models"]
    metrics = [name for name in COLUMNS if name in next(iter(models.values()))["metrics"]]
    rows = [f"| model | steps | {' | '.join(metrics)} | an image |", f"|---|---|{'---|' * (len(metrics) + 1)}"]
    for name, about in models.items():
        scores = [interval(about["metrics"][metric]["last"], about["metrics"][metric]["ci95"]) for metric in metrics]
        rows.append(f"| {name} | {about['steps']} | {' | '.join(scores)} | {milliseconds(about['latency_ms'])} |")
    return "\n".join([*rows, "", results["verdict"]["text"], "", *(f"- {note}" for note in results["notes"])])


def ratios(results: dict) -> str:
    """What the acceptance of `diffusion-digits` asks for, seed by seed."""
    models = results["models"]
    teacher = next(name for name, about in models.items() if about["role"] == "teacher")
    of = {
        name: {entry["seed"]: entry["last"] for entry in models[name]["metrics"]["frechet"]["seeds"]}
        for name in (teacher, "teacher_ddim_4", "student_4", "student_1")
    }
    rows = ["| seed | student 4 / teacher | student 1 / teacher | teacher with 4 / student 4 |", "|---|---|---|---|"]
    for seed in of[teacher]:
        full, few, four, one = (of[name][seed] for name in (teacher, "teacher_ddim_4", "student_4", "student_1"))
        rows.append(f"| {seed} | {four / full:.2f} | {one / full:.2f} | {few / four:.2f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="diffusion-digits")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--from", dest="folder", type=Path, help="a finished run")
    arguments = parser.parse_args()
    if arguments.folder:
        results = json.loads((arguments.folder / "results.json").read_text())
    else:
        where = [f"data.path={os.environ['UNDERSTUDY_DATA']}/mnist"] if arguments.recipe == "diffusion-mnist" else []
        results = us.run(arguments.recipe, [*where, *arguments.overrides]).results
    parts = [f"### {results['name']}", table(results)]
    compared = {"student_4", "student_1", "teacher_ddim_4"} <= results["models"].keys()
    if compared and results["verdict"]["metric"] == "frechet":
        parts.append(ratios(results))
    text = "\n\n".join(parts)
    print(text)
    record(results["name"].replace("-", "_"), text, describe_machine())


if __name__ == "__main__":
    main()
