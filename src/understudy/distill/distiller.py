"""Where student, teacher and objectives meet: one forward of each a step, whatever is tapped."""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from understudy.distill.heads import ask_heads
from understudy.distill.learner import Learner, Losses
from understudy.distill.match import match
from understudy.distill.objective import Objective, Signals
from understudy.distill.rehead import Reheaded, classifies_average
from understudy.distill.schedule import Share
from understudy.distill.taps import evaluating, find, head, tapped
from understudy.distill.teacher import Answer, Teacher, are_probabilities
from understudy.errors import UserError
from understudy.losses.simkd import SimKD


class Distiller(Learner):
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
        self._reheaded = self._rehead(self._probe(example))
        self._optimizer_checked = False

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
    def exported(self) -> nn.Module:
        """The student; where an objective trains another head for it (SimKD), the student with that head."""
        return self._reheaded[0] if self._reheaded else self.student

    def _rehead(self, example: Signals) -> tuple[Reheaded, ...]:
        """The student with the head that an objective gives it; in a tuple, to be nobody's submodule twice."""
        for objective in self.objective_list():
            if isinstance(objective.loss, SimKD) and self.teacher is not None:
                layer = head(self.teacher.model)[1]
                tap = objective.teacher_paths[0]
                if not classifies_average(layer, example.teacher_features[tap], example.teacher):
                    raise UserError(
                        f"'{objective.name}' gives the student the teacher's last layer, but this teacher's does not "
                        f"classify the average of its map at '{tap}', as convolutional networks do"
                    )
                return (Reheaded(self.student, objective.student_paths[0], objective.loss, layer),)
        return ()

    @property
    def needs_teacher_logits(self) -> bool:
        """Whether an objective compares with the teacher's logits."""
        return any(
            objective.needs_teacher and (objective.with_logits or not objective.teacher_paths)
            for objective in self.objective_list()
        )

    @property
    def takes_second_view(self) -> bool:
        """Whether an objective compares two views of each image where there are two."""
        return any(objective.takes_views for objective in self.objective_list())

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

    def _probe(self, example: Tensor) -> Signals:
        """One forward of each model: what does not fit is found, what depends on shapes is made."""
        with evaluating(self.student):
            signals = self._example_signals(example)
            for objective in self.objective_list():
                objective.fit_to(signals)
        return signals

    def _example_signals(self, example: Tensor) -> Signals:
        graph = self.needs_input_gradients
        example = example.detach().requires_grad_(graph)
        with torch.set_grad_enabled(graph), self._tapped_student() as features:
            logits, distillation = ask_heads(self.student, example)
        self._choose_heads(two=distillation is not None)
        _check_reached(self.student_taps, features, "student")
        if are_probabilities(logits):
            raise UserError("the student returns probabilities: take the softmax out of it, losses want logits")
        answer = None if self.teacher is None else self.teacher.probe(example, taps=self.teacher_taps, graph=graph)
        if answer is not None:
            _check_reached(self.teacher_taps, answer.features, "teacher")
            assert answer.logits is not None
            if self.needs_teacher_logits and answer.logits.shape[1:] != logits.shape[1:]:
                raise UserError(
                    f"the teacher gives {answer.logits.shape[-1]} classes, the student {logits.shape[-1]}: "
                    "they must be the same"
                )
        ids = torch.arange(len(example), device=example.device)
        labels = ids % logits.shape[1]
        return self._signals(
            logits, features, answer, distillation=distillation, inputs=example, labels=labels, sample_ids=ids
        )

    @contextmanager
    def _tapped_student(self) -> Iterator[dict[str, Tensor]]:
        # Fused attention has no second derivative, which gradients of gradients need.
        plain_attention = sdpa_kernel(SDPBackend.MATH) if self.needs_input_gradients else nullcontext()
        with tapped(self.student, self.student_taps) as features, plain_attention:
            yield features

    def _choose_heads(self, *, two: bool) -> None:
        """Say which head each objective reads: the teacher teaches the distillation head, the labels all others."""
        for objective in self.objective_list():
            if objective.head not in (None, "class") and not two:
                raise UserError(
                    f"'{objective.name}' reads the head '{objective.head}', but the student has one: take one with "
                    "two, such as vit with tokens: 2"
                )
            if two and objective.needs_teacher:
                objective.reads = objective.head or "distillation"
            else:
                objective.reads = objective.head or "class"
        teaching = [o for o in self.objective_list() if o.reads_logits and o.weight != 0]
        if not two or any(objective.reads != "class" for objective in teaching):
            return
        for objective in self.objective_list():
            if objective.head is None and not objective.needs_teacher:
                objective.reads = "each"

    def _signals(self, logits: Tensor, features: dict[str, Tensor], answer: Answer | None, **batch: Any) -> Signals:
        teacher = None if self.teacher is None else self.teacher.model
        needs_head = any("teacher_head" in objective.needs for objective in self.objective_list())
        return Signals(
            student=logits,
            teacher=answer.logits if answer else None,
            members=answer.members if answer else None,
            shares=getattr(teacher, "shares", ()),
            # As a teacher's come: a loss may count on the order of the numbers.
            student_features={path: feature.contiguous() for path, feature in features.items()},
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
            for network in dict.fromkeys((self.teacher.model, self.teacher.network)):
                network._apply(fn)
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
        second: Tensor | None = None,
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
            second: (N, C, H, W) another view of the same samples, for losses that compare two; the other objectives
                then see 2N samples. An `answer` given is about both, one after the other.
            epoch: counted from 0, for schedules.
            step: counted from 0.
        """
        if second is not None:
            images = torch.cat([images, second])
            labels, sample_ids = (None if told is None else torch.cat([told, told]) for told in (labels, sample_ids))
            labelled = None if labelled is None else torch.cat([labelled, labelled + len(second)])
        if self.needs_input_gradients and self.teacher is not None and self.asks_teacher(epoch):
            # A shared answer has no graph back to the images: these few losses ask for themselves.
            images = images.detach().requires_grad_()
            answer = self.teacher(images, taps=self.teacher_taps, graph=True)
        answer = answer or self.ask(images, epoch)
        with self._tapped_student() as features:
            logits, distillation = ask_heads(self.student, images)
        signals = self._signals(
            logits,
            features,
            answer,
            distillation=distillation,
            inputs=images,
            labels=labels,
            sample_ids=sample_ids,
            labelled=labelled,
            views=1 if second is None else 2,
            epoch=epoch,
            step=step,
        )
        weights = self.weights_at(epoch)
        terms = {
            objective.name: objective(signals) for objective in self.objective_list() if weights[objective.name] != 0
        }
        if self.training and not self._optimizer_checked:
            self._check_optimizer()
        total = self.weigh(terms, epoch) if terms else logits.sum() * 0.0
        return Losses(total, {name: term.detach() for name, term in terms.items()}, terms)

    def weights_at(self, epoch: int) -> dict[str, float]:
        """The objectives' weights in an epoch, counted from 0."""
        return {objective.name: objective.weight_at(epoch) for objective in self.objective_list()}

    def weigh(self, terms: Mapping[str, Tensor], epoch: int) -> Tensor:
        """The weighted sum of a step's terms."""
        weights = self.weights_at(epoch)
        total: Any = None
        for name, term in terms.items():
            total = weights[name] * term if total is None else total + weights[name] * term
        return total

    def hold(self, norms: Mapping[str, float], epoch: int) -> None:
        """Set the weights of the objectives that hold a share of the gradient; see `Share`."""
        holding = [objective for objective in self.objective_list() if isinstance(objective.weight, Share)]
        weights = self.weights_at(epoch)
        kept = {objective.name for objective in holding}
        fixed = sum(abs(weights[name]) * norm for name, norm in norms.items() if name not in kept)
        rest = 1 - sum(objective.weight.value for objective in holding)  # pyright: ignore[reportAttributeAccessIssue]
        for objective in holding:
            if fixed > 0 and norms.get(objective.name, 0.0) > 0:
                assert isinstance(objective.weight, Share)
                objective.held_weight = objective.weight.value / rest * fixed / norms[objective.name]

    def held(self) -> dict[str, float]:
        """The weights that `hold` set."""
        return {
            objective.name: objective.held_weight
            for objective in self.objective_list()
            if isinstance(objective.weight, Share)
        }

    def set_held(self, weights: Mapping[str, float]) -> None:
        """Go back to weights that `held` gave."""
        for objective in self.objective_list():
            if objective.name in weights:
                objective.held_weight = weights[objective.name]

    def describe(self) -> list[str]:
        """The objectives: weight, name and taps."""
        lines = []
        for objective in self.objective_list():
            places = " and ".join((*objective.student_paths, *objective.teacher_paths)) or "logits"
            if objective.reads != "class":
                places += " of each head" if objective.reads == "each" else f" of the {objective.reads} head"
            weight = "auto" if isinstance(objective.weight, Share) else f"{objective.weight_at(0):g}"
            lines.append(f"{weight} x {objective.name} on {places}")
        return lines

    def _check_optimizer(self) -> None:
        """At the next step of an optimiser that trains the student: warn once where it lacks an objective's weights."""
        self._optimizer_checked = True
        if not any(parameter.requires_grad for parameter in self.objectives.parameters()):
            return
        alive = weakref.ref(self)  # the hook sees every optimiser there is, and must not keep the distiller
        asked = False

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nonlocal asked
            distiller = alive()
            if asked or distiller is None:
                return
            trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if trained.isdisjoint(map(id, distiller.student.parameters())):
                return
            asked = True
            own = {name: value for name, value in distiller.objectives.named_parameters() if value.requires_grad}
            missing = [name for name, parameter in own.items() if id(parameter) not in trained]
            if missing:
                warnings.warn(
                    f"the optimiser trains the student but not {len(missing)} tensors of the objectives (such as "
                    f"objectives.{missing[0]}): make it of distiller.parameters()",
                    stacklevel=3,
                )

        # Removed with the distiller: a hook cannot be while torch goes through them.
        weakref.finalize(self, register_optimizer_step_pre_hook(look).remove)


def _check_reached(taps: Iterable[str], features: Mapping[str, Tensor], whose: str) -> None:
    """Refuse a tap that is in the model but not in its forward."""
    for path in taps:
        if path not in features:
            raise UserError(f"the {whose}'s forward never calls '{path}': tap another module")


@torch.no_grad()
def _shapes_at(model: nn.Module, paths: Sequence[str], example: Tensor) -> dict[str, tuple[int, ...]]:
    with evaluating(model), tapped(model, paths) as features:
        model(example)
    return {path: tuple(features[path].shape) for path in paths if path in features}


def _union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for group in groups for path in group))
