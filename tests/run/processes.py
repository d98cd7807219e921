"""Runs by several processes for tests: forks of one process that has imported torch, joined through a file."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, signal, sys, traceback
import accelerate, scipy.stats, sklearn.datasets, torch, torch._dynamo, torchvision
import understudy.tasks.classify.run
from understudy.data import Preprocess, feed
from understudy.recipe.reader import Source, build_recipe
from understudy.run import measure
from understudy.run import start as engine
from understudy.train import loop
engine.write_report = lambda folder: folder
measure.latency = lambda *_: 1.0
torch.set_num_threads(1)

def signal_after(steps):
    done, original = [], loop._Keeper.after_step
    def after_step(self, step):
        done.append(step)
        if len(done) == steps:
            self.stop.notice(signal.SIGTERM, None)
        original(self, step)
    loop._Keeper.after_step = after_step

def in_double():
    # Rounding is out of the way: what then differs is wrong.
    torch.set_default_dtype(torch.float64)
    original = Preprocess.__call__
    Preprocess.__call__ = lambda self, images: original(self, images).double()
    mixed = feed.mix_labels
    def in_single(*given):
        torch.set_default_dtype(torch.float32)
        labels = mixed(*given).double()
        torch.set_default_dtype(torch.float64)
        return labels
    feed.mix_labels = in_single

def work(job, rank):
    os.chdir(job["cwd"])
    errors = open(f"errors-{rank}.txt", "w")
    os.dup2(errors.fileno(), 2)
    os.dup2(os.open(f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    if job["processes"] > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{job['meet']}", rank=rank, world_size=job["processes"])
    if job.get("double"):
        in_double()
    if job.get("signal") and rank == job["processes"] - 1:
        signal_after(job["signal"])
    try:
        from rich.console import Console
        folder = engine.Path(job["folder"])
        if (folder / "recipe.yaml").exists():
            engine.resume(folder, objects={}, console=Console())
        else:
            engine.start(build_recipe(Source("test", job["recipe"])), out=folder, objects={}, console=Console())
    except Exception as error:
        errors.write(traceback.format_exc() + f"{type(error).__name__}: {error}")
        return 1
    return 0

for line in sys.stdin:
    job = json.loads(line)
    children = []
    for rank in range(job["processes"]):
        child = os.fork()
        if not child:
            code = 3
            try:
                code = work(job, rank)
            finally:
                os._exit(code)
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Processes:
    """Does runs by any number of processes, one run after the other."""

    def __init__(self) -> None:
        self.script = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # what torch thinks of unused parameters
        )

    def run(self, recipe: dict, folder: Path, processes: int, **more: int) -> list[str]:
        """Run or resume a folder; what each process raised, empty where nothing."""
        cwd = folder.parent / f"{folder.name}-of-{processes}"
        cwd.mkdir(exist_ok=True)
        (meet := cwd / "meet").unlink(missing_ok=True)
        job = {"recipe": recipe, "folder": str(folder), "cwd": str(cwd), "meet": str(meet), "processes": processes}
        assert self.script.stdin is not None
        assert self.script.stdout is not None
        print(json.dumps({**job, **more}), file=self.script.stdin, flush=True)
        codes = json.loads(self.script.stdout.readline())
        told = [(cwd / f"errors-{rank}.txt").read_text() for rank in range(processes)]
        assert all(bool(code) == bool(text) for code, text in zip(codes, told, strict=True)), told
        return [text.splitlines()[-1] if text else "" for text in told]

    def close(self) -> None:
        self.script.communicate(timeout=30)
