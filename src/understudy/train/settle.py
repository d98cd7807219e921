"""How steps are taken: one arm after the other, several seeds at once, compiled; decided before the first, and kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.errors import UserError
from understudy.train.arm import Arm
from understudy.train.folder import RunFolder
from understudy.train.progress import Display
from understudy.train.stage import Stage, ask
from understudy.train.stepper import Lone, Stepper
from understudy.train.team import Team, Unfit, compiler, unfit
from understudy.train.views import Views


@dataclass(frozen=True)
class Way:
    """How an arm's steps are taken.

    Args:
        name: for people and for the record.
        reason: why it is not as wanted; empty where it is.
    """

    name: str
    reason: str = ""


def settle(stage: Stage, folder: RunFolder, display: Display) -> list[Stepper]:
    """Decide how each arm's steps are taken, and keep to what was decided when the stage began.

    Args:
        stage: with its arms where they are to go on.
        folder: where it is recorded.
        display: is told what could not be had.

    Raises:
        UserError: what was recorded cannot be had.
    """
    teams: list[Stepper] = []
    ways: dict[str, str] = {}
    for steppers, way in form_teams(stage):
        name = steppers[0].arms[0].name
        teams += steppers
        ways[name] = way.name
        if way.reason:
            display.line(f"{name}: steps are taken {way.name}, because of {way.reason}")
    before = folder.ways_of(stage.name)
    if before is not None and before != ways:
        arm = next(name for name in ways if before.get(name) != ways[name])
        raise UserError(
            f"{arm}'s steps were taken {before.get(arm)} when it began, and can only be taken {ways[arm]} now: their "
            "sums differ in the last bits; go on where it began, or start anew",
            where=folder.path,
        )
    if before is None:
        folder.record_ways(stage.name, ways)
    return teams


def form_teams(stage: Stage) -> list[tuple[list[Stepper], Way]]:
    """Who takes the steps of a stage's arms: of each name a team, where that is wanted and can be done.

    Args:
        stage: with its arms where they are to go on.
    """
    names: dict[str, list[Arm]] = {}
    for arm in stage.arms:
        names.setdefault(arm.name, []).append(arm)
    return [_form(stage, arms) for arms in names.values()]


def _form(stage: Stage, arms: Sequence[Arm]) -> tuple[list[Stepper], Way]:
    alone: list[Stepper] = [Lone(arm) for arm in arms]
    if len(arms) == 1 and not stage.compiled:
        return alone, Way("one by one")
    reasons = [reason for arm in arms if (reason := unfit(arm, stage.feeds[arm.feed]))]
    if reasons:
        return alone, Way("one by one", reasons[0])
    compiled, reason = stage.compiled, ""
    if compiled and stage.device.type == "cpu" and compiler() is None:
        compiled, reason = False, "no C++ compiler"
        if len(arms) == 1:
            return alone, Way("one by one", reason)
    team = Team(arms, compiled=compiled, size=stage.feeds[arms[0].feed].batch_size)
    group = [{arm.feed: stage.feeds[arm.feed][0].to(stage.device) for arm in arms}]
    try:
        team.try_out(Views(group[0]), ask(arms, group, 0)[0], 0, 0)
    except Unfit as error:
        return alone, Way("one by one", str(error))
    together = f"{len(arms)} seeds at once" if len(arms) > 1 else ""
    return [team], Way(" and ".join(filter(None, (together, "compiled" if compiled else ""))), reason)
