"""What a finished run gives back in Python."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from understudy.run.show import results_table
from understudy.train.folder import read_log


@dataclass(frozen=True)
class Result:
    """What a run came to; everything is also in its folder.

    Args:
        folder: the run folder.
        results: the content of results.json.
        objects: what was given in Python, by `teacher`, `student`, `data`; needed to load such models again.
    """

    folder: Path
    results: dict[str, Any] = field(repr=False)
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def student(self) -> Any:
        """The best distilled student (first seed), in evaluation mode."""
        return self._load("student")

    @property
    def teacher(self) -> Any:
        """The teacher, in evaluation mode."""
        return self._load("teacher")

    @property
    def verdict(self) -> str:
        """Whether distillation helped, in words."""
        verdict = self.results["verdict"]
        return verdict["text"] if verdict else "Nothing was distilled: the teacher alone was trained."

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row a model: role, size, cost and scores."""
        return [{"model": name, **about} for name, about in self.results["models"].items()]

    @property
    def history(self) -> dict[str, list[dict[str, Any]]]:
        """The metrics of each arm and seed, as they were logged: `NAME/seed-K` to rows."""
        logs = sorted(self.folder.glob("arms/*/seed-*/metrics.jsonl"))
        return {f"{log.parent.parent.name}/{log.parent.name}": read_log(log) for log in logs}

    def _load(self, which: Literal["teacher", "student"]) -> Any:
        from understudy.run.start import runner_of

        return runner_of(self.results["task"]).load(self.folder / which, given=self.objects.get(which))

    def __str__(self) -> str:
        return f"{self._record().export_text()}{self.verdict}\n{self.folder}"

    def _repr_html_(self) -> str:
        table = self._record().export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        return f"{table}<p><b>{self.verdict}</b></p>"

    def _record(self) -> Console:
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(results_table(self.results))
        return console
