"""Jobs for a cluster: how options are read, what SLURM is told, and that an interrupted job goes on."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from understudy.cli import main
from understudy.errors import UserError
from understudy.train.cluster import Submitted, _minutes, read_options, submit

submitit = pytest.importorskip("submitit")


@pytest.fixture
def recipe(small_recipe, tmp_path):
    described = {
        **small_recipe,
        "seeds": 1,
        "data": {"name": "digits", "train": 100, "validation": 30},
        "teacher": {"name": "mlp", "hidden": [16], "train": {"epochs": 1}},
        "train": {**small_recipe["train"], "epochs": 2, "threads": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


def test_overrides_and_options_are_told_apart():
    words = ["train.lr=3e-4", "--partition", "gpu", "--exclusive", "seeds=5", "--comment=a=b", "--mem", "40G", "--x"]
    overrides, options = read_options(words)
    assert overrides == ["train.lr=3e-4", "seeds=5"]
    assert options == {"partition": "gpu", "exclusive": True, "comment": "a=b", "mem": "40G", "x": True}
    with pytest.raises(UserError, match="gpu: is neither key=value nor an option"):
        read_options(["gpu"])


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("12:00:00", 720), ("2-12:00:00", 3600), ("1-6", 1800), ("30:00", 30)]
)
def test_times_are_those_of_slurm(text, minutes):
    assert _minutes(text) == minutes


def test_a_time_that_is_none_is_refused():
    with pytest.raises(UserError, match="--time 'soon'"):
        _minutes("soon")


def test_slurm_is_told_every_option(tmp_path, monkeypatch):
    bin_folder, told = tmp_path / "bin", tmp_path / "told.sh"
    bin_folder.mkdir()
    for name, text in (("sbatch", f'cp "$1" {told}; echo Submitted batch job 12'), ("srun", "")):
        script = bin_folder / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=os.pathsep)
    words = "--partition gpu --constraint volta32gb --mem-per-cpu 4G --reservation spring --exclusive --time 2-00:00:00"
    _, options = read_options(words.split(" "))
    job = Submitted(("deit-small",), tmp_path / "runs" / "deit" / "1")
    handed = submit(job, executor="slurm", nodes=2, gpus_per_node=8, options=options)
    assert handed.job_id == "12"
    lines = set(told.read_text().splitlines())
    assert {
        "#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "#SBATCH --ntasks-per-node=8", "#SBATCH --partition=gpu",
        "#SBATCH --constraint=volta32gb", "#SBATCH --mem-per-cpu=4G", "#SBATCH --reservation=spring",
        "#SBATCH --exclusive", "#SBATCH --time=2880", "#SBATCH --signal=USR2@120", "#SBATCH --job-name=deit",
    } <= lines  # fmt: skip


def test_wrong_words_are_refused_before_anything_is_submitted(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["--executor", "cloud"], "--executor 'cloud': should be slurm, local or debug"),
        (["train.epoch=3"], "epoch"),
        (["--executor", "local", "--nodes", "2"], "LocalExecutor can use only one node"),
        (["--time", "soon"], "--time 'soon'"),
    ):
        assert main(["submit", str(recipe), *words]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/*/recipe.yaml"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its logs open
def test_a_debug_job_runs_here(recipe, tmp_path, monkeypatch, capsys):
    from understudy.run import measure
    from understudy.run import start as engine

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "latency", lambda *_: 1.0)
    monkeypatch.setattr(engine, "write_report", lambda folder: folder)
    assert main(["submit", str(recipe), "train.epochs=1", "--executor", "debug", "--gpus-per-node", "0"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder == tmp_path / "runs" / "small" / "1"
    assert json.loads((folder / "results.json").read_text())["finished"]


def tasks_of(folder: Path) -> list[int]:
    """The processes whose job has its files below a folder."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_text().split("\0") if place.name.isdigit() else []
        except OSError:
            continue
        if "submitit.core._submit" in words and str(folder) in words:
            found.append(int(place.name))
    return found


@pytest.mark.slow
def test_a_local_job_is_interrupted_put_back_and_ends_with_the_bits_of_one_never_interrupted(recipe, tmp_path):
    def handed(name: str):
        words = (str(recipe), "train.epochs=60", "train.checkpoint_seconds=1000")
        options = {"ntasks-per-node": "2"}
        return submit(Submitted(words, tmp_path / name), executor="local", nodes=1, gpus_per_node=0, options=options)

    undisturbed = handed("undisturbed")
    assert undisturbed.results() == [str(tmp_path / "undisturbed")] * 2

    job, folder = handed("interrupted"), tmp_path / "interrupted"
    ends = time.monotonic() + 120
    while not list(folder.glob("arms/student_alone/*/timing.jsonl")):
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert not list(folder.glob("checkpoints/*"))
    for process in tasks_of(tmp_path / "interrupted.jobs"):
        os.kill(process, signal.SIGUSR2)  # what SLURM sends before it takes the machines away
    while not list(folder.glob("checkpoints/*")):
        assert time.monotonic() < ends
        time.sleep(0.05)
    # What was put back is read and run once more by the local executor, as SLURM would.
    queued = submitit.helpers.DelayedSubmission.load(job.paths.submitted_pickle)
    assert queued.function == Submitted((str(recipe), *job.submission().function.words[1:]), folder)
    assert job.results() == [str(folder)] * 2
    assert "Requeued job" in job.stderr() + job.stdout()
    hashes = [json.loads((tmp_path / name / "results.json").read_text())["hash"] for name in ("undisturbed", folder)]
    assert hashes[0] == hashes[1]
