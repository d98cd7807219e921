"""Analyses finished runs and draws what was found into the report of the first."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.errors import UserError, did_you_mean
from understudy.report import write_report
from understudy.tasks.classify.analysis import tables
from understudy.tasks.classify.analysis.finished import Finished, read_finished
from understudy.tasks.classify.analysis.settings import settings
from understudy.train.files import write_atomically
from understudy.train.machine import machine

ANALYSES: dict[str, Callable[[Finished], tables.Section | None]] = {
    "strategies": tables.strategies,
    "disagreement": tables.disagreement,
    "tokens": tables.tokens,
    "teachers": tables.teachers,
    "speed": tables.speed,
}


def analyse(
    folders: Sequence[str | Path],
    *,
    only: Sequence[str] = (),
    student: str | None = None,
    samples: int | None = None,
    objects: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Ask the models of a finished run once more, or hold several runs against the first.

    What is found goes to `extra` in the first run's results.json, in the place of an earlier analysis of that title,
    and into its report, which is drawn again. Nothing is trained.

    Args:
        folders: of finished classification runs; with several, what they changed is compared.
        only: of `strategies`, `disagreement`, `tokens`, `teachers` and `speed` those wanted; by default all that the
            run has something for.
        student: where several runs are compared, the model to compare; by default each one's best distilled one.
        samples: ask about so many of the test images only.
        objects: what the run was given in Python, by `teacher`, `student`, `data`.

    Returns:
        The sections: `title`, `text`, `table`, `chart`.

    Raises:
        UserError: a folder is no finished classification run, or an analysis has no such name.
    """
    paths = list({Path(folder).resolve(): Path(folder) for folder in reversed(folders)}.values())[::-1]
    if not paths:
        raise UserError("name at least one run folder")
    for name in only:
        if name not in ANALYSES:
            raise UserError(f"there is no analysis '{name}', {did_you_mean(name, ANALYSES)}")
    if len(paths) > 1:
        if only:
            raise UserError("are of one run: several runs are compared by what they changed", where="analyses")
        found = [settings(paths, student)]
    else:
        found = _of_one(paths[0], tuple(only) or tuple(ANALYSES), samples, objects)
    _write(paths[0], found)
    return found


def _of_one(
    path: Path, names: Sequence[str], samples: int | None, objects: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    recipe, _ = read_finished(path)
    with machine(recipe.train):
        run = Finished(path, objects=objects, samples=samples)
        sections = [ANALYSES[name](run) for name in names]
    return [section for section in sections if section is not None]


def _write(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    results = json.loads((path / "results.json").read_text())
    titles = {section["title"] for section in found}
    kept = [section for section in results.get("extra") or [] if section.get("title") not in titles]
    results["extra"] = [*kept, *found]
    write_atomically(path / "results.json", json.dumps(results, indent=2))
    write_report(path)
