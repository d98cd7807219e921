"""Where student, teacher and objectives meet: one forward of each a step, whatever is tapped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.distill.match import match
from understudy.distill.objective import Objective, Signals
from understudy.distill.taps import find, head, logits_of, tapped
from understudy.distill.teacher import Answer, Teacher, are_probabilities
from understudy.errors import UserError


@dataclass(frozen=True)
class Losses:
    """What a step came to.

    Args:
        total: the weighted sum, to call `backward` on.
        parts: each objective's loss by its name, before weighting, without gradient.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Distiller(nn.Module):
    """A student with its objectives; the teacher stands beside it and is nobody's parameter.

    `parameters()` and `state_dict()` hold the student and what belongs to the objectives, nothing of the teacher;
    `train()` leaves the teacher in evaluation mode.

    Args:
        student: any module.
        teacher: any module, or a `Teacher`; None where no objective needs one.
        objectives: summed with their weights.
        example: an input batch; both models are run on it once, so that what does not fit is found here.

    Raises:
        UserError: class counts differ, a tap does not exist, a teacher is missing.

    Example:
        >>> import torch, understudy as us
        >>> student, teacher = torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)
        >>> distiller = us.Distiller(student=student, teacher=teacher, example=torch.randn(2, 8), objectives=[
        ...     us.Objective(us.losses.CrossEntropy(), weight=0.1),
        ...     us.Objective(us.losses.KD(temperature=4), weight=0.9)])
        >>> losses = distiller(torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1]))
        >>> losses.total.backward()
        >>> sorted(losses.parts)
        ['crossentropy', 'kd']
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module | Teacher | None = None,
        objectives: Iterable[Objective],
        example: Tensor,
    ) -> None:
        super().__init__()
        self.student = student
        self.objectives = nn.ModuleList(objectives)
        self.teacher = Teacher(teacher) if isinstance(teacher, nn.Module) else teacher
        self._name_objectives()
        if self.teacher is None and any(objective.needs_teacher for objective in self.objective_list()):
            raise UserError("an objective compares with a teacher: give one")
        self._resolve_taps(example)
        self.student_taps = _union(objective.student_paths for objective in self.objective_list())
        self.teacher_taps = _union(objective.teacher_paths for objective in self.objective_list())
        self._probe(example)

    def objective_list(self) -> list[Objective]:
        """The objectives with their type, which a `ModuleList` forgets."""
        return list(self.objectives)  # pyright: ignore[reportReturnType]

    def _name_objectives(self) -> None:
        """Number objectives of one name, so that each has its own line in logs."""
        seen: dict[str, int] = {}
        for objective in self.objective_list():
            seen[objective.name] = seen.get(objective.name, 0) + 1
            if seen[objective.name] > 1:
                objective.name = f"{objective.name}_{seen[objective.name]}"

    @property
    def needs_teacher_logits(self) -> bool:
        """Whether an objective compares with the teacher's logits."""
        return any(
            objective.needs_teacher and (objective.with_logits or not objective.teacher_paths)
            for objective in self.objective_list()
        )

    @property
    def needs_input_gradients(self) -> bool:
        """Whether an objective compares gradients with respect to the input."""
        return any(objective.needs_input_gradients for objective in self.objective_list())

    def asks_teacher(self, epoch: int) -> bool:
        """Whether an objective that compares with the teacher has a weight in an epoch."""
        return any(objective.needs_teacher and objective.weight_at(epoch) != 0 for objective in self.objective_list())

    def _resolve_taps(self, example: Tensor) -> None:
        """Turn patterns into paths; where both sides are `auto`, pair the ends of stages by resolution or depth."""
        for objective in self.objective_list():
            if objective.student_tap is not None:
                objective.student_paths = find(self.student, objective.student_tap)
            if objective.teacher_tap is not None and self.teacher is not None:
                objective.teacher_paths = find(self.teacher.model, objective.teacher_tap)
            if objective.student_tap in ("auto", "last"):
                self._match(objective, example)

    def _match(self, objective: Objective, example: Tensor) -> None:
        """Keep of the candidates those that are maps or tokens, paired with the teacher's where both are open."""
        own = _shapes_at(self.student, objective.student_paths, example)
        other = own
        if self.teacher is not None and objective.teacher_tap in ("auto", "last"):
            answer = self.teacher(example, taps=objective.teacher_paths, logits=False)
            other = {path: tuple(feature.shape) for path, feature in answer.features.items()}
        students, teachers = match(own, other)
        if not students:
            raise UserError(f"'{objective.name}': no feature maps or tokens found to compare: name the taps")
        first = -1 if objective.student_tap == "last" else 0
        objective.student_paths = students[first:]
        if objective.teacher_tap in ("auto", "last"):
            objective.teacher_paths = teachers[first:]

    def _probe(self, example: Tensor) -> None:
        """One forward of each model: what does not fit is found, what depends on shapes is made."""
        training = self.student.training
        self.student.eval()
        with torch.no_grad(), tapped(self.student, self.student_taps) as features:
            logits = logits_of(self.student(example))
        self.student.train(training)
        _check_reached(self.student_taps, features, "student")
        if are_probabilities(logits):
            raise UserError("the student returns probabilities: take the softmax out of it, losses want logits")
        answer = None if self.teacher is None else self.teacher(example, taps=self.teacher_taps)
        if answer is not None:
            _check_reached(self.teacher_taps, answer.features, "teacher")
            assert answer.logits is not None
            if self.needs_teacher_logits and answer.logits.shape[1:] != logits.shape[1:]:
                raise UserError(
                    f"the teacher gives {answer.logits.shape[-1]} classes, the student {logits.shape[-1]}: "
                    "they must be the same"
                )
        ids = torch.arange(len(example), device=example.device)
        signals = self._signals(logits, features, answer, inputs=example, labels=ids % logits.shape[1], sample_ids=ids)
        for objective in self.objective_list():
            objective.fit_to(signals)

    def _signals(self, logits: Tensor, features: dict[str, Tensor], answer: Answer | None, **batch: Any) -> Signals:
        teacher = None if self.teacher is None else self.teacher.model
        needs_head = any("teacher_head" in objective.needs for objective in self.objective_list())
        return Signals(
            student=logits,
            teacher=answer.logits if answer else None,
            student_features=features,
            teacher_features=answer.features if answer else {},
            student_model=self.student,
            teacher_model=teacher,
            teacher_head=head(teacher)[1] if teacher is not None and needs_head else None,
            **batch,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        """Moves between devices take the teacher along, though it is no submodule."""
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher.model._apply(fn)
        return self

    def ask(self, images: Tensor, epoch: int = 0) -> Answer | None:
        """The teacher's answer to a batch, with all that the objectives need of it in an epoch."""
        if self.teacher is None or not self.asks_teacher(epoch):
            return None
        return self.teacher(images, taps=self.teacher_taps, logits=self.needs_teacher_logits)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        answer: Answer | None = None,
        labelled: Tensor | None = None,
        sample_ids: Tensor | None = None,
        epoch: int = 0,
        step: int = 0,
    ) -> Losses:
        """Run one step's forwards and add up the objectives.

        Args:
            images: (N, C, H, W), as the student takes them.
            labels: (N,) class numbers or (N, K) probabilities; None where no objective needs them.
            answer: the teacher's, when it was asked already; by default it is asked here with the same images.
            labelled: (M,) positions of the samples with a label; None when all have one.
            sample_ids: (N,) stable numbers of the samples, for losses with a memory.
            epoch: counted from 0, for schedules.
            step: counted from 0.
        """
        if self.needs_input_gradients and self.teacher is not None and self.asks_teacher(epoch):
            # A shared answer has no graph back to the images: these few losses ask for themselves.
            images = images.detach().requires_grad_()
            answer = self.teacher(images, taps=self.teacher_taps, graph=True)
        answer = answer or self.ask(images, epoch)
        with tapped(self.student, self.student_taps) as features:
            logits = logits_of(self.student(images))
        signals = self._signals(
            logits,
            features,
            answer,
            inputs=images,
            labels=labels,
            sample_ids=sample_ids,
            labelled=labelled,
            epoch=epoch,
            step=step,
        )
        total: Any = None
        parts: dict[str, Tensor] = {}
        for objective in self.objective_list():
            weight = objective.weight_at(epoch)
            if weight == 0:
                continue
            loss = objective(signals)
            parts[objective.name] = loss.detach()
            total = weight * loss if total is None else total + weight * loss
        return Losses(logits.sum() * 0.0 if total is None else total, parts)


def _check_reached(taps: Iterable[str], features: Mapping[str, Tensor], whose: str) -> None:
    """Refuse a tap that is in the model but not in its forward."""
    for path in taps:
        if path not in features:
            raise UserError(f"the {whose}'s forward never calls '{path}': tap another module")


@torch.no_grad()
def _shapes_at(model: nn.Module, paths: Sequence[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    training = model.training
    model.eval()
    with tapped(model, paths) as features:
        model(example)
    model.train(training)
    return {path: tuple(features[path].shape) for path in paths if path in features}


def _union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for group in groups for path in group))
