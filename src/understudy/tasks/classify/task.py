"""Image classification: the models, data, steps and scores of a recipe."""

from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.data import Feed, Preprocess, Splits, load_source, split
from understudy.distill import Ensemble, Member, Teacher
from understudy.distill.recorded import RecordedTeacher
from understudy.distill.rehead import Reheaded
from understudy.errors import UserError
from understudy.evaluate import Ask, asking_each, score
from understudy.models import Card, build
from understudy.models.start import start_from
from understudy.recipe.schema import ANSWERING, ClassifyRecipe, Method, Model, Student, Train
from understudy.tasks.classify.answers import recorded_teacher
from understudy.tasks.classify.variants import changed, distilled_arms, student_arms
from understudy.train import processes
from understudy.train.arm import Arm
from understudy.train.stage import Scores

METRIC = "accuracy"
# What is asked about at once: so many images, and no more values than 256 images of 3x32x32 have.
_ASKED_AT_ONCE, _VALUES_AT_ONCE = 1024, 256 * 3 * 32 * 32
# Images of one forward of a teacher that does not know the answers yet; of one whose maps are to fit into caches.
_IN_A_FORWARD, _MAPS_IN_A_FORWARD = 256, 32


class Classify:
    """A classification recipe with its data read: makes the stages that a run trains.

    Args:
        recipe: what to do.
        objects: for names `python:...`, what was given in Python, by `teacher`, `student`, `data`.
        device: where everything is trained.
    """

    def __init__(self, recipe: ClassifyRecipe, objects: Mapping[str, Any], device: torch.device) -> None:
        self.recipe = recipe
        self.objects = objects
        self.device = device
        self.source = load_source(recipe.data, objects.get("data"))
        self.splits: Splits = split(self.source, recipe.data)
        self.classes = len(self.splits.classes)
        self.arms = student_arms(recipe)
        # The teacher that students start from where the recipe says so, and how many of their tensors it gave.
        self.origin: nn.Module | None = None
        self.copied: tuple[int, int] | None = None
        self._check_normalisation()
        withheld = {str(word) for word in recipe.data.without}
        self.recall_of = [index for index, name in enumerate(self.splits.classes) if name in withheld]

    def _check_normalisation(self) -> None:
        channels = self.splits.shape[0]
        sections = {"data": self.recipe.data, **self.recipe.teachers, **self.recipe.all_assistants}
        for where, section in (*sections.items(), ("student", self.recipe.student)):
            for key in ("mean", "std"):
                values = getattr(section, key)
                if values is not None and len(values) not in (1, channels):
                    raise UserError(
                        f"has {len(values)} values, the images have {channels} channels",
                        where=f"{where}.{key}",
                    )

    # Models

    def section(self, which: str) -> Model:
        """The recipe's section of a model.

        Args:
            which: `student`, the name of a teacher or assistant, or of an arm, whose method may change the student.
        """
        known = {"teacher": self.recipe.teacher, **self.recipe.teachers, **self.recipe.all_assistants}
        if which in known:
            return known[which]
        planned = distilled_arms(self.recipe).get(which)
        return self.recipe.student if planned is None else changed(self.recipe.student, planned.method)

    def build(self, which: str, seed: int) -> nn.Module:
        """Build a teacher, an assistant or a student; equal seeds give equal starting weights.

        Args:
            which: `student`, or the name of a teacher or assistant.
            seed: of the run.

        Raises:
            UserError: the student is to start from the teacher, which has no tensor like its own.
        """
        section = self.section(which)
        role = "student" if isinstance(section, Student) else which
        randomness.seed_torch(randomness.key("init", role, seed))
        module = build(section, classes=self.classes, shape=self.splits.shape, given=self.objects.get(role))
        if isinstance(section, Student) and section != self.recipe.student:
            start_from(module, self.build("student", seed))  # where shapes agree, all students start alike
        init = self.recipe.student.init if role == "student" else None
        if init is not None and self.origin is not None:
            copied = start_from(module, self.origin, blocks=init == "teacher-blocks")
            if not copied:
                raise UserError("no tensor of the teacher has a name and shape of the student's", where="student.init")
            self.copied = copied, len(module.state_dict())
        return module.to(self.device)

    def peers(self, method: Method, seed: int) -> list[nn.Module]:
        """The further students of mutual learning, each with starting weights of its own."""
        peers = method.peers if isinstance(method.peers, tuple) else (self.recipe.student,) * method.peers
        modules = []
        for number, peer in enumerate(peers):
            randomness.seed_torch(randomness.key("init", "peer", number, seed))
            given = self.objects.get("student")
            modules.append(build(peer, classes=self.classes, shape=self.splits.shape, given=given).to(self.device))
        return modules

    def preprocess(self, which: str, module: nn.Module) -> Preprocess:
        """How a model wants its input: as its section says, as it was trained, or as the data section says."""
        if isinstance(module, Ensemble):
            return Preprocess()  # its members have their own
        model = self.section(which)
        data = self.recipe.data
        card: Card | None = getattr(module, "card", None)
        if card is not None:
            return card.preprocess
        mean, std, size = model.mean or data.mean, model.std or data.std, model.size
        if model.pretrained and model.mean is None:
            mean, std, size = _pretrained_input(module, mean, std, size)
        return Preprocess(size, mean, std)

    def card(self, which: str, module: nn.Module, *, fingerprint: str = "", text: str = "") -> Card:
        """What a model is saved with."""
        not_kept = {"train", "share", "copies", "init", "new_head", "trainable", *ANSWERING}
        described = self.section(which).model_dump(mode="json", exclude=not_kept)
        return Card(
            model=module.described(described) if isinstance(module, Reheaded) else described,
            classes=self.splits.classes,
            shape=self.splits.shape,
            preprocess=self.preprocess(which, module),
            fingerprint=fingerprint,
            text=text,
        )

    def example(self, preprocess: Preprocess, count: int = 2) -> Tensor:
        """A few images as a model takes them, the same on every process."""
        with processes.alone():
            feed = self.feed("students", 0)
        return preprocess(feed[0].images[:count].to(self.device))

    def as_teacher(self, module: nn.Module, which: str = "teacher") -> Teacher:
        """Freeze a model into a teacher that answers in chunks: of small images several batches, else a micro-batch.

        On a processor a convolutional one gets few images at once: it uses each weight many times on an image anyway,
        and the maps of many images do not fit into the processor's caches.

        Args:
            module: any classifier of the recipe.
            which: the section that it was made from.

        Raises:
            UserError: it knows other classes than the data.
        """
        together = -(-self._batch_here * self.ahead // self.recipe.train.accumulate)
        chunk = min(together, max(_IN_A_FORWARD, self._batch_here))
        if self.device.type == "cpu" and any(isinstance(part, nn.Conv2d) for part in module.modules()):
            chunk = min(chunk, _MAPS_IN_A_FORWARD)
        preprocess = self.preprocess(which, module)
        return Teacher(module, preprocess=preprocess, chunk=chunk, columns=self.columns(module))

    @cached_property
    def recorded(self) -> RecordedTeacher | None:
        """The teacher where the recipe names a table of answers.

        Raises:
            UserError: the table is not right, or random views of the images are shown and that was not agreed to.
        """
        return recorded_teacher(self) if self.recipe.teacher.is_recorded else None

    def ensemble(self, modules: Mapping[str, nn.Module]) -> Ensemble:
        """Several teachers as one, each asked in its own way.

        Args:
            modules: by the name of the teacher.
        """
        asked = [
            Member(self.preprocess(name, module), self.columns(module), self.recipe.teachers[name].share)
            for name, module in modules.items()
        ]
        return Ensemble(list(modules.values()), asked)

    def start_students_from(self, teacher: Teacher) -> None:
        """Where the recipe says so, students start from this teacher's tensors; of several from the first's."""
        if self.recipe.student.init is not None:
            self.origin = teacher.model.members[0] if isinstance(teacher.model, Ensemble) else teacher.model

    @property
    def ahead(self) -> int:
        """How many steps' batches the teacher is asked about at once."""
        train = self.recipe.train
        images = min(_ASKED_AT_ONCE, _VALUES_AT_ONCE // prod(self.splits.shape))
        return max(1, images // self._batch_here) if train.accumulate == 1 else 1

    @property
    def _batch_here(self) -> int:
        """Images of a step that this process sees."""
        return -(-self.recipe.train.batch_size // processes.count())

    def columns(self, module: nn.Module) -> list[int] | None:
        """Where a saved teacher names the same classes in another order: its logit for each of ours."""
        card: Card | None = getattr(module, "card", None)
        if card is None or card.classes == self.splits.classes:
            return None
        unknown = [name for name in self.splits.classes if name not in card.classes]
        if unknown:
            raise UserError(
                f"the teacher does not know the class '{unknown[0]}' (it knows {len(card.classes)} classes, "
                f"the data has {self.classes})",
                where="teacher",
            )
        return [card.classes.index(name) for name in self.splits.classes]

    def feed(self, which: str, seed: int, settings: Train | None = None) -> Feed:
        """The training batches of a use of the data: `teacher`, `control` or `students`."""
        settings = settings or self.recipe.train
        return Feed(
            getattr(self.splits, which),
            batch_size=settings.batch_size,
            seed=seed,
            settings=self.recipe.data.augment,
            classes=self.classes,
            second_view=self.recipe.data.second_view if which == "students" else None,
            views=None if self.recipe.data.views == "all" else self.recipe.data.views,
            views_seed=self.recipe.data.seed,
            normal=(self.recipe.data.mean or (0.5,), self.recipe.data.std or (0.25,)),
            shard=(processes.rank(), processes.count()),
        )

    # Scores

    def evaluate(self, arm: Arm) -> Scores:
        """Score an arm's model on validation (where there is one) and test."""
        return self.scores(asking_each(arm.model, arm.preprocess))

    def scores(self, ask: Ask) -> Scores:
        """Score anything that answers pixels with logits."""
        parts = {"validation": self.splits.validation, "test": self.splits.test}
        return {
            name: score(ask, part, classes=self.classes, device=self.device, recall_of=self.recall_of)
            for name, part in parts.items()
            if part is not None
        }


def _pretrained_input(module: nn.Module, mean: Any, std: Any, size: int | None) -> tuple[Any, Any, int | None]:
    """The normalisation that pretrained weights were made with, where the library records it."""
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, dict) and "mean" in config:
        return tuple(config["mean"]), tuple(config["std"]), size
    imagenet_mean, imagenet_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return mean or imagenet_mean, std or imagenet_std, size
