"""Where a training step's time goes: some steps are taken under Python's own profiler, and thrown away."""

import cProfile
import pstats
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch

from understudy.data import Feed
from understudy.distill import Objective
from understudy.distill.heads import ask_heads
from understudy.train.loop import train_step
from understudy.train.settle import form_teams
from understudy.train.stage import Stage, ask, steps
from understudy.train.stepper import Stepper
from understudy.train.team import Team

_STEPS = 100
_SECONDS = 10.0


def profile(stage: Stage) -> dict[str, Any]:
    """Milliseconds of a step by what they are spent on; the stage's arms are trained on by it.

    On a GPU what is measured is the launching of kernels, not their work.

    Args:
        stage: the students of a run, as they are trained.

    Returns:
        `milliseconds` by part, in the order of a step, `rest` last; `steps` taken; `ways` by arm.
    """
    formed = form_teams(stage)
    teams = [team for each, _ in formed for team in each]
    done = _take_steps(stage, teams)
    for _ in islice(done, stage.ahead):  # warms up
        pass
    taken, ends = 0, time.perf_counter() + _SECONDS
    watched = cProfile.Profile()
    watched.enable()
    while taken < _STEPS and (not taken or time.perf_counter() < ends):
        next(done)
        taken += 1
    watched.disable()
    stats: Any = pstats.Stats(watched)
    spent = {name: sum(_cumulative(stats, part) for part in parts) for name, parts in _parts(stage).items()}
    spent["rest"] = max(0.0, stats.total_tt - sum(spent.values()))
    return {
        "milliseconds": {name: 1000 * seconds / taken for name, seconds in spent.items()},
        "steps": taken,
        "ways": {each[0].arms[0].name: way.name for each, way in formed},
    }


def _take_steps(stage: Stage, teams: Sequence[Stepper]) -> Iterator[None]:
    """Take steps for ever, one at each turn."""
    step = 0
    for epoch in count():
        for team in teams:
            team.begin(epoch)
        for views, answers in steps(stage, stage.arms, epoch, step):
            train_step(teams, views, answers, epoch, step)
            step += 1
            yield


def told(found: dict[str, Any]) -> dict[str, Any]:
    """A profile as a section of the report.

    Args:
        found: see `profile`.
    """
    total = sum(found["milliseconds"].values())
    ways = "; ".join(f"{arm} {way}" for arm, way in found["ways"].items())
    rows = [{"part": name, "milliseconds": value} for name, value in found["milliseconds"].items()]
    return {
        "title": "Where a step's time goes",
        "text": f"Mean of {found['steps']} steps of all students before the training, under Python's profiler, which "
        f"makes each call a little dearer. Steps are taken: {ways}.",
        "columns": ["part", "milliseconds", "share"],
        "rows": [[row["part"], f"{row['milliseconds']:.3f}", f"{row['milliseconds'] / total:.0%}"] for row in rows],
        "chart": {
            "height": 28 * len(rows),
            "data": {"values": rows},
            "mark": {"type": "bar", "tooltip": True},
            "encoding": {
                "x": {"field": "milliseconds", "type": "quantitative", "title": "milliseconds a step"},
                "y": {"field": "part", "type": "nominal", "sort": None, "title": None},
            },
        },
    }


def _parts(stage: Stage) -> dict[str, list[Callable[..., Any]]]:
    """What of a step is counted as what; none of these calls another."""
    optimizers = {type(arm.optimizer).step.__code__: type(arm.optimizer).step for arm in stage.arms}
    return {
        "data": [Feed.group],
        "teacher": [ask],
        "student forward": [ask_heads],
        "losses": [Objective.forward],
        "backward": [torch.Tensor.backward],
        "optimiser": list(optimizers.values()),
        "steps as one function": [Team.step],
    }


def _cumulative(stats: Any, function: Callable[..., Any]) -> float:
    code = function.__code__
    entry = stats.stats.get((code.co_filename, code.co_firstlineno, code.co_name))
    return 0.0 if entry is None else entry[3]
