"""A diffusion recipe with its data and its teacher read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy import randomness
from understudy.data import Splits
from understudy.errors import UserError
from understudy.tasks.diffusion.learner import Condition
from understudy.tasks.diffusion.network import Network
from understudy.tasks.diffusion.pixels import Canvas, read_images, some_of
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.tasks.diffusion.settings import FROM_TEACHER
from understudy.tasks.diffusion.store import Card
from understudy.tasks.diffusion.teachers import Foreign, Teacher, fresh_teacher, read_teacher


class Diffusion:
    """What all stages of a diffusion recipe need to know: images, teacher, classes.

    Args:
        recipe: what to do.
        objects: for names `python:...`, what was given in Python, by `teacher` and `data`.
        device: where everything is trained.

    Raises:
        UserError: data and teacher cannot be read or do not fit together.
    """

    def __init__(self, recipe: DiffusionRecipe, objects: Mapping[str, Any], device: torch.device) -> None:
        self.recipe = recipe
        self.objects = objects
        self.device = device
        self.canvas = Canvas(recipe.data.resize_to, recipe.data.pad_to)
        self.splits: Splits | None = None
        weights = recipe.teacher.weights
        if weights is not None and Path(weights).expanduser().is_file():  # which does not say how large its images are
            self.splits = self._read_data(None)
            self.given = self._given_teacher()
        else:
            self.given = self._given_teacher()
            self.splits = self._read_data(None if self.given is None else self.given.shape)
        self.shape = self._shape()
        self._check_classes()

    def _read_data(self, shape: tuple[int, ...] | None) -> Splits | None:
        if self.recipe.data.name == FROM_TEACHER:
            return None
        return read_images(self.recipe.data, self.objects.get("data"), shape=shape)

    def _given_teacher(self) -> Teacher | None:
        """The teacher that is not trained here."""
        if self.recipe.teacher.is_trained:
            return None
        data = self.recipe.data
        size = data.pad_to or data.resize_to or (self.splits.shape[1] if self.splits is not None else None)
        teacher = read_teacher(self.recipe, self.objects.get("teacher"), size=size)
        teacher.model.to(self.device).eval().requires_grad_(False)
        return teacher

    def _shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the networks see."""
        of_teacher = None if self.given is None else self.given.shape
        if self.splits is None:
            if of_teacher is None:
                raise UserError("the teacher does not say how large its images are: give data", where="data")
            return of_teacher[0], of_teacher[1], of_teacher[2]
        shape = self.canvas.shape(self.splits.shape)
        if of_teacher is not None and tuple(of_teacher) != shape:
            raise UserError(
                f"images (C, H, W) are {shape}, the teacher's {tuple(of_teacher)}: see data.resize_to and data.pad_to"
            )
        return shape

    def _check_classes(self) -> None:
        if not self.recipe.teacher.conditional:
            return
        if self.splits is not None and len(self.splits.classes) < 2:
            raise UserError("the data has no classes, so no model can draw by class: set teacher.conditional=false")
        model = self.given.model if self.given is not None else None
        if isinstance(model, Foreign):
            model = model.network
        if isinstance(model, Network) and self.splits is not None and model.classes < len(self.splits.classes):
            raise UserError(f"the data has {len(self.splits.classes)} classes, the teacher knows {model.classes}")

    @property
    def conditional(self) -> bool:
        """Whether images are drawn by class."""
        return self.recipe.teacher.conditional

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that are drawn; none where images are not drawn by class."""
        if not self.conditional:
            return ()
        if self.splits is not None:
            return self.splits.classes
        assert self.given is not None
        model = self.given.model
        count = model.classes - (self.given.null is not None) if isinstance(model, Network) else 0
        return self.given.classes or tuple(map(str, range(count)))

    @property
    def is_judged(self) -> bool:
        """Whether there are labelled images to train a classifier on."""
        return self.splits is not None and len(self.splits.classes) > 1 and self.recipe.data.name != FROM_TEACHER

    # Models

    def teacher(self, seed: int) -> Teacher:
        """The teacher that was given, or one that is to be trained; equal seeds give equal starting weights."""
        if self.given is not None:
            return self.given
        assert self.splits is not None
        randomness.seed_torch(randomness.key("init", "teacher", seed))
        teacher = fresh_teacher(self.recipe, shape=self.shape, classes=self.splits.classes)
        teacher.model.to(self.device)
        return teacher

    def needs_converting(self, teacher: Teacher) -> bool:
        """Whether a teacher becomes a model that predicts v on our schedule first."""
        if self.recipe.convert == "none":
            return False
        return self.recipe.convert != "auto" or not teacher.ours or teacher.process.prediction == "eps"

    def condition(self, *, guided: bool, dropout: float = 0.0, null: int | None = None) -> Condition | None:
        """What a student is told of a batch's labels."""
        if not self.conditional:
            return None
        guidance = self.recipe.guidance
        return Condition(null=null, dropout=dropout, guidance=guidance.weights if guided and guidance else None)

    def card(self, process: Process, steps: int, *, sampler: str = "ddim", guided: bool = False, text: str) -> Card:
        """What a network is saved with."""
        settings = self.recipe.guidance if guided else None
        strength, learnt = (settings.sample, settings.weights) if settings else (None, None)
        return Card(process, steps, self.shape, self.classes, strength, learnt, sampler, text)

    # Images

    def held_out(self, most: int) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] that nothing was trained on, with their labels, in a fixed order."""
        assert self.splits is not None
        parts = [self.splits.test] if self.splits.validation is None else [self.splits.test, self.splits.validation]
        return some_of(parts, self.canvas, most, "held out")

    def training_images(self, most: int) -> tuple[Tensor, Tensor]:
        """Training images in [-1, 1], unvaried, with their labels."""
        assert self.splits is not None
        return some_of([self.splits.teacher], self.canvas, most, "training")
