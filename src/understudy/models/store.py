"""Saves a model to a folder that its own library can read, and loads it again."""

import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from understudy.data.prepare import Preprocess
from understudy.errors import UserError
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
    folder.mkdir(parents=True, exist_ok=True)
    name = card.model["name"]
    config: dict[str, Any] = {"architecture": name}
    if name.startswith("timm/"):
        config = _timm_config(module, card)
    if name.startswith("hf/"):
        config = module.config.to_dict()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in module.state_dict().items()}
    write_tensors(tensors, folder / "model.safetensors")
    about = asdict(card)
    about.pop("text")
    (folder / "config.json").write_text(json.dumps({**config, "understudy": about}, indent=2) + "\n")
    (folder / "README.md").write_text(_readme(module, card))


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


def _timm_config(module: Any, card: Card) -> dict[str, Any]:
    pretrained = dict(module.pretrained_cfg)
    preprocess = card.preprocess
    pretrained |= {
        "num_classes": len(card.classes),
        "input_size": [card.shape[0], *(2 * [preprocess.size] if preprocess.size else card.shape[1:])],
        "mean": list(preprocess.mean or card.shape[0] * (0.0,)),
        "std": list(preprocess.std or card.shape[0] * (1.0,)),
        "label_names": list(card.classes),
    }
    options = {key: value for key, value in card.model.items() if key not in Model.model_fields}
    return {
        "architecture": card.model["name"].removeprefix("timm/"),
        "num_classes": len(card.classes),
        "num_features": module.num_features,
        "pretrained_cfg": {key: value for key, value in pretrained.items() if value is not None},
        "model_args": {"in_chans": card.shape[0], **options},
    }


def read_card(folder: str | Path) -> Card:
    """Read what a saved model knows about itself.

    Raises:
        UserError: the folder holds no model saved by understudy.
    """
    path = Path(folder) / "config.json"
    try:
        about = json.loads(path.read_text())["understudy"]
    except FileNotFoundError:
        raise UserError(
            "no such file: give the folder of a saved model, such as runs/NAME/1/student", where=path
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError("is not a config.json written by understudy", where=path) from None
    wanted = about["preprocess"]
    return Card(
        model=about["model"],
        classes=tuple(about["classes"]),
        shape=tuple(about["shape"]),
        preprocess=Preprocess(wanted["size"], *(value and tuple(value) for value in (wanted["mean"], wanted["std"]))),
        fingerprint=about.get("fingerprint", ""),
    )


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
    from understudy.models.build import build
    from understudy.models.weights import load_weights

    folder = Path(folder)
    if (folder / "student" / "config.json").is_file():
        folder = folder / "student"
    card = read_card(folder)
    model = Model.model_validate({**card.model, "weights": None, "pretrained": False})
    if model.name.startswith("hf/"):
        import transformers

        module: Any = transformers.AutoModelForImageClassification.from_pretrained(folder)
    else:
        module = build(model, classes=len(card.classes), shape=card.shape, given=given)
        load_weights(module, folder / "model.safetensors")
    module.card = card
    return module.eval()


def _readme(module: nn.Module, card: Card) -> str:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    layers = repr(module) if len(repr(module)) < 4000 else f"{type(module).__name__}, {card.model['name']}"
    preprocess = "pixels divided by 255"
    if card.preprocess.mean is not None:
        preprocess += f", then normalised with mean {card.preprocess.mean} and std {card.preprocess.std}"
    if card.preprocess.size is not None:
        preprocess = f"resized to {card.preprocess.size} pixels, {preprocess}"
    return f"""---
library_name: {card.model["name"].split("/")[0] if "/" in card.model["name"] else "pytorch"}
pipeline_tag: image-classification
tags: [knowledge-distillation, understudy]
---
# {card.model["name"]}

{card.text or "A classifier saved by understudy."}

- parameters: {parameters:,}
- input: {card.shape} images, {preprocess}
- classes: {", ".join(card.classes[:20])}{", …" if len(card.classes) > 20 else ""}

```python
import understudy

model = understudy.load("{"path/to/this/folder"}")
```

The tensors of `model.safetensors` carry the names of these layers, so plain torch loads them too:

```
{layers}
```
"""
