"""The articles' MNIST experiments, over seeds and at equal epochs, beside what the articles printed.

UNDERSTUDY_DATA=... python benchmarks/mnist_articles.py            # runs the four recipes, about half an hour
python benchmarks/mnist_articles.py --from runs/a runs/b runs/c    # reads finished runs of them
"""

import argparse
import json
from pathlib import Path

import understudy as us
from common import describe_machine, record
from understudy.compare import mean_interval, verdicts
from understudy.report.format import counted, interval

RECIPES = {"mnist-seed-000": ["seeds=5"], "mnist-seed-001": [], "mnist-distil": [], "mnist-ensemble": []}
# What the first article printed, from one run each: by model and epoch.
PRINTED = {("teacher", "3"): 0.9689, ("teacher", "6"): 0.9764, ("student_alone", "3"): 0.8173}
PRINTED |= {("student_distilled", "3"): 0.8387, ("student_distilled", "20"): 0.9015}


def at(results: dict, model: str, epoch: str) -> dict[int, float]:
    """Test accuracy after an epoch, by seed."""
    return {entry["seed"]: entry["at"][epoch] for entry in results["models"][model]["metrics"]["accuracy"]["seeds"]}


def first_article(results: dict) -> str:
    rows = ["| model | epoch | the article (one run) | here, mean ± 95 % interval |", "|---|---|---|---|"]
    for model, epoch in (*PRINTED, ("student_alone", "20")):
        values = list(at(results, model, epoch).values())
        printed = PRINTED.get((model, epoch))
        shown = f"{printed:.4f}" if printed else "not given"
        rows.append(
            f"| {model} | {epoch} | {shown} | {interval(*mean_interval(values))} ({counted(len(values), 'seed')}) |"
        )
    for epoch in ("3", "20"):
        control, distilled = at(results, "student_alone", epoch), at(results, "student_distilled", epoch)
        verdict = verdicts("accuracy", control, {"student_distilled": distilled})["student_distilled"]
        rows.append(f"\nAt {epoch} epochs for both: {verdict.text}")
    return "\n".join(rows)


def usual_table(results: dict) -> str:
    rows = ["| model | parameters | test accuracy, last epoch |", "|---|---|---|"]
    for name, about in results["models"].items():
        scores = about["metrics"]["accuracy"]
        rows.append(f"| {name} | {about['parameters']:,} | {interval(scores['last'], scores['ci95'])} |")
    verdicts = results["verdicts"]
    told = [f"{name}: {one['text']}" if len(verdicts) > 1 else one["text"] for name, one in verdicts.items()]
    return "\n\n".join(["\n".join(rows), *told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folders", nargs="*", type=Path, help="finished runs of the recipes")
    arguments = parser.parse_args()
    if arguments.folders:
        found = [json.loads((folder / "results.json").read_text()) for folder in arguments.folders]
        results = {result["name"]: result for result in found}
    else:
        results = {name: us.run(name, overrides).results for name, overrides in RECIPES.items()}
    for name in RECIPES:
        if name in results:
            table = first_article(results[name]) if name == "mnist-seed-000" else usual_table(results[name])
            print(f"### {name}\n{table}\n")
            record(name, table, describe_machine())


if __name__ == "__main__":
    main()
