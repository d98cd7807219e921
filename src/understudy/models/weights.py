"""Reads weights from files of any maker, without ever running what is in them."""

import argparse
import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from understudy.errors import UserError

# Where trainers put the weights inside their checkpoints, the likeliest first.
_PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, a torch checkpoint, a saved folder or a URL.

    Checkpoints of trainers are looked into (`state_dict`, `state_dict_ema`, `model`, `model_ema`), the prefixes of
    DistributedDataParallel and `torch.compile` are taken off. Torch files are read with `weights_only`.

    Args:
        source: path or URL.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: no such file, damaged, a pickled module, or no weights inside.
    """
    path = _fetch(str(source)) if "://" in str(source) else Path(source).expanduser()
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError("no such file", where=path)
    if path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"is no safetensors file, or is damaged ({error})", where=path) from None
        return _clean(content, path)
    return _clean(_read_torch(path), path)


def load_weights(module: nn.Module, source: str | Path) -> None:
    """Put weights from a file into a module; every tensor must find its place.

    Raises:
        UserError: the file cannot be read, or holds the weights of another model or number of classes.
    """
    found = read_weights(source)
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of the model's {len(wanted)} tensors are not in it (first: {missing[0]})")
        if unknown:
            parts.append(f"{len(unknown)} of its own are unknown to the model (first: {unknown[0]})")
        raise UserError(f"holds the weights of another model: {'; '.join(parts)}", where=source)
    differ = [name for name in wanted if found[name].shape != wanted[name].shape]
    if differ:
        raise UserError(_difference(found, wanted, differ), where=source)
    module.load_state_dict(found)


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor], differ: list[str]) -> str:
    """Say whether only the number of classes differs, or the model."""
    # Another width also shows in the layer that follows; another number of classes only in the number of rows.
    only_rows = all(found[name].shape[1:] == wanted[name].shape[1:] for name in differ)
    rows = {(len(found[name]), len(wanted[name])) for name in differ if wanted[name].ndim}
    if only_rows and len(rows) == 1:
        theirs, ours = rows.pop()
        return f"its head gives {theirs} classes, the data has {ours}: use weights trained on these classes"
    name = differ[0]
    return f"holds the weights of another model: {name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"


def _read_torch(path: Path) -> Any:
    try:
        # Trainers keep their arguments beside the weights. A Namespace is a plain bag of attributes: making one runs
        # nothing, and what it holds passes the same guard.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or damaged file makes of a reader
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise UserError(
                f"holds pickled objects ({refused[1]}), which could run code when read: save `model.state_dict()` "
                "alone",
                where=path,
            ) from None
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0].split(". ")[0]
        reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        raise UserError(f"is no torch checkpoint, or is damaged ({reason})", where=path) from None


def _clean(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict):
        inner = next((content[place] for place in _PLACES if isinstance(content.get(place), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, no weights by name", where=path)
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    weights.pop("n_averaged", None)  # a count that torch's AveragedModel keeps among the weights
    if not weights:
        raise UserError("holds no weights by name", where=path)
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _fetch(url: str) -> Path:
    if url.startswith("hf://"):
        return _from_hub(url)
    # Two files of different models often share a name: the address is part of ours.
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    name = url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    target = Path(torch.hub.get_dir()) / "understudy" / f"{digest}-{name}"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target))
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"could not be fetched ({error})", where=url) from None
    return target


def _from_hub(url: str) -> Path:
    owner, _, rest = url.removeprefix("hf://").partition("/")
    name, _, file = rest.partition("/")
    if not name:
        raise UserError("wanted hf://OWNER/NAME, or hf://OWNER/NAME/FILE", where=url)
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(f"{owner}/{name}", file or "model.safetensors"))
    except ModuleNotFoundError:
        raise UserError("needs the package huggingface_hub: pip install 'understudy[hub]'", where=url) from None
    except Exception as error:  # the library wraps its reasons in many types
        raise UserError(f"could not be fetched ({str(error).split(chr(10))[0]})", where=url) from None
