"""Two processes do what one does: the losses of the whole batch, one folder, one end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from processes import Processes

from understudy.errors import CHECKPOINTED, UserError
from understudy.train.folder import read_log


@pytest.fixture(scope="module")
def runs():
    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def described(small_recipe):
    """A recipe without dropout, whose last batch is odd."""
    return {
        **small_recipe,
        "seeds": 1,
        "data": {"name": "digits", "train": 101, "validation": 30},
        "teacher": {"name": "mlp", "hidden": [16], "train": {"epochs": 1}},
        "student": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 3, "batch_size": 32, "lr": 0.01, "threads": 1},
    }


def cases(base: dict) -> dict[str, dict]:
    """Recipes whose losses are means over a batch."""
    train = base["train"]
    return {
        "a last batch of five images": base,
        "a last batch of one image, clipping, a moving average": {
            **base, "data": {**base["data"], "train": 97}, "train": {**train, "clip": 0.5, "ema": 0.9},
        },
        "batch normalisation, a last batch of one image, half of whose processes have none": {
            **base,
            "data": {**base["data"], "train": 97},
            "teacher": {"name": "cnn", "widths": [4], "depth": 1, "train": {"epochs": 2}},
            "student": {"name": "cnn", "widths": [4, 4], "depth": 1},
        },
        "mixed images, of which most have no label, accumulated": {
            **base,
            "data": {
                "name": "digits", "train": 150, "labels": 50, "transfer": "rest", "validation": 30,
                "augment": {"mixup": 0.4, "cutmix": 1.0, "crop": 1, "flip": True},
            },
            "method": ["kd", "dkd"],
            "train": {**train, "epochs": 2, "accumulate": 3},
        },
        "two views, features after an init stage, gradient shares held": {
            **base,
            "data": {**base["data"], "second_view": {"crop": 1}},
            "method": {"name": "held", "objectives": [
                {"loss": "logits", "student": "fc1", "teacher": "fc1", "init": 1, "weight": 1.0},
                {"loss": "kd", "weight": "30%"}]},
        },
    }  # fmt: skip


def numbers(row: dict) -> dict[str, float]:
    """A log's row with its nested numbers side by side."""
    found = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": number for inner, number in numbers(value).items()}
        elif isinstance(value, (int, float)):
            found[key] = value
    return found


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("number", range(5))
def test_two_processes_give_the_losses_of_one(number, described, runs, tmp_path):
    recipe = list(cases(described).values())[number]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes in ((one, 1), (two, 2)):
        # A cache keeps the teacher's answers in single precision.
        assert runs.run({**recipe, "cache": "off"}, folder, processes, double=1) == [""] * processes
    assert files(one) == files(two)
    logs = sorted(path.relative_to(one) for path in one.glob("arms/*/*/metrics.jsonl"))
    assert len(logs) >= 3
    for log in logs:
        rows, others = read_log(one / log), read_log(two / log)
        assert [row["kind"] for row in rows] == [row["kind"] for row in others]
        for row, other in zip(rows, others, strict=True):
            if row["kind"] == "gradients" and recipe["train"].get("accumulate"):
                continue  # measured on the first micro-batch, which holds other samples
            assert numbers(other) == pytest.approx(numbers(row), rel=1e-10, abs=1e-12), log
    environment = json.loads((two / "environment.json").read_text())
    assert (environment["processes"], environment["machines"]) == (2, 1)
    assert "processes" not in json.loads((one / "environment.json").read_text())


def test_only_the_first_process_speaks(described, runs, tmp_path):
    assert runs.run(described, tmp_path / "run", 2) == ["", ""]
    said = [(tmp_path / "run-of-2" / f"said-{rank}.txt").read_text() for rank in (0, 1)]
    assert "student_distilled" in said[0]
    assert not said[1]


def test_a_signal_to_one_process_stops_both_after_the_same_step_and_resuming_gives_the_same_bits(
    described, runs, tmp_path
):
    # Batch statistics of both, dropout, a teacher trained by both.
    recipe = {
        **described,
        "student": {"name": "cnn", "widths": [4, 4], "depth": 1, "dropout": 0.1},
        "train": {**described["train"], "epochs": 2, "ema": 0.9, "schedule": "cosine"},
    }
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert runs.run(recipe, undisturbed, 2) == ["", ""]
    for steps in (2, 4):  # in the teacher's epoch, and in the students' first one
        ends = runs.run(recipe, stopped, 2, signal=steps)
        assert ends == [f"Interrupted: stopped by signal 15; {CHECKPOINTED}"] * 2
    assert runs.run(recipe, stopped, 2) == ["", ""]
    ends = [json.loads((folder / "results.json").read_text())["hash"] for folder in (undisturbed, stopped)]
    assert ends[0] == ends[1]


def test_a_loss_that_is_not_finite_ends_all_processes_with_its_name(described, runs, tmp_path):
    recipe = {**described, "train": {**described["train"], "lr": 1e30, "optimizer": "sgd"}}
    ends = runs.run(recipe, tmp_path / "run", 2)
    assert ends[0].startswith("RunError: teacher: the loss 'labels' is not finite at step")
    assert ends[0] == ends[1]


# Refusals


def started_by(monkeypatch, processes: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "0")


