"""A finished run of a classification recipe, its models asked once more about every test image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.data import Preprocess, Subset
from understudy.data.feed import in_order
from understudy.data.source import UNLABELLED
from understudy.distill.heads import ask_heads, combine
from understudy.distill.taps import tapped
from understudy.errors import UserError
from understudy.models import load
from understudy.recipe.schema import ClassifyRecipe
from understudy.tasks.classify.task import Classify
from understudy.tasks.classify.variants import student_arms
from understudy.train.folder import RunFolder
from understudy.train.machine import device

# Answers of a model with two heads, as the article's tables name them: each alone, and both in two ways.
CLASS, DISTILLATION, BOTH, SOFTMAXES = "class", "distillation", "both", "both (softmaxes)"
_CHUNK = 200


@dataclass(frozen=True)
class Asked:
    """What one model decided.

    Args:
        decisions: (N,) class numbers by head; under "" those of a model with one.
        cosines: of the class and the distillation token by layer, where there are two; the mean over the images.
    """

    decisions: dict[str, np.ndarray]
    cosines: dict[str, float] = field(default_factory=dict)


class Finished:
    """A finished run.

    Args:
        folder: of the run.
        objects: what it was given in Python, by `teacher`, `student`, `data`.
        samples: how many of the test images are asked about; None for all.

    Raises:
        UserError: it is no finished run of a classification recipe, or something of it is gone.
    """

    def __init__(self, folder: Path, *, objects: Mapping[str, Any] | None = None, samples: int | None = None) -> None:
        self.folder = RunFolder.open(folder)
        self.recipe, self.results = read_finished(folder)
        self.objects = dict(objects or {})
        self.device = device(self.recipe.train)
        self.task = Classify(self.recipe, self.objects, self.device)
        test = self.task.splits.test
        test = test.only(test.labels != UNLABELLED)
        self.test: Subset = test if samples is None else test.only(np.arange(min(samples, len(test))))
        self._known: dict[Path, Asked] = {}

    @property
    def seeds(self) -> range:
        """Of its students."""
        return self.recipe.all_seeds

    @property
    def teachers(self) -> list[str]:
        """All of them together, then each of several."""
        several = list(self.recipe.teachers)
        return ["teacher", *several] if len(several) > 1 else ["teacher"]

    @cached_property
    def students(self) -> dict[str, str]:
        """Its students by name with their role: `control`, `distilled` or `other`."""
        return dict(student_arms(self.recipe))

    def place(self, name: str, seed: int) -> Path:
        """Where a model is saved.

        Args:
            name: of a student, `teacher`, or one of several such as `teacher_2`.
            seed: of the student; of a teacher with several seeds, the one that taught it.
        """
        recipe = self.recipe
        if name != "teacher" and name in recipe.teachers:
            return self.folder.path / "teacher" / name.removeprefix("teacher_")
        if name != "teacher":
            return self.folder.arm(name, seed) / "student"
        if len(recipe.teachers) > 1 or not recipe.teacher.is_trained:
            return self.folder.path / "teacher"
        first = recipe.seed
        return self.folder.arm("teacher", first + (seed - first) % recipe.teacher_seeds) / "student"

    def open(self, name: str, seed: int) -> nn.Module:
        """A model as it was saved, on the run's device."""
        given = self.objects.get("student" if name in self.students else name)
        return load(self.place(name, seed), given=given).to(self.device)

    def ask(self, name: str, seed: int) -> Asked:
        """What a model says to the test images; a teacher of several seeds is asked once."""
        place = self.place(name, seed)
        if place not in self._known:
            module: Any = self.open(name, seed)
            columns = self.task.columns(module)
            self._known[place] = examine(module, module.card.preprocess, self.test, self.device, columns)
        return self._known[place]


def read_finished(folder: Path) -> tuple[ClassifyRecipe, dict[str, Any]]:
    """The recipe and the results of a finished classification run.

    Raises:
        UserError: it is none.
    """
    run = RunFolder.open(folder)
    results = run.results()
    if results is None:
        raise UserError("is not finished: continue it with `understudy resume`", where=folder)
    recipe = run.recipe()
    if not isinstance(recipe, ClassifyRecipe):
        raise UserError(f"is a run of the task {recipe.task}: only those of classify can be analysed", where=folder)
    if not results["verdicts"]:
        raise UserError("trained a teacher alone: there is nothing to compare it with", where=folder)
    return recipe, results


@torch.no_grad()
def examine(
    model: nn.Module, preprocess: Preprocess, part: Subset, place: torch.device, columns: list[int] | None = None
) -> Asked:
    """Ask a model about every image of a part: each head's decision, and how alike its two tokens are.

    Reference: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML
    2021 (https://arxiv.org/abs/2012.12877): tables 3 and 4, and the cosines of section 4.

    Args:
        model: a classifier.
        preprocess: from raw pixels to its input.
        part: the images.
        place: the device that the model is on.
        columns: for each class of the data its logit, where the order is another.
    """
    model.eval()
    layers = token_layers(model)
    decided: dict[str, list[np.ndarray]] = {}
    sums: dict[str, float] = dict.fromkeys(layers, 0.0)
    for images, _ in in_order(part, _CHUNK):
        with tapped(model, layers) as outputs:
            answers = _answers(model, preprocess(images.to(place)))
        for name, logits in answers.items():
            chosen = logits if columns is None else logits[:, columns]
            decided.setdefault(name, []).append(chosen.argmax(1).cpu().numpy())
        for layer in layers:
            tokens = outputs[layer].float()
            sums[layer] += float(F.cosine_similarity(tokens[:, 0], tokens[:, 1], dim=-1).sum())
    decisions = {name: np.concatenate(parts) for name, parts in decided.items()}
    if not layers:
        return Asked(decisions)
    own: Any = model
    at_start = float(F.cosine_similarity(own.cls_token.float(), own.dist_token.float(), dim=-1).mean())
    return Asked(decisions, {"input": at_start, **{layer: total / len(part) for layer, total in sums.items()}})


def _answers(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    of_class, of_teacher = ask_heads(model, inputs)
    if of_teacher is None:
        return {"": of_class}
    return {
        CLASS: of_class,
        DISTILLATION: of_teacher,
        BOTH: combine(of_class, of_teacher, "mean"),
        SOFTMAXES: combine(of_class, of_teacher, "sum_softmax"),
    }


def token_layers(model: nn.Module) -> list[str]:
    """The blocks of a transformer whose first two tokens are the class and the distillation token; else none."""
    blocks = getattr(model, "blocks", None)
    has_two = all(isinstance(getattr(model, name, None), Tensor) for name in ("cls_token", "dist_token"))
    if not has_two or not isinstance(blocks, (nn.Sequential, nn.ModuleList)):
        return []
    last = ["norm"] if isinstance(getattr(model, "norm", None), nn.Module) else []
    return [f"blocks.{number}" for number in range(len(blocks))] + last
