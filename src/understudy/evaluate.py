"""How good a model is on labelled images."""

import pickle
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.data import Preprocess, Source, Splits, Subset
from understudy.data.source import UNLABELLED
from understudy.distill.heads import Heads, ask_heads, combine, one_answer
from understudy.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from understudy.models import Card
    from understudy.recipe.schema import Data

# From raw pixels to logits, or to several answers by name.
Ask = Callable[[Tensor], Tensor | Mapping[str, Tensor]]
# Images a forward while evaluating: set by the size of the images alone, because logits change in their last bits
# with it, and a score must not depend on who computed it.
CHUNK = 500
_VALUES_AT_ONCE = 20_000_000
_SHOWN_FIVE = 10  # with more classes than this, the first five answers are scored too
HEADS: tuple[Heads, ...] = ("mean", "sum_softmax", "class", "distillation")


@torch.no_grad()
def judge(
    ask: Ask,
    part: Subset,
    *,
    five: bool,
    device: torch.device,
    accepted: Tensor | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, np.ndarray]:
    """What became of each sample of a part.

    Args:
        ask: from raw pixels to logits; or to several answers by name, of which the first is the model's.
        part: the samples, all labelled unless `accepted` says what is right.
        five: whether the first five answers are looked at too.
        device: where the model is.
        accepted: (N, K) bool, the classes that are right for each sample where that may be several; then there is no
            loss.
        shard: which of how many processes this is; it judges every so manyth chunk and leaves the others zero.

    Returns:
        By name of the answer ("" for the model's) an array (3, N): loss, hit, hit in the first five.
    """
    size = max(1, min(CHUNK, _VALUES_AT_ONCE // prod(part.samples.shape)))
    found: dict[str, np.ndarray] = {}
    waiting: list[tuple[slice, list[str], Tensor]] = []  # read from the device once, at the end
    for start in range(shard[0] * size, len(part), shard[1] * size):
        here = slice(start, min(start + size, len(part)))
        labels = torch.from_numpy(part.labels[here]).to(device)
        said = ask(part.read(np.arange(here.start, here.stop)).to(device))
        answers = said if isinstance(said, Mapping) else {"": said}
        right = None if accepted is None else accepted[here].to(device)
        judged = torch.stack([_judged(logits.float(), labels, right, five) for logits in answers.values()])
        waiting.append((here, list(answers), judged))
    for here, names, judged in waiting:
        for name, rows in zip(names, judged.cpu().numpy(), strict=True):
            found.setdefault(name, np.zeros((3, len(part))))[:, here] = rows
    return found


def _judged(logits: Tensor, labels: Tensor, accepted: Tensor | None, five: bool) -> Tensor:
    """(3, N) loss, hit and hit in the first five of each row."""
    first = logits.argmax(1, keepdim=True)
    firsts = logits.topk(min(5, logits.shape[1]), 1).indices if five else first
    if accepted is not None:
        hits = [accepted.gather(1, chosen).any(1) for chosen in (first, firsts)]
        return torch.stack([torch.zeros_like(logits[:, 0]), *(hit.float() for hit in hits)])
    hits = [(chosen == labels[:, None]).any(1) for chosen in (first, firsts)]
    return torch.stack([F.cross_entropy(logits, labels, reduction="none"), *(hit.float() for hit in hits)])


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
    part = part.only(part.labels != UNLABELLED)
    five = classes > _SHOWN_FIVE
    judged = judge(ask, part, five=five, device=device) or {"": np.zeros((3, 0))}
    (_, of_model), *others = judged.items()
    scores = _means(of_model, five)
    scores |= {f"accuracy[{name}]": _mean(rows[1]) for name, rows in others}
    for number in recall_of:
        scores[f"recall[{number}]"] = _mean(of_model[1, part.labels == number])
    return scores


def _means(rows: np.ndarray, five: bool, suffix: str = "") -> dict[str, float]:
    means = {f"accuracy{suffix}": _mean(rows[1]), f"loss{suffix}": _mean(rows[0])}
    return {**means, f"top5{suffix}": _mean(rows[2])} if five else means


def _mean(values: np.ndarray) -> float:
    return float(values.sum() / max(len(values), 1))


def asking(model: nn.Module, preprocess: Preprocess) -> Callable[[Tensor], Tensor]:
    """A function from raw pixels to a model's logits, in evaluation mode."""
    model.eval()
    return lambda images: one_answer(model, preprocess(images))


def asking_each(model: nn.Module, preprocess: Preprocess, *, heads: Heads | None = None) -> Ask:
    """The same; of a model with two heads the answer of each by name, after that of both.

    Args:
        model: any classifier.
        preprocess: from raw pixels to its input.
        heads: how the answers of two heads become the model's; by default what the model was built with.
    """
    model.eval()
    together: Heads = heads or getattr(model, "combine_heads", "mean")

    def ask(images: Tensor) -> Tensor | dict[str, Tensor]:
        of_class, of_teacher = ask_heads(model, preprocess(images))
        one = combine(of_class, of_teacher, together)
        return one if of_teacher is None else {"": one, "class": of_class, "distillation": of_teacher}

    return ask


@dataclass(frozen=True)
class _Examination:
    """A model and the samples that it is judged on: all that a process has to know.

    Args:
        model: in evaluation mode.
        preprocess: from raw pixels to its input.
        part: the samples, in the numbers of the data's classes.
        columns: for each class of the data the model's logit; None where both agree.
        heads: how two heads answer; None as the model was built.
        five: whether the first five answers count.
        accepted: as `judge` takes it.
    """

    model: nn.Module
    preprocess: Preprocess
    part: Subset
    five: bool
    columns: list[int] | None = None
    heads: Heads | None = None
    accepted: Tensor | None = None

    def judge(self, shard: tuple[int, int], device: torch.device) -> dict[str, np.ndarray]:
        """Judge this process's share of the samples."""
        ask = asking_each(self.model.to(device), self.preprocess, heads=self.heads)
        if self.columns is not None:
            ask = _reordered(ask, self.columns)
        return judge(ask, self.part, five=self.five, device=device, accepted=self.accepted, shard=shard)

    def scores(self, processes: int) -> dict[str, float]:
        """The means over all samples, whoever judged them; of two heads also each one's own."""
        if processes == 1:
            device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
            shares = [self.judge((0, 1), device)]
        else:
            shares = self._judged_by(processes)
        scores: dict[str, float] = {}
        for name in {name: None for share in shares for name in share} or {"": None}:
            rows = np.sum([share[name] for share in shares if share], axis=0) if any(shares) else np.zeros((3, 0))
            scores |= _means(rows, self.five, f"[{name}]" if name else "")
        if self.accepted is not None:
            scores = {name: value for name, value in scores.items() if not name.startswith("loss")}
        return scores

    def _judged_by(self, processes: int) -> list[dict[str, np.ndarray]]:
        # The threads of one process for each, because sums change in their last bits with them.
        try:
            content, threads = pickle.dumps(replace(self, model=self.model.cpu())), torch.get_num_threads()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(f"the model or the data cannot be sent to another process ({error}): take one") from None
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            waiting = [pool.submit(_share, content, (rank, processes), threads) for rank in range(processes)]
            return [share.result() for share in waiting]


def best_device() -> torch.device:
    """The device for a model that nobody has put anywhere yet."""
    from understudy.recipe.schema import Machine
    from understudy.train.machine import device

    return device(Machine())


def _share(content: bytes, shard: tuple[int, int], threads: int) -> dict[str, np.ndarray]:
    """What one of several processes does; each takes a graphics processor of its own where there are some."""
    torch.set_num_threads(threads)
    examination: _Examination = pickle.loads(content)  # noqa: S301 (written by the process that started this one)
    several = torch.cuda.device_count()
    return examination.judge(shard, torch.device("cuda", shard[0] % several) if several else torch.device("cpu"))


def evaluate(
    model: Any,
    *,
    data: Any = None,
    split: str = "test",
    images: str | Path | None = None,
    labels: str | Path | None = None,
    heads: Heads | None = None,
    processes: int = 1,
) -> dict[str, float]:
    """Score a saved model or a module on a data set.

    Args:
        model: the folder of a saved model or of a run, or a module.
        data: a data set by its recipe name, a mapping as in a recipe's `data`, or an object: a pair (images, labels)
            or a Dataset is scored whole, of a mapping with `train` and `test` the split.
        split: `test`, `validation` or `train`.
        images: instead of `data` a folder of images with a folder for each class, as ImageNet's `val`, or numbered
            ones as ImageNet-V2; see `understudy.tasks.classify.imagenet`.
        labels: a JSON file of lists, the right classes of each image in the order of file names, as ImageNet-ReaL.
        heads: how a model with two heads answers: `mean`, `sum_softmax`, `class` or `distillation`; by default as it
            was built.
        processes: how many share the work; the scores are the same for any number.

    Returns:
        `accuracy`, `loss`, perhaps `top5`, as fractions; of two heads also `accuracy[class]` and so on.

    Raises:
        UserError: the model or the data cannot be read, or do not fit together.
    """
    from understudy.models import load

    if (data is None) == (images is None):
        raise UserError("give either data, a data set, or images, a folder")
    if heads is not None and heads not in HEADS:
        raise UserError(f"there is no '{heads}', {did_you_mean(heads, HEADS)}", where="heads")
    module = load(model).to(best_device()) if isinstance(model, (str, Path)) else model
    if images is not None:
        examination = _of_images(module, Path(images), labels, heads)
    elif labels is not None:
        raise UserError("belong to a folder of images: give images too", where="labels")
    else:
        examination = _of_data(module, data, split, heads)
    return examination.scores(processes)


def _of_images(module: Any, folder: Path, labels: str | Path | None, heads: Heads | None) -> _Examination:
    from understudy.predict import card_of_images
    from understudy.tasks.classify.imagenet import read_folder

    card = card_of_images(module)
    part, accepted = read_folder(folder, card.classes, shape=card.shape, labels=labels)
    five = len(card.classes) >= 5
    return _Examination(module, card.preprocess, part, five, heads=heads, accepted=accepted)


def _of_data(module: Any, data: Any, split: str, heads: Heads | None) -> _Examination:
    from understudy.data import load_source
    from understudy.data.split import split as divide

    card: Card | None = getattr(module, "card", None)
    described, given = _described(data, card, split)
    splits = divide(load_source(described, given), described)
    parts: dict[str, Subset | None] = {"test": splits.test, "validation": splits.validation, "train": splits.teacher}
    part = parts.get(split)
    if part is None:
        raise UserError(f"the data has no split '{split}'")
    preprocess = card.preprocess if card else Preprocess(mean=described.mean, std=described.std)
    columns = None if card is None else _columns(card, splits, named=not getattr(module, "is_nameless", False))
    part = part.only(part.labels != UNLABELLED)
    return _Examination(module, preprocess, part, len(splits.classes) > _SHOWN_FIVE, columns, heads)


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


def _columns(card: "Card", splits: Splits, *, named: bool) -> list[int] | None:
    """For each class of the data the model's logit, once both are known to fit; None where the order is the same.

    A model that brought weights but no names (`named` is False) has the classes in the order of the data's.
    """
    if len(card.classes) != len(splits.classes):
        raise UserError(f"the model knows {len(card.classes)} classes, the data has {len(splits.classes)}")
    if card.shape[0] != splits.shape[0] or (card.preprocess.size is None and card.shape != splits.shape):
        raise UserError(f"the model takes images (C, H, W) of {card.shape}, the data has {splits.shape}")
    if card.classes == splits.classes or not named:
        return None
    unknown = [name for name in splits.classes if name not in card.classes]
    if unknown:
        raise UserError(f"the model does not know the class '{unknown[0]}' (it knows {', '.join(card.classes[:12])})")
    return [card.classes.index(name) for name in splits.classes]


def _reordered(ask: Ask, columns: list[int]) -> Ask:
    def reordered(images: Tensor) -> Tensor | dict[str, Tensor]:
        said = ask(images)
        if isinstance(said, Tensor):
            return said[:, columns]
        return {name: answer[:, columns] for name, answer in said.items()}

    return reordered
