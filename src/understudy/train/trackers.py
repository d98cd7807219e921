"""A tracker follows a run: what the run writes into its folder, numbers and pictures, is shown as it happens.

Only the folder is read, so that neither the loop nor a task knows of trackers, and those with a loop of their own are
followed as well.
"""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from understudy.errors import UserError
from understudy.train import processes

_SECONDS_BETWEEN_LOOKS = 5.0


def require(tracker: str | None) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        UserError: it is not.
    """
    if tracker is not None and find_spec(tracker) is None:
        raise UserError(f"{tracker} is not installed: pip install 'understudy[track]'", where="tracker")


@contextmanager
def following(folder: Path, tracker: str | None) -> Iterator[None]:
    """Have a run folder followed while the block goes on, by the first of several processes.

    Args:
        folder: of the run.
        tracker: `tensorboard`, or None for none.
    """
    if tracker is None or not processes.is_first():
        yield
        return
    board, ended = Board(folder), threading.Event()

    def follow() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            board.catch_up()

    thread = threading.Thread(target=follow, name="tracker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        board.catch_up()
        board.close()


class Board:
    """TensorBoard's files of a run, in `tensorboard/`: one of its runs for each arm and seed, one for the pictures.

    They are written anew from the start, also when a run is resumed: what a checkpoint takes back is then not shown.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "tensorboard"
        self.writers: dict[str, Any] = {}
        self.seen: dict[Path, int] = {}  # of a log how many bytes, of a picture when it was written
        shutil.rmtree(self.home, ignore_errors=True)

    def catch_up(self) -> None:
        """Show what was written since the last time."""
        for log in sorted(self.folder.glob("arms/*/seed-*/metrics.jsonl")):
            with suppress(FileNotFoundError):  # a stage that starts over removes its log
                self._read_log(log)
        for picture in sorted(self.folder.glob("*.png")):
            with suppress(OSError):  # half written: it is whole the next time
                self._show(picture)
        for writer in self.writers.values():
            writer.flush()

    def close(self) -> None:
        """Finish the files."""
        for writer in self.writers.values():
            writer.close()

    def _read_log(self, log: Path) -> None:
        name = f"{log.parent.parent.name}/{log.parent.name}"
        if log.stat().st_size < self.seen.get(log, 0):  # a stage went back to its checkpoint
            self._forget(name)
            self.seen[log] = 0
        with log.open("rb") as file:
            file.seek(self.seen.get(log, 0))
            for line in file:
                if not line.endswith(b"\n"):  # being written just now
                    return
                row = json.loads(line)
                for tag, value in numbers(row).items():
                    self._writer(name).add_scalar(tag, value, row.get("step", row["epoch"]))
                self.seen[log] = file.tell()

    def _show(self, picture: Path) -> None:
        import numpy as np
        from PIL import Image

        changed = picture.stat().st_mtime_ns
        if self.seen.get(picture) == changed:
            return
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        self._writer("pictures").add_image(picture.stem, pixels, dataformats="HWC")
        self.seen[picture] = changed

    def _writer(self, name: str) -> Any:
        if name not in self.writers:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.writers[name] = SummaryWriter(str(self.home / name))
        return self.writers[name]

    def _forget(self, name: str) -> None:
        if name in self.writers:
            self.writers.pop(name).close()
        shutil.rmtree(self.home / name, ignore_errors=True)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics.jsonl by their names, `train/losses/kd` or `test/accuracy`."""
    found: dict[str, float] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                collect(f"{name}/{key}" if name else str(key), part)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = float(value)

    kind = row["kind"]
    rest = {key: value for key, value in row.items() if key not in ("kind", "epoch", "step")}
    collect("" if kind == "eval" else kind, rest)  # scores already say what they are of: `test`
    return found
