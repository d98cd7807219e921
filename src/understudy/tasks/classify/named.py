"""Opens any model that answers images: one saved by a run, or one by its name with weights of anybody's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from understudy.data import Preprocess
from understudy.errors import UserError
from understudy.models import Card, build, load, load_weights, read_weights
from understudy.models.build import extra
from understudy.models.weights import head_names
from understudy.recipe.reader import Source, read_model
from understudy.tasks.classify.imagenet import imagenet_names

_SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_model(name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Open a model with its weights, its classes and how it wants its input.

    Args:
        name: the folder of a saved model or of a run; or the name of a model as in a recipe, such as
            `timm/deit_tiny_patch16_224`.
        options: for a name, the keys of a recipe's `student`: `weights` (path, URL, hub) or `pretrained`, `size`,
            `mean` and `std`, and the model's own.

    Returns:
        The module in evaluation mode with the attribute `card`. What comes by name has ImageNet's classes where it
        has as many, else numbers; ImageNet's normalisation unless timm or an option says otherwise.

    Raises:
        UserError: no such model, no weights, or they do not fit.
    """
    described = {"name": name, **(options or {})}
    if Path(name).is_dir():
        if options:
            raise UserError(f"is saved with what it needs: leave {', '.join(options)} out", where=name)
        return load(name)
    model = read_model(Source("arguments", {"model": described}))
    if not (model.pretrained or model.weights):
        raise UserError("comes without weights: give weights=FILE or pretrained=true", where=name)
    config = _timm_config(name)
    size = model.size or _last(config.get("input_size")) or _SIZE
    shape = (3, size, size)
    classes = int(config.get("num_classes") or 1000)
    bare = model.model_copy(update={"weights": None})
    module = build(bare, classes=classes, shape=shape)
    if model.weights is not None:
        found = _classes_in(module, model.weights)
        if found is not None and found != classes:
            classes = found
            module = build(bare, classes=classes, shape=shape)
        load_weights(module, model.weights)
    mean, std = model.mean or config.get("mean") or _MEAN, model.std or config.get("std") or _STD
    preprocess = Preprocess(mean=tuple(mean), std=tuple(std))
    names = imagenet_names(module, classes)
    named: Any = module
    named.card = Card(model.model_dump(mode="json"), names or tuple(map(str, range(classes))), shape, preprocess)
    named.is_nameless = not names
    return module.eval()


def _timm_config(name: str) -> dict[str, Any]:
    """What timm records of a model's weights: their input and number of classes; empty for others' models."""
    if not name.startswith("timm/"):
        return {}
    config = extra("timm", "vit").get_pretrained_cfg(name.removeprefix("timm/"))
    return {} if config is None else config.to_dict()


def _last(size: Any) -> int | None:
    return int(size[-1]) if size else None


def _classes_in(module: nn.Module, weights: str) -> int | None:
    """How many classes the head in a file of weights knows; None where it has no such layer."""
    found = read_weights(weights)
    head = found.get(f"{head_names(module)[0]}.weight")
    return None if head is None else len(head)
