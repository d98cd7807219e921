"""ultralytics' trainers, subclassed: pruned widths are kept, scales made sparse, students distilled."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from understudy.errors import UserError
from understudy.tasks.detect.channels import prunable_scales
from understudy.tasks.detect.frames import Frames
from understudy.tasks.detect.guest import (
    TRAINERS,
    YOLO,
    BaseTrainer,
    load_checkpoint,
    open_yolo,
    rank,
    threads_kept,
    unwrap_model,
    without_lines,
)
from understudy.tasks.detect.methods import Method, read_method
from understudy.tasks.detect.sparse import Sparsity, add_subgradient, learning_rates, scales_of, shrink
from understudy.tasks.detect.wrapper import Distillation, DistilledModel

# The mixins are put before one of ultralytics' trainers; to a type checker they are one themselves.
if TYPE_CHECKING:
    _Trainer = BaseTrainer
else:
    _Trainer = object


class KeepsWidths(_Trainer):
    """Trains a pruned network as it is.

    ultralytics builds a network of the full size from the YAML in the checkpoint and copies what fits, silently.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with threads_kept():
            super().__init__(*args, **kwargs)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """The network to train: a pruned one itself, any other as ultralytics makes it."""
        if not is_pruned(weights):
            return super().get_model(cfg=cfg, weights=weights, verbose=verbose)
        wanted = len(self.data["names"])
        has = int(weights.yaml.get("nc", wanted))
        if has != wanted:
            raise UserError(
                f"the pruned model was made for {has} classes, the data has {wanted}: train the full model on this "
                "data, then prune it"
            )
        model = deepcopy(weights).float()
        model.criterion = None
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model


class Sparsifies(KeepsWidths):
    """Pulls the scales of prunable channels to zero while it trains."""

    sparsity = Sparsity()

    def _setup_train(self) -> None:
        super()._setup_train()
        self._strength = self.sparsity.over(self.epochs)
        model = unwrap_model(cast(nn.Module, self.model))
        self._scales = scales_of(model, prunable_scales(model))

    def optimizer_step(self) -> None:
        """Step, with the penalty before (subgradient) or after (proximal) it; then the average sees the result."""
        strength = self._strength.at(self.epoch)
        before = self.scaler.get_scale()
        if self.sparsity.method == "subgradient":
            add_subgradient(self._scales, strength * before)  # gradients still carry the scaler's factor
        average, self.ema = self.ema, None
        super().optimizer_step()
        self.ema = average
        # A scaler that shrinks has found an overflow and left the step out: so is its shrinking.
        if self.sparsity.method == "proximal" and self.scaler.get_scale() >= before:
            for scale, rate in zip(self._scales, learning_rates(cast(Any, self.optimizer), self._scales), strict=True):
                shrink([scale], rate * strength)
        if self.ema:
            self.ema.update(self.model)


