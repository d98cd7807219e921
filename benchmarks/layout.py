"""A student's step with the channels of its images last against torch's usual order: forward, backward, update.

Through our loop, as a control takes it; what differs is the preprocessing of its arm. In processor time, on one thread.

    python benchmarks/layout.py [--rounds 5]
"""

import argparse
from collections.abc import Callable

import torch

from common import describe_machine, record
from pairs import BATCH, in_turns, milliseconds, ratio, stage_of, stepping, task_of, teacher_of, training
from understudy.data.prepare import ChannelsLast

STUDENTS = ("resnet8x4", "wrn-16-2", "vgg8", "mobilenet-v2", "shufflenet-v1", "shufflenet-v2")


def step(student: str, *, last: bool) -> Callable[[], None]:
    task = task_of("cifar/resnet8", f"cifar/{student}", cache="off")
    stage, control, _ = stage_of(task, teacher_of(task))
    for arm in control:
        assert isinstance(arm.preprocess, ChannelsLast)
        if not last:
            arm.preprocess = task.preprocess("student", arm.distiller.student)
    return stepping(training(stage, control))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| student | usual ms | channels last ms | last / usual |", "| --- | --- | --- | --- |"]
    for student in STUDENTS:
        sides = {"usual": step(student, last=False), "last": step(student, last=True)}
        times = in_turns(sides, rounds=arguments.rounds, count=2)
        lines.append(
            f"| cifar/{student} | {milliseconds(times['usual'])} | {milliseconds(times['last'])} | "
            f"{ratio(times['last'], times['usual'])} |"
        )
        print(lines[-1], flush=True)
    lines += ["", f"Batch {BATCH}; medians and ranges of {arguments.rounds} rounds in turns."]
    record("layout", "\n".join(lines), describe_machine())


if __name__ == "__main__":
    main()
