"""Read what an original recorded, and hand it to our losses.

A folder holds `manifest.json` and one `.npz` a case, with arrays named by their part:

| array | meaning |
|---|---|
| `input_<name>` | what the original was given; `input_rand_<i>` is what its i-th random draw returned |
| `param_<module>.<key>` | a weight or buffer before the call |
| `out_<name>` | what it returned; `out_loss` is the scalar that was differentiated |
| `grad_<name>`, `gradparam_<module>.<name>` | gradients of the loss |
| `after_<module>.<buffer>` | a buffer after the call |
"""

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveFloat, ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from understudy.errors import UserError

# What a function that computes a case is given; the weights by module, then by the original's key.
Inputs = dict[str, Tensor]
Settings = dict[str, Any]
Weights = dict[str, dict[str, Tensor]]
Compute = Callable[[Inputs, Settings, Weights], dict[str, Tensor]]
"""How one case is computed with our losses: from the recorded inputs, the hyper-parameters of the manifest and the
weights by module, to every recorded output by name (`loss`, and `after_<module>.<buffer>` where a buffer of ours is
not the recorded tensor changed in place)."""

Module = TypeVar("Module", bound=nn.Module)
_PARTS = ("input", "param", "out", "grad", "gradparam", "after")
_DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.bernoulli)


class Tolerance(BaseModel):
    """How far from the recorded numbers a case may be; the float32 ones only where the original allows that run."""

    loss_rtol: PositiveFloat
    loss_atol: float = 0.0
    grad_rtol: PositiveFloat
    grad_atol: float = 0.0
    float32_loss_rtol: float | None = None
    float32_grad_rtol_of_max: float | None = None


class _Entry(BaseModel):
    id: str
    file: str
    method: str = ""
    hyperparameters: dict[str, Any] = {}
    tolerance: Tolerance
    shapes: dict[str, list[int]] = {}


class _Manifest(BaseModel):
    cases: list[_Entry]


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
    settings: Settings
    tolerance: Tolerance
    arrays: dict[str, dict[str, NDArray[Any]]]

    @property
    def base_id(self) -> str:
        """The id without its variant."""
        return re.sub(r"__v\d+$", "", self.id)

    def inputs(self, dtype: torch.dtype | None = None) -> Inputs:
        """Make the inputs, tracking gradients where one is recorded.

        Args:
            dtype: of the floating-point ones; by default that of the file.

        Returns:
            Fresh tensors by name.
        """
        return {
            name: _tensor(array, dtype).requires_grad_(name in self.arrays["grad"])
            for name, array in self.arrays["input"].items()
        }

    def weights(self, dtype: torch.dtype | None = None) -> Weights:
        """Make the weights and buffers, as parameters where a gradient is recorded.

        Args:
            dtype: of the floating-point ones; by default that of the file.

        Returns:
            Fresh tensors by module, then by the original's key.
        """
        weights: Weights = {}
        for name, array in self.arrays["param"].items():
            module, _, key = name.partition(".")
            tensor = _tensor(array, dtype)
            weights.setdefault(module, {})[key] = nn.Parameter(tensor) if name in self.arrays["gradparam"] else tensor
        return weights


def read_cases(folder: Path) -> list[Case]:
    """Read a folder of recorded cases.

    Args:
        folder: holds `manifest.json` and the files it names.

    Returns:
        The cases, in the order of the manifest.

    Raises:
        UserError: something is missing or damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        near = [str(other.parent) for other in sorted(folder.glob("*/manifest.json"))]
        raise UserError(
            "no such file; " + (f"try {' or '.join(near)}" if near else "give a folder with cases"), where=path
        )
    try:
        manifest = _Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # JSONDecodeError, UnicodeDecodeError and ValidationError are ValueErrors
        raise UserError(f"is no manifest of recorded losses: {_one_line(error)}", where=path) from None
    if not manifest.cases:
        raise UserError("names no case", where=path)
    return [_read_case(folder, entry) for entry in manifest.cases]


def load(module: Module, weights: dict[str, Tensor], *, rename: dict[str, str] | None = None) -> Module:
    """Put recorded weights into a module of ours, in training mode.

    The module then holds the recorded tensors themselves: their gradients and changed buffers are checked with
    nothing more to do. A weight that has to change its shape loses that; use `torch.func.functional_call` for it.

    Args:
        module: an adapter, a head or a loss with weights of its own.
        weights: the original's weights and buffers by key: all that the module has, and no others.
        rename: our key for each of the original's that differs.

    Returns:
        The module.
    """
    rename = rename or {}
    module.load_state_dict({rename.get(key, key): tensor for key, tensor in weights.items()}, assign=True)
    return module.train()


@contextmanager
def recorded_draws(inputs: Inputs) -> Iterator[None]:
    """Let the random draws within return what the original's returned, in the same order.

    Args:
        inputs: the inputs of the case, with `rand_0`, `rand_1`, …

    Raises:
        ValueError: more is drawn than was recorded, or with another shape.
    """
    count = sum(bool(re.fullmatch(r"rand_\d+", name)) for name in inputs)
    with _Replay([inputs[f"rand_{index}"] for index in range(count)]):
        yield


class _Replay(TorchFunctionMode):
    def __init__(self, draws: list[Tensor]) -> None:
        super().__init__()
        self.draws = iter(draws)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if func not in _DRAWS:
            return drawn
        recorded = next(self.draws, None)
        if recorded is None:
            raise ValueError(f"{func.__name__} draws once more than the original did")
        if recorded.shape != drawn.shape:
            raise ValueError(f"{func.__name__} draws {tuple(drawn.shape)}, the original {tuple(recorded.shape)}")
        return recorded


def _read_case(folder: Path, entry: _Entry) -> Case:
    path = folder / entry.file
    if Path(entry.file).name != entry.file:
        raise UserError(f"case {entry.id} names a file outside the folder", where=path)
    if not path.is_file():
        raise UserError(f"no such file, though the manifest names it for case {entry.id}", where=path)
    try:
        # Opened here: of a damaged file, np.load would leave its own handle open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        TypeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"is no readable .npz file: {_one_line(error)}", where=path) from None
    if missing := sorted(entry.shapes.keys() - found):
        raise UserError(f"lacks {', '.join(missing)}, which the manifest names", where=path)
    arrays: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in _PARTS}
    for full_name, array in found.items():
        part, _, name = full_name.partition("_")
        if part not in arrays or array.dtype.kind not in "fiub":
            raise UserError(f"holds '{full_name}', which is no recorded array of numbers", where=path)
        arrays[part][name] = array
    for gradients, of in (("grad", "input"), ("gradparam", "param")):
        if orphans := sorted(arrays[gradients].keys() - arrays[of]):
            raise UserError(f"holds a gradient of {', '.join(orphans)} but not the value", where=path)
    return Case(entry.id, entry.method, entry.hyperparameters, entry.tolerance, arrays)


def _tensor(array: NDArray[Any], dtype: torch.dtype | None) -> Tensor:
    tensor = torch.tensor(array)
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
    return " ".join(str(error).split()) or type(error).__name__
