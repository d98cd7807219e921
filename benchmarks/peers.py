"""A step of knowledge distillation in our loop, cold and warm, against torchdistill, timm and Keras.

All sides train the same networks (our code of the papers' CIFAR families) with the same batch size, SGD with momentum,
temperature 4 and weights, in fp32. The others get their batches from memory; ours come through the feed. T is the
teacher's forward and S the plain student step, both of our loop's control and of the eager network. The peers are
installed beside understudy, for this alone:

    uv pip install --target /tmp/peers --no-deps torchdistill==1.1.5
    PYTHONPATH=/tmp/peers KERAS_BACKEND=torch python benchmarks/peers.py [--rounds 3]
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import Tensor, nn

from common import describe_machine, record
from pairs import (
    BATCH,
    CLASSES,
    RESNETS,
    in_turns,
    milliseconds,
    ratio,
    stage_of,
    stepping,
    task_of,
    teacher_of,
    training,
)
from understudy.tasks.classify.task import Classify

PAIRS = {"resnet": RESNETS, "mobilenet": ("cifar/resnet50", "cifar/mobilenet-v2")}
SGD = {"lr": 0.01, "momentum": 0.9}


def torchdistill(student: nn.Module, teacher: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], Any]:
    from torchdistill.core.distillation import DistillationBox

    import_module("torchdistill.core.interfaces.forward_proc")  # registers what `forward` names
    forward = {"forward_proc": "forward_batch_only"}
    of_logits = {"student_module_path": ".", "student_module_io": "output"}
    of_logits |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {"key": "KDLoss", "kwargs": {**of_logits, "temperature": 4.0, "alpha": 0.1}}
    config = {
        "num_epochs": 1,
        "teacher": {"requires_grad": False, **forward},
        "student": forward,
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }
    box = DistillationBox(teacher, student, {}, config, torch.device("cpu"), None, False, 1)
    student.train()
    teacher.eval()
    return lambda: box.post_forward_process(box.forward_process(inputs, labels, {}))


def timm(student: nn.Module, teacher: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], Any]:
    from timm.task import LogitDistillationTask

    for model in (student, teacher):  # the task asks models for what timm's own have
        model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        model.num_classes, model.in_chans = CLASSES, 3
    task = LogitDistillationTask(
        student_model=student,
        teacher_model=teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=0.1,
        temperature=4.0,
        verbose=False,
    ).train()
    optimizer = torch.optim.SGD(student.parameters(), **SGD)

    def step() -> None:
        loss = task(inputs, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def keras(student: nn.Module, teacher: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], Any]:
    import keras
    from keras.layers import TorchModuleWrapper

    def model(module: nn.Module) -> Any:
        return keras.Sequential([keras.Input((3, 32, 32)), TorchModuleWrapper(module, output_shape=(CLASSES,))])

    distiller = keras.distillation.Distiller(
        model(teacher),
        model(student),
        keras.distillation.LogitsDistillation(temperature=4.0),
        student_loss_weight=0.1,
    )
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9), loss=entropy, jit_compile=False)
    return lambda: distiller.train_on_batch(inputs, labels)


PEERS = {"torchdistill": torchdistill, "timm": timm, "keras": keras}


def peer(name: str, task: Classify, inputs: Tensor, labels: Tensor) -> Callable[[], Any]:
    """A step of a peer, on networks of its own with the same weights."""
    return PEERS[name](task.build("student", 0), task.build("teacher", 0), inputs, labels)


def row(pair: str, rounds: int, names: list[str], root: Path) -> str:
    cold_task, warm_task = (task_of(*PAIRS[pair], cache=cache) for cache in ("off", "on"))
    batch = cold_task.feed("students", 0)[0]
    inputs = cold_task.preprocess("student", cold_task.build("student", 0))(batch.images)
    cold, control, distilled = stage_of(cold_task, teacher_of(cold_task))
    warm, _, remembered = stage_of(warm_task, teacher_of(warm_task, root))
    known = training(warm, remembered)
    for _ in range(warm.steps_per_epoch):
        next(known)
    eager = cold_task.build("teacher", 0).eval()
    sides: dict[str, Callable[[], Any]] = {
        "plain": stepping(training(cold, control)),
        "teacher": torch.no_grad()(lambda: eager(inputs)),
        "cold": stepping(training(cold, distilled)),
        "warm": stepping(known),
        **{name: peer(name, cold_task, inputs, batch.labels) for name in names},
    }
    times = in_turns(sides, rounds=rounds, count=cold.ahead)
    best = min(names, key=lambda name: statistics.median(times[name]))
    both = [one + other for one, other in zip(times["teacher"], times["plain"], strict=True)]
    cells = [milliseconds(times[name]) for name in sides]
    cells += [f"{best}: {ratio(times[best], times['cold'])}", ratio(times[best], times["warm"])]
    return f"| {' to '.join(PAIRS[pair])} | {' | '.join(cells)} | {ratio(both, times['plain'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments = parser.parse_args()
    heads = ["pair", "S", "T", "ours cold", "ours warm", *arguments.peers]
    heads += ["best peer / cold", "best peer / warm", "(T + S) / S"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    with tempfile.TemporaryDirectory() as folder:
        for pair in arguments.pairs:
            lines.append(row(pair, arguments.rounds, arguments.peers, Path(folder)))
            print(lines[-1], flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in arguments.peers)
    lines += ["", f"Milliseconds a step of {BATCH}, medians of {arguments.rounds} rounds in turns; {versions}."]
    print("\n".join(lines))
    record("peers", "\n".join(lines), describe_machine())


if __name__ == "__main__":
    main()