def record(folder: Path, **facts) -> None:
    path = folder / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.fixture
def unfinished(tiny, run, tmp_path):
    run(tiny())
    for name in ("results.json", "stages.json"):
        (tmp_path / "run" / name).unlink()
    return tmp_path / "run"


def test_a_run_is_not_continued_by_another_number_of_processes(unfinished, resume, monkeypatch):
    started_by(monkeypatch, 3)
    with pytest.raises(UserError, match="was run by 1 process: it cannot go on with 3, whose sums differ: start 1"):
        resume()
    record(unfinished, processes=2, machines=1)
    with pytest.raises(UserError, match="was run by 2 processes: it cannot go on with 3"):
        resume()
    started_by(monkeypatch, 1)
    record(unfinished, processes=16, machines=2)
    with pytest.raises(UserError, match="on 2 machines: continue it there"):
        resume()


def test_nproc_must_be_what_a_launcher_started(small_recipe, tmp_path, monkeypatch, capsys):
    from understudy.cli import main

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe))
    started_by(monkeypatch, 2)
    assert main(["run", str(tmp_path / "recipe.yaml"), "--nproc", "3", "--out", str(tmp_path / "run")]) == 2
    assert "--nproc: a launcher started 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_task_or_a_batch_that_cannot_be_shared_is_refused(tiny, run, monkeypatch, tmp_path):
    started_by(monkeypatch, 4)
    with pytest.raises(UserError, match=r"train\.batch_size: 3 images cannot be shared by 4 processes"):
        run(tiny(train={"batch_size": 3}))
    from understudy.tasks.classify import run as classify

    monkeypatch.delattr(classify, "MANY_PROCESSES")
    with pytest.raises(UserError, match="task: 'classify' runs in one process, 4 were started"):
        run(tiny())
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_being_run_is_left_to_that_process(unfinished, resume):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(unfinished / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(UserError, match="is being run by another process: wait until it ends, or stop it"):
        resume()
    holder.kill()
    holder.communicate()
    resume()  # what a killed process held is free
    assert not (unfinished / ".lock").exists()


_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_torch_is_told_of_in_one_line(unfinished, resume, capsys):
    record(unfinished, torch="2.0.0")
    resume()
    told = capsys.readouterr().err
    assert told.startswith("understudy: the run was started with torch 2.0.0, this is ")
    assert told.count("\n") == 1


# The launcher


def command(words: list[str], folder: Path, **more) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "understudy", *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


def children(pid: int) -> dict[int, int]:
    """The processes that a launcher started, by their rank."""
    found = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) != pid:
                continue
            surroundings = dict(
                word.split("=", 1) for word in (place / "environ").read_text().split("\0") if "=" in word
            )
        except (OSError, ValueError):
            continue
        if "RANK" in surroundings:
            found[int(surroundings["RANK"])] = int(place.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_nproc_a_killed_rank_ends_the_job_with_one_line_and_resuming_gives_the_same_bits(described, tmp_path, rank):
    recipe = tmp_path / "recipe.yaml"
    described["train"] |= {"epochs": 40, "checkpoint_seconds": 0.0}
    recipe.write_text(yaml.safe_dump(described))
    words = ["run", str(recipe), "--nproc", "2"]
    undisturbed = command([*words, "--out", "undisturbed"], tmp_path)
    out, err = undisturbed.communicate(timeout=300)
    assert (undisturbed.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "undisturbed"
    assert out.count("plan: ") == 1

    killed, folder = command([*words, "--out", "killed", "-q"], tmp_path), tmp_path / "killed"
    ends = time.monotonic() + 120
    while not list(folder.glob("arms/student_alone/*/metrics.jsonl")) or not list(folder.glob("checkpoints/0*")):
        assert time.monotonic() < ends
        time.sleep(0.05)
    os.kill(children(killed.pid)[rank], signal.SIGKILL)
    out, err = killed.communicate(timeout=60)
    assert killed.returncode == 1
    assert err == (
        f"understudy: process {rank} of 2 was killed by SIGKILL; the last checkpoint is kept: continue with "
        "`understudy resume FOLDER`\n"
    )
    resumed = command(["resume", "killed", "-q"], tmp_path)
    out, err = resumed.communicate(timeout=300)
    assert (resumed.returncode, err) == (0, "")
    hashes = [json.loads((tmp_path / name / "results.json").read_text())["hash"] for name in ("undisturbed", "killed")]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_nproc_what_a_person_did_wrong_is_said_once(described, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(described))
    for change, message in (
        ("train.epoch=3", "did you mean 'epochs'"),  # seen before anything is started
        ("student.mean=[0.1,0.2] student.std=[1,1]", "student.mean: has 2 values, the images have 1 channels"),
        ("train.batch_size=1", "train.batch_size: 1 images cannot be shared by 2 processes"),
    ):
        ended = command(["run", str(recipe), *change.split(), "--nproc", "2", "--out", "run"], tmp_path)
        _, err = ended.communicate(timeout=120)
        assert ended.returncode == 2, err
        assert err.count("\n") == 1
        assert message in err
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_it_too(described, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(described))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    words = ["understudy", "run", str(recipe), "--out", "run"]
    ended = subprocess.run([*torchrun, *words, "-q"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["run"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
