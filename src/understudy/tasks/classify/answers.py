"""Where the teacher's answers come from: a table, a network built for answering, or what was kept of it on disk."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from understudy.data import Subset
from understudy.data.source import UNLABELLED, Resident, Samples
from understudy.distill import Teacher
from understudy.distill.cache import AnswerCache, Kept, identity_of
from understudy.distill.recorded import RecordedTeacher, check_complete, read_answers
from understudy.distill.taps import find
from understudy.errors import UserError
from understudy.evaluate import score
from understudy.losses.table import LOSSES
from understudy.recipe.schema import Teacher as Section
from understudy.tasks.classify.objectives import DEFAULT_TAPS
from understudy.train import processes
from understudy.train.folder import RunFolder, runs_root

if TYPE_CHECKING:
    from understudy.tasks.classify.task import Classify


def recorded_teacher(task: "Classify") -> RecordedTeacher:
    """The table of answers that the recipe names as its teacher.

    Raises:
        UserError: the table is not right, or random views of the images are shown and that was not agreed to.
    """
    section, feed = task.recipe.teacher, task.feed("students", 0)
    if feed.mixes:
        raise UserError("nobody recorded an answer to mixed images: leave mixup and cutmix out", where=section.name)
    if not section.approximate and (feed.varies or feed.second_view is not None):
        raise UserError(
            "was recorded on the images as they are, the recipe shows random views of them: leave data.augment out, or "
            "accept it with teacher.approximate=true",
            where=section.name,
        )
    samples = task.source.train
    answers = read_answers(Path(section.name), samples=len(samples), classes=task.classes, paths=samples.paths)
    check_complete(answers, task.splits.students.ids, samples.paths, where=section.name)
    return RecordedTeacher(answers, section.name)


def recorded_scores(task: "Classify", teacher: RecordedTeacher) -> tuple[dict[str, float], int]:
    """The scores of recorded answers to the labelled training images that they are about, and how many those are."""
    part, answers = task.splits.teacher, teacher.logits
    known = (~answers[:, 0].isnan()).numpy()
    # Scores are made of answers; here the answers are the samples.
    samples = Samples(lambda ids, _: answers[torch.from_numpy(ids)], task.source.train.labels, (task.classes, 1, 1))
    answered = Subset(samples, part.ids, np.where(known[part.ids], part.labels, UNLABELLED))
    scores = score(lambda logits: logits, answered, classes=task.classes, device=task.device, recall_of=task.recall_of)
    return scores, int((answered.labels != UNLABELLED).sum())


def freeze(task: "Classify", teacher: Teacher, which: str = "teacher") -> list[str]:
    """Build a teacher for answering, as its section says.

    Args:
        task: with its data read.
        teacher: asked by the training loop.
        which: the section that it was made from.

    Returns:
        What could not be had, one line each.
    """
    section = task.section(which)
    assert isinstance(section, Section)
    taps: list[str] = []
    for described in (objective for method in task.recipe.method for objective in method.objectives):
        pattern = described.teacher or described.student or DEFAULT_TAPS[LOSSES[described.loss].taps]
        with suppress(UserError):  # a tap of the student alone
            taps += find(teacher.model, pattern) if pattern is not None else ()
    with processes.alone():
        images = task.feed("students", 0)[0].images.to(task.device)
    said = teacher.freeze(images, taps=taps, fold=section.fold, precision=section.precision, compiled=section.compile)
    return [f"{which}: {line}" for line in said]


def remember(task: "Classify", teacher: Teacher, root: Path) -> None:
    """Let a teacher's answers be kept on disk, as the recipe says.

    Args:
        task: with its data read.
        teacher: asked by the training loop.
        root: below which they are kept.
    """
    cache = task.recipe.cache
    if teacher.cache is not None or isinstance(teacher, RecordedTeacher) or cache.when == "off":
        return
    if cache.when == "auto" and not task.feed("students", 0).has_few_views:
        return
    always = cache.when == "on"
    arithmetic = {"arithmetic": task.recipe.train.precision, **teacher.manner}
    identity = identity_of(teacher, data=task.source.name, **arithmetic)
    kept = Kept(cache.precision, cache.top, features=always, once=always)
    samples = task.source.train
    fixed = isinstance(samples.read, Resident)  # what is read anew, by others' code or from files, may have changed
    teacher.cache = AnswerCache(Path(cache.path) if cache.path else root, identity, len(samples), kept, fixed=fixed)


def answers_root(folder: RunFolder) -> Path:
    """Where a run's answers are kept: once for all runs below the usual root, else beside the run."""
    root = runs_root().resolve()
    return (root if root in folder.path.resolve().parents else folder.path.parent) / ".answers"


def caches_of(teachers: Sequence[Teacher]) -> list[dict[str, Any]]:
    """What the caches of some teachers came to, as plain data; of those that were asked."""
    return [
        {
            "answers": cache.counts.asked,
            "known": cache.counts.rate,
            "bytes": cache.size,
            "folder": str(cache.folder),
            "mass": cache.counts.mass / cache.counts.weighed if cache.counts.weighed else None,
            "odd": cache.counts.odd,
            "not_whole": cache.not_whole,
            "stopped": cache.stopped,
        }
        for cache in dict.fromkeys(teacher.cache for teacher in teachers)
        if cache is not None and cache.counts.asked
    ]


def in_words(about: dict[str, Any]) -> str:
    """What a cache came to, in one line."""
    text = f"{about['known']:.0%} of {about['answers']:,} answers were known"
    text += f" ({about['bytes'] / 2**20:,.1f} MiB in {about['folder']})"
    if about["mass"] is not None:
        text += f", which hold {about['mass']:.1%} of the probability"
    if about["odd"] or about["not_whole"]:
        text += (
            f"; {about['odd']:,} that were kept were damaged or about other pixels, and {about['not_whole']} files cut "
            "short: the teacher was asked anew"
        )
    return text + (f"; nothing more was kept: {about['stopped']}" if about["stopped"] else "")
