"""How good a model is on labelled images, and what it says to one image."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.data import Preprocess, Subset, in_order
from understudy.distill.taps import logits_of

# Images a forward while evaluating. One size for all, because logits change in their last bits with it.
CHUNK = 500


@torch.no_grad()
def score(
    ask: Callable[[Tensor], Tensor],
    part: Subset,
    *,
    classes: int,
    device: torch.device,
    recall_of: Iterable[int] = (),
) -> dict[str, float]:
    """Accuracy, mean cross entropy and more over the labelled samples of a part.

    Args:
        ask: from raw pixels to logits.
        part: the samples.
        classes: number of classes; with more than ten, `top5` is counted too.
        device: where the model is.
        recall_of: classes whose recall is wanted by itself.

    Returns:
        `accuracy`, `loss`, perhaps `top5` and `recall[i]`, as fractions.
    """
    correct = in_top5 = count = 0
    loss = 0.0
    found, wanted = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    for images, labels in in_order(part, CHUNK):
        logits = ask(images.to(device)).float().cpu()
        known = labels >= 0
        logits, labels = logits[known], labels[known]
        decided = logits.argmax(1)
        hits = decided == labels
        correct += int(hits.sum())
        count += len(labels)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        wanted += torch.bincount(labels, minlength=classes)
        found += torch.bincount(labels[hits], minlength=classes)
        if classes > 10:
            in_top5 += int((logits.topk(5, 1).indices == labels[:, None]).sum())
    scores = {"accuracy": correct / max(count, 1), "loss": loss / max(count, 1)}
    if classes > 10:
        scores["top5"] = in_top5 / max(count, 1)
    for number in recall_of:
        scores[f"recall[{number}]"] = (found[number] / wanted[number].clamp_min(1)).item()
    return scores


def asking(model: nn.Module, preprocess: Preprocess) -> Callable[[Tensor], Tensor]:
    """A function from raw pixels to a model's logits, in evaluation mode."""
    model.eval()
    return lambda images: logits_of(model(preprocess(images)))


def evaluate(model: Any, *, data: Any, split: str = "test") -> dict[str, float]:
    """Score a saved model or a module on a data set.

    Args:
        model: the folder of a saved model or of a run, or a module.
        data: a data set by its recipe name, a mapping as in a recipe's `data`, or an object.
        split: `test`, `validation` or `train`.

    Returns:
        `accuracy`, `loss`, perhaps `top5`, as fractions.

    Raises:
        UserError: the model or the data cannot be read, or their classes differ.
    """
    from understudy.data.split import Subset, load_source
    from understudy.data.split import split as divide
    from understudy.errors import UserError
    from understudy.models import load
    from understudy.recipe.schema import Data

    module = load(model) if isinstance(model, (str, Path)) else model
    named = isinstance(data, (str, dict))
    described = Data.model_validate(data if named else {"name": "python:data"})
    splits = divide(load_source(described, None if named else data), described)
    parts: dict[str, Subset | None] = {
        "test": splits.test,
        "validation": splits.validation,
        "train": splits.teacher,
    }
    part = parts.get(split)
    if part is None:
        raise UserError(f"the data has no split '{split}'")
    card = getattr(module, "card", None)
    preprocess = card.preprocess if card else Preprocess(mean=described.mean, std=described.std)
    if card and len(card.classes) != len(splits.classes):
        raise UserError(f"the model knows {len(card.classes)} classes, the data has {len(splits.classes)}")
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return score(asking(module, preprocess), part, classes=len(splits.classes), device=device)


@torch.no_grad()
def predict(
    model: str | Path | nn.Module, images: Iterable[str | Path], *, top: int = 5
) -> list[list[tuple[str, float]]]:
    """The likeliest classes of image files.

    Args:
        model: the folder of a saved model or of a run, or a module loaded by `understudy.load`.
        images: files, or folders of files.
        top: how many classes an image.

    Returns:
        For each image its classes with their probabilities, the likeliest first.

    Raises:
        UserError: the model or an image cannot be read.
    """
    from understudy.data.folder import cut, open_image
    from understudy.models import load

    module: Any = load(model) if isinstance(model, (str, Path)) else model
    channels, size, _ = module.card.shape
    ask = asking(module, module.card.preprocess)
    answers = []
    for path in images:
        chances = ask(cut(open_image(Path(path), channels), size, None)[None]).softmax(1)[0]
        best = chances.topk(min(top, len(chances)))
        answers.append(
            [
                (module.card.classes[index], value)
                for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        )
    return answers
