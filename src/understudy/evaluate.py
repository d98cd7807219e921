"""How good a model is on labelled images, and what it says to one image."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.data import Preprocess, Source, Splits, Subset, in_order
from understudy.data.source import UNLABELLED
from understudy.distill.heads import ask_heads, combine, one_answer
from understudy.errors import UserError

if TYPE_CHECKING:
    from understudy.models import Card
    from understudy.recipe.schema import Data

# From raw pixels to logits, or to several answers by name.
Ask = Callable[[Tensor], Tensor | Mapping[str, Tensor]]
# Images a forward while evaluating. One size for all, because logits change in their last bits with it.
CHUNK = 500
_FILES_AT_ONCE = 64


@torch.no_grad()
def score(
    ask: Ask,
    part: Subset,
    *,
    classes: int,
    device: torch.device,
    recall_of: Iterable[int] = (),
) -> dict[str, float]:
    """Accuracy, mean cross entropy and more over the labelled samples of a part.

    Args:
        ask: from raw pixels to logits; or to several answers by name, of which the first is the model's, and of the
            others only the accuracy is wanted.
        part: the samples.
        classes: number of classes; with more than ten, `top5` is counted too.
        device: where the model is.
        recall_of: classes whose recall is wanted by itself.

    Returns:
        `accuracy`, `loss`, perhaps `top5`, `accuracy[NAME]` and `recall[i]`, as fractions.
    """
    names: list[str] = []
    part = part.only(part.labels != UNLABELLED)
    count = max(len(part), 1)
    answers: list[Tensor] = []  # one row an image: loss, hit, in the first five; read from the device once, at the end
    for images, labels in in_order(part, CHUNK):
        said, wanted = ask(images.to(device)), labels.to(device)
        logits, *others = [one.float() for one in (said.values() if isinstance(said, Mapping) else (said,))]
        names = list(said)[1:] if isinstance(said, Mapping) else []
        columns = [F.cross_entropy(logits, wanted, reduction="none"), logits.argmax(1) == wanted]
        if classes > 10:
            columns.append((logits.topk(5, 1).indices == wanted[:, None]).any(1))
        columns += [other.argmax(1) == wanted for other in others]
        answers.append(torch.stack([column.double() for column in columns]))
    columns = torch.cat(answers, 1).cpu().numpy() if answers else np.zeros((3, 0))
    scores = {"accuracy": columns[1].sum() / count, "loss": columns[0].sum() / count}
    if classes > 10:
        scores["top5"] = columns[2].sum() / count
    for name, hits in zip(names, columns[len(columns) - len(names) :], strict=True):
        scores[f"accuracy[{name}]"] = hits.sum() / count
    for number in recall_of:
        of_class = part.labels == number
        scores[f"recall[{number}]"] = columns[1, of_class].sum() / max(of_class.sum(), 1)
    return {name: float(value) for name, value in scores.items()}


def asking(model: nn.Module, preprocess: Preprocess) -> Callable[[Tensor], Tensor]:
    """A function from raw pixels to a model's logits, in evaluation mode."""
    model.eval()
    return lambda images: one_answer(model, preprocess(images))


def asking_each(model: nn.Module, preprocess: Preprocess) -> Ask:
    """The same; of a model with two heads the answer of each by name, after that of both."""
    model.eval()

    def ask(images: Tensor) -> Tensor | dict[str, Tensor]:
        of_class, of_teacher = ask_heads(model, preprocess(images))
        one = combine(of_class, of_teacher, getattr(model, "combine_heads", "mean"))
        return one if of_teacher is None else {"": one, "class": of_class, "distillation": of_teacher}

    return ask


