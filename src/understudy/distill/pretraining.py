"""An init stage: what some losses make beforehand, from the teacher's features alone."""

from typing import Any

from torch import Tensor, nn

from understudy.distill.distiller import Distiller
from understudy.distill.learner import Learner, Losses
from understudy.distill.objective import Objective
from understudy.distill.teacher import Answer
from understudy.errors import UserError


class Pretraining(Learner):
    """Trains the parts of a distiller's losses that learn before the student does.

    Such a loss has `reconstruction(teacher_features)` to minimise and `pretrained`, the module that it trains: the
    paraphrasers of factor transfer.

    Args:
        distiller: whose losses they are; its student is left alone.
        objectives: those of it that have such a part.
    """

    def __init__(self, distiller: Distiller, objectives: list[Objective]) -> None:
        super().__init__()
        self._distiller = (distiller,)  # in a tuple: its other parameters are not to be trained
        self.ours = objectives
        self.student = nn.ModuleList(objective.loss.pretrained for objective in objectives)  # pyright: ignore[reportArgumentType]
        self.teacher = distiller.teacher
        self.teacher_taps = distiller.teacher_taps

    @property
    def distiller(self) -> Distiller:
        """Whose losses it prepares."""
        return self._distiller[0]

    def asks_teacher(self, epoch: int) -> bool:
        """Always: its features are all there is to learn from."""
        return True

    def describe(self) -> list[str]:
        """The losses whose parts are trained."""
        return [f"{objective.name}: its own part, before the student" for objective in self.ours]

    def forward(self, images: Tensor, labels: Tensor | None = None, *, answer: Answer | None, **_batch: Any) -> Losses:
        """One step's losses.

        Args:
            images: not used: the teacher saw them.
            labels: not used.
            answer: the teacher's features.
        """
        if answer is None:
            raise UserError("an init stage needs the teacher's answers")
        terms = {}
        for objective in self.ours:
            features = tuple(answer.features[path] for path in objective.teacher_paths)
            terms[objective.name] = objective.loss.reconstruction(features)  # pyright: ignore[reportCallIssue]
        return Losses(self.weigh(terms, 0), {name: term.detach() for name, term in terms.items()}, terms)
