"""A stage: arms that are trained together, the batches they see, and what their teachers say to these."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from understudy.data import Batch, Feed
from understudy.distill import Answer
from understudy.distill.teacher import Place
from understudy.train.arm import Arm
from understudy.train.overlap import beside
from understudy.train.precision import autocast
from understudy.train.views import Views

Scores = dict[str, dict[str, float]]
# The teachers', by the arm's label.
Answers = Mapping[str, Answer | None]


@dataclass(frozen=True)
class Stage:
    """Arms that are trained together: those of one seed see the same batches, and all share the teacher's answers.

    Args:
        name: of the stage, for checkpoints and the progress bar.
        arms: what is trained, of one or several seeds.
        feeds: where batches come from, by name.
        steps_per_epoch: steps of one epoch, the same for all feeds.
        evaluate: scores of an arm's model, by `validation` and `test`; None where there is nothing to score yet.
        metric: the score that epochs are chosen by.
        device: where it is trained.
        ahead: how many steps' batches the teachers answer at once.
        compiled: whether an arm's step is to be compiled, where it can be.
    """

    name: str
    arms: tuple[Arm, ...]
    feeds: Mapping[str, Feed]
    steps_per_epoch: int
    evaluate: Callable[[Arm], Scores] | None
    metric: str
    device: torch.device
    ahead: int = 1
    compiled: bool = False

    @property
    def epochs(self) -> int:
        """Of the arm that is trained longest."""
        return max(arm.epochs for arm in self.arms)


def joined(stages: Sequence[Stage], name: str) -> Stage:
    """The stages of several seeds as one, whose arms of one name can be stepped together.

    Args:
        stages: alike but for their seeds; their arms are taken over.
        name: of the whole.
    """
    feeds: dict[str, Feed] = {}
    for stage in stages:
        for arm in stage.arms:
            feed = f"{arm.feed}, seed {arm.seed}"
            feeds[feed] = stage.feeds[arm.feed]
            arm.feed = feed
    arms = tuple(arm for stage in stages for arm in stage.arms)
    return replace(stages[0], name=name, arms=arms, feeds=feeds)


def steps(stage: Stage, arms: Sequence[Arm], epoch: int, start: int) -> Iterator[tuple[Views, Answers]]:
    """The batches of an epoch from a step on, with the teachers' answers to them.

    Of small images a teacher is asked about several steps' batches at once: a large teacher's weights then pass
    through the processor's caches once for all of them, and leave the students' steps between undisturbed. On a GPU
    they answer the next ones beside those steps.

    Args:
        stage: what is trained.
        arms: those still in training.
        epoch: counted from 0.
        start: the first step wanted; steps are asked about in the same groups wherever it lies.
    """
    first = epoch * stage.steps_per_epoch
    group_start = start - (start - first) % stage.ahead
    groups = beside(_answered(stage, arms, epoch, group_start), stage.device)
    for here, (batches, answers) in zip(count(group_start, stage.ahead), groups, strict=False):
        for place in range(max(0, start - here), len(batches)):
            yield Views(batches[place]), answers[place]


def _answered(
    stage: Stage, arms: Sequence[Arm], epoch: int, start: int
) -> Iterator[tuple[list[dict[str, Batch]], list[Answers]]]:
    """The rest of an epoch's batches from the group that begins with a step on, each group with the answers to it."""
    end = (epoch + 1) * stage.steps_per_epoch
    workers = max(arm.settings.workers for arm in arms)
    feeds = dict.fromkeys(arm.feed for arm in arms)
    sources = {name: stage.feeds[name].groups(start, end, stage.ahead, workers) for name in feeds}
    for here in range(start, end, stage.ahead):
        made = {name: next(source) for name, source in sources.items()}
        group = [
            {name: batches[place].to(stage.device) for name, batches in made.items()}
            for place in range(min(stage.ahead, end - here))
        ]
        yield group, ask(arms, group, epoch)


def ask(arms: Sequence[Arm], group: Sequence[Mapping[str, Batch]], epoch: int) -> list[Answers]:
    """One pass of each teacher over a group of batches, with all that the arms it teaches need of it.

    Args:
        arms: of any seeds; a teacher is asked about all of them at once.
        group: for each step, the batches by the name of their feed.
        epoch: counted from 0.

    Returns:
        For each step, the answer for each arm by its label; None where it asks no teacher.
    """
    answers: list[dict[str, Answer | None]] = [dict.fromkeys(arm.label for arm in arms) for _ in group]
    classes: dict[int, list[Arm]] = {}
    for arm in arms:
        if arm.distiller.teacher is not None and arm.distiller.asks_teacher(epoch):
            classes.setdefault(id(arm.distiller.teacher), []).append(arm)
    for taught in classes.values():
        places = [(number, feed) for number in range(len(group)) for feed in dict.fromkeys(arm.feed for arm in taught)]
        batches = [group[number][feed] for number, feed in places]
        for (number, feed), batch, answer in zip(places, batches, _answers(batches, taught), strict=True):
            for arm in taught:
                if arm.feed == feed:
                    both = batch.second is None or sees_second(arm, batch)
                    answers[number][arm.label] = answer if both else answer.at(slice(len(batch)))
    return list(answers)


def _answers(batches: list[Batch], taught: list[Arm]) -> Sequence[Answer]:
    """What a teacher says to some batches, a second view after the first where an arm sees one."""
    teacher = taught[0].distiller.teacher
    assert teacher is not None
    taps = dict.fromkeys(path for arm in taught for path in arm.distiller.teacher_taps)
    logits = any(arm.distiller.needs_teacher_logits for arm in taught)
    second = any(sees_second(arm, batches[0]) for arm in taught)
    parts: list[tuple[Tensor, Place]] = []
    for batch in batches:
        parts.append((batch.images, Place(batch.view, batch.sample_ids)))
        if second:
            assert batch.second is not None
            parts.append((batch.second, Place(batch.second_view, batch.sample_ids)))
    images = parts[0][0] if len(parts) == 1 else torch.cat([images for images, _ in parts])
    places = [place for _, place in parts]
    with autocast(images.device, taught[0].settings.precision):
        answer = teacher.answer(images, places, taps=tuple(taps), logits=logits)
    if len(batches) == 1:
        return [answer]
    sizes = [len(batch) * (1 + second) for batch in batches]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [answer.at(slice(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def sees_second(arm: Arm, batch: Batch) -> bool:
    """Whether an arm compares two views of a batch."""
    return batch.second is not None and arm.distiller.takes_second_view
