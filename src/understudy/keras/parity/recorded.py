"""Reads what an original recorded (see `understudy.parity.recorded` for the layout) as NumPy arrays, without torch."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import UserError

_PARTS = ("input", "param", "out", "grad", "gradparam", "after")


@dataclass(frozen=True)
class Case:
    """A recorded call of an original.

    Args:
        id: its stable name, `__vN` at the end for variants.
        method: the method in words.
        settings: the hyper-parameters of the call.
        tolerance: how far from it ours may be.
        arrays: for each part of the file (`input`, `out`, …) its arrays by name.
    """

    id: str
    method: str
    settings: dict[str, Any]
    tolerance: dict[str, Any]
    arrays: dict[str, dict[str, np.ndarray]]

    @property
    def base_id(self) -> str:
        """The id without its variant."""
        return re.sub(r"__v\d+$", "", self.id)


def read_cases(folder: Path) -> list[Case]:
    """Read a folder of recorded cases, in the order of its manifest.

    Raises:
        UserError: something is missing or damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError("no such file; give a folder with recorded cases", where=path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return [_case(folder, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"is no manifest of recorded losses: {error}", where=path) from None


def _case(folder: Path, entry: dict[str, Any]) -> Case:
    arrays: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
    with (folder / Path(entry["file"]).name).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for full_name in archive.files:
            part, _, name = full_name.partition("_")
            arrays[part][name] = archive[full_name]
    return Case(entry["id"], entry.get("method", ""), entry["hyperparameters"], entry["tolerance"], arrays)
