"""Compute each recorded case with our losses and say how far from the original the numbers are."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from understudy.parity.recorded import Case, Compute, read_cases
from understudy.parity.table import CASES, DIFFERENCES

Status = Literal["pass", "fail", "not implemented", "declared difference"]

# The tolerances are those of the same formula in the same order of operations; ours may be another, equal one.
_OTHER_FORMULA = 10
# A gradient this much smaller than the largest of its case is rounding (a bias before a batch norm: exactly 0 on
# paper) and has no scale of its own.
_ROUNDING = 1e-12
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Outcome:
    """How one case came out.

    Args:
        id: the case.
        method: the method in words.
        status: `pass`, `fail`, `not implemented` or `declared difference`.
        error: relative error of the loss, in the precision of the file; None where nothing was computed. Of a
            declared difference, that of the original's mathematics as we rewrote it.
        gradients: the same for each recorded gradient, by the name of the input or of the weight.
        reason: what is wrong, missing or different on purpose; empty for what passes.
    """

    id: str
    method: str
    status: Status
    error: float | None = None
    gradients: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class _Deviation:
    kind: Literal["loss", "output", "gradient", "buffer"]
    name: str
    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        return self.absolute / max(self.scale, _TINY)


def run_parity(folder: Path) -> list[Outcome]:
    """Compute every case of a folder and compare it with what the original recorded.

    Compared are the loss, every other output, each recorded gradient and each buffer the call changed. The error of
    an array is `max |ours - theirs| / max |theirs|`, for the loss `|ours - theirs| / |theirs|`; gradients that are
    zero but for rounding are measured against the largest gradient of the case. A case passes when, in the precision
    of its file, all of them are within 10 times the tolerance of its manifest (an algebraically equal formula rounds
    differently), and when, where the manifest gives tolerances for float32, loss and gradients in float32 are within
    those as they stand (absolute tolerances, given for float64 only, grow by the same factor).

    A difference is declared where ours must not reproduce the record and a rewrite of what the original does instead
    (see `table.py`), held to the same tolerances, does.

    Args:
        folder: holds `manifest.json` and the `.npz` files it names; seeds, shapes and settings are all read there.

    Returns:
        One outcome a case, in the order of the manifest.

    Raises:
        UserError: the folder, its manifest or one of its files is missing or damaged.
    """
    from understudy.parity import deit, diffusion  # they make outcomes too

    for family in (deit, diffusion):
        if family.is_recorded(folder):
            return family.run(folder)
    return [_outcome(case) for case in read_cases(folder)]


def _outcome(case: Case) -> Outcome:
    compute, difference = CASES.get(case.base_id), DIFFERENCES.get(case.base_id)
    if compute:
        ours = _checked(case, compute)
        if ours.status == "pass" or difference is None or difference.original is None:
            return ours
        explained = _checked(case, difference.original, declared=difference.reason)
        return explained if explained.status == "declared difference" else ours
    if difference is None:
        return Outcome(case.id, case.method, "not implemented", reason="no function of ours computes it yet")
    if difference.original is None:
        return Outcome(case.id, case.method, "declared difference", reason=difference.reason)
    return _checked(case, difference.original, declared=difference.reason)


def _checked(case: Case, compute: Compute, *, declared: str = "") -> Outcome:
    try:
        deviations = list(_deviations(case, compute, dtype=None))
        wrong = _wrong(case, deviations) + _wrong_in_float32(case, compute)
    except Exception as error:  # whatever stops one case, the others are still wanted
        reason = f"could not be computed: {type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(case.id, case.method, "fail", reason=reason)
    return Outcome(
        case.id,
        case.method,
        "fail" if wrong else "declared difference" if declared else "pass",
        error=next((item.relative for item in deviations if item.kind == "loss"), None),
        gradients={item.name: item.relative for item in deviations if item.kind == "gradient"},
        reason="; ".join(wrong) or declared,
    )


def _wrong(case: Case, deviations: list[_Deviation]) -> list[str]:
    tolerance = case.tolerance
    wrong = []
    for item in deviations:
        of_gradient = item.kind == "gradient"
        relative = tolerance.grad_rtol if of_gradient else tolerance.loss_rtol
        absolute = tolerance.grad_atol if of_gradient else tolerance.loss_atol
        wrong += _beyond(item, relative=_OTHER_FORMULA * relative, absolute=_OTHER_FORMULA * absolute)
    return wrong


def _wrong_in_float32(case: Case, compute: Compute) -> list[str]:
    tolerance = case.tolerance
    of_loss, of_gradient = tolerance.float32_loss_rtol, tolerance.float32_grad_rtol_of_max
    if of_loss is None and of_gradient is None:
        return []
    wrong = []
    # The manifest's absolute tolerances are for float64: they grow as the relative ones do.
    for item in _deviations(case, compute, dtype=torch.float32):
        if item.kind == "loss" and of_loss is not None:
            absolute = tolerance.loss_atol * of_loss / tolerance.loss_rtol
            wrong += _beyond(item, relative=of_loss, absolute=absolute, suffix=" in float32")
        if item.kind == "gradient" and of_gradient is not None:
            absolute = tolerance.grad_atol * of_gradient / tolerance.grad_rtol
            wrong += _beyond(item, relative=of_gradient, absolute=absolute, suffix=" in float32")
    return wrong


def _beyond(item: _Deviation, *, relative: float, absolute: float = 0.0, suffix: str = "") -> list[str]:
    # Asked this way round, NaN is beyond any tolerance.
    if item.absolute <= relative * item.scale + absolute:
        return []
    what = item.kind if item.kind == "loss" else f"{item.kind} {item.name}"
    return [f"{what} is off by {item.relative:.1e}{suffix}, allowed {relative:.0e}"]


def _deviations(case: Case, compute: Compute, *, dtype: torch.dtype | None) -> Iterator[_Deviation]:
    inputs, weights = case.inputs(dtype), case.weights(dtype)
    outputs = compute(
        dict(inputs), copy.deepcopy(case.settings), {name: dict(group) for name, group in weights.items()}
    )
    for name, theirs in case.arrays["out"].items():
        if name not in outputs:
            raise ValueError(f"no output '{name}' is computed")
        yield _compare("loss" if name == "loss" else "output", name, outputs[name], theirs)

    flat = {f"{module}.{key}": tensor for module, group in weights.items() for key, tensor in group.items()}
    recorded = case.arrays["grad"] | case.arrays["gradparam"]
    sources = [inputs[name] for name in case.arrays["grad"]] + [flat[name] for name in case.arrays["gradparam"]]
    largest = max((_largest(theirs) for theirs in recorded.values()), default=0.0)
    gradients = _gradients(outputs["loss"], sources) if sources else []
    for (name, theirs), ours in zip(recorded.items(), gradients, strict=True):
        own_scale = _largest(theirs)
        yield _compare("gradient", name, ours, theirs, scale=own_scale if own_scale > _ROUNDING * largest else largest)

    # After the gradients: what the call changed in place is part of what they are computed from.
    for name, theirs in case.arrays["after"].items():
        ours = outputs.get(f"after_{name}", flat.get(name))
        if ours is None:
            raise ValueError(f"no buffer '{name}' is computed")
        yield _compare("buffer", name, ours, theirs)


def _gradients(loss: Tensor, sources: list[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(source) for source in sources]
    return list(torch.autograd.grad(loss.sum(), sources, allow_unused=True, materialize_grads=True))


def _compare(
    kind: Literal["loss", "output", "gradient", "buffer"],
    name: str,
    ours: Tensor,
    theirs: NDArray[Any],
    *,
    scale: float | None = None,
) -> _Deviation:
    mine = ours.detach().to("cpu", torch.float64).numpy()
    # Some originals return a loss of shape (1,).
    if mine.shape != theirs.shape and not mine.size == theirs.size == 1:
        raise ValueError(f"{kind} '{name}' has shape {mine.shape}, the recorded one {theirs.shape}")
    absolute = _largest(mine.reshape(theirs.shape) - theirs.astype(np.float64))
    return _Deviation(kind, name, absolute, _largest(theirs) if scale is None else scale)


def _largest(array: ArrayLike) -> float:
    magnitudes = np.abs(np.asarray(array, dtype=np.float64))
    return float(magnitudes.max()) if magnitudes.size else 0.0
