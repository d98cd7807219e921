"""A rehearsal: everything is built, two real batches go through, a checkpoint is written and read; nothing is left."""

import resource
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from understudy.run.measure import seconds_a_step
from understudy.run.show import describe_data
from understudy.tasks.classify.stages import every_stage
from understudy.tasks.classify.task import Classify
from understudy.train.checkpoint import Checkpoints
from understudy.train.stage import Stage

if TYPE_CHECKING:
    from understudy.tasks.classify.run import Students


def rehearse(job: "Students", console: Console) -> None:
    """Try a recipe out and say what it would cost.

    Args:
        job: what would be run.
        console: where to say it.
    """
    task = job.task
    console.print(describe_data(task.source.name, task.splits, task.recipe.data.augment), highlight=False)
    total = 0.0
    for stage, repeats in every_stage(task):
        seconds = _rehearse(stage) * stage.steps_per_epoch
        total += seconds * stage.epochs * repeats
        console.print(f"stage {stage.name}: {', '.join(arm.name for arm in stage.arms)}", highlight=False)
        for arm in stage.arms:
            console.print(f"  {arm.name}: {'; '.join(arm.distiller.describe())}", highlight=False)
        console.print(f"  {seconds:.1f} s an epoch, {stage.epochs} epochs, {repeats} times", highlight=False)
    console.print(f"peak memory {_peak_memory(task) / 2**20:,.0f} MiB", highlight=False)
    console.print(f"about {_duration(total)} to finish, evaluations not counted", highlight=False)
    console.print("a checkpoint was written, read back and found equal; nothing was left behind", highlight=False)


def _rehearse(stage: Stage) -> float:
    """Steps on real batches and a checkpoint of the stage; the seconds of a step."""
    seconds = seconds_a_step(stage, list(stage.arms))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        before = {arm.label: arm.state() for arm in stage.arms}
        checkpoints.save(before)
        after = checkpoints.latest()
        if after is None:
            raise RuntimeError("a checkpoint that was just written cannot be read")
        for arm in stage.arms:
            for name, tensor in arm.distiller.state_dict().items():
                if not torch.equal(tensor.cpu(), after[arm.label]["distiller"][name]):
                    raise RuntimeError(f"the checkpoint holds another value of {name}")
            arm.load_state(after[arm.label])
    return seconds


def _peak_memory(task: Classify) -> int:
    if task.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
