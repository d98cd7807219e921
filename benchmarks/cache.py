"""A step with a warm cache against a plain step of the student, and what the cache weighs.

All through our loop: the plain step is the control's, which learns from labels alone; `at hand` is the distilled
student's with answers that cost nothing, so that what is left is the looking up. The networks' weights do not matter to
their cost, so they are untrained. Also here: what a teacher built for answering saves of its forward, how
near its multiply-adds a second come to those of a product of large matrices (which is what can be saved at all), the
bytes of 50,000 answers of 100 classes in fp16, and whether runs end with equal bits whatever the cache knew.

    python benchmarks/cache.py [--rounds 5]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import understudy
from common import describe_machine, record
from pairs import BATCH, RESNETS, in_turns, milliseconds, ratio, stage_of, stepping, task_of, teacher_of, training
from understudy.distill import Answer, Teacher
from understudy.distill.cache import AnswerCache, Kept
from understudy.distill.teacher import Place
from understudy.recipe.reader import read_recipe
from understudy.run.measure import multiply_adds
from understudy.tasks.classify.run import prepare
from understudy.tasks.classify.task import Classify

PAIRS = {"MNIST": None, "resnet": RESNETS, "shufflenet": ("cifar/wrn-40-2", "cifar/shufflenet-v2")}


class AtHand:
    """Stands in for a cache: gives the answers that it gave before, whatever is asked."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}

    def answer(self, teacher: Teacher, images: Tensor, _places: Any, *, taps: tuple[str, ...], logits: bool) -> Answer:
        if len(images) not in self.answers:
            self.answers[len(images)] = teacher(images, taps=taps, logits=logits)
        return self.answers[len(images)]


def task(pair: str) -> Classify:
    names = PAIRS[pair]
    if names is not None:
        return task_of(*names, cache="on")
    # A tenth of the images; steps are compiled as they are for all of them.
    return prepare(read_recipe("mnist-seed-000", ["data.train=6400", "cache=on", "train.compile=true"]), {}).task


def row(pair: str, rounds: int, root: Path) -> str:
    made = task(pair)
    teacher = teacher_of(made, root)
    stage, control, distilled = stage_of(made, teacher)
    warm = training(stage, distilled)
    freely = teacher_of(made)
    freely.cache = AtHand()  # pyright: ignore[reportAttributeAccessIssue]
    other, _, taught = stage_of(made, freely)
    at_hand = training(other, taught)
    for _ in range(stage.steps_per_epoch):
        next(warm)
        next(at_hand)
    assert teacher.cache is not None
    before = teacher.cache.counts.misses
    count = stage.ahead * (1 if pair != "MNIST" else 50)
    sides = {"plain": stepping(training(stage, control)), "at hand": stepping(at_hand), "warm": stepping(warm)}
    times = in_turns(sides, rounds=rounds, count=count)
    assert teacher.cache.counts.misses == before, "the cache was not warm"
    batch = made.feed("students", 0)[0].images[:BATCH]
    eager = made.as_teacher(made.build("teacher", 0))
    matrix = torch.randn(1024, 1024)
    asked = {"eager": lambda: eager(batch), "frozen": lambda: teacher(batch), "product": lambda: matrix @ matrix}
    forwards = in_turns(asked, rounds=rounds, count=3)
    assert teacher.preprocess is not None
    work = multiply_adds(teacher.model, teacher.preprocess(batch[:1])) * len(batch)
    reached = [work * product / 1024**3 for product in forwards["product"]]
    names = PAIRS[pair] or (made.recipe.teacher.name, made.recipe.student.name)
    cells = (
        f"{pair}: {names[0]} to {names[1]}",
        milliseconds(times["plain"]),
        milliseconds(times["warm"]),
        ratio(times["warm"], times["plain"]),
        ratio(times["warm"], times["at hand"]),
        ratio(forwards["frozen"], forwards["eager"]),
        ratio(reached, forwards["frozen"]),
    )
    return f"| {' | '.join(cells)} |"


def weight(root: Path) -> float:
    """Bytes on disk over those of the numbers alone."""
    cache = AnswerCache(root, {}, 50_000, Kept(precision="fp16"))
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 100)), chunk=1000)
    images = torch.randn(1000, 1, 2, 2)
    for start in range(0, 50_000, 1000):
        cache.answer(teacher, images, [Place("plain", torch.arange(start, start + 1000))])
    return cache.size / (50_000 * 100 * 2)


def hashes(root: Path) -> set[str]:
    """Of runs without a cache, with a cold and with a warm one, over random views and mixed images."""
    recipe = "digits-quickstart"
    changed = ["seeds=1", "train.epochs=3", "teacher.train.epochs=2", "data.augment={crop: 1, mixup: 0.3}"]
    found = set()
    for number, cache in enumerate(("off", "on", "on")):
        overrides = [*changed, f"cache={{when: {cache}, path: {root}}}"]
        result = understudy.run(recipe, overrides, out=root / f"run-{number}", quiet=True)
        found.add(result.results["hash"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    arguments = parser.parse_args()
    lines = [
        "| pair | plain ms | warm ms | warm / plain | warm / at hand | frozen / eager teacher | its speed / a matrix "
        "product's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for pair in arguments.pairs:
            lines.append(row(pair, arguments.rounds, Path(folder)))
            print(lines[-1], flush=True)
        size, found = weight(Path(folder)), hashes(Path(folder))
    lines += [
        "",
        f"Batch {BATCH} (MNIST 32); medians and ranges of {arguments.rounds} rounds in turns. 50,000 answers of 100 "
        f"classes in fp16 take {size:.3f} of their raw size. Runs without a cache, with a cold and a warm one ended "
        f"with {len(found)} hash{'es' if len(found) > 1 else ''}.",
    ]
    print("\n".join(lines))
    record("cache", "\n".join(lines), describe_machine())


if __name__ == "__main__":
    main()
