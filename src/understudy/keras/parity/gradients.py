"""Gradients of a function of tensors, by whichever backend Keras runs on."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from understudy.keras.operations import ops

Tensor = Any
Outputs = dict[str, Tensor]


def differentiate(
    function: Callable[[list[Tensor]], Outputs], sources: list[np.ndarray]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Call a function and differentiate its `loss` by what it was given.

    Args:
        function: from tensors to outputs by name, one of them `loss`.
        sources: what it is called with, all floating-point.

    Returns:
        The outputs, and a gradient for each source.
    """
    outputs, gradients = _BACKENDS[keras.backend.backend()](function, sources)
    found = {name: np.asarray(ops.convert_to_numpy(value)) for name, value in outputs.items()}
    return found, [
        np.zeros_like(source) if gradient is None else np.asarray(ops.convert_to_numpy(gradient))
        for gradient, source in zip(gradients, sources, strict=True)
    ]


def _torch(function: Any, sources: list[np.ndarray]) -> tuple[Outputs, list[Tensor]]:
    import torch

    tensors = [torch.tensor(source, requires_grad=True) for source in sources]
    outputs = function(tensors)
    if tensors and outputs["loss"].requires_grad:
        return outputs, list(torch.autograd.grad(outputs["loss"], tensors, allow_unused=True))
    return outputs, [None for _ in tensors]


def _tensorflow(function: Any, sources: list[np.ndarray]) -> tuple[Outputs, list[Tensor]]:
    import tensorflow as tf

    tensors = [tf.constant(source) for source in sources]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = function(tensors)
    return outputs, tape.gradient(outputs["loss"], tensors)


def _jax(function: Any, sources: list[np.ndarray]) -> tuple[Outputs, list[Tensor]]:
    import jax  # pyright: ignore[reportMissingImports]

    def of_loss(tensors: list[Tensor]) -> tuple[Tensor, Outputs]:
        outputs = function(tensors)
        return outputs["loss"], outputs

    gradients, outputs = jax.jit(jax.grad(of_loss, has_aux=True))([jax.numpy.asarray(source) for source in sources])
    return outputs, gradients


_BACKENDS = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}
