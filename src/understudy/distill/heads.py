"""Students with two heads: one for the labels, one for the teacher, as DeiT has them.

A model has two where, as in DeiT's code and in timm, modules `head` and `head_dist` give its logits, or where its
output names `cls_logits` and `distillation_logits`, as in transformers.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.distill.taps import logits_of, tapped

# How the answers of two heads become one; what an objective reads.
Heads = Literal["mean", "sum_softmax", "class", "distillation"]
HEADS = ("class", "distillation")

_PATHS = ("head", "head_dist")
_KEYS = ("cls_logits", "distillation_logits")


def ask_heads(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """What each head of a model says, in training and in evaluation mode alike.

    Args:
        model: any classifier.
        inputs: (N, C, H, W).

    Returns:
        (N, K) logits of the class head, and of the distillation head; None where there is one head.
    """
    if has_two_modules(model):
        with tapped(model, _PATHS) as found:
            model(inputs)
        return found[_PATHS[0]], found[_PATHS[1]]
    output = model(inputs)
    if isinstance(output, Mapping) and all(isinstance(output.get(key), Tensor) for key in _KEYS):
        return output[_KEYS[0]], output[_KEYS[1]]
    return logits_of(output), None


def has_two_modules(model: nn.Module) -> bool:
    """Whether a model has modules for two heads, which can be read whatever its forward makes of them."""
    return all(isinstance(getattr(model, path, None), nn.Module) for path in _PATHS)


def one_answer(model: nn.Module, inputs: Tensor) -> Tensor:
    """A model's one answer: of two heads what the recipe's `answer` says, which a built model keeps.

    Args:
        model: any classifier; its attribute `combine_heads` is one of `Heads`, by default `mean`.
        inputs: (N, C, H, W).

    Returns:
        (N, K) logits.
    """
    return combine(*ask_heads(model, inputs), getattr(model, "combine_heads", "mean"))


def combine(of_class: Tensor, of_teacher: Tensor | None, heads: Heads = "mean") -> Tensor:
    """Make one answer of two.

    Reference: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML
    2021 (https://arxiv.org/abs/2012.12877), section 4, adds the softmaxes; its code, and timm, take the mean of the
    logits. Where one head is much surer than the other, the two can decide otherwise.

    Args:
        of_class: (N, K) logits of the class head.
        of_teacher: of the distillation head; None where there is no second head.
        heads: `mean` of the logits, `sum_softmax`, or one of them alone.

    Returns:
        (N, K) logits; of softmaxes the logarithm of their mean.
    """
    if of_teacher is None or heads == "class":
        return of_class
    if heads == "distillation":
        return of_teacher
    if heads == "mean":
        return (of_class + of_teacher) / 2
    logs = torch.stack([F.log_softmax(logits.float(), dim=1) for logits in (of_class, of_teacher)])
    return logs.logsumexp(0) - torch.log(logs.new_tensor(2.0))
