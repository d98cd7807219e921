"""Recorded cases of Salimans and Ho's diffusion code against ours: reading them, and judging how far off we are.

A manifest lists `cases` with `id`, `file`, `args`, `tolerance` and `arrays`, beside its `conventions`. Every array that
is no input is compared, element by element: |ours - theirs| <= atol + rtol |theirs|, as the manifest gives them.
"""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from understudy.errors import UserError
from understudy.parity.runner import Outcome

if TYPE_CHECKING:
    from understudy.parity.diffusion_cases import Family


def is_recorded(folder: Path) -> bool:
    """Whether a folder holds cases of the diffusion code; a manifest that cannot be read is left to others."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return "logsnr" in manifest["conventions"] and isinstance(manifest["cases"], list)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def run(folder: Path) -> list[Outcome]:
    """Compute every case of a folder and compare it with what the original recorded.

    Args:
        folder: for which `is_recorded` is true.

    Returns:
        One outcome a case, in the order of the manifest.

    Raises:
        UserError: diffusers is not installed, or a file is missing or damaged.
    """
    try:
        from understudy.parity.diffusion_cases import FAMILIES
    except ModuleNotFoundError as error:
        raise UserError(f"these cases need {error.name}: pip install 'understudy[diffusion]'", where=folder) from None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    outcomes = []
    for entry in manifest["cases"]:
        prefix = max((name for name in FAMILIES if entry["id"].startswith(name)), key=len, default=None)
        if prefix is None:
            outcomes.append(Outcome(entry["id"], "", "not implemented", reason="no function of ours computes it yet"))
        else:
            outcomes.append(_outcome(folder, entry, FAMILIES[prefix]))
    return outcomes


def _outcome(folder: Path, entry: dict[str, Any], family: "Family") -> Outcome:
    from understudy.parity.diffusion_cases import channels_first, channels_last

    path = folder / entry["file"]
    arrays = _read(path)
    given = {name: channels_first(torch.from_numpy(array)) for name, array in arrays.items()}
    try:
        outputs = family.compute(given, entry.get("args", {}), path)
        errors, wrong = {}, []
        for name in arrays.keys() - set(family.inputs):
            ours = channels_last(outputs[name]).detach().double().numpy()
            errors[name], fits = _compare(ours, arrays[name], entry["tolerance"])
            if not fits:
                wrong.append(f"{name} is off by {errors[name]:.1e} of its largest")
    except Exception as error:  # whatever stops one case, the others are still wanted
        reason = f"could not be computed: {type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(entry["id"], family.method, "fail", reason=reason)
    return Outcome(
        entry["id"],
        family.method,
        "fail" if wrong else "pass",
        error=max((error for name, error in errors.items() if not name.startswith("grad_")), default=None),
        gradients={name: error for name, error in errors.items() if name.startswith("grad_")},
        reason="; ".join(sorted(wrong)),
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if path.parent.resolve() != path.resolve().parent or not path.is_file():
        raise UserError("no such file, though the manifest names it", where=path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"is no readable .npz file: {error}", where=path) from None


def _compare(ours: NDArray[Any], theirs: NDArray[Any], tolerance: dict[str, float]) -> tuple[float, bool]:
    """The largest difference as a share of the largest value, and whether every element is near enough."""
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {ours.shape}, the recorded one {theirs.shape}")
    theirs = theirs.astype(np.float64)
    difference = np.abs(ours - theirs)
    fits = bool((difference <= tolerance["atol"] + tolerance["rtol"] * np.abs(theirs)).all())
    largest = float(np.abs(theirs).max(initial=0.0))
    return float(difference.max(initial=0.0)) / max(largest, np.finfo(np.float64).tiny), fits
