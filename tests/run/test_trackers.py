"""A tracker shows what the run folder holds, whatever was taken back in between."""

import json

import numpy as np
import pytest
from PIL import Image

from understudy.errors import UserError
from understudy.train import trackers
from understudy.train.folder import Log


@pytest.fixture
def shown():
    """Read TensorBoard's files of a folder: `{tag: [(step, value), ...]}`, or the names of its pictures."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder, pictures=False):
        events = reader.EventAccumulator(str(folder)).Reload()
        if pictures:
            return sorted(events.Tags()["images"])
        tags = events.Tags()["scalars"]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    return read


def test_numbers_are_named_by_what_they_are_of():
    train = {"kind": "train", "epoch": 1, "step": 8, "lr": 0.1, "loss": 2.0, "losses": {"kd": 1.5}}
    assert trackers.numbers(train) == {"train/lr": 0.1, "train/loss": 2.0, "train/losses/kd": 1.5}
    scores = {"kind": "eval", "epoch": 1, "step": 8, "test": {"accuracy": 1}, "note": None}
    assert trackers.numbers(scores) == {"test/accuracy": 1.0}


def test_every_number_and_picture_of_a_run_is_shown(run, tiny, shown):
    folder = run(tiny(tracker="tensorboard")).folder
    logs = sorted(folder.glob("arms/*/seed-*/metrics.jsonl"))
    assert len(logs) == 3
    for log in logs:
        wanted = {}
        for row in map(json.loads, log.read_text().splitlines()):
            for tag, value in trackers.numbers(row).items():
                wanted.setdefault(tag, []).append((row["step"], np.float32(value)))
        assert "test/accuracy" in wanted
        assert shown(folder / "tensorboard" / log.parent.relative_to(folder / "arms")) == wanted
    assert shown(folder / "tensorboard" / "pictures", pictures=True) == ["first_batch"]


def test_what_a_stage_takes_back_and_half_a_line_are_not_shown(tmp_path, shown):
    log = Log(tmp_path / "arms" / "student" / "seed-0" / "metrics.jsonl")
    board = trackers.Board(tmp_path)
    for step in (1, 2, 3):
        log.write(kind="train", epoch=step, step=step, loss=float(step))
    board.catch_up()
    whole = log.path.read_bytes()
    log.truncate(len(whole) // 3)
    board.catch_up()
    with log.path.open("a") as file:
        file.write('{"kind": "train", "epoch": 2, ')
        file.flush()
        board.catch_up()
        file.write('"step": 2, "loss": 5.0}\n')
    board.catch_up()
    board.close()
    assert shown(tmp_path / "tensorboard" / "student" / "seed-0") == {"train/loss": [(1, 1.0), (2, 5.0)]}


def test_a_picture_is_shown_once_it_is_whole(tmp_path, shown):
    Image.effect_noise((40, 30), 50).save(tmp_path / "grid.png")
    whole = (tmp_path / "grid.png").read_bytes()
    (tmp_path / "grid.png").write_bytes(whole[: len(whole) // 2])
    board = trackers.Board(tmp_path)
    board.catch_up()
    assert not board.seen
    (tmp_path / "grid.png").write_bytes(whole)
    board.catch_up()
    board.close()
    assert shown(tmp_path / "tensorboard" / "pictures", pictures=True) == ["grid"]


def test_a_tracker_that_is_not_installed_is_one_clear_line_and_leaves_nothing(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"tensorboard is not installed: pip install 'understudy\[track\]'"):
        run(tiny(tracker="tensorboard"))
    assert not (tmp_path / "run").exists()
