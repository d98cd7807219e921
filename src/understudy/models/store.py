"""Saves a model to a folder that its own library can read, and loads it again."""

import errno
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from understudy.data.prepare import Preprocess
from understudy.distill.ensemble import Ensemble, Member
from understudy.errors import UserError
from understudy.models.table import REGISTERED
from understudy.models.vit import as_timm
from understudy.recipe.schema import Model


@dataclass(frozen=True)
class Card:
    """What a saved model must know about itself, kept in its config.json under `understudy`.

    Args:
        model: the recipe's description, enough to build it again.
        classes: class names, one a logit.
        shape: (C, H, W) of the images it was trained on, before its own preprocessing.
        preprocess: from pixels to its input.
        fingerprint: of the recipe that trained it; empty when brought from elsewhere.
        text: the model card's body, in Markdown.
    """

    model: dict[str, Any]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocess: Preprocess
    fingerprint: str = ""
    text: str = ""


def save(module: nn.Module, folder: Path, card: Card) -> None:
    """Write `model.safetensors`, `config.json` and the model card README.md.

    Models of timm and transformers are written in their library's own layout. Tensor names are the module's own.

    Args:
        module: the model alone, without adapters or teacher.
        folder: made if missing; files of an earlier save are replaced.
        card: what it must know about itself.
    """
    if isinstance(module, Ensemble):  # loaded from a folder, as its members were
        save_ensemble(module, folder, [member.card for member in module.members])  # pyright: ignore[reportArgumentType]
        return
    origin: Card | None = getattr(module, "card", None)
    if origin is not None:  # it was itself loaded from a folder, which may be gone when this one is read
        card = replace(card, model=origin.model)
    folder.mkdir(parents=True, exist_ok=True)
    name = card.model["name"]
    config: dict[str, Any] = {"architecture": name}
    if _is_timm(card):
        config = _timm_config(module, card)
    if name.startswith("hf/"):
        config = _transformers_config(module, card)
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in module.state_dict().items()}
    write_tensors(tensors, folder / "model.safetensors")
    about = asdict(card)
    about.pop("text")
    (folder / "config.json").write_text(json.dumps({**config, "understudy": about}, indent=2) + "\n")
    (folder / "README.md").write_text(_readme(module, card))


def save_ensemble(ensemble: Ensemble, folder: Path, cards: Sequence[Card]) -> None:
    """Write every member of an ensemble to a folder of its own, numbered from 1, and what binds them.

    Args:
        ensemble: whose members are saved.
        folder: made if missing.
        cards: one for each member; the first's classes and image shape are the ensemble's.
    """
    for number, (member, card) in enumerate(zip(ensemble.members, cards, strict=True), 1):
        save(member, folder / str(number), card)
    about = asdict(replace(cards[0], model={"name": "ensemble", "shares": ensemble.shares}, preprocess=Preprocess()))
    about.pop("text")
    (folder / "config.json").write_text(json.dumps({"architecture": "ensemble", "understudy": about}, indent=2) + "\n")


def _load_ensemble(folder: Path, card: Card) -> Ensemble:
    """The members of a saved ensemble, each asked in its own way, its classes brought into one order."""
    members = [load(folder / str(number)) for number in range(1, len(card.model["shares"]) + 1)]
    asked = []
    for member, share in zip(members, card.model["shares"], strict=True):
        own: Any = member.card
        columns = None if own.classes == card.classes else [own.classes.index(name) for name in card.classes]
        asked.append(Member(own.preprocess, columns, share))
    return Ensemble(members, asked)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full or fails, which safetensors tells by an exception of its own.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        full = f"os error {errno.ENOSPC}" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error


def _is_timm(card: Card) -> bool:
    """Whether timm can build the model: one of its own, or our `vit`, which is one of its classes at other sizes."""
    name = card.model["name"]
    return name.startswith("timm/") or (name == "vit" and name not in REGISTERED)


def _timm_config(module: Any, card: Card) -> dict[str, Any]:
    pretrained = dict(module.pretrained_cfg)
    preprocess = card.preprocess
    height, width = 2 * [preprocess.size] if preprocess.size else card.shape[1:]
    options = {key: value for key, value in card.model.items() if key not in Model.model_fields}
    architecture, arguments = card.model["name"].removeprefix("timm/"), {"in_chans": card.shape[0], **options}
    if architecture == "vit":
        architecture, arguments = as_timm(shape=(card.shape[0], height, width), **options)
    pretrained |= {
        "num_classes": len(card.classes),
        "input_size": [card.shape[0], height, width],
        "mean": list(preprocess.mean or card.shape[0] * (0.0,)),
        "std": list(preprocess.std or card.shape[0] * (1.0,)),
        "label_names": list(card.classes),
    }
    return {
        "architecture": architecture,
        "num_classes": len(card.classes),
        "num_features": module.num_features,
        "pretrained_cfg": {key: value for key, value in pretrained.items() if value is not None},
        "model_args": arguments,
    }


def _transformers_config(module: Any, card: Card) -> dict[str, Any]:
    names = dict(enumerate(card.classes))
    return {
        **module.config.to_dict(),
        "architectures": [type(module).__name__],
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }


