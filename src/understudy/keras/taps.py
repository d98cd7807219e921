"""Taps: layers of a model, by name, whose outputs are read in the one forward that a step makes."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import keras

from understudy.errors import UserError, did_you_mean

Tensor = Any
_INPUT = ":input"
# More stages than these (a transformer's blocks) are divided in so many, and the ends taken.
_STAGES = 4


def layers_of(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers of a model by path: their names, joined by `/` where models are nested."""
    found: dict[str, keras.layers.Layer] = {}
    for layer in model.layers:
        found[layer.name] = layer
        if isinstance(layer, keras.Model):
            found |= {f"{layer.name}/{path}": inner for path, inner in layers_of(layer).items()}
    return found


def find(model: keras.Model, pattern: str | Iterable[str], example: Tensor) -> tuple[str, ...]:
    """The layer paths that a pattern means, in the order of the model.

    Args:
        model: Functional, Sequential or subclassed.
        pattern: a path, a path with globs (`conv*`, `backbone/block_*_out`), several of them, `auto` for the last layer
            at each resolution (`last`: the deepest), or `embedding` for what the last Dense layer gets. `PATH:input`
            means what goes into a layer.
        example: an input batch, for the patterns that look at shapes.

    Raises:
        UserError: a pattern fits no layer; the message lists the near ones.
    """
    if pattern in ("auto", "last"):
        return stage_ends(model, example)
    layers = layers_of(model)
    if pattern == "embedding":
        heads = [path for path, layer in layers.items() if isinstance(layer, keras.layers.Dense)]
        if not heads:
            raise UserError(f"the model '{model.name}' has no Dense layer: tap the embedding by its layer's name")
        return (heads[-1] + _INPUT,)
    found: list[str] = []
    for whole in [pattern] if isinstance(pattern, str) else list(pattern):
        wanted = whole.removesuffix(_INPUT)
        depth = wanted.count("/")
        fits = [path for path in layers if path.count("/") == depth and fnmatch.fnmatchcase(path, wanted)]
        if not fits:
            raise UserError(f"no layer '{wanted}' in the model '{model.name}', {did_you_mean(wanted, layers)}")
        found += [path + whole[len(wanted) :] for path in fits if path + whole[len(wanted) :] not in found]
    return tuple(found)


def stage_ends(model: keras.Model, example: Tensor) -> tuple[str, ...]:
    """The last layer at each resolution of maps that a layer with weights reaches; of tokens, four along the depth."""
    layers = {path: layer for path, layer in layers_of(model).items() if not isinstance(layer, keras.Model)}
    shapes = shapes_at(model, layers, example)
    channels_first = keras.config.image_data_format() == "channels_first"
    ends: dict[tuple[int, ...], str] = {}
    reached: set[tuple[int, ...]] = set()
    for path, shape in shapes.items():
        if len(shape) != 4 or isinstance(layers[path], keras.layers.Normalization):
            continue
        size = shape[2:] if channels_first else shape[1:3]
        if layers[path].weights:
            reached.add(size)
        ends[size] = path
    maps = tuple(path for size, path in ends.items() if size in reached)
    if maps:
        return maps
    tokens = [path for path, shape in shapes.items() if len(shape) == 3 and "/" not in path]
    if len(tokens) <= _STAGES:
        return tuple(tokens)
    return tuple(tokens[round((index + 1) * len(tokens) / _STAGES) - 1] for index in range(_STAGES))


