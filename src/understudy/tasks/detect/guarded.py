"""A guest's training inside a run: its checkpoints guarded by checksums, its progress shown, its stop orderly."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

from understudy.tasks.detect.guest import load_checkpoint, strip_optimizer
from understudy.tasks.detect.stages import Place
from understudy.train.files import sha256, sync, write_atomically
from understudy.train.guard import StopRequest
from understudy.train.progress import Display, Meter

_MANIFEST = "checkpoint.json"


class Watcher:
    """Looks on while ultralytics trains: copies each checkpoint with its checksum, moves the bar, heeds a signal.

    Args:
        name: of the stage.
        place: where it trains.
        display: what a person sees.
        stop: whether a signal came.
    """

    def __init__(self, name: str, place: Place, display: Display, stop: StopRequest) -> None:
        self.name = name
        self.place = place
        self.display = display
        self.stop = stop
        self._meter: Meter | None = None

    def callbacks(self) -> dict[str, Any]:
        """What ultralytics calls, by its names of the moments."""
        return {
            "on_train_start": self._start,
            "on_train_batch_end": self._batch,
            "on_model_save": self._saved,
            "on_train_end": self._end,
        }

    def _start(self, trainer: Any) -> None:
        steps = len(trainer.train_loader)
        self._meter = self.display.begin(self.name, trainer.epochs * steps, trainer.start_epoch * steps)

    def _batch(self, trainer: Any) -> None:
        # Raised here it ends the training between two steps; the last epoch's checkpoint stands.
        self.stop.raise_if_asked()
        if self._meter is not None:
            self._meter.note = f"loss {float(trainer.loss.detach()):.3g}" if trainer.loss is not None else ""
            self._meter.advance()

    def _saved(self, trainer: Any) -> None:
        keep_checkpoint(self.place, trainer.epoch)

    def _end(self, trainer: Any) -> None:
        if self._meter is not None:
            self._meter.finish(self._meter.total)


def keep_checkpoint(place: Place, epoch: int) -> None:
    """Copy the checkpoints just written, whole or not at all, and note their checksums.

    Args:
        place: where the training writes.
        epoch: counted from 0, which has been finished.
    """
    copies = {}
    for name in ("last.pt", "best.pt"):
        source = place.last.with_name(name)
        if source.exists():
            copy = place.folder / f"epoch-{epoch}-{name}"
            partial = copy.with_name(f".{copy.name}.tmp")
            shutil.copy(source, partial)
            sync(partial)
            partial.replace(copy)
            copies[name] = {"file": copy.name, "sha256": sha256(copy)}
    write_atomically(place.folder / _MANIFEST, json.dumps({"epoch": epoch, "files": copies}, indent=2))
    kept = {entry["file"] for entry in copies.values()}
    for old in place.folder.glob("epoch-*.pt"):
        if old.name not in kept:
            old.unlink()


def restore(place: Place, epochs: int) -> str:
    """Put the last whole checkpoint back where ultralytics resumes from.

    Args:
        place: where the training wrote.
        epochs: of the whole training.

    Returns:
        `start`, there is none; `resume`; or `done`, where every epoch was trained and only the end was missing.
    """
    manifest = place.folder / _MANIFEST
    if not manifest.exists():
        return "start"
    noted = json.loads(manifest.read_text())
    for name, entry in noted["files"].items():
        copy = place.folder / entry["file"]
        if not copy.exists() or sha256(copy) != entry["sha256"]:
            print(f"{copy}: damaged, the stage is done anew")
            shutil.rmtree(place.folder)
            return "start"
        place.last.parent.mkdir(parents=True, exist_ok=True)
        partial = place.last.with_name(f".{name}.tmp")
        shutil.copy(copy, partial)
        os.replace(partial, place.last.with_name(name))
    _drop_later_rows(place.folder / "results.csv", noted["epoch"])
    if noted["epoch"] + 1 < epochs and cast(Any, load_checkpoint(str(place.last))[1])["epoch"] >= 0:
        return "resume"
    for name in noted["files"]:
        strip_optimizer(place.last.with_name(name))
    return "done"


def forget_checkpoints(place: Place) -> None:
    """Remove the copies of a training that has ended."""
    (place.folder / _MANIFEST).unlink(missing_ok=True)
    for copy in place.folder.glob("epoch-*.pt"):
        copy.unlink()


def _drop_later_rows(csv: Path, epoch: int) -> None:
    """Cut ultralytics' log back to the checkpoint: it is written before it."""
    if csv.exists():
        heading, *rows = csv.read_text().splitlines()
        kept = [row for row in rows if row and int(float(row.split(",")[0])) <= epoch + 1]
        write_atomically(csv, "\n".join([heading, *kept]) + "\n")
