"""Student and teacher as one module that ultralytics' trainer can train: a detector with distillation losses."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from understudy.distill import Objective, Signals, tapped
from understudy.distill.adapters import MapAdapter
from understudy.distill.taps import StopForward, evaluating
from understudy.errors import UserError
from understudy.tasks.detect.catalogue import LOGITS
from understudy.tasks.detect.guest import DistillationModel
from understudy.tasks.detect.methods import Method, Rows, make_objectives, rows_of
from understudy.tasks.detect.outputs import compared_logits
from understudy.tasks.detect.taps import check_pairs, tap_paths


@dataclass(frozen=True)
class Distillation:
    """What a student is distilled from and by; it travels with the trainer's class and with its checkpoints.

    Args:
        teacher: path of the teacher's weights.
        method: what is learnt from it.
        unlabelled: a folder, image or video of frames without labels, on which the two are compared too.
        unlabelled_batch: how many such frames a step takes on each device; None takes as many as labelled images.
        trust_pickle: read a teacher whose file holds other classes than ultralytics'.
    """

    teacher: str
    method: Method
    unlabelled: str | None = None
    unlabelled_batch: int | None = None
    trust_pickle: bool = False


class DistilledModel(DistillationModel):
    """A student, its frozen teacher and the losses between them, as a model of ultralytics.

    Of the parent's three parts it keeps the names, so that ultralytics freezes the teacher, leaves it out of average
    and checkpoint, and takes the student out in the end. `projector` holds the objectives with their adapters: part of
    optimiser, average, checkpoint and distributed wrapper.

    Args:
        student: the network to train.
        teacher: a network of any width, depth or family.
        distillation: the method and its taps.
        epochs: of the whole training, for the schedule of the weights.

    Raises:
        UserError: taps do not exist or do not fit, or the outputs to compare differ.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, distillation: Distillation, *, epochs: int) -> None:
        nn.Module.__init__(self)
        details = cast(Any, student)
        self.teacher_model = teacher.to(next(student.parameters()).device).float()
        self._freeze_teacher()
        self.student_model = student
        self.distillation = distillation
        self.epoch = 0
        for name in ("yaml", "nc", "names", "args", "stride", "task"):
            if hasattr(student, name):
                setattr(self, name, getattr(student, name))
        imgsz = max(-(-int(details.args.imgsz) // 32) * 32, 64)
        method = distillation.method
        objectives = make_objectives(method, epochs, imgsz)
        self.rows: list[Rows | None] = [
            None if objective.student_tap else rows_of(described)
            for objective, described in zip(objectives, method.objectives, strict=True)
        ]
        self.taps: tuple[str, ...] = ()
        self.teacher_taps: tuple[str, ...] = ()
        if None in self.rows:
            self.taps = tap_paths(student, method.layers)
            self.teacher_taps = tap_paths(teacher, method.teacher_layers or method.layers)
        for objective, rows in zip(objectives, self.rows, strict=True):
            if rows is None:
                objective.student_paths, objective.teacher_paths = self.taps, self.teacher_taps
        self.projector = nn.ModuleList(objectives)
        self._fit(imgsz)

    def _register_feature_hooks(self) -> None:
        """The parent's hooks, which it also sets when unpickled; features are tapped anew in each step instead."""

    def _remove_feature_hooks(self) -> None:
        """There are none."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def objectives(self) -> list[Objective]:
        """The losses with their type, which a `ModuleList` forgets."""
        return list(self.projector)  # pyright: ignore[reportReturnType]

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The detector's losses and, in training, the distillation losses, one of each in the items.

        The sum is multiplied by the batch size, as ultralytics does with its own: what is added of a distillation
        loss to a detection loss does not depend on the batch size, nor on how many devices share it.

        Args:
            batch: of ultralytics' loader; `unlabelled` (M, C, H, W) are frames without labels.
            preds: what the student said already, in validation.

        Returns:
            The losses, and their values by name.
        """
        images = batch["img"]
        student = cast(Any, self.student_model)
        if not self.training:
            preds = student(images) if preds is None else preds
            losses, items = student.loss(batch, preds)
            nothing = {_column(objective.name): images.new_zeros(()) for objective in self.objectives}
            return losses, {**items, **nothing}
        frames = batch.get("unlabelled")
        together = images if frames is None else torch.cat([images, frames])
        with tapped(self.student_model, self.taps) as features:
            preds = student(together)
        losses, items = student.loss(batch, _first_rows(preds, len(images), len(together)))
        found = self._distill(together, preds, dict(features))
        total = cast(Tensor, sum(found.values())) * len(images)
        values = {_column(name): value.detach() for name, value in found.items()}
        return torch.cat([losses, total.reshape(1)]), {**items, **values}

    def _distill(self, images: Tensor, preds: Any, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted losses by name; the teacher is asked for no more than they need."""
        found = {objective.name: images.new_zeros(()) for objective in self.objectives}
        active = [objective for objective in self.objectives if objective.weight_at(self.epoch) != 0]
        if not active:
            return found
        answers, tapped_there = self._ask(images)
        for objective, rows in zip(self.objectives, self.rows, strict=True):
            weight = objective.weight_at(self.epoch)
            if weight != 0:
                signals = _signals(rows, preds, answers, features, tapped_there, self.epoch)
                found[objective.name] = weight * objective(signals)
        return found

    @torch.no_grad()
    def _ask(self, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """The teacher's outputs, where they are compared, and its tapped features."""
        teacher = cast(nn.Module, self.teacher_model).eval()
        needs_outputs = any(rows is not None for rows in self.rows)
        with tapped(teacher, self.teacher_taps, stop=not needs_outputs) as features:
            try:
                outputs = teacher(images)
            except StopForward:
                outputs = None
        return outputs, dict(features)

    @torch.no_grad()
    def _fit(self, size: int) -> None:
        """Make adapters and the losses' own layers from an example; what does not fit is said here."""
        channels = int(cast(Any, self.student_model).yaml.get("channels", 3))
        device = next(self.student_model.parameters()).device
        images = torch.rand(2, channels, size, size, device=device)
        with evaluating(self.student_model), tapped(self.student_model, self.taps) as features:
            preds = self.student_model(images)
        try:
            answers, there = self._ask(images)
        except RuntimeError as error:
            raise UserError(f"the teacher cannot take the student's images ({str(error).splitlines()[0]})") from None
        check_pairs(
            {path: tuple(features[path].shape) for path in self.taps},
            {path: tuple(there[path].shape) for path in self.teacher_taps},
        )
        for objective, rows in zip(self.objectives, self.rows, strict=True):
            with torch.enable_grad():
                objective.fit_to(_signals(rows, preds, answers, features, there, 0))
            # Maps agree in size, whatever it is in a batch: what is left to adapt are channels.
            objective.adapters = nn.ModuleList(
                adapter.project if isinstance(adapter, MapAdapter) else adapter for adapter in objective.adapters
            )
        self.projector.to(device)


def _column(name: str) -> str:
    """What a loss is called in the progress bar and results.csv, whose columns are eleven characters wide."""
    return f"{name}_loss" if len(name) <= 5 else name


def _signals(
    rows: Rows | None,
    preds: Any,
    answers: Any,
    features: Mapping[str, Tensor],
    teacher_features: Mapping[str, Tensor],
    epoch: int,
) -> Signals:
    if rows is None:
        anything = next(iter(features.values()))
        return Signals(anything, None, dict(features), dict(teacher_features), epoch=epoch)
    student, teacher = compared_logits(rows, preds, answers)
    return Signals(student, teacher, epoch=epoch)


def _first_rows(preds: Any, count: int, of: int) -> Any:
    """The outputs for the labelled images, which stand before the frames without labels."""
    if count == of:
        return preds
    if isinstance(preds, Tensor):
        return preds[:count] if len(preds) == of else preds
    if isinstance(preds, Mapping):
        return {key: _first_rows(value, count, of) for key, value in preds.items()}
    if isinstance(preds, (tuple, list)):
        return type(preds)(_first_rows(value, count, of) for value in preds)
    return preds


def check_distillation(student: Any, teacher: Any, method: Method, *, classes: int) -> None:
    """Put two open models beside each other and compute a method once; both are left as they are.

    Args:
        student: an open model.
        teacher: another, or the same where they are of one architecture.
        method: not ultralytics' own.
        classes: how many the data have: the student will be trained for as many.

    Raises:
        UserError: taps do not exist or do not fit, or the outputs to compare differ.
    """
    networks = [cast(Any, copy.deepcopy(each.model)) for each in (student, teacher)]
    networks[0].args = SimpleNamespace(imgsz=64)
    trained_for = int(networks[1].yaml.get("nc", classes))
    compares_outputs = any(row["loss"] in LOGITS for row in method.objectives)
    if student is not teacher and trained_for != classes and compares_outputs:
        raise UserError(f"the teacher knows {trained_for} classes, the data have {classes}: outputs cannot be "
                        "compared, features can (cwd, mgd)")  # fmt: skip
    if student is not teacher and networks[0].yaml.get("nc") != trained_for:
        return  # the student's head will be made anew for the data's classes
    DistilledModel(networks[0], networks[1], Distillation("", method), epochs=1)
