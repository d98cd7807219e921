"""DeiT's strategies on CIFAR-10: what a convolutional teacher is worth to a small transformer, and by which way.

UNDERSTUDY_DATA=... python benchmarks/deit_cifar10.py                   # a processor: 5,000 images, 5 seeds
UNDERSTUDY_DATA=... python benchmarks/deit_cifar10.py --full            # with a GPU: all images, 32 pixels, 100 epochs
UNDERSTUDY_DATA=... python benchmarks/deit_cifar10.py train.epochs=4    # any key of the recipe deit-cifar10
python benchmarks/deit_cifar10.py --from runs/deit-cifar10/1            # the tables of a finished run
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import understudy as us
from common import RESULTS, describe_machine, record
from understudy.recipe.reader import read_source
from understudy.tasks.classify.analysis.analyse import analyse

# The article's control with two class tokens beside the strategies of the shipped recipe.
CONTROL = {"name": "two-class-tokens", "labels": 1, "objectives": [], "model": {"tokens": 2}}
FULL = (
    "data.train=all", "student.size=32", "student.width=192", "student.depth=6", "student.heads=3",
    "teacher.widths=[64,128,256]", "train.epochs=100", "train.batch_size=256", "train.evaluate_every=10",
)  # fmt: skip


def run(overrides: list[str], out: str | None) -> Path:
    """One run: all arms of a seed share each pass of the teacher."""
    recipe = dict(read_source("deit-cifar10").data)
    recipe["method"] = [*recipe["method"], CONTROL]
    data = Path(os.environ["UNDERSTUDY_DATA"]) / "cifar10"
    return us.run(recipe, [f"data.path={data}", *overrides], out=out).folder


def tables(folder: Path, minutes: float | None) -> str:
    """Accuracy with intervals, verdicts, disagreement and the cosines of the tokens, as Markdown."""
    results = json.loads((folder / "results.json").read_text())
    found = {section["title"]: section for section in analyse([folder])}
    seeds = len(next(iter(results["models"]["student_alone"]["metrics"].values()))["seeds"])
    teacher = results["models"]["teacher"]["metrics"]["accuracy"]["last"]
    took = "" if minutes is None else f" It took {minutes:.0f} minutes."
    parts = [f"The teacher has {100 * teacher:.2f} % of the test images right; {seeds} seeds.{took}"]
    for title in ("Strategies", "Disagreement", "Tokens"):
        parts += [f"{found[title]['text']}", markdown(found[title]["table"])]
        if title == "Strategies":
            verdicts = results["verdicts"].items()
            parts.append("\n".join(f"- {name}: {verdict['text']}" for name, verdict in verdicts))
    return "\n\n".join(parts)


def markdown(table: dict[str, Any]) -> str:
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "\n".join(f"| {' | '.join(cell.removeprefix('student_') for cell in row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe deit-cifar10")
    parser.add_argument("--full", action="store_true", help="all of CIFAR-10 for 100 epochs")
    parser.add_argument("--out", help="the run folder")
    parser.add_argument("--from", dest="folder", type=Path, help="a finished run")
    parser.add_argument("--record", action="store_true", help="write the tables to RESULTS.md, also of changed recipes")
    arguments = parser.parse_args()
    began = time.monotonic()
    overrides = [*(FULL if arguments.full else ()), *arguments.overrides]
    folder = arguments.folder or run(overrides, arguments.out)
    text = tables(folder, None if arguments.folder else (time.monotonic() - began) / 60)
    print(text)
    name = "deit_cifar10_full" if arguments.full else "deit_cifar10"
    is_as_shipped = not arguments.overrides and arguments.folder is None
    if (is_as_shipped or arguments.record) and f"<!-- {name} -->" in RESULTS.read_text():
        record(name, text, describe_machine())


if __name__ == "__main__":
    main()
