"""How large a model is and what a forward of it costs."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from understudy.train.arm import Arm
from understudy.train.loop import train_step
from understudy.train.stage import Stage, steps
from understudy.train.stepper import Lone


def measure(module: nn.Module, example: Tensor) -> dict[str, Any]:
    """Size and cost of a model: parameters, multiply-adds, milliseconds and bytes.

    Args:
        module: any module.
        example: one image as it takes them.
    """
    return {
        "parameters": parameter_count(module),
        "macs": multiply_adds(module, example),
        "latency_ms": latency(module, example),
        "size_bytes": size_on_disk(module),
    }


@torch.no_grad()
def latency(module: nn.Module, example: Tensor, seconds: float = 0.4) -> float:
    """Median milliseconds of a forward.

    Args:
        module: any module; measured in evaluation mode.
        example: its input, one image for latency at batch 1.
        seconds: how long to measure.
    """
    training = module.training
    module.eval()
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < ends:
        began = time.perf_counter()
        module(example)
        if example.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    module.train(training)
    return 1000 * statistics.median(times[len(times) // 5 :])


def size_on_disk(module: nn.Module) -> int:
    """Bytes that a model's tensors take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, counted once where shared."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward: convolutions, linear layers and attention, by torch's own counter.

    Args:
        module: any module.
        example: its input; the count is for this batch.
    """
    training = module.training
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    module.train(training)
    return counter.get_total_flops() // 2


def seconds_a_step(stage: Stage, arms: list[Arm], *, seconds: float = 2.0) -> float:
    """How long a training step takes, the teacher's share included; the arms are trained on by it.

    Args:
        stage: what they belong to.
        arms: those to train.
        seconds: how long to measure at least; one group of steps warms up before.
    """
    done = 0
    began = time.perf_counter()
    teams = [Lone(arm) for arm in arms]
    for step, (views, answers) in enumerate(steps(stage, arms, 0, 0)):
        if step == stage.ahead:
            done, began = 0, time.perf_counter()
        train_step(teams, views, answers, 0, step)
        done += 1
        if done % stage.ahead == 0 and step >= stage.ahead and time.perf_counter() - began > seconds:
            break
    return (time.perf_counter() - began) / done
