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

from understudy.errors import UserError, did_you_mean
from understudy.models.resolution import fit_positions

# Where trainers put the weights inside their checkpoints, the likeliest first.
_PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_LAYER_SCALE = re.compile(r"\bgamma_(\d)$")


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, a torch checkpoint, a saved folder or a URL.

    Checkpoints of trainers are looked into (`state_dict`, `state_dict_ema`, `model`, `model_ema`), the prefixes of
    DistributedDataParallel and `torch.compile` are taken off. Torch files are read with `weights_only`.

    Args:
        source: path or URL. Of a checkpoint that holds several sets of weights, `SOURCE#model` names the one wanted;
            by default a moving average comes first. (DeiT's code saves one, and evaluates `model`.)

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: no such file, damaged, a pickled module, or no weights inside.
    """
    place, path = _found(str(source))
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError("no such file", where=path)
    if path.suffix == ".safetensors":
        if place:
            raise UserError(f"a safetensors file holds one set of weights: leave '#{place}' out", where=path)
        try:
            content = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"is no safetensors file, or is damaged ({error})", where=path) from None
        return _clean(content, path)
    return _clean(_entry(_read_torch(path), place, path), path)


def load_weights(module: nn.Module, source: str | Path, *, new_head: bool = False) -> None:
    """Put weights from a file into a module; every tensor must find its place.

    Of a vision transformer the position embedding is interpolated where the module sees images of another size, and
    the names of the original DeiT-III are known.

    Args:
        module: what is loaded into.
        source: as `read_weights` takes it.
        new_head: leave the layers that give the logits as they are, for other classes than the weights know.

    Raises:
        UserError: the file cannot be read, or holds the weights of another model or number of classes.
    """
    found = fit_positions(_renamed(read_weights(source), module), module)
    wanted = module.state_dict()
    if new_head:
        heads = tuple(f"{name}." for name in head_names(module))
        found = {name: value for name, value in found.items() if not name.startswith(heads)}
        found |= {name: value for name, value in wanted.items() if name.startswith(heads)}
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
        return (
            f"its head gives {theirs} classes, the data has {ours}: use weights trained on these classes, or "
            "new_head: true to train a new head"
        )
    name = differ[0]
    return f"holds the weights of another model: {name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"


def head_names(module: nn.Module) -> tuple[str, ...]:
    """The layers that give a classifier's logits: what timm declares, else DeiT's two, else the last linear layer."""
    declared = (getattr(module, "pretrained_cfg", None) or {}).get("classifier")
    if declared:
        return (declared,) if isinstance(declared, str) else tuple(declared)
    children = dict(module.named_children())
    if "head" in children and "head_dist" in children:
        return ("head", "head_dist")
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError(f"{type(module).__name__} has no linear layer that could be a new head")
    return (linear[-1],)


def _renamed(found: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights with the names that a module uses: DeiT-III's layer scales are `gamma_1`, in timm `ls1.gamma`."""
    wanted = module.state_dict().keys()
    renamed = {_LAYER_SCALE.sub(r"ls\1.gamma", name): value for name, value in found.items()}
    return renamed if not wanted - renamed.keys() else found


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


def _entry(content: Any, place: str, path: Path) -> Any:
    """The set of weights of that name in a checkpoint; the whole where none is named."""
    if not place:
        return content
    held = content.items() if isinstance(content, dict) else ()
    entries = [str(key) for key, value in held if isinstance(value, dict)]
    if place not in entries:
        raise UserError(f"holds no weights '{place}', {did_you_mean(place, entries)}", where=path)
    return content[place]


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


def _found(source: str) -> tuple[str, Path]:
    """Which of a checkpoint's weights are meant, and its file, fetched where it is remote."""
    if "://" in source:
        url, _, place = source.partition("#")
        return place, _fetch(url)
    whole = Path(source).expanduser()
    if "#" not in source or whole.exists():
        return "", whole
    path, _, place = source.rpartition("#")
    return place, Path(path).expanduser()


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
