"""The articles' distillation stage on MNIST: our loop against the loop they print, by the step and as a whole.

The same mathematics on both sides: the teacher, the student's forward and backward, Adam, batch size 32. The articles
read images one by one through PIL and `ToTensor`, and ask the teacher in every step. Ours runs as it comes, with
the teacher's answers known, and with steps compiled; the last two also for five seeds at once. All run in turn on one
thread, and ratios are taken round by round.

The whole stage is 20 epochs, from the first batch to the last evaluation, the compiler's work and the filling of the
cache included, imports not: ours in a process of its own, by the clock (the compiler starts others), and the printed
loop's as 20 times an epoch with its evaluation.

    python benchmarks/mnist_speed.py [--steps 400] [--rounds 5] [--whole-rounds 3]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from common import describe_machine, record
from understudy.recipe.reader import read_recipe
from understudy.tasks.classify.answers import remember
from understudy.tasks.classify.run import prepare
from understudy.tasks.classify.stages import stage_of_seeds, student_stage
from understudy.tasks.classify.task import Classify
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.loop import fit, train_step
from understudy.train.progress import Display
from understudy.train.settle import form_teams
from understudy.train.stage import steps as steps_of

EPOCHS = 20
# Of a whole stage: whether steps are compiled, and whether the compiler finds its own cache.
WAYS = {
    "not compiled": ("false", True),
    "compiled, cold": ("true", False),
    "compiled, warm": ("true", True),
}


class OneByOne(Dataset):
    """MNIST as torchvision serves it: an image from an array, then a transform, sample by sample."""

    def __init__(self, images: torch.Tensor, labels) -> None:
        self.images, self.labels, self.transform = images, labels, ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].numpy(), mode=None)
        return self.transform(image), int(self.labels[index])


def printed_loop(task, teacher) -> Callable[[int], float]:
    """The articles' loop; gives seconds for so many steps."""
    samples = task.splits.students.samples
    loader = DataLoader(OneByOne(samples.read.images[:, 0], samples.labels), batch_size=32, shuffle=True)
    student = task.build("student", 0).train()
    hard_loss, soft_loss = nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean")
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)

    def run(steps: int) -> float:
        batches = iter(loader)
        next(batches)
        began = time.process_time()
        for _ in range(steps):
            data, target = next(batches)
            with torch.no_grad():
                teacher_logits = teacher(data)
            logits = student(data)
            hard = hard_loss(logits, target)
            soft = soft_loss(F.log_softmax(logits / 7, dim=1), F.softmax(teacher_logits / 7, dim=1))
            loss = 0.3 * hard + 0.7 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.process_time() - began

    return run


def our_loop(module, cache: Path | None, *overrides: str, seeds: int = 1) -> Callable[[int], float]:
    """Our loop with the same teacher, student and losses; gives seconds for so many steps, in whole groups."""
    recipe = read_recipe("mnist-seed-000", ["control=none", f"cache.when={'on' if cache else 'off'}", *overrides])
    task: Classify = prepare(recipe, {}).task
    teacher = task.as_teacher(module)
    if cache is not None:
        remember(task, teacher, cache)
    teachers = {"teacher": teacher}
    stage = stage_of_seeds(task, range(seeds), teachers) if seeds > 1 else student_stage(task, 0, teachers)
    formed = form_teams(stage)
    print("our steps are taken", formed[0][1].name, formed[0][1].reason)
    teams = [team for each, _ in formed for team in each]
    for team in teams:
        team.begin(0)

    def run(steps: int) -> float:
        coming = steps_of(stage, stage.arms, 0, 0)
        for step in range(stage.ahead):
            train_step(teams, *next(coming), 0, step)
        began = time.process_time()
        for step in range(stage.ahead, stage.ahead + steps):
            train_step(teams, *next(coming), 0, step)
        return time.process_time() - began

    return run


def whole(compiled: str, folder: Path) -> float:
    """Seconds of our stage in this process."""
    overrides = ["control=none", "cache.when=on", f"train.compile={compiled}", "train.threads=1", "train.read_at=[20]"]
    task: Classify = prepare(read_recipe("mnist-seed-000", overrides), {}).task
    teacher = task.as_teacher(task.build("teacher", 0))
    remember(task, teacher, folder / "answers")
    stage = student_stage(task, 0, {"teacher": teacher})
    run, display, stop = RunFolder(folder), Display(None), StopRequest()
    began = time.perf_counter()
    fit(stage, run, display, stop)
    return time.perf_counter() - began


