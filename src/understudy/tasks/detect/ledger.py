"""Which stages of a run are done, what they found, and the checksums of what they left."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from understudy.errors import UserError
from understudy.train.files import sha256, write_atomically
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest


class Ledger:
    """The stages of a run folder; each is done once.

    Args:
        folder: of the run.
        stop: whether a signal came.
    """

    def __init__(self, folder: RunFolder, stop: StopRequest) -> None:
        self.folder = folder
        self.root = folder.path.resolve()
        self.stop = stop

    def stage(self, name: str, files: list[Path], do: Callable[[], Mapping[str, Any] | None]) -> dict[str, Any]:
        """Do a stage unless it is done; what it found and the checksums of what it left are kept with the run.

        Args:
            name: of the stage.
            files: what it leaves.
            do: the work; it gives what it found.

        Raises:
            UserError: a file of a finished stage is not what the stage left.
        """
        notes = self.root / "stages" / f"{name}.json"
        if name in self.folder.finished_stages:
            noted = json.loads(notes.read_text())
            for file, wanted in noted["sha256"].items():
                path = self.root / file
                if not path.exists() or sha256(path) != wanted:
                    raise UserError(f"is not what the stage '{name}' left: put it back, or start a new run", where=path)
            return noted["found"]
        self.stop.raise_if_asked()
        found = dict(do() or {})
        notes.parent.mkdir(parents=True, exist_ok=True)
        sums = {str(file.relative_to(self.root)): sha256(file) for file in files}
        write_atomically(notes, json.dumps({"found": found, "sha256": sums}, indent=2))
        self.folder.finish_stage(name)
        return found
