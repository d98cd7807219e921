"""Mathematics that several losses share."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor

Part = TypeVar("Part")
_HALF = (torch.float16, torch.bfloat16)


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Raise half-precision tensors to float32; wider ones stay as they are.

    Args:
        tensors: any floating-point tensors.

    Returns:
        The same tensors, in float32 where they were float16 or bfloat16.
    """
    return tuple([tensor.float() if tensor.dtype in _HALF else tensor for tensor in tensors])


def above_zero(name: str, value: float) -> float:
    """An option that must be above 0.

    Args:
        name: of the option, for the message.
        value: what it was set to.

    Returns:
        The value.

    Raises:
        ValueError: it is not.
    """
    if value <= 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return value


class ShapeMismatch(ValueError):
    """Student and teacher tensors cannot be compared element by element; an adapter between them may help."""


class NoMap(ShapeMismatch):
    """A loss that compares maps got something else; of tokens, the patches are a map."""


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


def comparable(student: Tensor, teacher: Tensor, *, standardize: bool = False) -> tuple[Tensor, Tensor]:
    """Both models' logits as a loss compares them: of one shape, in float32 at least, the teacher's without gradient.

    Args:
        student: (N, K, ...) logits.
        teacher: logits of the same shape.
        standardize: standardise both (see `standardized`).

    Returns:
        The student's and the teacher's.

    Raises:
        ShapeMismatch: their shapes differ.
    """
    check_same_shape(student, teacher)
    student, teacher = in_float32(student, teacher.detach())
    return (standardized(student), standardized(teacher)) if standardize else (student, teacher)


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
    return (logits - mean) * (std + 1e-7).reciprocal()


def class_numbers(labels: Tensor) -> Tensor:
    """Labels as (N,) class numbers; of probabilities (N, K) (mixup, cutmix), the largest one's."""
    return labels.argmax(dim=1) if labels.is_floating_point() else labels


def others_alone(logits: Tensor, classes: Tensor) -> Tensor:
    """(N, K) log-probabilities of all classes but one a sample, among themselves; about -1e30 for that class.

    Args:
        logits: (N, K) with K of at least 2.
        classes: (N,) the classes that are left out.
    """
    # Finite, unlike -inf: where both models have it, the difference is 0 and not NaN.
    return F.log_softmax(logits.scatter(1, classes.unsqueeze(1), -1e30), dim=1)


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
    log_all, log_others = F.log_softmax(logits, dim=1), others_alone(logits, classes)
    # All others differ by the same constant between the two, the logarithm of their share: read it at any.
    other = (own + 1) % logits.shape[1]
    return log_all.gather(1, own), log_all.gather(1, other) - log_others.gather(1, other), log_others


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Logits over a temperature; at 1 the logits themselves, which saves a small loss a good part of its time."""
    return logits if temperature == 1 else logits / temperature


class _Gram(torch.autograd.Function):
    # Autograd sees two factors, and multiplies once for each on the way back.
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows @ rows.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (rows,) = ctx.saved_tensors
        return (gradient + gradient.mT) @ rows


def gram(rows: Tensor) -> Tensor:
    """The inner products `A Aᵀ` of all pairs of rows (..., N, D), with one matrix product on the way back, not two."""
    # To call a function of one's own from Python costs about as much as the product of a few hundred columns.
    if not rows.requires_grad or rows.shape[-1] < 512:
        return rows @ rows.mT
    product = _Gram.apply(rows)
    assert isinstance(product, Tensor)
    return product


def weighted_sum(weights: Tensor, terms: Tensor) -> Tensor:
    """The sum of all products of two tensors of one shape, in one pass."""
    return torch.dot(weights.flatten(), terms.flatten())


def binary_divergence(log_student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """`p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))`, summed.

    Args:
        log_student: log p_s and log (1 - p_s).
        teacher: p_t and 1 - p_t, of the same shape.
    """
    (own, others), (teachers_own, teachers_others) = log_student, teacher
    entropy = torch.special.entr(teachers_own).sum() + torch.special.entr(teachers_others).sum()
    return -(weighted_sum(teachers_own, own) + weighted_sum(teachers_others, others)) - entropy


def of_all_processes(rows: Tensor) -> Tensor:
    """What all processes of a distributed training have, in the order of their ranks and without gradient.

    Args:
        rows: (N, ...) this process's, N perhaps another elsewhere.

    Returns:
        The rows of all; `rows` itself where there is only this process.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, counts[0] + len(rows))
    # Only equal shapes can be gathered: shorter ones are filled up, and cut again.
    longest = int(torch.cat(counts).max())
    filled = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = [torch.empty_like(filled) for _ in counts]
    distributed.all_gather(gathered, filled)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])
