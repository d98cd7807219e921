"""An interrupted run that is resumed ends with the bits of one that never stopped."""

import signal

import pytest

from understudy.errors import Interrupted, RunError, UserError
from understudy.run import start as engine
from understudy.tasks.classify import run as classify
from understudy.train.guard import StopRequest
from understudy.train.loop import _Keeper

VARIANTS = {
    "plain": {},
    "momentum SGD, cosine with warm-up, moving average": {
        "train": {
            "optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "warmup_epochs": 0.5, "ema": 0.9,
        },
    },
    "SGD without momentum, step schedule, accumulation": {
        "train": {"optimizer": "sgd", "momentum": 0.0, "schedule": "step", "milestones": [1], "accumulate": 3},
    },
    "plateau, early stopping, clipping": {
        "train": {
            "optimizer": "adamw", "schedule": "plateau", "patience": 1, "early_stop": 1, "epochs": 4, "clip": 0.5,
        },
    },
    "mixup, crop and flip; rate held during an epoch": {
        "data": {"augment": {"mixup": 0.4, "crop": 1, "flip": True}},
        "train": {"schedule": "cosine", "schedule_per": "epoch"},
    },
    "transfer images, three arms": {
        "data": {"labels": 50, "transfer": "rest"},
        "method": ["kd", "logits"],
    },
    "control of equal time": {"control": ["train", "equal_time", "label_smoothing"]},
    "several teachers, an assistant, generations, peers, held shares": {
        "teacher": {"copies": 2},
        "assistants": [{"name": "mlp", "hidden": [16]}],
        "method": [
            {"name": "kd", "generations": 2},
            {"name": "mutual", "loss": "kd", "peers": 1},
            {"name": "held", "objectives": [{"loss": "kd", "weight": "auto"}, {"loss": "logits", "weight": "20%"}]},
        ],
    },
    "an init stage, two views": {
        "data": {"second_view": {"crop": 1}},
        "method": ["mlkd:release", {"name": "hint", "loss": "fitnet", "student": "fc1", "teacher": "fc1", "init": 1}],
    },
    "a network with batch statistics": {"student": {"name": "cnn", "hidden": None, "widths": [4, 4], "depth": 1}},
}  # fmt: skip


def variant(tiny, name, **more):
    changes = {key: dict(value) if isinstance(value, dict) else value for key, value in VARIANTS[name].items()}
    if name == "a network with batch statistics":
        recipe = tiny(**more)
        student = recipe.student.model_validate({"name": "cnn", "widths": [4, 4], "depth": 1, "dropout": 0.1})
        return recipe.model_copy(update={"student": student})
    for key, value in more.items():
        changes[key] = {**changes.get(key, {}), **value}
    return tiny(**changes)


def stop_after(monkeypatch, steps, number=signal.SIGTERM):
    """Have a signal arrive while a certain step, counted over the process, is done."""
    seen = []
    original = _Keeper.after_step

    def after_step(self, step):
        seen.append(step)
        if len(seen) == steps:
            self.stop.notice(number, None)
        original(self, step)

    monkeypatch.setattr(_Keeper, "after_step", after_step)
    return seen


def run_with_stops(run, resume, recipe, monkeypatch, stops):
    """The result of a run that is stopped after each of these numbers of steps, and resumed."""
    begin = lambda: run(recipe, "stopped")  # noqa: E731
    for steps in stops:
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Interrupted):
                begin()
        begin = lambda: resume("stopped")  # noqa: E731
    return begin()


