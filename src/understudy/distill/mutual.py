"""Deep mutual learning: several students at once, each learning from the labels and from its peers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from understudy.distill.heads import one_answer
from understudy.distill.learner import Learner, Losses
from understudy.distill.objective import Objective, Signals
from understudy.distill.teacher import Answer
from understudy.errors import UserError


class Mutual(Learner):
    """Students that teach each other, without a teacher.

    Of M students each minimises `w_0 CE(z_i, y) + Σ_o w_o / (M - 1) Σ_{j≠i} L_o(z_i, z_j)`, the peers' logits without
    gradient; all take their step together. The first is the one that is evaluated and saved.

    Reference: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018 (https://arxiv.org/abs/1706.00384),
    equations 4 and 8 with `KD(temperature=1)`. The authors update one after the other within a step, each from its
    peers' new logits.

    Args:
        students: two or more modules.
        objectives: of each student; those that compare with a teacher compare with each peer's logits.
        example: an input batch.

    Raises:
        UserError: fewer than two students, differing class counts, or an objective that compares features.
    """

    def __init__(self, *, students: Sequence[nn.Module], objectives: Sequence[Objective], example: Tensor) -> None:
        super().__init__()
        if len(students) < 2:
            raise UserError("mutual learning takes two students or more")
        self.student = students[0]
        self.peers = nn.ModuleList(students[1:])
        self.objectives = nn.ModuleList(objectives)
        for objective in objectives:
            if objective.student_tap is not None or objective.with_logits:
                raise UserError(f"'{objective.name}' compares features: mutual learning compares logits, such as kd")
        with torch.no_grad():
            answers = [one_answer(student.eval(), example) for student in self.students]
        if len({answer.shape[1:] for answer in answers}) > 1:
            raise UserError(f"the students give {', '.join(str(answer.shape[-1]) for answer in answers)} classes")
        self.train()

    @property
    def students(self) -> list[nn.Module]:
        """All of them, the exported one first."""
        return [self.student, *self.peers]

    def _objectives(self) -> list[Objective]:
        return list(self.objectives)  # pyright: ignore[reportReturnType]

    def weights_at(self, epoch: int) -> dict[str, float]:
        """The objectives' weights in an epoch, counted from 0."""
        return {objective.name: objective.weight_at(epoch) for objective in self._objectives()}

    def describe(self) -> list[str]:
        """The objectives and the number of students."""
        return [f"{o.weight_at(0):g} x {o.name} among {len(self.students)} students" for o in self._objectives()]

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
        """Run every student once and add up what each learns.

        Args:
            images: (N, C, H, W), as the students take them.
            labels: (N,) class numbers or (N, K) probabilities.
            answer: not used: there is no teacher.
            labelled: (M,) positions of the samples with a label; None when all have one.
            sample_ids: (N,) stable numbers of the samples.
            second: not used: one view is enough.
            epoch: counted from 0.
            step: counted from 0.
        """
        logits = [one_answer(student, images) for student in self.students]
        batch = Signals(
            student=logits[0],
            inputs=images,
            labels=labels,
            labelled=labelled,
            sample_ids=sample_ids,
            epoch=epoch,
            step=step,
        )
        weights = self.weights_at(epoch)
        terms = {o.name: self._among(o, batch, logits) for o in self._objectives() if weights[o.name] != 0}
        total = self.weigh(terms, epoch) if terms else logits[0].sum() * 0.0
        return Losses(total, self._means(terms), terms)

    def _among(self, objective: Objective, batch: Signals, logits: list[Tensor]) -> Tensor:
        """The sum over the students of an objective, averaged over each one's peers."""
        losses = []
        for place, own in enumerate(logits):
            signals = replace(batch, student=own, student_model=self.students[place])
            if not objective.needs_teacher:
                losses.append(objective(signals))
                continue
            peers = [peer.detach() for other, peer in enumerate(logits) if other != place]
            losses += [objective(replace(signals, teacher=peer)) / len(peers) for peer in peers]
        return torch.stack(losses).sum()

    def _means(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For logs: an objective's mean over the students."""
        return {name: term.detach() / len(self.students) for name, term in terms.items()}
