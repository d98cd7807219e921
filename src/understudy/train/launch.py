"""Starts several processes of a command on this machine, by torch's own launcher, and tells how they ended."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from understudy.train.processes import LOST

_ADVICE = "the last checkpoint is kept: continue with `understudy resume FOLDER`"


def launch(words: Sequence[str], count: int) -> int:
    """Run a command line of ours by several processes; the first prints and writes, what it says is final.

    Args:
        words: the command line after `understudy`.
        count: how many processes.

    Returns:
        The exit code: the first process's, or 1 where another failed or was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as logs, _surroundings(count):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,  # a run is continued by a person, who sees why it stopped
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=dict.fromkeys(range(1, count), Std.ALL)),
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        )
        try:
            elastic_launch(config, sys.executable)("-m", "understudy", *words)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as error:
            return _tell({rank: failure.exitcode for rank, failure in error.failures.items()}, count, Path(logs))
    return 0


def _tell(codes: dict[int, int], count: int, logs: Path) -> int:
    """Say what ended the run, unless the first process has; the exit code."""
    # Processes that ended because another did are not the reason, nor those that the launcher then stopped.
    ended = {rank: code for rank, code in sorted(codes.items()) if code not in (LOST, -signal.SIGTERM)}
    if ended.get(0, 0) > 0:
        return ended[0]
    rank, code = next(iter((ended or codes).items()))
    if code < 0:
        number = signal.Signals(-code).name
        print(f"understudy: process {rank} of {count} was killed by {number}; {_ADVICE}", file=sys.stderr)
        return 1
    print(_last_line(logs, rank) or f"understudy: process {rank} of {count} failed; {_ADVICE}", file=sys.stderr)
    return code if code == 2 else 1


def _last_line(logs: Path, rank: int) -> str:
    for file in logs.glob(f"**/{rank}/stderr.log"):
        lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return ""


@contextmanager
def _surroundings(count: int) -> Iterator[None]:
    """A share of the processors for each process, and torch's own messages kept back: ours is one line."""
    wanted = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # such as what it thinks of unused parameters
    }
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        for name in missing:
            del os.environ[name]