class Distills(KeepsWidths):
    """Trains a student with a teacher beside it.

    Its `distillation` is an attribute of the class: the launcher of a distributed training pickles the class, and
    ultralytics refuses arguments that it does not know.
    """

    distillation: Distillation

    def _setup_train(self) -> None:
        with without_lines("Freezing layer 'teacher_model"):  # one for each of its hundreds of parameters
            super()._setup_train()

    def setup_model(self) -> Any:
        """Load or build the student; of a checkpoint in the middle of a training also the connectors."""
        if isinstance(self.model, nn.Module) or not self.resume:
            return super().setup_model()
        weights, checkpoint = load_checkpoint(self.model)
        if not isinstance(weights, DistilledModel):
            raise UserError("is no checkpoint of a distillation", where=self.model)
        self._connectors = weights.projector.state_dict()
        student = weights.student_model
        self.model = self.get_model(cfg=cast(Any, student).yaml, weights=student, verbose=False)
        return checkpoint

    def set_model_attributes(self) -> None:
        """Put the teacher beside the student: after it is on its device, before optimiser, average and processes."""
        super().set_model_attributes()
        described = self.distillation
        teacher = open_yolo(described.teacher, trust_pickle=described.trust_pickle).model
        student = unwrap_model(self.model)
        self.model = DistilledModel(student, cast(nn.Module, teacher), described, epochs=self.epochs)
        connectors = getattr(self, "_connectors", None)
        if connectors is not None:
            self.model.projector.load_state_dict(connectors)
        self._frames = None
        if described.unlabelled is not None:
            self._frames = Frames(described.unlabelled, int(self.args.imgsz), self.args.seed + 1000 * (rank() + 1))

    def _model_train(self) -> None:
        super()._model_train()
        cast(DistilledModel, unwrap_model(self.model)).epoch = self.epoch
        if self._frames is not None:
            self._frames.at_epoch(self.epoch)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Put frames without labels beside the labelled images, at their size."""
        batch = super().preprocess_batch(batch)
        if self._frames is not None and self.model.training:
            images = batch["img"]
            frames = self._frames.batch(self.distillation.unlabelled_batch or len(images))
            frames = frames.to(images.device, non_blocking=True).float() / 255
            if frames.shape[2:] != images.shape[2:]:
                frames = nn.functional.interpolate(frames, images.shape[2:], mode="bilinear", align_corners=False)
            batch["unlabelled"] = frames.to(images.dtype)
        return batch


def keep_widths_trainer(task: str = "detect") -> type[BaseTrainer]:
    """A trainer that trains a pruned network as it is: `YOLO("pruned.pt").train(trainer=...)`.

    Args:
        task: detect, segment, pose, obb or classify.
    """
    return _composed("KeepWidthsTrainer", KeepsWidths, task)


def sparse_trainer(sparsity: Sparsity | None = None, *, task: str = "detect") -> type[BaseTrainer]:
    """A trainer that pulls BatchNorm scales to zero: `YOLO("best.pt").train(trainer=...)`.

    Args:
        sparsity: how; by default a constant proximal penalty.
        task: detect, segment, pose, obb or classify.
    """
    return _composed("SparseTrainer", Sparsifies, task, sparsity=sparsity or Sparsity())


def distill_trainer(
    teacher: str | Path | YOLO,
    method: str | dict[str, Any] | Method = "mgd",
    *,
    task: str = "detect",
    unlabelled: str | Path | None = None,
    unlabelled_batch: int | None = None,
    trust_pickle: bool = False,
    **options: Any,
) -> type[BaseTrainer]:
    """A trainer that distils: `YOLO("yolov8n.pt").train(trainer=distill_trainer("yolov8x.pt", "mgd"), data=...)`.

    Args:
        teacher: weights of any width, depth or family.
        method: a word such as `cwd`, `mgd`, `kd`, `cwd:features` or `mgd+kd`, or a mapping with its options.
        task: detect, segment, pose or obb.
        unlabelled: a folder, image or video of frames without labels, on which the two are compared too.
        unlabelled_batch: how many such frames a step takes on each device; by default as many as labelled images.
        trust_pickle: read a teacher whose file holds other classes than ultralytics'.
        options: of the method, such as `layers="article"`, `weight=2.0`, `schedule="cosine"`.

    Raises:
        UserError: no such method, option or file.
    """
    if options and isinstance(method, Method):
        method = replace(method, **options)
    elif options:
        method = {**({"name": method} if isinstance(method, str) else cast(dict[str, Any], method)), **options}
    chosen = read_method(cast(Any, method))
    if chosen.is_native:
        raise UserError("native is ultralytics' own: train(distill_model=TEACHER, dis=WEIGHT, ...)")
    if task == "classify":
        raise UserError("classification weights are distilled by `task: classify`, not as a detector")
    path = Path(str(getattr(teacher, "ckpt_path", None) or teacher)).expanduser()
    if not path.is_file():
        raise UserError("no such file: give the path of the teacher's weights", where=f"teacher '{path}'")
    described = Distillation(
        str(path.resolve()), chosen, None if unlabelled is None else str(unlabelled), unlabelled_batch, trust_pickle
    )
    if unlabelled is not None:
        Frames(str(unlabelled), 64, 0)  # what cannot be read is said before anything is trained
    return _composed("DistillTrainer", Distills, task, distillation=described)


def is_pruned(model: Any) -> bool:
    """Whether a network is not what its own YAML describes.

    Args:
        model: a YOLO's network, or None.
    """
    if not isinstance(model, nn.Module):
        return False
    details = cast(Any, model)
    with torch.random.fork_rng(devices=[]):
        # Built with its own class count, and without touching the random numbers of what is about to be trained.
        stock = type(details)(deepcopy(details.yaml), verbose=False)
    sizes = [{name: value.shape for name, value in each.state_dict().items()} for each in (details, stock)]
    return sizes[0] != sizes[1]


def _composed(name: str, mixin: type, task: str, **attributes: Any) -> type[BaseTrainer]:
    """A mixin before ultralytics' trainer of a task.

    It is made anew for each call, so that no attribute is shared, and pickled by value, which is how options reach
    the processes of a distributed training.
    """
    if task not in TRAINERS:
        raise UserError(f"no trainer for '{task}' weights: {', '.join(TRAINERS)}")
    return cast(type[BaseTrainer], type(name, (mixin, TRAINERS[task]), {"__module__": __name__, **attributes}))
