"""How fast a run can go: whether its seeds are trained at once, and whether steps are compiled.

Both save what a step costs beside its arithmetic, so both are for small students: `auto` takes them where a step of an
arm has at most 20 million multiply-adds forward, and compiles where enough steps follow to pay for the compiler.
"""

from collections.abc import Mapping, Sequence

from understudy.data import Feed
from understudy.run.measure import multiply_adds
from understudy.tasks.classify.task import Classify
from understudy.train.arm import Arm
from understudy.train.stage import Stage
from understudy.train.team import unfit

_SMALL_STEP = 20_000_000
_STEPS_TO_COMPILE = 20_000


def compiles(task: Classify, arms: Sequence[Arm], feeds: Mapping[str, Feed], *, steps: int) -> bool:
    """Whether the steps of a stage are to be compiled.

    Args:
        task: with its data read.
        arms: of the stage.
        feeds: by name.
        steps: of an epoch.
    """
    wanted = arms[0].settings.compile
    if wanted != "auto":
        return wanted
    many = steps * max(arm.epochs for arm in arms) >= _STEPS_TO_COMPILE
    return many and all(_is_small(task, arm, feeds) for arm in arms)


def seeds_at_once(task: Classify, stage: Stage) -> bool:
    """Whether the seeds of a run are trained at once.

    Args:
        task: with its data read.
        stage: the students of one seed.
    """
    recipe = task.recipe
    if recipe.seeds == 1 or recipe.seeds_at_once is False or recipe.teacher_seeds > 1:
        return False
    if (
        any(method.generations > 1 or method.has_init_stage for method in recipe.method)
        or "equal_time" in recipe.control
    ):
        return False
    return recipe.seeds_at_once is True or all(_is_small(task, arm, stage.feeds) for arm in stage.arms)


def _is_small(task: Classify, arm: Arm, feeds: Mapping[str, Feed]) -> bool:
    """Whether an arm can be stepped by a function, and what surrounds its arithmetic is worth saving."""
    if unfit(arm, feeds[arm.feed]) is not None:
        return False
    one = multiply_adds(arm.distiller.student, task.example(arm.preprocess, 1))
    return one * arm.settings.batch_size <= _SMALL_STEP