def whole_apart(way: str, compiler: Path) -> float:
    """The same in a process of its own."""
    compiled, kept = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        cache = compiler if kept else Path(folder) / "compiler"
        words = [sys.executable, __file__, "--one-stage", compiled, folder]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def whole_stages(task: Classify, teacher: nn.Module, rounds: int) -> list[str]:
    """A table of the whole stage; the sides take turns."""
    printed = printed_loop(task, teacher)
    test = task.splits.test
    loader = DataLoader(OneByOne(test.samples.read.images[:, 0], test.samples.labels), batch_size=32)
    student = task.build("student", 0).eval()
    epoch = len(task.splits.students.samples.labels) // 32
    seconds: dict[str, list[float]] = {name: [] for name in ("the printed loop", *WAYS)}
    with tempfile.TemporaryDirectory() as compiler:
        whole_apart("compiled, warm", Path(compiler))  # fills the compiler's cache
        for _ in range(rounds):
            began = time.perf_counter()
            printed(epoch - 1)  # it takes one before it begins to count
            with torch.no_grad():
                for data, target in loader:
                    (student(data).argmax(dim=1) == target).sum().item()
            seconds["the printed loop"].append(EPOCHS * (time.perf_counter() - began))
            for way in WAYS:
                seconds[way].append(whole_apart(way, Path(compiler)))
    rows = [f"| the whole stage, {EPOCHS} epochs | seconds | times as fast |", "|---|---|---|"]
    for name, taken in seconds.items():
        ratios = [theirs / own for theirs, own in zip(seconds["the printed loop"], taken, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(f"| {name} | {statistics.median(taken):.1f} | {spread if name in WAYS else ''} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole-rounds", type=int, default=3, help="of the whole stage; 0 leaves it out")
    parser.add_argument("--one-stage", nargs=2, metavar=("COMPILED", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one_stage:
        print(whole(arguments.one_stage[0], Path(arguments.one_stage[1])))
        return
    task: Classify = prepare(read_recipe("mnist-seed-000", ["control=none"]), {}).task
    teacher = task.build("teacher", 0).eval()
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder)
        contestants = {
            "the printed loop": printed_loop(task, teacher),
            "ours": our_loop(teacher, None, "train.compile=false"),
            "answers known": our_loop(teacher, known, "train.compile=false"),
            "answers known, 5 seeds at once": our_loop(teacher, known, "train.compile=false", seeds=5),
            "answers known, compiled": our_loop(teacher, known, "train.compile=true"),
            "answers known, compiled, 5 seeds at once": our_loop(teacher, known, "train.compile=true", seeds=5),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(arguments.rounds + 1):
            for name, run in contestants.items():
                taken = run(arguments.steps)
                if number:  # the first round warms up, and fills the cache
                    seconds[name].append(taken / arguments.steps)
    printed, *ours = seconds
    rows = ["| loop | a step | times as fast as the printed loop |", "|---|---|---|"]
    rows.append(f"| {printed} | {1e6 * statistics.median(seconds[printed]):,.0f} µs | |")
    for name in ours:
        ratios = [theirs / own for theirs, own in zip(seconds[printed], seconds[name], strict=True)]
        rows.append(
            f"| {name} | {1e6 * statistics.median(seconds[name]):,.0f} µs "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    rows.append("")
    for one, five in ((ours[1], ours[2]), (ours[3], ours[4])):
        ratios = [several / single for several, single in zip(seconds[five], seconds[one], strict=True)]
        rows.append(
            f"A step of five seeds at once takes {statistics.median(ratios):.2f} times that of one ({one}; "
            f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds)."
        )
    if arguments.whole_rounds:
        rows += ["", *whole_stages(task, teacher, arguments.whole_rounds)]
    text = "\n".join(rows)
    print(text)
    record("mnist_speed", text, describe_machine())


if __name__ == "__main__":
    main()
