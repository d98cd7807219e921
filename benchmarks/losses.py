"""Forward and backward of every loss against the original's formulation, in one process, in turn.

Both sides get the same tensors, the same options (the preset `default`) and the same layers; the naive side is written
in `naive/` as the original's code writes it. Before it is timed, it is checked that both have the same value and the
same gradients, where they compute the same. Sizes are those of CIFAR-100 training: 64 samples, 100 classes, stages of
16, 32, 64 channels and a teacher of twice as many. A ratio below 1 means that ours is faster.

Layers that a loss trains (regressors, projectors) are torch's on both sides, and no way of writing the loss makes them
faster. So each is also timed alone, on the input it gets, and a second median is over the losses whose own mathematics
is most of the work: whose layers take less than half of the naive time, and which are not in `NOTHING_TO_WRITE`.

    python benchmarks/losses.py [--only kd dkd] [--seconds 1] [--threads 1] [--no-record]
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from common import describe_machine, record
from naive import dense, logits, maps, relations
from understudy.losses.table import LOSSES

SAMPLES, CLASSES, IMAGES = 64, 100, 50_000
NAIVE = {**vars(relations), **vars(dense), **vars(maps), **vars(logits)}
STAGES = ((16, 32, 32), (32, 16, 16), (64, 8, 8))
WIDER = ((32, 32, 32), (64, 16, 16), (128, 8, 8))
# What both sides compute alike is compared first; these do not, on purpose: see the docstrings of the losses.
DIFFERENT = {"semckd": "quantiles", "kdsvd": "signs", "crd": "draws", "crd_instance": "draws", "vitkd": "masks"}

# One call of torch each, or passes through the networks themselves: both sides are the same by nature.
NOTHING_TO_WRITE = ("logits", "hard", "annealed", "feature", "lwm", "sobolev", "bss", "cosub")


@dataclass
class Case:
    """What a loss is called with.

    Args:
        student: shapes without the batch; several for several tensors.
        teacher: likewise; empty where there is none.
        needs: further arguments, made anew for each case.
        options: of the loss, beside those of its preset.
    """

    student: tuple[tuple[int, ...], ...] = ((CLASSES,),)
    teacher: tuple[tuple[int, ...], ...] = ((CLASSES,),)
    needs: Callable[[], dict[str, Any]] = dict
    options: dict[str, Any] = field(default_factory=dict)


def labels() -> dict[str, Any]:
    return {"labels": torch.randint(CLASSES, (SAMPLES,))}


def ids(count: int = IMAGES) -> dict[str, Any]:
    return {"sample_ids": torch.randperm(count)[:SAMPLES]}


def classifiers() -> dict[str, Any]:
    models = [nn.Sequential(nn.Identity(), nn.Linear(width, CLASSES)) for width in (64, 128)]
    return {"student_model": models[0], "teacher_model": models[1].requires_grad_(False)}


def small_network(channels: int) -> nn.Sequential:
    layers = [nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


MAP, WIDE_MAP = ((64, 8, 8),), ((128, 8, 8),)
EMBEDDING = (((256,),), ((256,),))
TOKENS = tuple((65, 192) for _ in range(3)), tuple((65, 384) for _ in range(3))
CASES: dict[str, Case] = {name: Case() for name, row in LOSSES.items() if row.taps == "logits"}
CASES |= {name: Case(*EMBEDDING) for name, row in LOSSES.items() if row.taps == "embedding"}
CASES |= {name: Case(STAGES, WIDER) for name in ("at", "sp", "afd", "semckd", "reviewkd", "ab", "ofd", "vid", "afds")}
CASES |= {name: Case(STAGES, STAGES) for name in ("feature", "fsp", "kdsvd")}
CASES |= {name: Case(MAP, WIDE_MAP) for name in ("fitnet", "nst", "ft", "ickd", "mgd", "fbkd", "simkd")}
CASES |= {name: Case(MAP, MAP) for name in ("cwd", "pkd")}
CASES |= {name: Case(needs=labels) for name in ("dkd", "nkd", "wsld", "rld")}
CASES |= {
    "uskd": Case((*MAP, (CLASSES,)), (), labels),
    "tfkd": Case(teacher=(), needs=labels),
    "ctkd": Case(needs=lambda: {"epoch": 3}),
    "annealed": Case(needs=lambda: {"epoch": 3}),
    "byot": Case((*STAGES, (CLASSES,)), (), labels),
    "ofa": Case((*STAGES, (CLASSES,)), ((CLASSES,),), labels),
    "catkd": Case(MAP, WIDE_MAP, classifiers),
    "srrl": Case((*MAP, (CLASSES,)), (*WIDE_MAP, (CLASSES,)), lambda: {"teacher_head": nn.Linear(128, CLASSES)}),
    "vitkd": Case(*((tokens[0], tokens[1], tokens[2]) for tokens in TOKENS)),
    "pkt_supervised": Case(EMBEDDING[0], (), labels),
    "irg": Case((*STAGES[1:], (64,), (CLASSES,)), (*WIDER[1:], (128,), (CLASSES,))),
    "crd": Case(*EMBEDDING, lambda: ids() | labels(), {"samples": IMAGES}),
    "crd_instance": Case(*EMBEDDING, ids, {"samples": IMAGES}),
}
# A data set so large that a product with the whole memory would cost more than gathering.
LARGE = {
    "crd_instance, 400,000 images": Case(*EMBEDDING, lambda: ids(400_000), {"samples": 400_000, "negatives": 4096})
}


def options_of(name: str) -> dict[str, Any]:
    preset = LOSSES[name].presets["default"]
    return {key: value for key, value in preset.items() if key not in ("labels", "weight")}


def one_or_all(tensors: list[Tensor]) -> Any:
    return tuple(tensors) if len(tensors) > 1 else tensors[0]


def of_networks(name: str) -> tuple[nn.Module, Callable[[Any], Tensor], Iterable[Tensor]]:
    """Losses that ask the networks, two small ones whose forwards count on both sides."""
    loss = getattr(import_module(LOSSES[name].module), LOSSES[name].class_name)()
    student, teacher = small_network(16), small_network(32).requires_grad_(False)
    images = torch.randn(SAMPLES, 3, 32, 32).clamp(-2.5, 2.5)
    decided = teacher(images).argmax(dim=1) if name == "bss" else labels()["labels"]

    def call(function: Any) -> Tensor:
        inputs = images.detach().requires_grad_()
        of_student, of_teacher = student[:3](inputs), teacher[:3](inputs)
        logits = [model[3:](features) for model, features in ((student, of_student), (teacher, of_teacher))]
        if name == "lwm":
            return function((of_student, logits[0]), (of_teacher, logits[1]), labels=decided)
        if name == "cosub":
            return function(logits[0], inputs=inputs, labels=decided, student_model=student)
        needs = {"inputs": inputs, "labels": decided}
        if name == "bss":
            needs |= {"student_model": student, "teacher_model": teacher}
        return function(*logits, **needs)

    return loss, call, list(student.parameters())


def of_features(name: str, case: Case) -> tuple[nn.Module, Callable[[Any], Tensor], Iterable[Tensor]]:
    """Losses on tensors that are there."""
    loss = getattr(import_module(LOSSES[name].module), LOSSES[name].class_name)(**(options_of(name) | case.options))
    # As networks give them: activations are not negative, except where a loss is for what comes before them.
    raw = name in ("ab", "ofd", "vitkd")
    student, teacher = (
        [
            torch.randn(SAMPLES, *shape) if raw or len(shape) == 1 else torch.randn(SAMPLES, *shape).relu()
            for shape in side
        ]
        for side in (case.student, case.teacher)
    )
    if name == "vitkd":  # the original is given patches alone
        student, teacher = ([tokens[:, 1:].contiguous() for tokens in side] for side in (student, teacher))
    sides = [one_or_all(side) for side in (student, teacher) if side]
    needs = case.needs()
    if hasattr(loss, "prepare"):
        loss.prepare(*sides if len(sides) == 2 else (*sides, None))
    tracked = [tensor.requires_grad_() for tensor in student]

    def call(function: Any) -> Tensor:
        return function(*sides, **needs)

    return loss, call, [*tracked, *(weight for weight in loss.parameters() if weight.requires_grad)]


def sides_of(label: str, case: Case | None) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor]]:
    """Ours and the naive one, as calls that return the loss, and what the gradient goes to."""
    name = label.split(",")[0]
    torch.manual_seed(0)
    made = of_networks(name) if case is None else of_features(name, case)
    loss, call, tracked = made
    return call_with(call, loss), call_with(call, Original(NAIVE[name], loss)), list(tracked)


class Original(nn.Module):
    """The naive function as a module, which the originals are."""

    def __init__(self, function: Callable[..., Tensor], loss: nn.Module) -> None:
        super().__init__()
        self.function, self.options = function, [loss]  # in a list: no submodule

    def forward(self, *sides: Any, **needs: Any) -> Tensor:
        return self.function(self.options[0], *sides, **needs)


def call_with(call: Callable[[Any], Tensor], function: Any) -> Callable[[], Tensor]:
    return lambda: call(function)


def gradients(call: Callable[[], Tensor], tracked: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    value = call()
    found = torch.autograd.grad(value, tracked, allow_unused=True, materialize_grads=True)
    return value.detach(), list(found)


def deviation(label: str, case: Case | None) -> float:
    """The largest relative difference of value and gradients, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        ours, theirs, tracked = sides_of(label, case)
        (value, of_ours), (expected, of_theirs) = gradients(ours, tracked), gradients(theirs, tracked)
    finally:
        torch.set_default_dtype(torch.float32)
    largest = max((gradient.abs().max() for gradient in of_theirs), default=torch.tensor(1.0))
    worst = max(float((mine - other).abs().max() / largest) for mine, other in zip(of_ours, of_theirs, strict=True))
    return max(worst, float((value - expected).abs() / expected.abs()))


