"""What a run folder holds, as plain data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SeedScore:
    """What one seed of a model scored: at its best epoch, its last, and at chosen epochs."""

    seed: int
    best: float | None
    last: float | None
    at: dict[int, float]


@dataclass(frozen=True)
class Metric:
    """One metric of a model over its seeds; the interval is that of the mean of the last epoch."""

    best: float | None
    last: float | None
    ci95: tuple[float, float] | None
    seeds: list[SeedScore]


@dataclass(frozen=True)
class Model:
    """One row of the table: what a model costs and how well it does its job."""

    name: str
    role: str
    parameters: float | None = None
    macs: float | None = None
    latency_ms: float | None = None
    size_bytes: float | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The paired difference of a distilled arm to the control; its outcome as the comparison decided it."""

    arm: str
    metric: str
    difference: float | None
    ci95: tuple[float, float] | None
    seeds: int | None
    outcome: str
    text: str


@dataclass(frozen=True)
class Log:
    """What one arm wrote for one seed, as the rows of its files."""

    arm: str
    seed: int
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    gradients: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Extra:
    """A section of a task's own: text, a table, a Vega-Lite chart, a picture of the run folder; each may be missing."""

    title: str
    text: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    chart: dict[str, Any] | None = None
    picture: bytes = b""


@dataclass(frozen=True)
class Run:
    """Everything the report shows of a run folder."""

    folder: Path
    name: str
    about: str
    task: str
    finished: bool
    selection: str
    hash: str
    notes: list[str]
    models: list[Model]
    verdicts: list[Verdict]
    logs: list[Log]
    recipe: str
    environment: dict[str, Any]
    first_batch: bytes
    extra: list[Extra] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The metric the verdict is about, or the first one the models have."""
        names = [verdict.metric for verdict in self.verdicts]
        names += [name for model in self.models for name in model.metrics]
        return names[0] if names else "accuracy"

    @property
    def control(self) -> Model | None:
        """The student trained alone, if the run has one."""
        return next((model for model in self.models if model.role == "control"), None)

    @property
    def roles(self) -> dict[str, str]:
        """The role of every arm, in the order of the table; guessed by name before there are results."""
        roles = {model.name: model.role for model in self.models}
        guesses = {"teacher": "teacher", "student_alone": "control"}
        return roles | {log.arm: guesses.get(log.arm, "distilled") for log in self.logs if log.arm not in roles}
