"""The models of a recipe: built by name, loaded from a `.keras` file, or given in Python; and what they cost."""

import statistics
import time
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from understudy.errors import UserError, did_you_mean
from understudy.keras.operations import ops
from understudy.keras.taps import layers_of, shapes_at
from understudy.keras.teacher import Teacher
from understudy.tasks.keras.recipe import APPLICATIONS, KerasModel


def build(model: KerasModel, *, shape: tuple[int, ...], classes: int, given: Any = None) -> keras.Model:
    """Make a model of a recipe.

    Args:
        model: the recipe's `teacher` or `student`.
        shape: of one input.
        classes: number of logits.
        given: what was given in Python for a name `python:...`: a model, which is copied, or a callable that makes one.

    Raises:
        UserError: it cannot be made.
    """
    if given is not None:
        return _given(given)
    if model.is_saved:
        return load_model(Path(model.name).expanduser())
    if model.name.startswith(APPLICATIONS):
        return _application(model, shape=shape, classes=classes)
    if model.name == "mlp":
        hidden = [layers.Dense(units, activation="relu") for units in model.widths or (64,)]
        return keras.Sequential([keras.Input(shape), layers.Flatten(), *hidden, layers.Dense(classes)])
    return strided_cnn(shape=shape, classes=classes, widths=model.widths or (256, 512))


def strided_cnn(*, shape: tuple[int, ...], classes: int, widths: tuple[int, ...] = (256, 512)) -> keras.Model:
    """The network of Keras' distillation example: strided convolutions, one overlapping pool, one Dense layer.

    Reference: Borup, "Knowledge Distillation", Keras code examples, 2020
    (https://keras.io/examples/vision/knowledge_distillation).

    Args:
        shape: (H, W, C) of one image.
        classes: number of logits.
        widths: channels of the convolutions; the first is followed by LeakyReLU and the pool.
    """
    stack: list[Any] = [keras.Input(shape)]
    for index, width in enumerate(widths):
        stack.append(layers.Conv2D(width, 3, strides=2, padding="same", name=f"conv{index + 1}"))
        if index == 0:
            stack.append(layers.LeakyReLU(negative_slope=0.2, name="activation"))
            stack.append(layers.MaxPooling2D(2, strides=1, padding="same", name="pool"))
    return keras.Sequential([*stack, layers.Flatten(name="flatten"), layers.Dense(classes, name="head")])


def load_model(path: Path) -> keras.Model:
    """Load a `.keras` file; code in it is never run.

    Raises:
        UserError: it is missing or none.
    """
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)  # pyright: ignore[reportReturnType]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot be loaded as a Keras model: {error}", where=path) from None


def check_saving(model: keras.Model, where: str) -> None:
    """Refuse a model that could be saved but not loaded again, before it is trained.

    Raises:
        UserError: it holds a class or function that Keras cannot find by name.
    """
    try:
        packed = keras.saving.serialize_keras_object(model)
        keras.saving.deserialize_keras_object(packed, safe_mode=True)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).split(". ")[0]
        raise UserError(
            f"'{model.name}' could not be loaded after it is saved: put @keras.saving.register_keras_serializable() "
            f"on its own classes and functions, and give them get_config ({reason})",
            where=where,
        ) from None


def as_teacher(model: Any, described: KerasModel) -> Teacher:
    """A model as the teacher of the run; an application's own preprocessing is put before it."""
    if isinstance(model, Teacher):
        return model
    preprocess = None
    if described.name.startswith(APPLICATIONS) and described.pretrained:
        own = _preprocessing(described.name.removeprefix(APPLICATIONS))
        preprocess = (lambda inputs: own(inputs * 255)) if own else None
    return Teacher(model, preprocess=preprocess)


def measure(model: keras.Model, example: np.ndarray, *, seconds: float = 0.4) -> dict[str, Any]:
    """Size and cost of a model: parameters, multiply-adds of layers with a kernel, milliseconds and bytes.

    Args:
        model: any built model.
        example: one input, (1, ...).
        seconds: how long to measure.
    """
    times: list[float] = []
    model.predict_on_batch(example)
    ends = time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < ends:
        began = time.perf_counter()
        model.predict_on_batch(example)
        times.append(time.perf_counter() - began)
    return {
        "parameters": model.count_params(),
        "macs": multiply_adds(model, example),
        "latency_ms": 1000 * statistics.median(times[len(times) // 5 :]),
        "size_bytes": sum(weight.nbytes for weight in model.get_weights()),
    }


def multiply_adds(model: keras.Model, example: np.ndarray) -> int:
    """Multiply-adds of one forward: each kernel's size times the places of its layer's output."""
    kernels = {path: layer for path, layer in layers_of(model).items() if getattr(layer, "kernel", None) is not None}
    shapes = shapes_at(model, kernels, ops.convert_to_tensor(example))
    first = keras.config.image_data_format() == "channels_first"
    total = 0
    for path, shape in shapes.items():
        places = shape[2:] if first and len(shape) == 4 else shape[1:-1]
        total += prod(kernels[path].kernel.shape) * prod(places)
    return int(total)


def _given(given: Any) -> keras.Model:
    model = given.model if isinstance(given, Teacher) else given
    if isinstance(model, keras.Model):
        copy = keras.models.clone_model(model)
        if not copy.built:
            raise UserError(f"the model '{model.name}' cannot be copied: give a function that makes it instead")
        copy.set_weights(model.get_weights())
        return copy
    made = model() if callable(model) else None
    if not isinstance(made, keras.Model):
        raise UserError(f"{type(given).__name__} is neither a keras.Model nor a function that makes one")
    return made


def _application(model: KerasModel, *, shape: tuple[int, ...], classes: int) -> keras.Model:
    name = model.name.removeprefix(APPLICATIONS)
    known = [each for each in dir(keras.applications) if each[0].isupper()]
    if name not in known:
        raise UserError(f"keras.applications has no '{name}', {did_you_mean(name, known)}")
    make = getattr(keras.applications, name)
    try:
        if model.pretrained:
            return make()
        return make(weights=None, input_shape=shape, classes=classes, classifier_activation=None)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot be made: {error}", where=model.name) from None


def _preprocessing(name: str) -> Any:
    """The function of the module of `keras.applications` that a model comes from."""
    for module in vars(keras.applications).values():
        if hasattr(module, name) and hasattr(module, "preprocess_input"):
            return module.preprocess_input
    return None