def timed(call: Callable[[], Tensor], tracked: list[Tensor], repeats: int) -> float:
    # The processor's time, not the clock's: on a busy machine others' work would count.
    began = time.process_time()
    for _ in range(repeats):
        torch.autograd.grad(call(), tracked, allow_unused=True)
    return (time.process_time() - began) / repeats


def of_layers(call: Callable[[], Tensor]) -> float:
    """Milliseconds that the layers within a call take by themselves, forward and backward."""
    runs: list[tuple[nn.Module, tuple[Tensor, ...], bool]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if any(True for _ in module.parameters(recurse=False)) and all(isinstance(each, Tensor) for each in inputs):
            runs.append((module, tuple(inputs), output.requires_grad))

    hook = nn.modules.module.register_module_forward_hook(note)
    call()
    hook.remove()

    def alone() -> None:
        for module, inputs, trains in runs:
            with torch.set_grad_enabled(trains):
                given = [each.detach().requires_grad_(trains and each.requires_grad) for each in inputs]
                output = module(*given)
            if trains:
                wanted = [each for each in (*given, *module.parameters()) if each.requires_grad]
                torch.autograd.grad(output, wanted, torch.ones_like(output))

    alone()
    began, times = time.process_time(), 0
    while times < 3 or time.process_time() - began < 0.1:
        alone()
        times += 1
    return (time.process_time() - began) / times * 1e3


def measure(label: str, case: Case | None, *, seconds: float) -> tuple[float, float, float, float]:
    """Median milliseconds of the naive one and of ours, taken in turn, of the ratios round by round, and of layers."""
    ours, theirs, tracked = sides_of(label, case)
    once = max(timed(ours, tracked, 2), timed(theirs, tracked, 2))  # and both are warm
    repeats = max(1, round(0.01 / once))
    rounds = max(5, min(200, round(seconds / (once * repeats))))
    pairs = []
    for index in range(rounds):
        order = (theirs, ours) if index % 2 else (ours, theirs)
        times = {call: timed(call, tracked, repeats) for call in order}
        pairs.append((times[theirs], times[ours]))
    naive, own = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    return naive, own, statistics.median(own / naive for naive, own in pairs), of_layers(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="losses by name; by default all")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each loss, about")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-record", action="store_true", help="leave RESULTS.md as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases: dict[str, Case | None] = {**{name: CASES.get(name) for name in LOSSES}, **LARGE}
    cases |= dict.fromkeys(("sobolev", "lwm", "bss", "cosub"))
    rows, ratios, own_work = [], {}, []
    for label, case in cases.items():
        name = label.split(",")[0]
        if arguments.only and name not in arguments.only:
            continue
        if name not in DIFFERENT:
            off = deviation(label, copy.copy(case))
            if off > 1e-6:
                raise SystemExit(f"{name}: the naive one differs by {off:.1e}")
        naive, ours, ratios[label], layers = measure(label, case, seconds=arguments.seconds)
        rows.append(f"| {label} | {naive:,.3f} | {ours:,.3f} | {ratios[label]:.2f} | {layers / naive:.0%} |")
        if name not in NOTHING_TO_WRITE and layers < naive / 2:
            own_work.append(ratios[label])
        print(rows[-1], flush=True)
    slow = [f"{label} {ratio:.2f}" for label, ratio in ratios.items() if ratio > 1.1]
    summary = (
        f"{len(ratios)} losses: median ratio {statistics.median(ratios.values()):.2f}, "
        f"largest {max(ratios.values()):.2f}; slower than 1.1: {', '.join(slow) or 'none'}"
        + f". Of the {len(own_work)} whose own mathematics is most of the work: "
        f"median {statistics.median(own_work or [1.0]):.2f}."
    )
    print(summary)
    if not (arguments.no_record or arguments.only):
        table = ["| loss | naive, ms | ours, ms | ratio | layers |", "|---|---|---|---|---|", *rows, "", summary]
        record("losses", "\n".join(table), describe_machine())


if __name__ == "__main__":
    main()
