"""From pixels to a tree: a detector trained on generated diagrams, and the parents of the boxes that it finds.

Runs the recipe `diagram-tree` on diagrams of a seed of their own and scores boxes with parents on its test images.

    python benchmarks/diagram_detector.py                                            # CPU size, a quarter of an hour
    python benchmarks/diagram_detector.py --count 2000 imgsz=640 stages.train.epochs=100 stages.distill.epochs=50 \
        train.device=cuda:0
"""

import argparse
from pathlib import Path

import understudy as us
from common import describe_machine, record
from understudy.report.format import score
from understudy.tasks.detect import generate_diagrams


def told(results: dict) -> str:
    table = next(extra["table"] for extra in results["extra"] if extra["title"] == "Relations")
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    boxes = []
    for name in ("teacher", "student_alone", "student_mgd"):
        model = results["models"][name]
        boxes.append(f"{name} {score(model['metrics']['mAP50']['last'])} ({model['parameters']:,} parameters)")
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", f"mAP50 of the boxes: {', '.join(boxes)}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the recipe: key=value")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--out", type=Path, default=Path("runs/diagram-detector"))
    arguments = parser.parse_args()
    data, run = arguments.out / "diagram" / "diagram.yaml", arguments.out / "run"
    if not data.exists():
        generate_diagrams(data.parent, count=arguments.count, seed=arguments.seed, test=0.15)
    overrides = [f"data={data}", *arguments.overrides]
    result = us.resume(run) if run.exists() else us.run("diagram-tree", overrides, out=run)
    changed = f" ({' '.join(arguments.overrides)})" if arguments.overrides else ""
    text = f"{arguments.count} diagrams{changed}, scores on 15 % of them\n\n{told(result.results)}"
    print(text)
    record("diagram_detector", text, describe_machine())


if __name__ == "__main__":
    main()
