"""Fine-tuning a part of a model: everything else keeps its weights."""

from typing import Literal

from torch import nn

from understudy.errors import UserError
from understudy.models.resolution import POSITIONS
from understudy.models.weights import head_names

Trainable = Literal["all", "attention", "head"]


def train_only(module: nn.Module, what: Trainable) -> None:
    """Freeze all parameters but some; what learns nothing takes no optimiser state and no decay.

    Reference: Touvron, Cord, El-Nouby, Verbeek, Jégou, "Three things everyone should know about Vision Transformers",
    ECCV 2022 (https://arxiv.org/abs/2203.09795), section 4: at a higher resolution or on other classes, fine-tuning
    the attention alone is enough. As in DeiT's code, the heads and the position embedding are trained with it.

    Args:
        module: changed in place.
        what: `all`, the `attention` of a vision transformer, or the `head` alone.

    Raises:
        UserError: it has no module called `attn`.
    """
    if what == "all":
        return
    heads = tuple(f"{name}." for name in head_names(module))
    names = [name for name, _ in module.named_parameters()]
    chosen = {name for name in names if name.startswith(heads)}
    if what == "attention":
        attention = {name for name in names if ".attn." in name}
        if not attention:
            raise UserError(f"{type(module).__name__} has no attention (no module called attn) to train alone")
        chosen |= attention | {POSITIONS}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
