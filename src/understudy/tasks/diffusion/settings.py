"""The sections of a diffusion recipe: how stages are trained, what is distilled, by which method, how it is judged."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from understudy.recipe.schema import Data, Machine, NonNegative, Number, Open, Part, Positive, Share, Switch
from understudy.tasks.diffusion.shapes import SHAPES, Shape

Prediction = Literal["x", "eps", "v", "both"]
Weighting = Literal["constant", "snr", "snr_trunc", "v_mse"]
MethodName = Literal["progressive", "tract", "consistency"]

# Data that are no labelled data set: the teacher's own samples, and a folder of images without classes.
FROM_TEACHER, FLAT_FOLDER = "teacher", "images"


class Updates(Part):
    """How long and how a stage is trained. `batch_size` is that of a whole update; `warmup` counts updates."""

    updates: Positive
    batch_size: Positive = 64
    lr: Annotated[float, Strict(), Field(gt=0)] = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: Annotated[int, Strict(), Field(ge=0)] = 0
    weight_decay: NonNegative = 0.0
    clip: Annotated[float, Strict(), Field(gt=0)] | None = 1.0
    accumulate: Positive = 1
    weighting: Weighting = "snr_trunc"

    @model_validator(mode="after")
    def _fit_together(self) -> "Updates":
        if self.warmup >= self.updates:
            raise ValueError(f"warmup: must be below updates ({self.updates}), not {self.warmup}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: {self.accumulate} micro-batches cannot be cut from {self.batch_size} images")
        return self


class Base(Updates):
    """How the teacher is trained: on data, at random times, with a moving average of its weights."""

    lr: Annotated[float, Strict(), Field(gt=0)] = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    ema: Annotated[float, Strict(), Field(gt=0, lt=1)] | None = 0.9999
    dropout: Annotated[float, Strict(), Field(ge=0, lt=1)] = 0.0
    label_dropout: Share = 0.0


class Teacher(Open):
    """The model to distil: trained here by the name of its shape, or read from `weights`.

    `weights` is the folder of a diffusers pipeline or of a run, or a published Flax checkpoint; it then says what
    it predicts, as far as it knows. Further keys change the named shape.
    """

    name: str | None = None
    weights: str | None = None
    prediction: Prediction | None = None
    conditional: Switch = False
    train: Base | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def is_object(self) -> bool:
        """Whether it was given in Python."""
        return bool(self.name and self.name.startswith("python:"))

    @property
    def is_trained(self) -> bool:
        """Whether the run trains it."""
        return self.weights is None and not self.is_object

    def shape(self) -> Shape:
        """The named shape with the recipe's changes."""
        return Shape.model_validate({**SHAPES[self.name or ""].model_dump(), **self.options})


class DiffusionData(Data):
    """Where images come from.

    Args:
        resize_to: height and width to scale images to.
        pad_to: height and width to pad smaller images to, with their darkest value, after that.
        images: of `name: teacher`, how many of the teacher's samples to train on.
    """

    resize_to: Positive | None = None
    pad_to: Positive | None = None
    images: Positive = 2000


class Schedule(Part):
    """The limits of the cosine schedule."""

    logsnr_min: Number = -20.0
    logsnr_max: Number = 20.0

    @model_validator(mode="after")
    def _in_order(self) -> "Schedule":
        if self.logsnr_min >= self.logsnr_max:
            raise ValueError(f"logsnr_min: must be below logsnr_max ({self.logsnr_max:g}), not {self.logsnr_min:g}")
        return self


class Convert(Updates):
    """How a model on another schedule becomes one that predicts v on ours: towards its own image at every time."""

    updates: Positive = 2000


class Guidance(Updates):
    """How a student learns classifier-free guidance of every strength before its steps are halved.

    `weights` are the strengths it learns, `sample` the one that is evaluated and exported.
    """

    updates: Positive = 2000
    weights: tuple[NonNegative, NonNegative] = (0.0, 4.0)
    sample: NonNegative = 1.0

    @model_validator(mode="after")
    def _sampled_is_learned(self) -> "Guidance":
        low, high = self.weights
        if not low <= self.sample <= high:
            raise ValueError(f"sample: must be one of the strengths that are learned ({low:g} to {high:g})")
        return self


class Method(Updates):
    """A way to fewer steps.

    `progressive` halves `steps` round by round. `tract` goes from one of its `steps` to the next in a single stage,
    whatever the ratio. `consistency` learns in one stage to see from anywhere on the teacher's path (in steps[0]
    steps) where it ends. `updates` and `lr` are those of a round, `updates_at` and `lr_at` those of the rounds to some
    numbers of steps; `self_decay` is the moving average that `tract` and `consistency` teach themselves by.
    """

    name: MethodName = "progressive"
    updates: Positive = 1000
    steps: tuple[Positive, ...] | None = None
    updates_at: dict[Annotated[int, Field(ge=1)], Positive] = Field(default_factory=dict)
    lr_at: dict[Annotated[int, Field(ge=1)], Annotated[float, Strict(), Field(gt=0)]] = Field(default_factory=dict)
    self_decay: Annotated[float, Strict(), Field(ge=0, lt=1)] = 0.95

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def updates_to(self, steps: int) -> int:
        """Updates of the round that ends at a number of steps."""
        return self.updates_at.get(steps, self.updates)

    def lr_to(self, steps: int) -> float:
        """Learning rate that the round to a number of steps begins with."""
        return self.lr_at.get(steps, self.lr)


class Judge(Part):
    """How the classifier is trained in whose features samples are compared with real images."""

    epochs: Positive = 20
    batch_size: Positive = 64
    lr: Annotated[float, Strict(), Field(gt=0)] = 2e-3
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (16, 32)
    features: Positive = 64


class Evaluate(Part):
    """How samples are judged.

    Args:
        images: samples of each model and number of steps.
        steps: numbers of steps that are compared; by default those of the recipe.
        verdict: the number of steps that the verdict is about; by default 4, or the last.
        noisy: whether the stochastic sampler is compared too.
        reference: the teacher's number of steps that the others are compared with; by default the recipe's first.
        variance: of the stochastic sampler: share of the large variance, 0 to 1.
        neighbours: of precision and recall.
        judge: the classifier that gives the features.
        inception: a local file with the standard Inception weights: then FID is computed too.
    """

    images: Annotated[int, Strict(), Field(ge=8)] = 400
    steps: tuple[Positive, ...] = ()
    verdict: Positive | None = None
    reference: Positive | None = None
    noisy: Switch = True
    variance: Share = 1.0
    neighbours: Positive = 3
    judge: Judge = Judge()
    inception: str | None = None


class DiffusionTrain(Machine):
    """What all stages share; `evaluate_every` counts updates."""

    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: Positive = 500
