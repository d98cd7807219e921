"""Mathematics that several losses share."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Part = TypeVar("Part")


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Raise half-precision tensors to float32; wider ones stay as they are.

    Args:
        tensors: any floating-point tensors.

    Returns:
        The same tensors, in float32 where they were float16 or bfloat16.
    """
    half = (torch.float16, torch.bfloat16)
    return tuple(tensor.float() if tensor.dtype in half else tensor for tensor in tensors)


class ShapeMismatch(ValueError):
    """Student and teacher tensors cannot be compared element by element; an adapter between them may help."""


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse student and teacher tensors that cannot be compared element by element.

    Raises:
        ShapeMismatch: their shapes differ, which broadcasting would hide.
    """
    if student.shape != teacher.shape:
        raise ShapeMismatch(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape: "
            "give both the same classes, or an adapter between the taps"
        )


def paired(student: Tensor | tuple[Tensor, ...], teacher: Tensor | tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Student and teacher tensors tap by tap, in float32 at least, the teacher's without gradient.

    Raises:
        ValueError: one side has more taps than the other.
    """
    of_student = student if isinstance(student, tuple) else (student,)
    of_teacher = teacher if isinstance(teacher, tuple) else (teacher,)
    if len(of_student) != len(of_teacher):
        raise ValueError(f"{len(of_student)} student taps and {len(of_teacher)} teacher taps: give as many of each")
    return [
        (in_float32(ours)[0], in_float32(theirs.detach())[0])
        for ours, theirs in zip(of_student, of_teacher, strict=True)
    ]


def prepared(part: Part | None) -> Part:
    """What the method `prepare` of a loss makes.

    Raises:
        RuntimeError: it was not called.
    """
    if part is None:
        raise RuntimeError("this loss has weights of its own: call prepare(student, teacher) with example features")
    return part


def as_map(features: Tensor) -> Tensor:
    """An embedding (N, C) as a map (N, C, 1, 1); maps stay as they are."""
    return features[:, :, None, None] if features.ndim == 2 else features


def pooled(features: Tensor) -> Tensor:
    """A map (N, C, H, W) averaged over its positions, tokens (N, L, C) over theirs; embeddings stay as they are."""
    if features.ndim == 3:
        return features.mean(dim=1)
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features


def standardized_channels(features: Tensor) -> Tensor:
    """A map with mean 0 and variance 1 in each channel, over the batch and all positions."""
    return F.batch_norm(features, None, None, training=True)


def standardized(logits: Tensor) -> Tensor:
    """Logits (N, K, ...) with mean 0 and standard deviation 1 over the classes: `(z - mean) / (std + 1e-7)`.

    The deviation divides by K - 1, as the authors of logit standardisation do (https://arxiv.org/abs/2403.01427;
    the paper writes K).
    """
    std, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (std + 1e-7)


def class_numbers(labels: Tensor) -> Tensor:
    """Labels as (N,) class numbers; of probabilities (N, K) (mixup, cutmix), the largest one's."""
    return labels.argmax(dim=1) if labels.is_floating_point() else labels


def split_target(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probability of one class a sample, that of all others together, and how these share it.

    Nothing is computed as 1 - p, so a probability that rounds to 1 keeps its complement.

    Args:
        logits: (N, K) with K of at least 2.
        classes: (N,) class numbers.

    Returns:
        (N, 1) log p, (N, 1) log (1 - p), and (N, K) log-probabilities of the others among themselves, about -1e30
        for the class itself.
    """
    own = classes.unsqueeze(1)
    log_all = F.log_softmax(logits, dim=1)
    # Finite, unlike -inf: where both models have it, the difference is 0 and not NaN.
    log_others = F.log_softmax(logits.scatter(1, own, -1e30), dim=1)
    # All others differ by the same constant between the two, the logarithm of their share: read it at any.
    other = (own + 1) % logits.shape[1]
    return log_all.gather(1, own), log_all.gather(1, other) - log_others.gather(1, other), log_others


def binary_divergence(log_student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))`, summed.

    Args:
        log_student: log p_s and log (1 - p_s).
        teacher: p_t and 1 - p_t, of the same shape.
    """
    (own, others), (teachers_own, teachers_others) = log_student, teacher
    return F.kl_div(own, teachers_own, reduction="sum") + F.kl_div(others, teachers_others, reduction="sum")
