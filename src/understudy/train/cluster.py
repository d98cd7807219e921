"""A run as a job of a cluster, through submitit: one process a GPU, put back into the queue when it is interrupted."""

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from understudy.errors import Interrupted, RunError, UserError
from understudy.train import processes

Executor = Literal["slurm", "local", "debug"]

# Tasks that have nothing to requeue wait for the one that has: SLURM may end a job when its first task ends.
_WAIT = 5.0


@dataclass(frozen=True)
class Submitted:
    """What each task of the job calls: it starts the run, or resumes it where its folder has been made.

    At the signal that SLURM sends before it takes the machines away, the run saves a checkpoint after the present step
    and ends; submitit then asks `checkpoint` what to put back into the queue.

    Args:
        words: the recipe and its overrides, as on the command line.
        folder: of the run, on a disk that all machines share.
        packages: imported first; see `--import`.
    """

    words: tuple[str, ...]
    folder: Path
    packages: tuple[str, ...] = ()

    def __call__(self) -> str:
        """Run, as one of the job's tasks.

        Returns:
            The run folder.
        """
        from submitit.helpers import TorchDistributedEnvironment

        from understudy.cli.options import import_packages

        # Every process sees all GPUs of its machine and takes its own: the device's number says which.
        TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
        import_packages(list(self.packages))
        number = _preemption()
        requeue = signal.getsignal(number)
        try:
            self._run(number)
        except Interrupted as stopped:
            if stopped.signal != number or not callable(requeue):
                raise
            if processes.launched().rank:
                time.sleep(_WAIT)
                raise SystemExit(1) from None
            requeue(number, None)
        return str(self.folder)

    def _run(self, number: int) -> None:
        from rich.console import Console

        from understudy.recipe.reader import read_recipe
        from understudy.run.start import resume, start
        from understudy.train.guard import stopping_on

        console = None if processes.launched().rank else Console(force_terminal=False)
        with stopping_on(number):
            if (self.folder / "recipe.yaml").exists():
                resume(self.folder, objects={}, console=console)
            else:
                recipe = read_recipe(self.words[0], list(self.words[1:]))
                start(recipe, out=self.folder, objects={}, console=console)

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same, which then finds the folder with its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    job: Submitted, *, executor: Executor, nodes: int, gpus_per_node: int, options: Mapping[str, str | bool]
) -> Any:
    """Hand a job to a cluster.

    Args:
        job: what to run.
        executor: `slurm`; `local` for processes of this machine; `debug` for this process.
        nodes: machines.
        gpus_per_node: on each, with a process for every one; 0 trains on CPUs, by one process a machine unless
            `ntasks_per_node` says otherwise.
        options: SLURM's, by their long names.

    Returns:
        submitit's job.

    Raises:
        UserError: submitit is not installed, or refuses the options.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("needs submitit: pip install 'understudy[slurm]'", where="submit") from None
    logs = job.folder.with_name(f"{job.folder.name}.jobs")
    given = {name.replace("-", "_"): value for name, value in options.items()}
    tasks = int(given.pop("ntasks_per_node", gpus_per_node or 1))
    minutes = _minutes(str(given.pop("time", "2-00:00:00")))
    try:
        queue: Any = submitit.AutoExecutor(folder=logs, cluster=executor, **_requeues(executor, given))
        known = queue._executor._valid_parameters() if executor == "slurm" else set()
        own = {f"slurm_{name}": value for name, value in given.items() if name in known}
        further = {name.replace("_", "-"): value for name, value in given.items() if name not in known}
        queue.update_parameters(
            name=job.folder.parent.name,
            nodes=nodes,
            tasks_per_node=tasks,
            gpus_per_node=gpus_per_node,
            timeout_min=minutes,
            **({"slurm_signal_delay_s": 120, **own, "slurm_additional_parameters": further} if known else {}),
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(str(error).splitlines()[0], where=f"submit --executor {executor}") from None
    return queue.submit(job)


def wait_for(job: Any) -> None:
    """Wait until a job of this machine ends.

    Raises:
        RunError: it failed.
    """
    from submitit.core.utils import UncompletedJobError

    try:
        job.results()
    except UncompletedJobError as error:
        # Its last line is that of the job's own traceback: what our error said.
        reason = str(error).strip().splitlines()[-1].removeprefix("understudy.errors.")
        raise RunError(f"job {job.job_id} failed ({reason}): see {job.paths.stderr}") from None


def _requeues(executor: Executor, given: dict[str, Any]) -> dict[str, Any]:
    """How often a job that ran out of time goes on; one that was preempted does without end."""
    times = int(given.pop("requeues", 30))
    return {"slurm_max_num_timeout": times} if executor == "slurm" else {}


def _minutes(text: str) -> int:
    """SLURM's time, as minutes: `90`, `HH:MM:SS`, `D-HH:MM:SS`, `D-HH` and what lies between."""
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, minutes, _ = (*parts, 0, 0)[:3]
            return (int(days) * 24 + hours) * 60 + minutes
        if len(parts) == 3:
            return parts[0] * 60 + parts[1]
        return max(parts[0], 1)
    except ValueError:
        raise UserError("is no time such as 90 (minutes), 12:00:00 or 2-12:00:00", where=f"--time '{text}'") from None


def _preemption() -> int:
    """The signal that announces the end of the job."""
    from submitit import JobEnvironment

    return int(JobEnvironment._usr_sig())


def read_options(words: Sequence[str]) -> tuple[list[str], dict[str, str | bool]]:
    """Tell the recipe's overrides from SLURM's options.

    Args:
        words: `key=value` for the recipe; `--option value`, `--option=value` or `--flag` for SLURM. A value that
            itself has the form key=value is given with `=`.

    Raises:
        UserError: a word is neither.
    """
    overrides: list[str] = []
    options: dict[str, str | bool] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if "=" not in word:
                raise UserError("is neither key=value nor an option: SLURM's are given as --option value", where=word)
            overrides.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if equals:
            options[name] = value
        elif rest and not rest[0].startswith("--") and not _is_override(rest[0]):
            options[name] = rest.pop(0)
        else:
            options[name] = True
    return overrides, options


def _is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.replace(".", "").replace("_", "").isalnum()
