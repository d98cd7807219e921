"""The recorded cases of DeiT: what its code and timm's tasks gave, against what our parts give.

A manifest lists `entries` with `id`, `file`, `conventions`, `tolerance` and `arrays`. Every array that is no input is
compared; a group of cases is known by how its ids begin (`deit_cases.py`).
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.errors import UserError
from understudy.parity.deit_cases import GROUPS, Arrays, Computed, Group, Settings
from understudy.parity.runner import Outcome

# The tolerances are those of the same order of operations; ours may be another, equal one.
_OTHER_FORMULA = 10


def is_recorded(folder: Path) -> bool:
    """Whether a folder's manifest is one of DeiT's: it lists `entries`."""
    try:
        return "entries" in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False  # the reader of losses says what is wrong


def run(folder: Path) -> list[Outcome]:
    """Compute every case of a folder of DeiT's and compare it with what the original recorded.

    Args:
        folder: holds `manifest.json` and the `.npz` files it names.

    Returns:
        One outcome a case, in the order of the manifest. An array's error is `max |ours - theirs| / max |theirs|`;
        within 10 times the manifest's tolerance it passes, where that is `exact` only when equal.

    Raises:
        UserError: the manifest or one of its files is missing or damaged.
    """
    path = folder / "manifest.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    if not isinstance(entries, list) or not entries:
        raise UserError("names no case", where=path)
    try:
        return [_outcome(folder, entry) for entry in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is no manifest of DeiT's cases: {type(error).__name__} {error}", where=path) from None


def _outcome(folder: Path, entry: Mapping[str, Any]) -> Outcome:
    name, settings, tolerance = str(entry["id"]), dict(entry["conventions"]), entry["tolerance"]
    group = next((group for beginning, group in GROUPS.items() if name.startswith(beginning)), None)
    if group is None:
        return Outcome(name, "", "not implemented", reason="no function of ours computes it yet")
    arrays = _read(folder / Path(entry["file"]).name)
    ours = _checked(name, group, group.compute, arrays, settings, tolerance)
    if ours.status == "pass" or group.original is None:
        return ours
    # What the original does instead either explains the difference, or its own deviation is the one to look at.
    return _checked(name, group, group.original, arrays, settings, tolerance, declared=group.difference)


def _read(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError("no such file, though the manifest names it", where=path) from None
    except Exception as error:  # whatever a damaged archive makes of a reader
        raise UserError(f"is no readable .npz file: {type(error).__name__}", where=path) from None


def _checked(
    name: str,
    group: Group,
    compute: Callable[[Arrays, Settings], Computed],
    arrays: Arrays,
    settings: Settings,
    tolerance: Any,
    *,
    declared: str = "",
) -> Outcome:
    try:
        computed = compute(arrays, settings)
        wanted = {key: value for key, value in arrays.items() if not re.fullmatch(group.inputs, key)}
        errors = {key: _error(key, computed, value) for key, value in wanted.items()}
        wrong = [
            f"{key} is off by {error:.1e}, allowed {allowed:.0e}"
            for key, error in errors.items()
            # Asked this way round, NaN is beyond any tolerance.
            if not error <= (allowed := _allowed(wanted[key], tolerance))
        ]
    except Exception as error:  # whatever stops one case, the others are still wanted
        reason = f"could not be computed: {type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(name, group.method, "fail", reason=reason)
    values = [error for key, error in errors.items() if not key.startswith("grad")]
    return Outcome(
        name,
        group.method,
        "fail" if wrong else "declared difference" if declared else "pass",
        error=max(values, default=None, key=lambda error: math.inf if math.isnan(error) else error),
        gradients={key: error for key, error in errors.items() if key.startswith("grad")},
        reason="; ".join(wrong) or declared,
    )


def _error(name: str, computed: Computed, theirs: NDArray[Any]) -> float:
    if name not in computed:
        raise ValueError(f"no '{name}' is computed")
    ours = computed[name].detach().numpy()
    if ours.shape != theirs.shape:
        raise ValueError(f"'{name}' has shape {ours.shape}, the recorded one {theirs.shape}")
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return float(difference.max() / _scale(theirs)) if difference.size else 0.0


def _scale(theirs: NDArray[Any]) -> float:
    largest = float(np.abs(theirs.astype(np.float64)).max()) if theirs.size else 0.0
    return largest or 1.0  # a gradient that is zero has no scale of its own


def _allowed(theirs: NDArray[Any], tolerance: Any) -> float:
    if tolerance == "exact":
        return 0.0
    return _OTHER_FORMULA * (tolerance.get("rtol", 0.0) + tolerance.get("atol", 0.0) / _scale(theirs))
