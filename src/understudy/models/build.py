"""From a model's name in a recipe to a module."""

import copy
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from understudy.errors import UserError
from understudy.models.table import MODELS, REGISTERED
from understudy.recipe.schema import Model

Shape = tuple[int, int, int]


def add(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Make a builder known to recipes under a name; use as a decorator.

    Args:
        name: the name in recipes. The builder is called with `classes`, `shape` and the recipe's further keys.
    """

    def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        REGISTERED[name] = builder
        return builder

    return register


def build(model: Model, *, classes: int, shape: Shape, given: Any = None) -> nn.Module:
    """Build the module that a recipe describes, with its starting weights.

    Args:
        model: the recipe's description.
        classes: number of logits wanted.
        shape: (C, H, W) of the images it will see.
        given: for a name `python:...`, the module (copied) or the callable that makes one.

    Returns:
        A module in training mode. Random weights come from torch's global generator.

    Raises:
        UserError: the name, an option or the weights do not fit.
    """
    try:
        module = _build(model, classes, shape, given)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot be built for {classes} classes and images {shape}: {reason}", where=model.name
        ) from error
    if model.weights is not None:
        from understudy.models.weights import load_weights

        load_weights(module, model.weights)
    return module.train()


def _build(model: Model, classes: int, shape: Shape, given: Any) -> nn.Module:
    name = model.name
    if name.startswith("python:"):
        return _from_object(name, given)
    if name.startswith("timm/"):
        return _from_timm(model, classes, shape)
    if name.startswith("torchvision/"):
        return _from_torchvision(model, classes)
    if name.startswith("hf/"):
        return _from_transformers(model, classes)
    if Path(name).is_dir():
        from understudy.models.store import load

        return load(name)
    if name in REGISTERED:
        builder, fixed = REGISTERED[name], {}
    else:
        entry = MODELS[name]
        builder, fixed = getattr(import_module(entry.module), entry.function), entry.fixed
    arguments = {"classes": classes, "shape": shape, **fixed, **model.options}
    accepted = inspect.signature(builder).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()):
        arguments = {key: value for key, value in arguments.items() if key in accepted or key in model.options}
    return builder(**{key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()})


def _from_object(name: str, given: Any) -> nn.Module:
    if given is None:
        raise UserError(f"'{name}' was given as an object in Python: pass the same object again")
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    module = given()
    if not isinstance(module, nn.Module):
        raise UserError(f"calling it gave a {type(module).__name__}, not a torch module", where=name)
    return module


def _from_timm(model: Model, classes: int, shape: Shape) -> nn.Module:
    timm = extra("timm", "vit")
    name = model.name.removeprefix("timm/")
    if not timm.is_model(name):
        from understudy.errors import did_you_mean

        raise UserError(f"timm has no model '{name}', {did_you_mean(name, timm.list_models())}")
    options = {"in_chans": shape[0], **model.options}
    return _online(
        lambda: timm.create_model(name, pretrained=model.pretrained, num_classes=classes, **options),
        model.name,
    )


def _from_torchvision(model: Model, classes: int) -> nn.Module:
    from torchvision import models

    from understudy.errors import did_you_mean

    name = model.name.removeprefix("torchvision/")
    if name not in models.list_models(module=models):
        near = did_you_mean(name, models.list_models(module=models))
        raise UserError(f"torchvision has no classifier '{name}', {near}")
    if not model.pretrained:
        return models.get_model(name, num_classes=classes, **model.options)
    module = _online(lambda: models.get_model(name, weights="DEFAULT", **model.options), model.name)
    _replace_head(module, classes)
    return module


def _replace_head(module: nn.Module, classes: int) -> None:
    """Give a pretrained classifier a new last linear layer when its class count differs."""
    name, head = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]
    if head.out_features == classes:
        return
    parent = module.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Linear(head.in_features, classes))


def _from_transformers(model: Model, classes: int) -> nn.Module:
    transformers = extra("transformers", "hub")
    name = model.name.removeprefix("hf/")

    def create() -> nn.Module:
        if model.pretrained or model.weights is None:
            return transformers.AutoModelForImageClassification.from_pretrained(
                name, num_labels=classes, ignore_mismatched_sizes=True, use_safetensors=True, **model.options
            )
        config = transformers.AutoConfig.from_pretrained(name, num_labels=classes, **model.options)
        return transformers.AutoModelForImageClassification.from_config(config)

    return _online(create, model.name)


def _online(create: Callable[[], nn.Module], name: str) -> nn.Module:
    """Run something that may fetch weights; a network that is not there is the user's to know about."""
    try:
        return create()
    except (OSError, RuntimeError) as error:
        offline = type(error).__module__.split(".")[0] in ("requests", "httpx", "urllib", "huggingface_hub")
        if offline or isinstance(error, OSError):
            reason = str(error).splitlines()[0]
            raise UserError(f"its files could not be fetched or read ({reason})", where=name) from error
        raise


def extra(module: str, name: str) -> Any:
    """Import a library that only an extra installs.

    Args:
        module: the library.
        name: of the extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"needs the package {module}: pip install 'understudy[{name}]'") from None
