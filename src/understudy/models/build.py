"""From a model's name in a recipe to a module."""

import copy
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from understudy.errors import UserError, did_you_mean
from understudy.models.resolution import fit_positions
from understudy.models.table import MODELS, REGISTERED
from understudy.models.trainable import train_only
from understudy.models.vit import check_patches
from understudy.recipe.check import model_problems
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
    for path, problem in model_problems(("model",), model):
        raise UserError(problem, where=".".join(map(str, path)))
    if model.size is not None:
        shape = (shape[0], model.size, model.size)
    try:
        module = _build(model, classes, shape, given)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot be built for {classes} classes and images {shape}: {reason}", where=model.name
        ) from error
    if model.weights is not None:
        from understudy.models.weights import load_weights

        load_weights(module, model.weights, new_head=model.new_head)
    train_only(module, model.trainable)
    module.combine_heads = model.answer  # pyright: ignore[reportArgumentType] (read by `one_answer`)
    return module.train()


def _build(model: Model, classes: int, shape: Shape, given: Any) -> nn.Module:
    name = model.name
    if name.startswith("python:"):
        return _from_object(name, given)
    if name.startswith("timm/"):
        return _from_timm(model, classes, shape)
    if name.startswith("torchvision/"):
        return _from_torchvision(model, classes, shape)
    if name.startswith("hf/"):
        return _from_transformers(model, classes, shape)
    if name in REGISTERED:
        builder, fixed = REGISTERED[name], {}
    elif name in MODELS:
        entry = MODELS[name]
        builder, fixed = getattr(import_module(entry.module), entry.function), entry.fixed
    else:
        from understudy.models.store import load

        return load(name)
    arguments = {"classes": classes, "shape": shape, **fixed, **model.options}
    accepted = inspect.signature(builder).parameters
    if "given" in accepted:  # it builds a model of ours that holds one of the user's
        arguments["given"] = given
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
        raise UserError(f"timm has no model '{name}', {did_you_mean(name, timm.list_models())}")
    options = {"in_chans": shape[0], **model.options}

    def create(*, pretrained: bool, **sized: Any) -> nn.Module:
        arguments = {**sized, **options}
        return online(
            lambda: timm.create_model(name, pretrained=pretrained, num_classes=classes, **arguments), model.name
        )

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:  # a network for images of any size
        return create(pretrained=model.pretrained)
    module: Any = _of_size(create, shape[1:], None if not model.pretrained else tuple(config.input_size[1:]))
    check_patches(module)
    if hasattr(module, "set_distilled_training"):
        module.set_distilled_training(True)  # in training both heads' logits, not their mean
    return module


def _of_size(create: Callable[..., nn.Module], size: tuple[int, int], trained: tuple[int, ...] | None) -> nn.Module:
    """A network made for images of one size; pretrained at another, its position embedding is interpolated as DeiT's.

    timm would interpolate with antialiasing, which the original does not; it is left to timm where more than the
    position embedding depends on the size.
    """
    if trained is None or trained == size:
        return create(pretrained=trained is not None, img_size=size)
    module = create(pretrained=False, img_size=size)
    weights = fit_positions(create(pretrained=True).state_dict(), module)
    ours = module.state_dict()
    if ours.keys() != weights.keys() or any(ours[key].shape != weights[key].shape for key in ours):
        return create(pretrained=True, img_size=size)
    module.load_state_dict(weights)
    return module


def _from_torchvision(model: Model, classes: int, shape: Shape) -> nn.Module:
    from torchvision import models

    name = model.name.removeprefix("torchvision/")
    if name not in models.list_models(module=models):
        near = did_you_mean(name, models.list_models(module=models))
        raise UserError(f"torchvision has no classifier '{name}', {near}")
    _check_channels(3, shape, model.name)
    if not model.pretrained:
        return models.get_model(name, num_classes=classes, **model.options)
    module = online(lambda: models.get_model(name, weights="DEFAULT", **model.options), model.name)
    _replace_head(module, classes)
    return module


def _replace_head(module: nn.Module, classes: int) -> None:
    """Give a pretrained classifier a new last linear layer when its class count differs."""
    kinds = (nn.Linear, nn.Conv2d)  # SqueezeNet ends in a convolution
    name, head = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)][-1]
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, classes) if head.out_features != classes else head
    else:
        new = nn.Conv2d(head.in_channels, classes, 1) if head.out_channels != classes else head
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new)


def _check_channels(wanted: int, shape: Shape, name: str) -> None:
    if shape[0] != wanted:
        raise UserError(
            f"takes images of {wanted} channels, the data has {shape[0]}: take a timm model (its first layer is "
            "adapted), or read the images with data.channels",
            where=name,
        )


def _from_transformers(model: Model, classes: int, shape: Shape) -> nn.Module:
    transformers = extra("transformers", "hub")
    name = model.name.removeprefix("hf/")

    def create() -> nn.Module:
        if model.pretrained:
            return transformers.AutoModelForImageClassification.from_pretrained(
                name, num_labels=classes, ignore_mismatched_sizes=True, use_safetensors=True, **model.options
            )
        config = transformers.AutoConfig.from_pretrained(name, num_labels=classes, **model.options)
        return transformers.AutoModelForImageClassification.from_config(config)

    module = online(create, model.name)
    _check_channels(getattr(module.config, "num_channels", shape[0]), shape, model.name)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return module


def online(create: Callable[[], nn.Module], name: str) -> nn.Module:
    """Run something that may fetch weights; a network that is not there is the user's to know about."""
    try:
        return create()
    except Exception as error:
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and library not in ("requests", "httpx", "urllib3", "huggingface_hub"):
            raise
        reason = str(error).split("\n")[0]
        raise UserError(f"its files could not be fetched or read ({reason})", where=name) from error


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
