"""Reads weights from files of any maker, without ever running what is in them."""

import pickle
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
    path = _fetch(str(source)) if "://" in str(source) else Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError("no such file", where=path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise UserError(f"is no safetensors file, or is damaged ({error})", where=path) from None
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
    for name, tensor in found.items():
        if tensor.shape == wanted[name].shape:
            continue
        if name == list(wanted)[-1] or tensor.shape[1:] == wanted[name].shape[1:]:
            raise UserError(
                f"its head gives {len(tensor)} classes, the data has {len(wanted[name])}: use weights trained on these "
                "classes",
                where=source,
            )
        raise UserError(
            f"holds the weights of another model: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}",
            where=source,
        )
    module.load_state_dict(found)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            "holds pickled objects, which could run code when read: save `model.state_dict()`, not the whole model",
            where=path,
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"is no torch checkpoint, or is damaged ({str(error).splitlines()[0]})", where=path) from None


def _clean(content: Any, path: Path) -> dict[str, Tensor]:
    for place in _PLACES:
        if isinstance(content, dict) and isinstance(content.get(place), dict):
            content = content[place]
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, no weights by name", where=path)
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError("holds no weights by name", where=path)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _fetch(url: str) -> Path:
    if url.startswith("hf://"):
        from huggingface_hub import hf_hub_download

        owner, name, *file = url.removeprefix("hf://").split("/")
        return Path(hf_hub_download(f"{owner}/{name}", "/".join(file) or "model.safetensors"))
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target))
        except OSError as error:
            raise UserError(f"could not be fetched ({error})", where=url) from None
    return target
