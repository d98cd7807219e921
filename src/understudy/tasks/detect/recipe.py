"""What a recipe of the task `detect` may say: a detector, its data, and the stages from large to small."""

import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, Strict, model_validator

from understudy.errors import UserError, did_you_mean
from understudy.recipe.problem import Problem
from understudy.recipe.schema import NonNegative, Open, Part, Positive, Recipe
from understudy.tasks.detect.catalogue import check_method
from understudy.tasks.detect.data import read_data

Above0 = Annotated[float, Strict(), Field(gt=0)]
InBetween = Annotated[float, Strict(), Field(gt=0, lt=1)]
Loss = Annotated[float, Strict(), Field(ge=0, lt=1)]

# What the stages set themselves.
_OURS = frozenset({
    "data", "model", "mode", "task", "project", "name", "exist_ok", "resume", "seed", "epochs", "device", "workers",
    "imgsz",
})  # fmt: skip


class TrainStage(Open):
    """A training; further keys are ultralytics' own arguments."""

    epochs: Positive


class SparsifyStage(TrainStage):
    """A training with an L1 penalty on BatchNorm scales; `strength` below 1 is a share of the optimiser's steps."""

    strength: Above0 = 0.5
    method: Literal["proximal", "subgradient"] = "proximal"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    end: NonNegative = 0.1


class PruneStage(Part):
    """How much is pruned: by `ratio`, or until a share of parameters, multiply-adds or latency is left."""

    ratio: InBetween | None = None
    parameters: Above0 | None = None
    macs: Above0 | None = None
    latency: InBetween | None = None
    scope: Literal["local", "global"] = "local"
    round_to: Positive = 8
    most: InBetween = 0.9
    limits: dict[str, Loss] = Field(default={})
    keep: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _by_one_measure(self) -> "PruneStage":
        given = [name for name in ("ratio", "parameters", "macs", "latency") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"ratio: give one of ratio, parameters, macs and latency, not {len(given)} of them")
        for name in ("parameters", "macs"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name}: how much is to be left, a share below 1 or a number above it, not 1")
        return self


class DistillStage(TrainStage):
    """Trainings with a teacher, one for each method and seed, and the control; further keys are ultralytics' own."""

    methods: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)] = ("mgd",)
    teacher: str = "trained"
    unlabelled: str | None = None
    unlabelled_batch: Positive | None = None


class SensitivityStage(Part):
    """The scan of how much each layer's channels matter, on some validation images."""

    images: Positive = 32
    ratios: Annotated[tuple[InBetween, ...], Field(min_length=1)] = (0.25, 0.5, 0.75)


class ExportStage(Open):
    """The formats that the best student is exported to; further keys are ultralytics' own, such as `int8`."""

    formats: Annotated[tuple[str, ...], Field(min_length=1)] = ("onnx",)


class PredictStage(Open):
    """Pictures of what the best student finds on the test images; further keys are ultralytics' own."""

    images: Positive = 6


class RelationsStage(Open):
    """Boxes with their parents on the test diagrams, whose `plabels/` lie beside `images/` in the data YAML's folder.

    `trace` follows the drawn lines; else the search has boxes only. Further keys are ultralytics' own, such as `conf`.
    """

    trace: bool = True
    images: Positive = 6


class Stages(Part):
    """What is done, in this order; what is not named is left out."""

    train: TrainStage | None = None
    sparsify: SparsifyStage | None = None
    sensitivity: SensitivityStage | None = None
    prune: PruneStage | None = None
    finetune: TrainStage | None = None
    distill: DistillStage
    export: ExportStage | None = None
    predict: PredictStage | None = None
    relations: RelationsStage | None = None