def shapes_at(model: keras.Model, paths: Iterable[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of what layers give for an example batch, in the order in which they run."""
    with recorded(model, paths, strict=False) as features:
        model(example, training=False)
        return {path: tuple(feature.shape) for path, feature in features.items() if hasattr(feature, "shape")}


class Tapped:
    """A model with some of its layers' outputs: one forward gives all.

    Of Functional and Sequential models the tapped layers become outputs of a second model over the same layers. In
    subclassed models, inside nested ones, and where a layer has several inputs or is used more than once, the layers
    are listened to while the model runs.

    Args:
        model: whose layers are tapped.
        paths: exact layer paths.
        output: whether the model's own output is wanted; without it, a Functional model stops at its deepest tap.
    """

    def __init__(self, model: keras.Model, paths: Iterable[str], *, output: bool = True) -> None:
        self.model = model
        self.paths = tuple(paths)
        self.graph = _graph(model, self.paths, output) if self.paths else None

    def __call__(self, inputs: Tensor, *, training: bool | None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Run the model once.

        Args:
            inputs: as the model takes them.
            training: the mode.

        Returns:
            Its output (None where it is not wanted), and the tapped features by path.
        """
        settings = {} if training is None else {"training": training}
        if self.graph is not None:
            outputs = self.graph(inputs, **settings)
            return outputs.get("output"), {path: outputs[f"tap {path}"] for path in self.paths}
        with recorded(self.model, self.paths) as features:
            output = self.model(inputs, **settings)
        return output, dict(features)


def _graph(model: keras.Model, paths: tuple[str, ...], output: bool) -> keras.Model | None:
    """A model over the same layers with the taps as outputs, where there is one graph to take them from."""
    functional = type(keras.Model(model.inputs, model.outputs)) if getattr(model, "inputs", None) else None
    # A class of its own may run other code than its graph.
    plain = functional is not None and type(model) in (functional, keras.Sequential)
    if not plain or len(model.inputs) != 1 or len(model.outputs) != 1:
        return None
    outputs = {"output": model.outputs[0]} if output else {}
    for path in paths:
        layer = model.get_layer(path.removesuffix(_INPUT)) if "/" not in path else None
        try:
            outputs[f"tap {path}"] = layer.input if path.endswith(_INPUT) else layer.output  # pyright: ignore[reportOptionalMemberAccess]
        except (AttributeError, ValueError):  # inside a nested model, never called, or called more than once
            return None
        if not isinstance(outputs[f"tap {path}"], keras.KerasTensor):
            return None
    try:
        return keras.Model(model.inputs[0], outputs, name=f"{model.name}_tapped")
    except ValueError:  # an output of another graph that the layer is part of
        return None


@contextmanager
def recorded(model: keras.Model, paths: Iterable[str], *, strict: bool = True) -> Iterator[Mapping[str, Tensor]]:
    """Keep what layers give (or get) while the model runs in the block; afterwards they are as before.

    Args:
        model: whose layers they are.
        paths: exact layer paths.
        strict: refuse a layer that runs more than once.
    """
    layers = layers_of(model)
    features: dict[str, Tensor] = {}
    changed: list[keras.layers.Layer] = []

    def keep(path: str, value: Tensor) -> None:
        if strict and path in features:
            raise UserError(f"the layer '{path}' runs several times in a forward: tap one that runs once")
        features[path] = value[0] if isinstance(value, (tuple, list)) and value else value

    def attributes(layer: keras.layers.Layer) -> dict[str, Any]:
        return vars(layer)  # pyright: ignore[reportReturnType]

    def listening(call: Callable[..., Any], wanted: list[str]) -> Callable[..., Any]:
        @wraps(call)
        def inner(*args: Any, **kwargs: Any) -> Any:
            value = call(*args, **kwargs)
            for path in wanted:
                keep(path, args[0] if path.endswith(_INPUT) and args else value)
            return value

        return inner

    by_layer: dict[str, list[str]] = {}
    for path in paths:
        by_layer.setdefault(path.removesuffix(_INPUT), []).append(path)
    try:
        for name, wanted in by_layer.items():
            # Past the layer's own bookkeeping of attributes: this one is gone again after the block.
            attributes(layers[name])["call"] = listening(layers[name].call, wanted)
            changed.append(layers[name])
        yield features
    finally:
        for layer in changed:
            attributes(layer).pop("call", None)
