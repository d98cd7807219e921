"""Image classification: the models, data, steps and scores of a recipe."""

from collections.abc import Callable, Mapping
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.data import Feed, Preprocess, Splits, load_source, split
from understudy.distill import Distiller, Objective, Schedule, Teacher
from understudy.errors import UserError
from understudy.evaluate import asking, score
from understudy.losses import CrossEntropy
from understudy.losses.table import LOSSES
from understudy.models import Card, build
from understudy.recipe.schema import ClassifyRecipe, Method, Model, Train, Weight, WeightSchedule
from understudy.recipe.signature import options
from understudy.tasks.classify.variants import distilled_arms, student_arms
from understudy.train.arm import Arm, Role
from understudy.train.loop import Scores, Stage

METRIC = "accuracy"
_VALUES_AT_ONCE = 1_000_000

# Where a loss compares the models when the recipe does not say.
_DEFAULT_TAPS = {"logits": None, "features": "auto", "last": "last", "embedding": "embedding"}


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
        self._check_normalisation()
        withheld = {str(word) for word in recipe.data.without}
        self.recall_of = [index for index, name in enumerate(self.splits.classes) if name in withheld]

    def _check_normalisation(self) -> None:
        channels = self.splits.shape[0]
        for where, section in (
            ("data", self.recipe.data),
            ("teacher", self.recipe.teacher),
            ("student", self.recipe.student),
        ):
            for key in ("mean", "std"):
                values = getattr(section, key)
                if values is not None and len(values) not in (1, channels):
                    raise UserError(
                        f"has {len(values)} values, the images have {channels} channels",
                        where=f"{where}.{key}",
                    )

    # Models

    def build(self, which: str, seed: int) -> nn.Module:
        """Build the teacher or a student; equal seeds give equal starting weights.

        Args:
            which: `teacher` or `student`.
            seed: of the run.
        """
        model: Model = getattr(self.recipe, which)
        randomness.seed_torch(randomness.key("init", which, seed))
        module = build(model, classes=self.classes, shape=self.splits.shape, given=self.objects.get(which))
        return module.to(self.device)

    def preprocess(self, which: str, module: nn.Module) -> Preprocess:
        """How a model wants its input: as its section says, as it was trained, or as the data section says."""
        model: Model = getattr(self.recipe, which)
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
        model: Model = getattr(self.recipe, which)
        return Card(
            model=model.model_dump(mode="json", exclude={"train"}),
            classes=self.splits.classes,
            shape=self.splits.shape,
            preprocess=self.preprocess(which, module),
            fingerprint=fingerprint,
            text=text,
        )

    def example(self, preprocess: Preprocess, count: int = 2) -> Tensor:
        """A few images as a model takes them."""
        return preprocess(self.feed("students", 0)[0].images[:count].to(self.device))

    def as_teacher(self, module: nn.Module) -> Teacher:
        """Freeze a model into a teacher that answers in chunks: of small images several batches, else a micro-batch.

        Raises:
            UserError: it knows other classes than the data.
        """
        train = self.recipe.train
        chunk = -(-train.batch_size * self.ahead // train.accumulate)
        preprocess = self.preprocess("teacher", module)
        return Teacher(module, preprocess=preprocess, chunk=chunk, columns=self._columns(module))

    @property
    def ahead(self) -> int:
        """How many steps' batches the teacher answers at once: up to 256 images of a million values together."""
        train = self.recipe.train
        images = min(256, _VALUES_AT_ONCE // prod(self.splits.shape))
        return max(1, images // train.batch_size) if train.accumulate == 1 else 1

    def _columns(self, module: nn.Module) -> list[int] | None:
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

    # Stages

    def teacher_stage(self, seed: int) -> Stage:
        """Training the teacher alone, on every labelled sample."""
        settings = self.recipe.teacher_train
        module = self.build("teacher", seed)
        feed = self.feed("teacher", seed, settings)
        preprocess = self.preprocess("teacher", module)
        arm = self._arm(
            "teacher",
            "teacher",
            module,
            [_labels(1.0)],
            None,
            settings,
            feed,
            preprocess=preprocess,
            on="teacher",
        )
        return self._stage(f"teacher-{seed}", seed, (arm,), {"teacher": feed}, None)

    def student_stage(self, seed: int, teacher: Teacher | None, equal_time: float = 1.0) -> Stage:
        """Training a seed's students together: the controls alone, the others with the teacher.

        Args:
            seed: of the run.
            teacher: asked once a step for all of them.
            equal_time: for the control of that name, how many times longer it may train.
        """
        settings = self.recipe.train
        feeds = {"students": self.feed("students", seed)}
        on = "students"
        if self.recipe.data.transfer != "none":
            feeds["control"] = self.feed("control", seed)
            on = "control"
        pace = feeds["students"]
        arms = []
        for name in self.recipe.control if isinstance(self.recipe.control, tuple) else ():
            module = self.build("student", seed)
            smoothing = 0.1 if name == "label_smoothing" else 0.0
            epochs = max(1, round(settings.epochs * equal_time)) if name == "equal_time" else None
            arm_name = "student_alone" if name == "train" else f"student_{name}"
            role = "control" if name == "train" else "other"
            arms.append(
                self._arm(
                    arm_name,
                    role,
                    module,
                    [_labels(1.0, smoothing)],
                    None,
                    settings,
                    pace,
                    on=on,
                    epochs=epochs,
                )
            )
        for arm_name, method in distilled_arms(self.recipe).items():
            module = self.build("student", seed)
            wanted = objectives(method, len(self.source.train))
            arms.append(self._arm(arm_name, "distilled", module, wanted, teacher, settings, pace, on="students"))
        return self._stage(f"seed-{seed}", seed, tuple(arms), feeds, teacher)

    def _stage(
        self, name: str, seed: int, arms: tuple[Arm, ...], feeds: dict[str, Feed], teacher: Teacher | None
    ) -> Stage:
        pace = feeds.get("students") or feeds["teacher"]
        return Stage(
            name,
            seed,
            arms,
            feeds,
            pace.steps_per_pass,
            teacher,
            evaluate=self.evaluate,
            metric=METRIC,
            device=self.device,
            ahead=self.ahead if teacher is not None else 1,
        )

    def _arm(
        self,
        name: str,
        role: Role,
        module: nn.Module,
        objectives: list[Objective],
        teacher: Teacher | None,
        settings: Train,
        pace: Feed,
        *,
        on: str,
        preprocess: Preprocess | None = None,
        epochs: int | None = None,
    ) -> Arm:
        preprocess = preprocess or self.preprocess("student", module)
        distiller = Distiller(
            student=module, teacher=teacher, objectives=objectives, example=self.example(preprocess)
        ).to(self.device)
        return Arm(
            name,
            role,
            distiller,
            settings,
            feed=on,
            preprocess=preprocess,
            steps_per_epoch=pace.steps_per_pass,
            epochs=epochs,
        )

    def feed(self, which: str, seed: int, settings: Train | None = None) -> Feed:
        """The training batches of a use of the data: `teacher`, `control` or `students`."""
        settings = settings or self.recipe.train
        return Feed(
            getattr(self.splits, which),
            batch_size=settings.batch_size,
            seed=seed,
            settings=self.recipe.data.augment,
            classes=self.classes,
        )

    # Scores

    def evaluate(self, arm: Arm) -> Scores:
        """Score an arm's model on validation (where there is one) and test."""
        return self.scores(asking(arm.model, arm.preprocess))

    def scores(self, ask: Callable[[Tensor], Tensor]) -> Scores:
        """Score anything that answers pixels with logits."""
        parts = {"validation": self.splits.validation, "test": self.splits.test}
        return {
            name: score(ask, part, classes=self.classes, device=self.device, recall_of=self.recall_of)
            for name, part in parts.items()
            if part is not None
        }


def objectives(method: Method, samples: int) -> list[Objective]:
    """Build a method's objectives: the labels with their weight, then its losses.

    Args:
        method: as the recipe describes it.
        samples: of the training set, for losses that keep something of each.
    """
    built = [_labels(schedule(method.labels), method.label_smoothing)] if method.labels != 0 else []
    for described in method.objectives:
        entry = LOSSES[described.loss]
        kind = getattr(import_module(entry.module), entry.class_name)
        if hasattr(kind, "predictor"):
            raise UserError(
                f"'{described.loss}' trains another student than it starts with (its `predictor`), which a run cannot "
                "save yet: use the loss with us.Distiller in a loop of yours",
                where=f"method '{method.name}'",
            )
        wanted = options(entry.module, entry.class_name)
        given = {key: value for key, value in {"samples": samples}.items() if key in wanted} | described.options
        try:
            loss = kind(**given)
        except (TypeError, ValueError) as error:
            raise UserError(str(error), where=f"method '{method.name}', loss '{described.loss}'") from None
        built.append(
            Objective(
                loss,
                schedule(described.weight),
                student_tap=described.student or _DEFAULT_TAPS[entry.taps],
                teacher_tap=described.teacher,
                name=described.loss,
            )
        )
    return built


def schedule(weight: Weight) -> float | Schedule:
    """A recipe's weight as a number or a schedule over epochs."""
    if isinstance(weight, WeightSchedule):
        return Schedule.ramp(weight.start, weight.end, weight.epochs, weight.shape)
    return Schedule(weight) if isinstance(weight, tuple) else float(weight)


def _labels(weight: float | Schedule, smoothing: float = 0.0) -> Objective:
    return Objective(CrossEntropy(label_smoothing=smoothing), weight, name="labels")


def _pretrained_input(module: nn.Module, mean: Any, std: Any, size: int | None) -> tuple[Any, Any, int | None]:
    """The normalisation that pretrained weights were made with, where the library records it."""
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, dict) and "mean" in config:
        return tuple(config["mean"]), tuple(config["std"]), size
    imagenet_mean, imagenet_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return mean or imagenet_mean, std or imagenet_std, size
