"""Parents of diagram nodes: the time of the generator, and how many relations are found on images it never gave us.

The drawings of this seed were not looked at while the search was written. Images are read back from the saved files
(PNG, JPEG, WebP); `boxes as detected` moves every edge of every box at random by 2 pixels (standard deviation) and
leaves out one box in twenty.

    python benchmarks/diagrams.py [--count 500] [--seed 20261121]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from common import describe_machine, record
from understudy.data.image import open_image
from understudy.tasks.detect.diagrams import draw_diagram, find_parent_nodes, generate_diagrams, read_diagram
from understudy.tasks.detect.diagrams import relation_metrics as score
from understudy.tasks.detect.diagrams.evaluate import list_diagrams


def as_detected(boxes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    kept = boxes[random.random(len(boxes)) > 0.05]
    return kept + random.normal(0, 2, kept.shape)


def row(name: str, truth: list, found: list) -> str:
    boxes, parents = ([part[i] for part in truth] for i in (0, 1))
    found_boxes, found_parents = ([part[i] for part in found] for i in (0, 1))
    figures = score(boxes, found_boxes, parents, found_parents)
    directed, undirected = figures.directed, figures.undirected
    return (
        f"| {name} | {figures.images} | {directed.precision:.4f} | {directed.recall:.4f} | {directed.f1:.4f} "
        f"| {undirected.f1:.4f} | {figures.exact:.3f} | {figures.accuracy:.4f} |"
    )


def measure(count: int, seed: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root, began = Path(folder) / "diagram", (time.perf_counter(), time.process_time())
        generate_diagrams(root, count=count, seed=seed, val=0.0, test=1 - 1 / count)
        wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
        examples = [pair for split in ("train", "test") for pair in list_diagrams(root, split)]
        images = [open_image(path, 3) for path, _ in examples]
        labels = [read_diagram(path) for _, path in examples]
    growths = [str(draw_diagram(np.random.default_rng([seed, number])).growth) for number in range(count)]

    truth = [(label.in_pixels(*image.size), label.parents) for label, image in zip(labels, images, strict=True)]
    began = time.process_time()
    traced = [(boxes, find_parent_nodes(boxes, image)) for (boxes, _), image in zip(truth, images, strict=True)]
    each = (time.process_time() - began) / count
    guessed = [(boxes, find_parent_nodes(boxes)) for boxes, _ in truth]
    random = np.random.default_rng(seed)
    moved = [as_detected(boxes, random) for boxes, _ in truth]
    detected = [(boxes, find_parent_nodes(boxes, image)) for boxes, image in zip(moved, images, strict=True)]

    lines = [
        f"{count} images made and saved in {processor:.1f} s of one core ({wall:.1f} s by the clock of a shared "
        f"machine), {sum(len(parents) for _, parents in truth)} nodes; tracing takes {each * 1000:.0f} ms an image.",
        "",
        "| boxes and method | images | precision | recall | F1 | undirected F1 | exact trees | accuracy |",
        "|---|---|---|---|---|---|---|---|",
        row("true boxes, lines traced", truth, traced),
        row("true boxes alone", truth, guessed),
        row("boxes as detected, lines traced", truth, detected),
    ]
    for growth in sorted(set(growths)):
        these = [number for number, which in enumerate(growths) if which == growth]
        for name, found in (("traced", traced), ("boxes alone", guessed)):
            lines.append(row(f"growing {growth}, {name}", [truth[n] for n in these], [found[n] for n in these]))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--print-only", action="store_true", help="leave RESULTS.md as it is")
    arguments = parser.parse_args()
    text = measure(arguments.count, arguments.seed)
    print(text)
    if not arguments.print_only:
        record("diagrams", text, describe_machine())
