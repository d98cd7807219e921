"""What a model says to single images."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.data.image import cut, decode
from understudy.errors import UserError
from understudy.evaluate import asking, best_device
from understudy.models import Card, load
from understudy.tasks.classify.imagenet import in_words, open_any

_FILES_AT_ONCE = 64


def card_of_images(module: Any) -> "Card":
    """What a model that takes image files knows about itself.

    Raises:
        UserError: it knows nothing, or takes something else.
    """
    card: Card | None = getattr(module, "card", None)
    if card is None:
        raise UserError("the module does not know its classes and input: give one loaded by understudy.load")
    channels, height, width = card.shape
    if channels not in (1, 3) or height != width:
        raise UserError(f"the model takes no image files but arrays (C, H, W) of {card.shape}")
    return card


@torch.no_grad()
def predict(
    model: str | Path | nn.Module,
    images: Iterable[str | Path],
    *,
    top: int = 5,
    names: Sequence[str] | None = None,
) -> list[list[tuple[str, float]]]:
    """The likeliest classes of images.

    Args:
        model: the folder of a saved model or of a run, or a module loaded by `understudy.load`.
        images: files, or URLs, which are fetched.
        top: how many classes an image.
        names: of the classes, one a logit; by default the model's own, of ImageNet's in words.

    Returns:
        For each image its classes with their probabilities, the likeliest first.

    Raises:
        UserError: the model or an image cannot be read.
    """
    module: Any = load(model).to(best_device()) if isinstance(model, (str, Path)) else model
    card = card_of_images(module)
    names = in_words(card.classes) if names is None else names
    if len(names) != len(card.classes):
        raise UserError(f"{len(names)} class names for a model of {len(card.classes)} classes")
    channels, size, _ = card.shape
    places = list(images)
    ask = asking(module, card.preprocess)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    answers = []
    for start in range(0, len(places), _FILES_AT_ONCE):
        some = places[start : start + _FILES_AT_ONCE]
        batch = torch.stack(decode(lambda place, _: cut(open_any(place, channels), size, None), some, None))
        best = ask(batch.to(device)).float().softmax(1).topk(min(top, len(names)))
        for chances, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            answers.append([(names[index], value) for index, value in zip(indices, chances, strict=True)])
    return answers
