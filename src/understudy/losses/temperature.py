"""How large the gradient of the softened loss is beside that of the labels, over the temperature. Imports no torch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_SAMPLES, _CLASSES, _SPREAD = 1000, 10, 3.0


def gradient_ratios(temperatures: Iterable[float], *, t_squared: bool = True) -> list[float]:
    """The mean norm of Hinton's gradient over that of cross entropy with the labels, at each temperature.

    By a student's logits z_s the gradients are `(softmax(z_s / T) - softmax(z_t / T)) / T`, times T² where that is
    wanted, and `softmax(z_s) - y`. For large T the first tends to `(z_s - z_t) / (K T²)` around the means: without T²
    the ratio falls as 1/T², with it it tends to a constant.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531), section 2.1.

    Args:
        temperatures: each T.
        t_squared: with the factor T².

    Returns:
        A ratio a temperature, for 1,000 pairs of independent logits of 10 classes with deviation 3; the label is the
        class of the teacher's largest.
    """
    student, teacher = np.random.default_rng(0).normal(0, _SPREAD, (2, _SAMPLES, _CLASSES))
    hard = _softmax(student) - np.eye(_CLASSES)[teacher.argmax(axis=1)]
    ratios = []
    for temperature in temperatures:
        soft = (_softmax(student / temperature) - _softmax(teacher / temperature)) / temperature
        scale = temperature**2 if t_squared else 1.0
        ratios.append(scale * float(_mean_norm(soft) / _mean_norm(hard)))
    return ratios


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _mean_norm(rows: NDArray[np.float64]) -> np.float64:
    return np.linalg.norm(rows, axis=1).mean()
