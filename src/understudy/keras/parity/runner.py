"""Compute each recorded case with the Keras losses and say how far from the original the numbers are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from understudy.errors import UserError
from understudy.keras.operations import ops
from understudy.keras.parity.gradients import differentiate
from understudy.keras.parity.logits import CASES
from understudy.keras.parity.maps import PLANS, Plan
from understudy.keras.parity.recorded import Case, read_cases

Status = Literal["pass", "fail", "not implemented"]
# Gradients this much smaller than the largest of their case are rounding and have no scale of their own.
_ROUNDING = {"float32": 1e-6, "float64": 1e-12}


@dataclass(frozen=True)
class Outcome:
    """How one case came out.

    Args:
        id: the case.
        method: the method in words.
        status: `pass`, `fail` or `not implemented`.
        error: relative error of the loss; None where nothing was computed.
        gradients: the same for each recorded gradient, over the largest value of that gradient.
        reason: what is wrong or missing; empty for what passes.
    """

    id: str
    method: str
    status: Status
    error: float | None = None
    gradients: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def run_parity(folder: Path, *, dtype: Literal["float32", "float64"] = "float32") -> list[Outcome]:
    """Compute every case of a folder on Keras' backend and compare it with what the original recorded.

    Compared are the loss, every other scalar or map it returned and each recorded gradient, of weights too. In
    float32 they are held to the manifest's float32 tolerances, in float64 to 10 times its float64 ones (another,
    equal formula rounds differently). Moving averages of batch norms are Keras' own (biased variance) and not
    compared.

    Args:
        folder: holds `manifest.json` and the `.npz` files it names.
        dtype: in which to compute; on torch and JAX Keras' own means are taken in float32, whatever they are given, so
            that float64 is for TensorFlow.

    Returns:
        One outcome a case, in the order of the manifest.

    Raises:
        UserError: the folder or its manifest is missing or damaged, or float64 is asked of another backend.
    """
    if dtype == "float64" and keras.backend.backend() != "tensorflow":
        raise UserError(
            "Keras takes means in float32 on this backend: ask for float32, or use KERAS_BACKEND=tensorflow"
        )
    return [_outcome(case, dtype) for case in read_cases(folder)]


def _outcome(case: Case, dtype: str) -> Outcome:
    if case.base_id not in CASES and case.base_id not in PLANS:
        return Outcome(case.id, case.method, "not implemented")
    try:
        return _compared(case, dtype)
    except NotImplementedError as reason:
        return Outcome(case.id, case.method, "not implemented", reason=str(reason))
    except Exception as error:  # whatever stops one case, the others are still wanted
        reason = f"could not be computed: {type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(case.id, case.method, "fail", reason=reason)


def _compared(case: Case, dtype: str) -> Outcome:
    outputs, gradients = _computed(case, dtype)
    loss_tolerance, gradient_tolerance = _tolerances(case, dtype)
    wrong, error, errors = [], None, {}
    for name, theirs in case.arrays["out"].items():
        deviation, scale = _largest(outputs[name].reshape(theirs.shape) - theirs), _largest(theirs)
        error = deviation / max(scale, 1e-300) if name == "loss" else error
        wrong += _beyond(name, deviation, scale, *loss_tolerance)
    recorded = case.arrays["grad"] | case.arrays["gradparam"]
    largest = max((_largest(theirs) for theirs in recorded.values()), default=0.0)
    for name, theirs in recorded.items():
        deviation = _largest(gradients[name] - theirs)
        scale = _largest(theirs) if _largest(theirs) > _ROUNDING[dtype] * largest else largest
        errors[name] = deviation / max(scale, 1e-300)
        wrong += _beyond(f"gradient {name}", deviation, scale, *gradient_tolerance)
    return Outcome(case.id, case.method, "fail" if wrong else "pass", error, errors, "; ".join(wrong))


def _computed(case: Case, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    inputs = {name: _cast(array, dtype) for name, array in case.arrays["input"].items()}
    plan = PLANS[case.base_id](case, dtype) if case.base_id in PLANS else _plan(case)
    for key, variable in plan.variables.items():
        variable.assign(_to_keras(_cast(case.arrays["param"][key], dtype)))
    of_inputs, of_weights = list(case.arrays["grad"]), list(case.arrays["gradparam"])

    def function(tensors: list[Any]) -> dict[str, Any]:
        given = {name: ops.convert_to_tensor(array) for name, array in inputs.items() if name not in of_inputs}
        given |= dict(zip(of_inputs, tensors, strict=False))
        mapping = zip((plan.variables[key] for key in of_weights), tensors[len(of_inputs) :], strict=True)
        # On every backend a stateless scope lets a variable stand for a tensor that gradients are wanted of.
        with keras.StatelessScope(state_mapping=list(mapping)):
            return plan.compute(given)

    sources = [inputs[name] for name in of_inputs]
    sources += [_to_keras(_cast(case.arrays["param"][key], dtype)) for key in of_weights]
    outputs, found = differentiate(function, sources)
    gradients = dict(zip(of_inputs, found, strict=False))
    gradients |= {key: _to_torch(array) for key, array in zip(of_weights, found[len(of_inputs) :], strict=True)}
    return outputs, gradients


def _plan(case: Case) -> Plan:
    return Plan(lambda inputs: CASES[case.base_id](inputs, case.settings))


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _to_keras(weight: np.ndarray) -> np.ndarray:
    """From torch's layout of a kernel to Keras'."""
    return np.ascontiguousarray(weight.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(weight.ndim, range(weight.ndim))))


def _to_torch(weight: np.ndarray) -> np.ndarray:
    return weight.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(weight.ndim, range(weight.ndim)))


def _tolerances(case: Case, dtype: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """(relative, absolute) for the loss and for gradients."""
    own = case.tolerance
    loss, gradient = (own["loss_rtol"], own.get("loss_atol", 0)), (own["grad_rtol"], own.get("grad_atol", 0))
    if dtype == "float64":
        return (10 * loss[0], 10 * loss[1]), (10 * gradient[0], 10 * gradient[1])
    # Absolute tolerances, given for float64, grow as the relative ones do.
    relative = own.get("float32_loss_rtol") or 1e-5, own.get("float32_grad_rtol_of_max") or 1e-5
    return (
        (relative[0], loss[1] * relative[0] / loss[0]),
        (relative[1], gradient[1] * relative[1] / gradient[0]),
    )


def _beyond(what: str, deviation: float, scale: float, relative: float, absolute: float) -> list[str]:
    # Asked this way round, NaN is beyond any tolerance.
    if deviation <= relative * scale + absolute:
        return []
    return [f"{what} is off by {deviation / max(scale, 1e-300):.1e}, allowed {relative:.0e}"]


def _largest(array: np.ndarray) -> float:
    magnitudes = np.abs(np.asarray(array, dtype=np.float64))
    return float(magnitudes.max()) if magnitudes.size else 0.0
