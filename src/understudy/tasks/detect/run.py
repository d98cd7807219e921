"""What `understudy run` needs of the task: its machine, the job made ready, tried out, and its models opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from understudy.errors import UserError
from understudy.tasks.detect import stages
from understudy.tasks.detect.blocks import check_prunable
from understudy.tasks.detect.chain import StagesOfRun, plan, pruning_of
from understudy.tasks.detect.data import DetectionData, Dirt, check_labels, read_data
from understudy.tasks.detect.guest import YOLO, open_yolo, quiet
from understudy.tasks.detect.methods import read_method
from understudy.tasks.detect.recipe import DetectRecipe, data_file, method_of
from understudy.tasks.detect.wrapper import check_distillation
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.machine import machine
from understudy.train.progress import Display

__all__ = ["Chain", "load", "machine", "prepare", "rehearse", "reopen"]


class Chain:
    """The job of a detection recipe.

    Args:
        recipe: what is run.
        data: its data.
        dirt: what is merely dirty in it.
    """

    def __init__(self, recipe: DetectRecipe, data: DetectionData, dirt: Mapping[str, Dirt]) -> None:
        self.recipe = recipe
        self.objects: Mapping[str, Any] = {}
        self.data = data
        self.dirt = dirt
        self.methods = {
            arm: read_method(method_of(method))
            for arm, method in zip(recipe.arms, recipe.stages.distill.methods, strict=True)
        }

    def run(self, folder: RunFolder, display: Display, stop: StopRequest) -> dict[str, Any]:
        """Do the stages that the folder does not have yet and sum them up."""
        with quiet():
            run = StagesOfRun(self.recipe, self.data, self.dirt, self.methods, folder, display, stop)
            return run.everything()


def prepare(recipe: DetectRecipe, objects: Mapping[str, Any]) -> Chain:
    """Read the data and try every part on a model, so that what cannot work is said before anything is written.

    Args:
        recipe: what will be run.
        objects: none: detectors are named by file or architecture.

    Raises:
        UserError: something does not fit.
    """
    chain = reopen(recipe, objects)
    yolo = open_yolo(recipe.model, trust_pickle=recipe.trust_pickle)
    wanted = recipe.stages
    if yolo.task == "classify":
        raise UserError("classification weights are distilled by `task: classify`, not as a detector", where="model")
    if wanted.sparsify or wanted.prune or wanted.sensitivity:
        check_prunable(stages.network(yolo))
    if wanted.prune:
        pruning_of(recipe)
    for stage in (wanted.train, wanted.sparsify, wanted.finetune, wanted.distill):
        if stage is not None:
            stages.training_arguments({**recipe.args, **stage.options})
    _try_methods(chain, yolo)
    return chain


def reopen(recipe: DetectRecipe, objects: Mapping[str, Any]) -> Chain:
    """Read the data of a run that was started before.

    Raises:
        UserError: the data are missing or wrong.
    """
    data = read_data(data_file(recipe.data))
    return Chain(recipe, data, check_labels(data))


def rehearse(job: Chain, console: Console) -> None:
    """Say what a run would do; every part was tried when the job was prepared."""
    for line in job.recipe.model_dump(exclude_none=True)["stages"]:
        console.print(f"stage {line}")
    console.print(plan(job.recipe))


def load(folder: Path, given: Any = None) -> YOLO:
    """The model that a run saved in `student/` or `teacher/`."""
    return open_yolo(folder / "model.pt")


def _try_methods(chain: Chain, yolo: YOLO) -> None:
    """Put a teacher of the right family beside the model: taps and outputs that do not fit are found here."""
    wanted = chain.recipe.stages.distill
    teacher = yolo if wanted.teacher == "trained" else open_yolo(wanted.teacher, trust_pickle=chain.recipe.trust_pickle)
    for arm, method in chain.methods.items():
        if method.is_native:
            continue
        try:
            check_distillation(yolo, teacher, method, classes=len(chain.data.names))
        except UserError as error:
            raise UserError(str(error), where=f"method '{arm.removeprefix('student_')}'") from None