class DetectRecipe(Recipe):
    """A detector made smaller: trained, pruned, distilled from what it was, and compared with a control.

    `model` is an architecture or weights, `data` a data YAML, `args` are ultralytics' own arguments for every stage.
    """

    task: Literal["detect"] = "detect"  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)
    data: str
    model: str
    imgsz: Positive = 640
    args: dict[str, Any] = Field(default={})
    stages: Stages
    control: Literal["train", "none"] = "train"
    trust_pickle: bool = False

    @model_validator(mode="after")
    def _names_differ(self) -> "DetectRecipe":
        names = self.arms
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"stages: two methods are called '{sorted(twice)[0]}', give one a name of its own (as:)")
        return self

    @property
    def controls(self) -> list[str]:
        """The arm that has no teacher, where there is one."""
        return ["student_alone"] if self.control == "train" else []

    @property
    def arms(self) -> list[str]:
        """The distilled arms, in the order of their methods."""
        return [f"student_{method_name(method)}" for method in self.stages.distill.methods]


def method_name(method: str | dict[str, Any]) -> str:
    """What a method's arm is called: its own `as`, or what it is."""
    word = method if isinstance(method, str) else str(method.get("as") or method.get("name", ""))
    return word.replace(":", "-")


def method_of(method: str | dict[str, Any]) -> dict[str, Any]:
    """A method's mapping without what it is called."""
    if isinstance(method, str):
        return {"name": method}
    return {key: value for key, value in method.items() if key != "as"}


def data_file(name: str) -> Path:
    """Where a recipe's data YAML is: as named, or below `$UNDERSTUDY_DATA`."""
    root = os.environ.get("UNDERSTUDY_DATA")
    beside = Path(name).expanduser()
    if not beside.exists() and root and (Path(root) / name).exists():
        return Path(root) / name
    return beside


def problems(recipe: DetectRecipe, *, files: bool = True) -> Iterator[Problem]:
    """What the schema cannot see: methods, ultralytics' arguments, weights and the data YAML.

    Args:
        recipe: one that fits the schema.
        files: whether the files that it names must be there.

    Yields:
        The path of the value and what is wrong with it, in one line.
    """
    stages = recipe.stages
    for index, method in enumerate(stages.distill.methods):
        if problem := check_method(method_of(method)):
            yield ("stages", "distill", "methods", index), problem
    yield from _arguments(("args",), recipe.args)
    for name in ("train", "sparsify", "finetune", "distill", "export", "predict", "relations"):
        stage = getattr(stages, name)
        if isinstance(stage, Open):
            extra = {"half", "int8"} if name in ("export", "predict", "relations") else set()
            yield from _arguments(("stages", name), {k: v for k, v in stage.options.items() if k not in extra})
    is_yaml = recipe.model.endswith((".yaml", ".yml"))
    if stages.train is None and is_yaml:
        yield ("stages", "train"), f"is missing: {recipe.model} is untrained"
    teachers = ["trained"] if stages.train else []
    given = stages.distill.teacher
    if given not in teachers and not given.endswith(".pt"):
        yield ("stages", "distill", "teacher"), f"'{given}' is neither a .pt file nor the stage 'trained'"
    if not files:
        return
    for path, name in ((("model",), recipe.model), (("stages", "distill", "teacher"), given)):
        if name.endswith(".pt") and not Path(name).expanduser().is_file():
            yield path, f"there is no file '{name}' (looked from {Path.cwd()}); nothing is downloaded"
    try:
        data = read_data(data_file(recipe.data))
    except UserError as error:
        yield ("data",), str(error)
        return
    parents = data.file.parent / "plabels" / data.test_split
    if stages.relations and not parents.is_dir():
        yield ("stages", "relations"), f"needs the parents of the test boxes: there is no {parents}"


def _arguments(path: tuple[str, ...], arguments: dict[str, Any]) -> Iterator[Problem]:
    known = _known_arguments()
    for name in arguments:
        if name in _OURS:
            yield (*path, name), "is set by the recipe itself: model, data, imgsz, seeds, train.device, train.workers"
        elif known and name not in known:
            yield (*path, name), f"ultralytics has no such argument, {did_you_mean(name, known - _OURS)}"


@cache
def _known_arguments() -> frozenset[str]:
    """The arguments of the installed ultralytics, read from its file; none where it is not installed."""
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        return frozenset()
    return frozenset(yaml.safe_load((Path(spec.origin).parent / "cfg" / "default.yaml").read_text()))
