"""Taps: places in a model, by module path, whose output is read during a forward. The model is not edited."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from understudy.errors import UserError, did_you_mean

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class StopForward(Exception):
    """Raised by the deepest tap to end a forward whose rest is not needed."""


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a model returns.

    A tensor is the logits; of a tuple or list it is the first; of a mapping or a transformers output, `logits`.

    Args:
        output: what the model's forward returned.

    Raises:
        UserError: no tensor stands at that place.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):  # transformers' outputs are mappings too
        logits, found = output.get("logits"), f"a mapping of {', '.join(map(str, output))}"
    else:
        logits = output[0] if isinstance(output, (tuple, list)) and output else None
        found = f"a {type(output).__name__}"
    if isinstance(logits, Tensor):
        return logits
    raise UserError(f"the model returns {found}: wanted logits as a tensor, first of a tuple, or under 'logits'")


def find(module: nn.Module, pattern: str | Iterable[str]) -> tuple[str, ...]:
    """The module paths that a pattern means, in the order of the model.

    Args:
        module: the model.
        pattern: a path, a path with globs (`layer[1-4]`, `blocks.*.attn`), several of them, `auto` for the ends of
            its stages (`last`: the deepest), `blocks` for its first two blocks and the last, or `embedding` for what
            its last linear layer gets. `PATH:input` means what goes into a module.

    Raises:
        UserError: a pattern fits no module; the message lists the near ones.
    """
    if pattern in ("auto", "last"):
        return stage_ends(module)
    if pattern == "blocks":
        blocks = _blocks(module)
        return (*blocks[:2], blocks[-1]) if len(blocks) > 2 else blocks
    if pattern == "embedding":
        return (f"{head(module)[0]}:input",)
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    names = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for whole in patterns:
        wanted, colon, end = whole.partition(":")
        if colon and end != "input":
            raise UserError(f"'{whole}' is no tap: a path may end in ':input' and nothing else")
        depth = wanted.count(".")
        fits = [name for name in names if name.count(".") == depth and fnmatch.fnmatchcase(name, wanted)]
        if not fits:
            raise UserError(f"no module '{wanted}' in {type(module).__name__}, {did_you_mean(wanted, names)}")
        found += [name + colon + end for name in fits if name + colon + end not in found]
    return tuple(found)


def head(module: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer of a classifier, which turns the embedding into logits, with its path.

    Raises:
        UserError: it has none.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UserError(f"{type(module).__name__} has no linear layer: tap the embedding by its path")
    return layers[-1]


def stage_ends(module: nn.Module) -> tuple[str, ...]:
    """The places that distillation papers tap: what the model declares, else the ends of its stages.

    A model declares them as `tap_points`, timm's as `feature_info`. Else the stages are the children, made of further
    modules, of the module that holds the trunk; the head is none. More than five (a transformer's blocks) are
    divided in four, and the ends taken.

    Args:
        module: any model.

    Returns:
        Module paths, shallow to deep.
    """
    declared = getattr(module, "tap_points", None)
    if declared:
        return tuple(declared)
    names = dict(module.named_modules())
    listed = tuple(path for path in _listed(module) if path in names)
    if listed:
        return listed[-1:] if len(listed) < 3 else _spread(listed, 5)
    return _spread(_stages(module), 5)


def _listed(module: nn.Module) -> tuple[str, ...]:
    """What timm says of a model's features."""
    info = getattr(module, "feature_info", None)
    return tuple(entry.get("module", "") for entry in info) if isinstance(info, list) else ()


def _blocks(module: nn.Module) -> tuple[str, ...]:
    """Every block of a trunk, shallow to deep."""
    return _listed(module) or _stages(module)


def _stages(module: nn.Module) -> tuple[str, ...]:
    """The children that are stages: those made of further modules, without the head and the stem's single layers."""
    children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    inner = {name: child for name, child in children.items() if list(child.children()) and not _is_head(child)}
    if not inner:
        layers = [name for name, child in children.items() if not isinstance(child, _NORMS)]
        if len(layers) == 1 and list(children[layers[0]].children()):
            return _below(layers[0], children[layers[0]])
        return tuple(layers[:-1] if len(layers) > 1 and isinstance(children[layers[-1]], nn.Linear) else layers)
    sizes = {name: sum(parameter.numel() for parameter in child.parameters()) for name, child in inner.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    alike = sum(type(child) is type(inner[largest]) for child in inner.values())
    if alike == 1 and sizes[largest] >= 0.8 * sum(sizes.values()):
        return _below(largest, inner[largest])  # a trunk by itself, such as `features` or `encoder`
    return tuple(inner)


def _below(name: str, child: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}.{path}" for path in _stages(child)) or (name,)


def _is_head(module: nn.Module) -> bool:
    """Whether it is a few linear layers, perhaps with a norm."""
    learning = [part for part in module.modules() if part._parameters]
    flat = any(isinstance(child, nn.Linear) for child in module.children())
    return flat and all(isinstance(part, (nn.Linear, *_NORMS)) for part in learning)


def _spread(names: tuple[str, ...], most: int) -> tuple[str, ...]:
    if len(names) <= most:
        return names
    return tuple(names[round((index + 1) * len(names) / 4) - 1] for index in range(4))


@contextmanager
def tapped(module: nn.Module, paths: Iterable[str], *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Read modules' outputs during the forwards inside the block.

    Args:
        module: the model.
        paths: exact module paths.
        stop: end the forward once all taps were reached, by raising `StopForward`.

    Yields:
        A dictionary that each forward fills anew: path to output. Hooks are gone after the block, also on errors.
    """
    features: dict[str, Tensor] = {}
    wanted = tuple(dict.fromkeys(paths))
    hooks = []

    def keep(path: str, value: Any) -> None:
        if path in features:
            raise UserError(f"the module '{path}' runs several times in a forward: tap one that runs once")
        features[path] = _tensor_of(value, path)
        if stop and len(features) == len(wanted):
            raise StopForward

    def hook(path: str) -> Any:
        place = module.get_submodule(path.removesuffix(":input"))
        if path.endswith(":input"):
            return place.register_forward_pre_hook(lambda _module, inputs: keep(path, inputs))
        return place.register_forward_hook(lambda _module, _inputs, output: keep(path, output))

    try:
        hooks.append(module.register_forward_pre_hook(lambda _module, _inputs: features.clear()))
        for path in wanted:
            hooks.append(hook(path))
        yield features
    finally:
        for handle in hooks:
            handle.remove()


def _tensor_of(output: Any, path: str) -> Tensor:
    output = getattr(output, "last_hidden_state", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise UserError(f"the module '{path}' gives a {type(output).__name__}, no tensor: tap another")
    return output


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the mode it was in after it, also on errors."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def shapes(module: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The output shape of every module that gives a tensor, in the order of the model.

    Args:
        module: any model; its mode is kept.
        example: an input batch.
    """
    found: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, child in module.named_modules():
        if not name:
            continue

        def note(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor):
                found[name] = tuple(first.shape)

        hooks.append(child.register_forward_hook(note))
    try:
        with torch.no_grad(), evaluating(module):
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found[name] for name, _ in module.named_modules() if name in found}
