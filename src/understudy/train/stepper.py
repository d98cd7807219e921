"""Who takes the steps of arms: each arm by itself, or several as a team."""

from typing import Protocol

from understudy.train.arm import Arm
from understudy.train.stage import Answers, sees_second
from understudy.train.views import Views


class Stepper(Protocol):
    """Takes the steps of one or several arms of one name."""

    arms: tuple[Arm, ...]

    def begin(self, epoch: int) -> None:
        """Go on from where the arms are, at the start of an epoch or within it."""
        ...

    def step(self, views: Views, answers: Answers, epoch: int, step: int) -> None:
        """Train on one batch of each arm's feed."""
        ...

    def push(self, step: int) -> None:
        """Let the arms hold what so many steps since the start came to."""
        ...


class Lone:
    """An arm that takes its steps by itself.

    Args:
        arm: any.
    """

    def __init__(self, arm: Arm) -> None:
        self.arms = (arm,)

    def begin(self, epoch: int) -> None:
        """Nothing is to be done: the arm itself is stepped."""

    def push(self, step: int) -> None:
        """Nothing is to be done: the arm itself was stepped."""

    def step(self, views: Views, answers: Answers, epoch: int, step: int) -> None:
        """Train on the batch of the arm's feed; see `Arm.step`."""
        (arm,) = self.arms
        batch = views.batches[arm.feed]
        arm.step(
            batch,
            views.first(arm.feed, arm.preprocess),
            answers[arm.label],
            second=views.second(arm.feed, arm.preprocess) if sees_second(arm, batch) else None,
            epoch=epoch,
            step=step,
        )
