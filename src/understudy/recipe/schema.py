"""What a recipe may say. Inert data: reading one imports and runs nothing that it names."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from understudy.recipe.methods import expand_method
from understudy.recipe.signature import shown

Int = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Positive = Annotated[int, Strict(), Field(ge=1)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]


class Part(BaseModel):
    """A section of a recipe: unknown keys are refused, nothing changes after reading."""

    # Built when first read: `check` and `--help` are to be quick, and a recipe has but one task.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Open(Part):
    """A section whose further keys are options of the thing it names; `check` holds them against its signature."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, defer_build=True)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not ours: options of the named thing."""
        return dict(self.model_extra or {})


class RandAugment(Part):
    """How many operations RandAugment applies to an image, and how strong they are (0 to 10)."""

    ops: Positive = 2
    magnitude: Annotated[float, Strict(), Field(ge=0, le=10)] = 9.0
    std: NonNegative = 0.0
    operations: Literal["torchvision", "timm"] = "torchvision"


class Augment(Part):
    """Random changes of the training images, drawn anew for each sample and epoch."""

    crop: Annotated[int, Strict(), Field(ge=0)] = 0
    flip: Switch = False
    color_jitter: NonNegative = 0.0
    rand_augment: RandAugment | None = None
    erase: Share = 0.0
    erase_fill: Literal["uniform", "normal"] = "uniform"
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    repeats: Annotated[float, Strict(), Field(ge=1)] = 1.0


class Data(Open):
    """Where samples come from and which of them are used for what.

    `labels` keeps that many labels (the same number of each class); `transfer` adds images without their labels
    for the distilled students; `without` withholds classes from the students, not from the teacher; `second_view`
    shows each image once more, changed otherwise, to the methods that compare two views; `views` draws the random
    changes from a fixed number of views of each image, so that the teacher need see no more of them.
    """

    name: str
    train: Positive | Literal["all"] = "all"
    validation: Annotated[float, Strict(), Field(ge=0)] | Literal["none"] = 0.1
    labels: Positive | Literal["all"] = "all"
    transfer: Positive | Literal["none", "rest"] = "none"
    without: tuple[str | Int, ...] = ()
    mean: tuple[Number, ...] | None = None
    std: tuple[Annotated[float, Strict(), Field(gt=0)], ...] | None = None
    augment: Augment = Augment()
    second_view: Augment | None = None
    views: Positive | Literal["all"] = "all"
    seed: Int = 0

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _views_have_one_label(self) -> "Data":
        if self.second_view and (self.augment.mixup or self.augment.cutmix or self.second_view.mixup):
            raise ValueError("second_view: cannot be had with mixup or cutmix, whose labels belong to one view")
        return self


class Model(Open):
    """A network by name, with its options, starting weights and how it wants its input.

    `new_head` leaves the head of `weights` out, for other classes; `trainable` freezes all but a part; `answer` says
    what a network with two heads answers.
    """

    name: str
    weights: str | None = None
    pretrained: Switch = False
    new_head: Switch = False
    trainable: Literal["all", "attention", "head"] = "all"
    answer: Literal["mean", "sum_softmax", "class", "distillation"] = "mean"
    size: Positive | None = None
    mean: tuple[Number, ...] | None = None
    std: tuple[Annotated[float, Strict(), Field(gt=0)], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def _is_device(word: str) -> str:
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu|hpu|npu)(:\d+)?", word):
        raise ValueError(f"should be auto, cpu, mps, cuda or one of several such as cuda:1, not {shown(word)}")
    return word


class Machine(Part):
    """What a run asks of the machine it is on; of these only `threads` and `deterministic` touch the result's bits."""

    deterministic: Switch = False
    threads: Positive | None = None
    workers: Annotated[int, Strict(), Field(ge=0)] = 0
    device: Annotated[str, AfterValidator(_is_device)] = "auto"
    checkpoint_seconds: NonNegative = 30.0