def read_card(folder: str | Path) -> Card:
    """Read what a saved model knows about itself.

    Raises:
        UserError: the folder holds no model saved by understudy.
    """
    path = Path(folder) / "config.json"
    try:
        about = json.loads(path.read_text())["understudy"]
        wanted = about["preprocess"]
        mean, std = (value and tuple(value) for value in (wanted["mean"], wanted["std"]))
        return Card(
            model=about["model"],
            classes=tuple(about["classes"]),
            shape=tuple(about["shape"]),
            preprocess=Preprocess(wanted["size"], mean, std),
            fingerprint=about.get("fingerprint", ""),
        )
    except FileNotFoundError:
        raise UserError(
            "no such file: give the folder of a saved model, such as runs/NAME/1/student", where=path
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError("is not a config.json written by understudy", where=path) from None


def load(folder: str | Path, *, given: Any = None) -> nn.Module:
    """Load a model saved by understudy.

    Args:
        folder: holds `model.safetensors` and `config.json`; for a run's folder, its student is taken.
        given: where the model was an object in Python: a module of the same layers, or a callable that makes one.

    Returns:
        The module in evaluation mode, with the attribute `card` (class names, preprocessing).

    Raises:
        UserError: no such model, or its files do not fit together.
    """
    from understudy.models.build import build, extra, online
    from understudy.models.weights import load_weights

    folder = Path(folder)
    if (folder / "student" / "config.json").is_file():
        folder = folder / "student"
    card = read_card(folder)
    if card.model["name"] == "ensemble":
        ensemble: Any = _load_ensemble(folder, card)
        ensemble.card = card
        return ensemble.eval()
    model = Model.model_validate({**card.model, "weights": None, "pretrained": False})
    if model.name.startswith("hf/"):
        kind = extra("transformers", "hub").AutoModelForImageClassification
        module: Any = online(lambda: kind.from_pretrained(folder, use_safetensors=True), str(folder))
    else:
        module = build(model, classes=len(card.classes), shape=card.shape, given=given)
        load_weights(module, folder / "model.safetensors")
    module.card = card
    return module.eval()


def _readme(module: nn.Module, card: Card) -> str:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    preprocess = "divided by 255"
    if card.preprocess.size is not None:
        preprocess = f"resized to {card.preprocess.size} pixels, {preprocess}"
    if card.preprocess.mean is not None:
        preprocess += f", normalised with mean {card.preprocess.mean} and std {card.preprocess.std}"
    given = f", given={type(module).__name__}(...)" if card.model["name"].startswith("python:") else ""
    return f"""---
library_name: {_library(card)}
pipeline_tag: image-classification
tags: [knowledge-distillation, understudy]
---
# {card.model["name"]}

{card.text or "A classifier saved by understudy."}

- parameters: {parameters:,}
- images: {" x ".join(map(str, card.shape))} (channels, height, width)
- input: pixels from 0 to 255, {preprocess}
- classes: {", ".join(card.classes[:20])}{", …" if len(card.classes) > 20 else ""}

```python
import understudy

model = understudy.load("path/to/this/folder"{given})
```

Without understudy:

```python
{_plain_code(module, card)}
```
"""


def _library(card: Card) -> str:
    """Whose layout the model is saved in."""
    if _is_timm(card):
        return "timm"
    library, slash, _ = card.model["name"].partition("/")
    return library if slash else "pytorch"


def _plain_code(module: nn.Module, card: Card) -> str:
    """Python that loads the model with nothing but its own library."""
    library, name = _library(card), card.model["name"].partition("/")[2]
    if library == "timm":
        return (
            "import timm\n\n"
            'model = timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()\n'
            "logits = model(images)"
        )
    if library == "hf":
        return (
            "from transformers import AutoModelForImageClassification\n\n"
            'model = AutoModelForImageClassification.from_pretrained("path/to/this/folder").eval()\n'
            "logits = model(images).logits"
        )
    imports, made = "from torch import nn", _layer_code(module)
    if library == "torchvision":
        options = {key: value for key, value in card.model.items() if key not in Model.model_fields}
        imports = "from torchvision.models import get_model"
        made = f'get_model("{name}", **{ {"num_classes": len(card.classes), **options} })'
    elif made is None:
        kind = type(module)
        imports = f"from {kind.__module__} import {kind.__qualname__}"
        made = f"{kind.__qualname__}(...)  # with the arguments it was made with"
    return (
        "from collections import OrderedDict\n\n"
        * ("OrderedDict" in made)
        + f"from safetensors.torch import load_file\n{imports}\n\n"
        f"model = {made}\n"
        'model.load_state_dict(load_file("path/to/this/folder/model.safetensors"))\n'
        "model.eval()\n"
        "logits = model(images)"
    )


def _layer_code(module: nn.Module, depth: int = 0) -> str | None:
    """Python that makes a sequence of torch's own layers, whose repr is their call; None for anything else."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        inner = {name: _layer_code(layer, depth + 1) for name, layer in module.named_children()}
        if None in inner.values():
            return None
        margin = "    " * (depth + 1)
        rows = "".join(f'{margin}("{name}", {code}),\n' for name, code in inner.items())
        return f"nn.Sequential(OrderedDict([\n{rows}{margin[4:]}]))"
    has_own_repr = type(module).__module__.startswith("torch.nn.modules.") and not list(module.children())
    return f"nn.{module!r}" if has_own_repr else None
