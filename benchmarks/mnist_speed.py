"""Images per second of the articles' distillation stage on MNIST: our loop against the loop they print.

The same mathematics on both sides: the teacher's forward, the student's forward and backward, Adam, batch size 32.
The articles read images one by one through PIL and `ToTensor`; both sides run here in turn, and the ratio is taken
round by round.

    python benchmarks/mnist_speed.py [--steps 400] [--rounds 5]
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from common import describe_machine, record
from understudy.recipe.reader import read_recipe
from understudy.tasks.classify.run import prepare
from understudy.tasks.classify.stages import student_stage
from understudy.train.loop import steps as steps_of
from understudy.train.loop import train_step


class OneByOne(Dataset):
    """MNIST as torchvision serves it: an image from an array, then a transform, sample by sample."""

    def __init__(self, images: torch.Tensor, labels) -> None:
        self.images, self.labels, self.transform = images, labels, ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].numpy(), mode=None)
        return self.transform(image), int(self.labels[index])


def printed_loop(task, teacher, steps: int) -> float:
    """The articles' loop; returns images per second."""
    samples = task.splits.students.samples
    loader = DataLoader(OneByOne(samples.read.images[:, 0], samples.labels), batch_size=32, shuffle=True)
    student = task.build("student", 0).train()
    hard_loss, soft_loss = nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean")
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
    batches = iter(loader)
    next(batches)
    began = time.perf_counter()
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
    return 32 * steps / (time.perf_counter() - began)


def our_loop(task, teacher, steps: int) -> float:
    """Our loop with the same teacher, student and losses; returns images per second."""
    stage = student_stage(task, 0, {"teacher": task.as_teacher(teacher)})
    arms = list(stage.arms)
    coming = steps_of(stage, arms, 0, 0)
    for step in range(stage.ahead):  # whole groups are timed: the teacher answers several steps at once
        train_step(stage, arms, *only_batches(next(coming), step))
    began = time.perf_counter()
    for step in range(stage.ahead, stage.ahead + steps):
        train_step(stage, arms, *only_batches(next(coming), step))
    return 32 * steps / (time.perf_counter() - began)


def only_batches(coming, step: int):
    """The arguments of a training step: batches, epoch, step, answers."""
    batches, answers = coming
    return batches, 0, step, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    task = prepare(read_recipe("mnist-seed-000", ["control=none"]), {}).task
    teacher = task.build("teacher", 0).eval()
    rows = []
    for number in range(arguments.rounds + 1):
        printed = printed_loop(task, teacher, arguments.steps)
        ours = our_loop(task, teacher, arguments.steps)
        if number:  # the first round warms up
            rows.append((printed, ours, ours / printed))
            print(f"round {number}: printed {printed:,.0f}, ours {ours:,.0f} images/s, ratio {ours / printed:.2f}")
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    ratios = [row[2] for row in rows]
    text = (
        f"printed loop {medians[0]:,.0f} images/s, ours {medians[1]:,.0f}, ratio {medians[2]:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds)"
    )
    print(text)
    record("mnist_speed", text, describe_machine())


if __name__ == "__main__":
    main()