class Train(Machine):
    """How a model is trained. `batch_size` is that of a whole step, over all processes and micro-batches.

    With `lr_batch` the learning rate is that of a batch of so many images, and scaled to `batch_size` in proportion.
    `compile` makes one compiled function of a step; `auto` does so for small students with many steps to take.
    """

    epochs: Positive = 30
    batch_size: Positive = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: Annotated[float, Strict(), Field(gt=0)] = 1e-3
    lr_batch: Positive | None = None
    weight_decay: NonNegative = 0.0
    decay: Literal["all", "weights"] = "all"
    momentum: Share = 0.9
    nesterov: Switch = False
    betas: tuple[Share, Share] = (0.9, 0.999)
    schedule: Literal["constant", "linear", "cosine", "timm-cosine", "step", "plateau"] = "constant"
    schedule_per: Literal["step", "epoch"] = "step"
    warmup_epochs: NonNegative = 0.0
    warmup_lr: NonNegative = 0.0
    min_lr: NonNegative = 0.0
    milestones: tuple[Positive, ...] = ()
    gamma: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.1
    patience: Positive = 5
    criterion: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: Share = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Positive = 1
    clip: Annotated[float, Strict(), Field(gt=0)] | None = None
    ema: Annotated[float, Strict(), Field(gt=0, lt=1)] | None = None
    early_stop: Positive | None = None
    compile: Literal["auto"] | Switch = "auto"
    read_at: tuple[Positive, ...] = ()
    evaluate_every: Positive = 1

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Train":
        # Each message starts with the key it is about: the reader turns that into its line.
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule: 'step' needs milestones, the epochs after which the rate falls by gamma")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"milestones: belong to schedule 'step', not to '{self.schedule}'")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: must be below epochs ({self.epochs}), not {self.warmup_epochs:g}")
        if self.schedule == "plateau" and self.warmup_epochs:
            raise ValueError("schedule: 'plateau' has no warm-up, set warmup_epochs to 0 or take another schedule")
        if late := [epoch for epoch in self.read_at if epoch > self.epochs]:
            raise ValueError(f"read_at: {late[0]} lies after the last epoch ({self.epochs})")
        if self.criterion == "bce" and self.label_smoothing:
            raise ValueError(
                "label_smoothing: is nothing to criterion 'bce', which asks whether there is any of a class"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: {self.accumulate} micro-batches cannot be cut from {self.batch_size} images")
        return self

    @property
    def scaled_lr(self) -> float:
        """The learning rate for this batch size."""
        return self.lr if self.lr_batch is None else self.lr * self.batch_size / self.lr_batch


class Teacher(Model):
    """A teacher: trained by the recipe unless it brings weights or `train` is `none`.

    A mapping in `train` is laid over the recipe's own, and has a teacher with weights fine-tuned. Where there are
    several, `share` is its part of their mean, and `copies` trains as many from different starting weights. `fold`,
    `precision` (by default that of `train`) and `compile` say how it answers. A name that ends in `.parquet` is a table
    of answers given elsewhere; with `approximate` they stand for those to random views too.
    """

    train: dict[str, Any] | Literal["none"] | None = None
    share: Annotated[float, Strict(), Field(gt=0)] = 1.0
    copies: Positive = 1
    fold: Switch = True
    precision: Literal["fp32", "bf16"] | None = None
    compile: Switch = False
    approximate: Switch = False

    @property
    def is_recorded(self) -> bool:
        """Whether it is a table of answers, and no network."""
        return self.name.endswith(".parquet")

    @property
    def is_trained(self) -> bool:
        """Whether the run has to train it: it has no weights of its own, or is to be fine-tuned."""
        if self.train is not None:
            return self.train != "none"
        return not (
            self.is_recorded or self.pretrained or self.weights is not None or Path(self.name, "config.json").is_file()
        )


# What of a teacher's section says how it answers, not what it is.
ANSWERING = {"fold", "precision", "compile", "approximate"}


class Cache(Part):
    """How the teacher's answers are kept on disk, so that it is asked about no pixels twice.

    `auto` keeps them where later passes show the same pixels again; `on` also those of random views, which only a later
    run of the same seed sees; `fp32` without `top` gives back the teacher's own bits.
    """

    when: Literal["auto", "on", "off"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    top: Positive | None = None
    path: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_when(cls, value: Any) -> Any:
        # YAML reads on and off as words here, and people write true and false.
        word = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        return {"when": word} if isinstance(word, str) else word


class Student(Model):
    """The student. With `init` it starts from tensors of the teacher, and so does the control.

    `teacher` takes those of equal name and shape; `teacher-blocks` also fills a shallower stack of blocks with every
    k-th of the teacher's.
    """

    init: Literal["teacher", "teacher-blocks"] | None = None


class WeightSchedule(Part):
    """A weight that changes with the epoch: from `start` to `end` over `epochs`, then kept; `step` changes at once."""

    start: Number
    end: Number
    epochs: Positive
    shape: Literal["linear", "cosine", "step"] = "linear"


def _is_share(word: str) -> str:
    if word != "auto" and not re.fullmatch(r"([1-9]\d?|0)(\.\d+)?%", word):
        raise ValueError(f"should be a number, a schedule, auto, or a share of the gradient as 30%, not {shown(word)}")
    return word


# A weight that is set anew each epoch, so that the objective holds this share of the gradient.
WeightShare = Annotated[str, AfterValidator(_is_share)]
Weight = Number | WeightSchedule | Annotated[tuple[Number, ...], Field(min_length=1)]
# Arms are called student_NAME: these are the controls'.
_CONTROL_NAMES = ("alone", "label_smoothing", "equal_time")


class Objective(Open):
    """One loss of a method: its weight, where it taps the two models (logits when not said), its options.

    `head` is the head that it reads of a student with two. `weight: 30%` holds it at that share of the gradient, `auto`
    at an equal one. With `init` there is a stage before the others, of that many epochs, for this objective alone: it
    trains the loss's own part where that is made beforehand (FT), else the student.
    """

    loss: str
    weight: Weight | WeightShare = 1.0
    init: Positive | None = None
    head: Literal["class", "distillation", "each"] | None = None
    student: str | tuple[str, ...] | None = None
    teacher: str | tuple[str, ...] | None = None


class Method(Part):
    """What a distilled student learns from: `labels` times cross entropy plus its objectives.

    `taught_by` names who teaches where there are several: `teacher` (all of them together), `teacher_2`,
    `assistant_1`, `assistant` (the last one); by default the last assistant, else the teacher. With `generations` each
    student teaches the next one; with `peers` several students teach each other instead of the teacher. `model`
    changes keys of the student for this method, such as `{tokens: 2}`.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    labels: Weight = 1.0
    label_smoothing: Share | None = None
    objectives: tuple[Objective, ...] = ()
    model: dict[str, Any] = {}
    taught_by: str | None = None
    generations: Positive = 1
    peers: Annotated[int, Strict(), Field(ge=0)] | tuple[Model, ...] = 0

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return expand_method(value)

    @model_validator(mode="after")
    def _one_scheme(self) -> "Method":
        if self.peers and (self.generations > 1 or self.taught_by):
            raise ValueError("peers: teach each other, so there are no generations and nobody else teaches")
        if self.peers and self.has_init_stage:
            raise ValueError("peers: have no teacher, so nothing can be made beforehand with init")
        return self

    @property
    def has_init_stage(self) -> bool:
        """Whether something is trained before its students are."""
        return any(objective.init for objective in self.objectives)


class Recipe(Part):
    """The typed description of an experiment: what every task's recipe begins with.

    With `tracker` numbers and pictures go to TensorBoard's files in the run folder too, while they come.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    task: str
    train: Machine = Machine()
    seeds: Positive = 3
    seed: Annotated[int, Strict(), Field(ge=0)] = 0
    tracker: Literal["tensorboard"] | None = None

    @property
    def all_seeds(self) -> range:
        """The seeds of its students."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def summary(self) -> str:
        """What it does, in one sentence."""
        return f"{self.name}, a recipe for the task {self.task}"


class ClassifyRecipe(Recipe):
    """Image classification: a teacher, a student, what the student learns from, and what it is compared with."""

    task: Literal["classify"] = "classify"  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    data: Data
    teacher: Teacher
    more_teachers: tuple[Teacher, ...] = ()
    assistants: tuple[Teacher, ...] = ()
    cache: Cache = Cache()
    student: Student
    method: tuple[Method, ...]
    train: Train = Train()  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    control: tuple[Literal["train", "label_smoothing", "equal_time"], ...] | Literal["none"] | str = ("train",)
    grid: dict[str, tuple[Any, ...]] = {}
    teacher_seeds: Positive = 1
    seeds_at_once: Literal["auto"] | Switch = "auto"
    profile: Switch = False

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "method" in value and not isinstance(value["method"], (list, tuple)):
            value["method"] = [value["method"]]
        if isinstance(value.get("teacher"), (list, tuple)) and value["teacher"]:
            value["teacher"], *value["more_teachers"] = value["teacher"]
        if value.get("control") in ("train", "label_smoothing", "equal_time"):
            value["control"] = [value["control"]]
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> "ClassifyRecipe":
        names = [method.name for method in self.method]
        if not names:
            raise ValueError("method: is empty, name at least one, such as 'kd'")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"method: two are called '{sorted(twice)[0]}', give them different names")
        if taken := {name for name in names if name in _CONTROL_NAMES}:
            raise ValueError(f"method: '{sorted(taken)[0]}' is what a control is called, give it another name")
        if isinstance(self.control, tuple) and "train" not in self.control:
            raise ValueError("control: further ones stand beside the plain one, write [train, ...]")
        if isinstance(self.control, tuple) and len(set(self.control)) < len(self.control):
            raise ValueError("control: names one twice")
        return self

    @model_validator(mode="after")
    def _who_teaches_is_known(self) -> "ClassifyRecipe":
        known = ["teacher", *self.teachers, *self.all_assistants, *(["assistant"] if self.assistants else [])]
        for method in self.method:
            if method.taught_by is not None and method.taught_by not in known:
                raise ValueError(f"method: '{method.name}' is taught by '{method.taught_by}', {_one_of(known)}")
        if len(self.teachers) > 1 and self.teacher_seeds > 1:
            raise ValueError("teacher_seeds: several teachers already differ in their seeds, set it to 1")
        return self

    @property
    def teachers(self) -> dict[str, Teacher]:
        """Every teacher by the name of its arm: `teacher` alone, or `teacher_1`, `teacher_2` and so on."""
        every = [section for section in (self.teacher, *self.more_teachers) for _ in range(section.copies)]
        return {"teacher": self.teacher} if len(every) == 1 else {f"teacher_{n}": t for n, t in enumerate(every, 1)}

    @property
    def all_assistants(self) -> dict[str, Teacher]:
        """The assistants by the name of their arm: each is taught by the one before, the first by the teacher."""
        return {f"assistant_{number}": section for number, section in enumerate(self.assistants, 1)}

    @property
    def summary(self) -> str:
        """What it does, in one sentence."""
        methods = ", ".join(method.name for method in self.method)
        return f"{self.teacher.name} teaches {self.student.name} on {self.data.name} by {methods}"

    def train_of(self, section: Teacher) -> Train:
        """How a teacher or assistant is trained: the recipe's `train` with its own laid over it."""
        own = section.train if isinstance(section.train, dict) else {}
        shared = self.train.model_dump(exclude_unset=True)
        if "epochs" in own:
            shared.pop("read_at", None)
        return Train.model_validate({**shared, **own})


def _one_of(names: list[str]) -> str:
    return f"there is {', '.join(dict.fromkeys(names))}"
