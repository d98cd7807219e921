"""Runs that are killed or stopped from outside, as processes of their own."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def recipe(small_recipe, tmp_path):
    """A recipe file whose run saves at every step."""
    changes = {
        "seeds": 1,
        "data": {"name": "digits", "train": 100, "validation": 30},
        "train": {**small_recipe["train"], "checkpoint_seconds": 0.0, "schedule": "cosine", "ema": 0.9, "threads": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**small_recipe, **changes}))
    return path


# Starting Python and importing torch takes seconds: here it is done once, and each command is a fork of that process.
LAUNCHER = """
import json, os, sys
import accelerate, scipy.stats, sklearn.datasets, torch._dynamo, torchvision
import understudy.tasks.classify.run
from understudy.run import start as engine
from understudy.cli import main
engine.write_report = lambda folder: folder  # seconds that have nothing to do with kills
for line in sys.stdin:
    do, value = json.loads(line)
    if do == "start":
        answer = os.fork()
        if not answer:
            os.setsid()
            os.chdir(value["cwd"])
            for stream, path in ((0, os.devnull), (1, os.devnull), (2, value["errors"])):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
            code = 1
            try:
                code = main(value["words"])
            finally:
                os._exit(code)
    else:
        pid, status = os.waitpid(value, os.WNOHANG if do == "poll" else 0)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), flush=True)
"""


class Command:
    """A command line of ours as a process of its own."""

    def __init__(self, launcher: subprocess.Popen, words: list[str], cwd: Path) -> None:
        self.launcher = launcher
        self.errors = cwd / "errors.txt"
        self.code: int | None = None
        self.pid = self._tell("start", {"words": words, "cwd": str(cwd), "errors": str(self.errors)})

    def _tell(self, do: str, value: object) -> int:
        assert self.launcher.stdin is not None
        assert self.launcher.stdout is not None
        print(json.dumps([do, value]), file=self.launcher.stdin, flush=True)
        return json.loads(self.launcher.stdout.readline())

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self._tell("poll", self.pid)
        return self.code

    def wait(self) -> int:
        if self.code is None:
            self.code = self._tell("wait", self.pid)
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


@pytest.fixture(scope="module")
def launcher():
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.communicate(timeout=30)


@pytest.fixture
def begin(launcher):
    """Start a run, or resume it where there is something to resume."""

    def start(recipe: Path, folder: Path, *overrides: str) -> Command:
        folder.parent.mkdir(exist_ok=True)
        words = ["run", str(recipe), "-q", "--out", str(folder), *overrides]
        if (folder / "recipe.yaml").exists():
            words = ["resume", str(folder), "-q"]
        return Command(launcher, words, folder.parent)

    return start


def finish(command: Command) -> None:
    assert command.wait() == 0, command.errors.read_text()


def newest(folder: Path) -> int:
    """The number of the newest checkpoint, 0 without one."""
    try:
        return max((int(name) for name in os.listdir(folder / "checkpoints") if name.isdigit()), default=0)
    except FileNotFoundError:
        return 0


def wait_for(condition, command: Command) -> None:
    ends = time.monotonic() + 60
    while not condition() and command.poll() is None:
        assert time.monotonic() < ends
        time.sleep(0.001)


def result_hash(folder: Path) -> str:
    return json.loads((folder / "results.json").read_text())["hash"]


def kill_often(begin, recipe: Path, tmp_path: Path, kills: int, seed: int) -> int:
    """Kill a run at random moments after it began to train, resume it each time, and compare its end."""
    reference = tmp_path / "undisturbed" / "run"
    finish(begin(recipe, reference))
    draws = random.Random(seed)
    folder, done = tmp_path / "killed" / "run", 0
    for _ in range(kills):
        before = newest(folder)
        command = begin(recipe, folder)
        wait_for(lambda before=before: newest(folder) not in (0, before), command)
        time.sleep(draws.random() * 0.05)
        if command.poll() is None:
            command.kill()
            done += 1
    finish(begin(recipe, folder))
    assert result_hash(folder) == result_hash(reference)
    return done


def test_a_run_killed_three_times_ends_with_the_bits_of_one_never_killed(begin, recipe, tmp_path):
    assert kill_often(begin, recipe, tmp_path, kills=3, seed=0) == 3


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_bits_of_one_never_killed(begin, recipe, tmp_path):
    described = yaml.safe_load(recipe.read_text())
    described["train"]["epochs"] = 40
    recipe.write_text(yaml.safe_dump(described))
    assert kill_often(begin, recipe, tmp_path, kills=20, seed=1) >= 15


def test_a_run_killed_before_its_first_checkpoint_starts_over(begin, recipe, tmp_path):
    folder = tmp_path / "run"
    command = begin(recipe, folder, "train.checkpoint_seconds=1000")
    wait_for((folder / "arms" / "teacher").exists, command)
    command.kill()
    assert not newest(folder)
    finish(begin(recipe, folder))
    assert result_hash(folder)


def test_a_signal_ends_with_its_exit_code_and_a_checkpoint(begin, recipe, tmp_path):
    described = yaml.safe_load(recipe.read_text())
    described["train"] |= {"workers": 1}
    recipe.write_text(yaml.safe_dump(described))
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    finish(begin(recipe, undisturbed))
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = newest(folder)
        command = begin(recipe, folder)
        wait_for(lambda before=before: newest(folder) > before + 1, command)
        os.killpg(command.pid, number)  # to the loader's workers too, as a terminal or SLURM does
        assert command.wait() == code, command.errors.read_text()
        assert "continue with `understudy resume" in command.errors.read_text()
        assert "Traceback" not in command.errors.read_text()
        assert newest(folder)
    finish(begin(recipe, folder))
    assert result_hash(folder) == result_hash(undisturbed)


def test_a_second_signal_ends_at_once():
    code = """
import os, signal
from understudy.train.guard import stop_on_signals
with stop_on_signals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (130, b"")


def test_a_loss_that_is_not_finite_ends_with_exit_code_1_naming_arm_loss_and_step(
    recipe, tmp_path, capsys, monkeypatch
):
    from understudy.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["run", str(recipe), "-q", "--out", "failed", "train.lr=1e30", "train.optimizer=sgd"]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert message.startswith("understudy: teacher: the loss 'labels' is not finite at step ")
    assert list(Path("failed/checkpoints").iterdir())
