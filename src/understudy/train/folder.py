"""The run folder: everything about one experiment, written as it happens."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from understudy.errors import UserError
from understudy.recipe.reader import build_recipe, parse
from understudy.recipe.schema import Recipe
from understudy.train import processes
from understudy.train.files import locked, sync, write_atomically

if TYPE_CHECKING:
    from understudy.train.checkpoint import Checkpoints

_LOCK = ".lock"
_RECORDED = (
    "understudy", "torch", "torchvision", "numpy", "timm", "transformers", "accelerate", "diffusers", "ultralytics",
    "torch-pruning", "keras",
)  # fmt: skip


class RunFolder:
    """A folder and the files in it.

    Args:
        path: the folder; `create` makes one, `open` takes an existing one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def checkpoints(self) -> "Checkpoints":
        """Where stages that are trained by our loop go on from."""
        from understudy.train.checkpoint import Checkpoints  # needs torch, which a guest's run may do without

        return Checkpoints(self.path / "checkpoints")

    @classmethod
    def create(cls, recipe: Recipe, out: Path | None) -> "RunFolder":
        """Make the folder of a new run and write the resolved recipe into it.

        Args:
            recipe: what will be run.
            out: the folder wanted; by default the next free number below `runs/NAME`.

        Raises:
            UserError: the folder exists and is not empty, or cannot be made.
        """
        if out is not None and out.exists() and (not out.is_dir() or any(map(_is_content, out.iterdir()))):
            raise UserError("exists already: choose another --out, or continue it with `understudy resume`", where=out)
        path = out or next_free(runs_root() / recipe.name)
        try:
            path.mkdir(parents=True, exist_ok=out is not None)
        except FileExistsError:  # another run took the number in the meantime
            return cls.create(recipe, out)
        except OSError as error:
            raise UserError(f"cannot be made ({error.strerror})", where=path) from None
        folder = cls(path)
        write_atomically(path / "recipe.yaml", resolved(recipe))
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Take an existing run folder.

        Raises:
            UserError: it is none.
        """
        if not (path / "recipe.yaml").is_file():
            raise UserError("is no run folder: it has no recipe.yaml", where=path)
        return cls(path)

    def recipe(self) -> Recipe:
        """The resolved recipe of the run."""
        path = self.path / "recipe.yaml"
        return build_recipe(parse(path.read_bytes(), str(path)))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other commands from running in this folder while the block goes on.

        Raises:
            UserError: one does already.
        """
        if not processes.is_first():
            yield
            return
        with locked(self.path / _LOCK) as ours:
            if not ours:
                raise UserError("is being run by another process: wait until it ends, or stop it", where=self.path)
            yield

    def write_environment(self, **more: Any) -> None:
        """Record where and with what the run is done, once."""
        path = self.path / "environment.json"
        if not path.exists():
            write_atomically(path, json.dumps({**environment(), **more}, indent=2))

    def environment(self) -> dict[str, Any]:
        """What was recorded about where the run is done."""
        return json.loads((self.path / "environment.json").read_text())

    def arm(self, name: str, seed: int) -> Path:
        """The folder of one arm and seed."""
        return self.path / "arms" / name / f"seed-{seed}"

    @property
    def finished_stages(self) -> list[str]:
        """The stages that were done to the end."""
        path = self.path / "stages.json"
        return json.loads(path.read_text())["finished"] if path.exists() else []

    def finish_stage(self, name: str) -> None:
        """Note that a stage is done, then drop its checkpoints; every process of the run must call it."""
        processes.barrier()  # nobody still reads what is finished
        if processes.is_first():
            stages = [*self.finished_stages, name]
            write_atomically(self.path / "stages.json", json.dumps({"finished": stages}))
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        processes.barrier()

    def ways_of(self, stage: str) -> dict[str, str] | None:
        """How the steps of a stage's arms are taken; None before it began."""
        path = self.path / "steps.json"
        return json.loads(path.read_text()).get(stage) if path.exists() else None

    def record_ways(self, stage: str, ways: dict[str, str]) -> None:
        """Record how the steps of a stage's arms are taken."""
        if processes.is_first():
            path = self.path / "steps.json"
            known = json.loads(path.read_text()) if path.exists() else {}
            write_atomically(path, json.dumps({**known, stage: ways}, indent=2))

    def results(self) -> dict[str, Any] | None:
        """The results of a finished run, or None."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.exists() else None

    def fingerprint(self) -> str:
        """SHA-256 over all weights and metrics that the run made: equal runs have equal ones."""
        digest = hashlib.sha256()
        files = sorted(
            [
                *self.path.glob("arms/*/seed-*/metrics.jsonl"),
                *self.path.glob("arms/*/seed-*/student/*.safetensors"),
            ]
        )
        for file in files:
            digest.update(str(file.relative_to(self.path)).encode())
            digest.update(file.read_bytes())
        return digest.hexdigest()


def _is_content(path: Path) -> bool:
    """Not what a run leaves that was killed while it wrote its first file."""
    return path.name not in (".recipe.yaml.tmp", _LOCK)


class Log:
    """A JSON-lines file that can be cut back to where a checkpoint was written; of several processes the first writes.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if processes.is_first():
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **row: Any) -> None:
        """Append a row."""
        if not processes.is_first():
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def sync(self) -> int:
        """Force the rows to disk, before a checkpoint counts on them.

        Returns:
            Bytes so far.
        """
        if self.path.exists():
            sync(self.path)
        return self.length

    def truncate(self, length: int) -> None:
        """Drop what was written after a checkpoint.

        Raises:
            UserError: the file is shorter than it was then.
        """
        if not processes.is_first():
            return
        if self.length < length:
            raise UserError(
                f"is shorter ({self.length} bytes) than when the checkpoint was written ({length}): put it back, "
                "or remove the folder's checkpoints to start the stage over",
                where=self.path,
            )
        if self.path.exists():
            os.truncate(self.path, length)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def resolved(recipe: Recipe) -> str:
    """A recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def runs_root() -> Path:
    """Where runs are kept when `--out` is not given."""
    return Path("runs")


def next_free(parent: Path) -> Path:
    """The next free number below a folder."""
    taken = [int(path.name) for path in parent.glob("*") if path.name.isdigit()] if parent.is_dir() else []
    return parent / str(max(taken, default=0) + 1)


def environment() -> dict[str, Any]:
    """Versions, machine and command."""
    versions = {}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
        **versions,
    }