@pytest.fixture(autouse=True)
def same_pace(monkeypatch):
    """The ratio of times is measured with a clock: here it is always the same."""
    monkeypatch.setattr(classify, "seconds_a_step", lambda _stage, arms: 3.0 if len(arms) > 1 else 2.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_ends_with_the_bits_of_one_never_stopped(name, tiny, run, resume, monkeypatch):
    recipe = variant(tiny, name)
    undisturbed = run(recipe, "undisturbed")
    # In the teacher's epoch, at its last step, in the middle of the students' first epoch, at one's end, later.
    stopped = run_with_stops(run, resume, recipe, monkeypatch, (2, 2, 2, 1, 1))
    assert stopped.results["hash"] == undisturbed.results["hash"]
    logs = sorted(path.relative_to(undisturbed.folder) for path in undisturbed.folder.glob("arms/*/*/metrics.jsonl"))
    assert logs
    for log in logs:
        assert (stopped.folder / log).read_bytes() == (undisturbed.folder / log).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_stopped_at_every_step_ends_with_the_same_bits(name, tiny, run, resume, monkeypatch):
    recipe = variant(tiny, name)
    undisturbed = run(recipe, "undisturbed")
    begin = lambda: run(recipe, "stopped")  # noqa: E731
    while True:
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            try:
                stopped = begin()
                break
            except Interrupted:
                begin = lambda: resume("stopped")  # noqa: E731
    assert stopped.results["hash"] == undisturbed.results["hash"]


def test_workers_and_checkpoint_intervals_change_no_bit(tiny, run):
    name = "mixup, crop and flip; rate held during an epoch"
    alone = run(variant(tiny, name), "alone")
    with_workers = run(variant(tiny, name, train={"workers": 2, "checkpoint_seconds": 0.0}), "workers")
    assert with_workers.results["hash"] == alone.results["hash"]


def test_a_run_with_workers_resumes_to_the_same_bits(tiny, run, resume, monkeypatch):
    recipe = tiny(train={"workers": 2, "epochs": 1})
    undisturbed = run(recipe, "undisturbed")
    stopped = run_with_stops(run, resume, recipe, monkeypatch, (2, 4))
    assert stopped.results["hash"] == undisturbed.results["hash"]


def test_a_crash_resumes_from_the_last_checkpoint(tiny, run, resume, monkeypatch):
    recipe = tiny(train={"checkpoint_seconds": 0.0, "schedule": "cosine"})
    undisturbed = run(recipe, "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "raise_if_asked", _crash_at(7))
        with pytest.raises(ZeroDivisionError):
            run(recipe, "crashed")
    assert resume("crashed").results["hash"] == undisturbed.results["hash"]


def _crash_at(count):
    calls = []

    def raise_if_asked(_self):
        calls.append(1)
        if len(calls) == count:
            raise ZeroDivisionError

    return raise_if_asked


def test_a_run_without_any_checkpoint_starts_over(tiny, run, resume, monkeypatch):
    recipe = tiny()
    undisturbed = run(recipe, "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "raise_if_asked", _crash_at(6))
        with pytest.raises(ZeroDivisionError):
            run(recipe, "crashed")
    assert not list((undisturbed.folder.parent / "crashed" / "checkpoints").glob("*"))
    assert resume("crashed").results["hash"] == undisturbed.results["hash"]


def test_resuming_a_finished_run_only_reads_it(tiny, run, resume, monkeypatch):
    finished = run(tiny())
    monkeypatch.setattr(engine, "_proceed", None)
    assert resume().results == finished.results


def test_a_finished_run_that_lost_its_report_gets_it_again(tiny, run, resume, monkeypatch):
    run(tiny())
    written = []
    monkeypatch.setattr(engine, "write_report", written.append)
    assert written == [resume().folder]


def test_a_log_shorter_than_its_checkpoint_is_refused(tiny, run, resume, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        stop_after(patch, 4 + 5)
        with pytest.raises(Interrupted):
            run(tiny())
    log = tmp_path / "run" / "arms" / "student_alone" / "seed-0" / "metrics.jsonl"
    assert log.stat().st_size
    log.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: is shorter"):
        resume()


def test_a_damaged_newest_checkpoint_changes_nothing_in_the_end(tiny, run, resume, monkeypatch, tmp_path, capsys):
    recipe = tiny(train={"checkpoint_seconds": 0.0})
    undisturbed = run(recipe, "undisturbed")
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Interrupted):
            run(recipe)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    (newest / "state.safetensors").write_bytes(b"")
    assert resume().results["hash"] == undisturbed.results["hash"]
    assert f"{newest}: damaged" in capsys.readouterr().err


def test_a_failed_run_keeps_its_checkpoint_and_fails_again(tiny, run, resume, tmp_path):
    recipe = tiny(train={"lr": 1e30, "optimizer": "sgd", "checkpoint_seconds": 0.0})
    for attempt in (lambda: run(recipe), resume):
        with pytest.raises(RunError, match="is not finite at step"):
            attempt()
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_users_generator_state_changes_nothing(tiny, run):
    import torch

    first = run(tiny(), "first")
    torch.manual_seed(12345)
    torch.rand(7)
    assert run(tiny(), "second").results["hash"] == first.results["hash"]
