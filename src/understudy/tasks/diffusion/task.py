"""A diffusion recipe with its data read: makes the stages that a run trains."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.data import Feed, Splits
from understudy.errors import UserError
from understudy.recipe.schema import Train
from understudy.tasks.diffusion.guidance import Guided, learns_guidance
from understudy.tasks.diffusion.judge import Judge, judge_learner, judge_settings
from understudy.tasks.diffusion.learner import Condition, Denoising
from understudy.tasks.diffusion.network import Network, StepClock, without_dropout
from understudy.tasks.diffusion.pixels import Canvas, read_images, some_of
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.tasks.diffusion.settings import FROM_TEACHER, Convert, Method, Updates
from understudy.tasks.diffusion.store import Card
from understudy.tasks.diffusion.targets import Consistency, Data, Target, Taught, Tract, TwoSteps
from understudy.tasks.diffusion.teachers import Foreign, Teacher, clock_steps, fresh_teacher, on_our_clock, read_teacher
from understudy.train.arm import Arm, Role
from understudy.train.stage import Scores, Stage

METRIC = "psnr"
# Held-out images that a stage is watched on.
_WATCHED = 256


class Diffusion:
    """The models, data and stages of a diffusion recipe.

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
        guidance = self.recipe.guidance.sample if guided and self.recipe.guidance else None
        return Card(process, steps, self.shape, self.classes, guidance, sampler, text)

    # Stages

    def judge_stage(self, seed: int) -> Stage:
        """Training of the classifier that samples are judged by."""
        assert self.splits is not None
        described = self.recipe.evaluate.judge
        settings = judge_settings(described, self._machine())
        feed = self._feed(settings.batch_size, seed)
        learner = judge_learner(described, classes=len(self.splits.classes), shape=self.shape, seed=seed)
        arm = self._arm("judge", "other", seed, learner.to(self.device), settings, feed.steps_per_pass)
        return self._stage("judge", arm, feed, feed.steps_per_pass, self.watch_judge, "accuracy")

    def base_stage(self, seed: int, teacher: Teacher) -> Stage:
        """Training of the teacher on data, at random times."""
        settings = self.recipe.teacher.train
        assert settings is not None
        condition = self.condition(guided=False, dropout=settings.label_dropout, null=teacher.null)
        learner = Denoising(
            teacher.model,
            Data(teacher.process),
            process=teacher.process,
            weighting=settings.weighting,
            steps=0,
            name="denoising",
            condition=condition,
        )
        return self.stage("teacher", "teacher", seed, learner, settings, ema=settings.ema)

    def convert_stage(self, seed: int, teacher: Teacher) -> tuple[Stage, Process]:
        """Fine-tuning of a copy of the teacher towards its own images, on our schedule, until it predicts v."""
        settings = self.recipe.convert if isinstance(self.recipe.convert, Convert) else Convert()
        process = Process(teacher.process.logsnr_min, teacher.process.logsnr_max, "v")
        student = self._student(on_our_clock(teacher, StepClock(clock_steps(self.recipe.steps[0]))))
        learner = Denoising(
            student,
            Taught(teacher.model, teacher.process),
            process=process,
            weighting=settings.weighting,
            steps=0,
            name="convert",
            condition=self.condition(guided=False, dropout=0.1 if teacher.null is not None else 0.0, null=teacher.null),
        )
        return self.stage("converted", "other", seed, learner, settings), process

    def guidance_stage(self, seed: int, model: nn.Module, process: Process, null: int | None) -> Stage:
        """A student learns guidance of every strength from a teacher that is asked with and without the class.

        Raises:
            UserError: the teacher was never trained without classes.
        """
        settings = self.recipe.guidance
        assert settings is not None
        if null is None or not isinstance(model, Network):
            raise UserError("the teacher has no class number for 'no class': it cannot be guided", where="guidance")
        student = self._student(model)
        assert isinstance(student, Network)
        randomness.seed_torch(randomness.key("init", "guidance", seed))
        learns_guidance(student).to(self.device)
        learner = Denoising(
            student,
            Taught(Guided(model, null), process),
            process=process,
            weighting=settings.weighting,
            steps=0,
            name="guidance",
            condition=self.condition(guided=True),
        )
        return self.stage("guided", "other", seed, learner, settings)

    def round_stage(
        self, seed: int, method: Method, model: nn.Module, process: Process, *, before: int, steps: int, guided: bool
    ) -> Stage:
        """One round: a student that begins as its teacher learns to take fewer steps.

        Args:
            seed: of the run.
            method: that it learns by.
            model: the teacher.
            process: of both.
            before: steps of the teacher.
            steps: of the student.
            guided: whether both take a strength of guidance.
        """
        student = self._student(model)
        times = before
        target: Target
        if method.name == "progressive":
            target, times = TwoSteps(model, process, steps), steps
        elif method.name == "tract":
            decay = method.self_decay
            target = Tract(model, student, process, teacher_steps=before, steps=steps, decay=decay)
        else:
            target = Consistency(model, student, process, steps=before, decay=method.self_decay)
        name = self.arm_name(method, steps)
        learner = Denoising(
            student,
            target,
            process=process,
            weighting=method.weighting,
            steps=times,
            name=name,
            condition=self.condition(guided=guided),
        )
        settings = method.model_copy(update={"updates": method.updates_to(steps), "lr": method.lr_to(steps)})
        return self.stage(name, "distilled", seed, learner, settings)

    def arm_name(self, method: Method, steps: int) -> str:
        """What the student of a round is called."""
        way = f"_{method.name}" if len(self.recipe.method) > 1 else ""
        return f"student{way}" if method.name == "consistency" else f"student{way}_{steps}"

    def _student(self, model: nn.Module) -> nn.Module:
        return without_dropout(copy.deepcopy(model)).to(self.device).requires_grad_(True)

    def stage(
        self, name: str, role: Role, seed: int, learner: Denoising, settings: Updates, *, ema: float | None = None
    ) -> Stage:
        """A stage of one network.

        Args:
            name: of the arm.
            role: of the arm.
            seed: of the run.
            learner: the network with its target.
            settings: how long and how it is trained.
            ema: decay of the moving average of its weights.
        """
        chunk = chunk_of(settings.updates, self.recipe.train.evaluate_every)
        train = Train(
            epochs=settings.updates // chunk,
            batch_size=settings.batch_size,
            optimizer="adamw",
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            schedule=settings.schedule,
            warmup_epochs=settings.warmup / chunk,
            clip=settings.clip,
            accumulate=settings.accumulate,
            ema=ema,
            **self._machine(),
        )
        arm = self._arm(name, role, seed, learner, train, chunk)
        return self._stage(f"{name}-{seed}", arm, self._feed(settings.batch_size, seed), chunk, self.watch, METRIC)

    def _arm(self, name: str, role: Role, seed: int, learner: Any, settings: Train, steps: int) -> Arm:
        canvas: Any = self.canvas  # called as a `Preprocess` is
        return Arm(name, role, learner, settings, feed="images", preprocess=canvas, steps_per_epoch=steps, seed=seed)

    def _stage(self, name: str, arm: Arm, feed: Feed, steps: int, watch: Callable[[Arm], Scores], metric: str) -> Stage:
        return Stage(
            name,
            (arm,),
            {"images": feed},
            steps,
            evaluate=watch,
            metric=metric,
            device=self.device,
        )

    def _machine(self) -> dict[str, Any]:
        settings = self.recipe.train
        return settings.model_dump(exclude={"evaluate_every"})

    def _feed(self, batch_size: int, seed: int) -> Feed:
        assert self.splits is not None
        return Feed(
            self.splits.teacher,
            batch_size=batch_size,
            seed=seed,
            settings=self.recipe.data.augment,
            classes=len(self.splits.classes),
        )

    # Watching

    @torch.no_grad()
    def watch(self, arm: Arm) -> Scores:
        """How near a network comes to its target's images on held-out data, in decibels (the same draws every time)."""
        learner = arm.distiller
        assert isinstance(learner, Denoising)
        images, labels = self.held_out(_WATCHED)
        key = randomness.key("watch", learner.name) & (2**63 - 1)
        generator = torch.Generator(self.device).manual_seed(key)
        found, wanted = learner.compare(arm.model.eval(), images.to(self.device), labels.to(self.device), generator)
        error = float((found.x - wanted.x).square().mean())
        return {"test": {METRIC: 10 * math.log10(4 / max(error, 1e-12))}}

    def watch_judge(self, arm: Arm) -> Scores:
        """How often the classifier is right on held-out images."""
        images, labels = self.held_out(2000)
        judge = Judge(arm.model)
        return {"test": {"accuracy": float((judge.classes(judge.features(images)) == labels).double().mean())}}

    def held_out(self, most: int) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] that nothing was trained on, with their labels, in a fixed order."""
        assert self.splits is not None
        parts = [self.splits.test] if self.splits.validation is None else [self.splits.test, self.splits.validation]
        return some_of(parts, self.canvas, most, "held out")

    def training_images(self, most: int) -> tuple[Tensor, Tensor]:
        """Training images in [-1, 1], unvaried, with their labels."""
        assert self.splits is not None
        return some_of([self.splits.teacher], self.canvas, most, "training")


def chunk_of(updates: int, every: int) -> int:
    """Updates between evaluations: a divisor of all of them, at most `every`; all where only tiny ones divide."""
    if updates <= every:
        return updates
    largest = next(size for size in range(every, 0, -1) if updates % size == 0)
    return largest if 10 * largest >= every else updates