def evaluate(model: Any, *, data: Any, split: str = "test") -> dict[str, float]:
    """Score a saved model or a module on a data set.

    Args:
        model: the folder of a saved model or of a run, or a module.
        data: a data set by its recipe name, a mapping as in a recipe's `data`, or an object: a pair (images, labels)
            or a Dataset is scored whole, of a mapping with `train` and `test` the split.
        split: `test`, `validation` or `train`.

    Returns:
        `accuracy`, `loss`, perhaps `top5`, as fractions.

    Raises:
        UserError: the model or the data cannot be read, or do not fit together.
    """
    from understudy.data import load_source
    from understudy.data.split import split as divide
    from understudy.models import load

    module = load(model) if isinstance(model, (str, Path)) else model
    card: Card | None = getattr(module, "card", None)
    described, given = _described(data, card, split)
    splits = divide(load_source(described, given), described)
    parts: dict[str, Subset | None] = {"test": splits.test, "validation": splits.validation, "train": splits.teacher}
    part = parts.get(split)
    if part is None:
        raise UserError(f"the data has no split '{split}'")
    ask = asking_each(module, card.preprocess if card else Preprocess(mean=described.mean, std=described.std))
    if card is not None:
        ask = _in_order_of(card, splits, ask)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return score(ask, part, classes=len(splits.classes), device=device)


def _described(data: Any, card: "Card | None", split: str) -> tuple["Data", Any]:
    """A recipe's description of the data, and the object where it is one."""
    from understudy.recipe.reader import Source as RecipeSource
    from understudy.recipe.reader import read_data
    from understudy.recipe.schema import Data

    if isinstance(data, str) or (isinstance(data, Mapping) and "name" in data):
        return read_data(RecipeSource("arguments", {"data": data})), None
    if not isinstance(data, (Mapping, Source)) and not (callable(data) and not hasattr(data, "__getitem__")):
        data = {"train": data, "test": data, **({"classes": card.classes} if card else {})}
    # Nothing is held out that was not asked for.
    return Data(name="python:data", validation=0.1 if split == "validation" else "none"), data


def _in_order_of(card: "Card", splits: Splits, ask: Ask) -> Ask:
    """The model's logits in the order of the data's classes, once both are known to fit."""
    if len(card.classes) != len(splits.classes):
        raise UserError(f"the model knows {len(card.classes)} classes, the data has {len(splits.classes)}")
    if card.shape[0] != splits.shape[0] or (card.preprocess.size is None and card.shape != splits.shape):
        raise UserError(f"the model takes images (C, H, W) of {card.shape}, the data has {splits.shape}")
    if card.classes == splits.classes:
        return ask
    unknown = [name for name in splits.classes if name not in card.classes]
    if unknown:
        raise UserError(f"the model does not know the class '{unknown[0]}' (it knows {', '.join(card.classes[:12])})")
    columns = [card.classes.index(name) for name in splits.classes]

    def reordered(images: Tensor) -> Tensor | dict[str, Tensor]:
        said = ask(images)
        if isinstance(said, Tensor):
            return said[:, columns]
        return {name: answer[:, columns] for name, answer in said.items()}

    return reordered


@torch.no_grad()
def predict(
    model: str | Path | nn.Module, images: Iterable[str | Path], *, top: int = 5
) -> list[list[tuple[str, float]]]:
    """The likeliest classes of image files.

    Args:
        model: the folder of a saved model or of a run, or a module loaded by `understudy.load`.
        images: files.
        top: how many classes an image.

    Returns:
        For each image its classes with their probabilities, the likeliest first.

    Raises:
        UserError: the model or an image cannot be read.
    """
    from understudy.data.folder import Files
    from understudy.models import load

    module: Any = load(model) if isinstance(model, (str, Path)) else model
    card: Card | None = getattr(module, "card", None)
    if card is None:
        raise UserError("the module does not know its classes and input: give one loaded by understudy.load")
    channels, height, width = card.shape
    if channels not in (1, 3) or height != width:
        raise UserError(f"the model takes no image files but arrays (C, H, W) of {card.shape}")
    files = [Path(path) for path in images]
    read = Files(files, height, channels)
    ask = asking(module, card.preprocess)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    answers = []
    for start in range(0, len(files), _FILES_AT_ONCE):
        batch = read(np.arange(start, min(start + _FILES_AT_ONCE, len(files))))
        best = ask(batch.to(device)).float().softmax(1).topk(min(top, len(card.classes)))
        for chances, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            answers.append([(card.classes[index], value) for index, value in zip(indices, chances, strict=True)])
    return answers
