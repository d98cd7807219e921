"""What may stop a run from outside or inside, turned into an orderly end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from understudy.errors import CHECKPOINTED, Interrupted
from understudy.train import processes

_caught: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that a signal came, until the loop has written a checkpoint. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._agreed: int | None = None

    def notice(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def is_asked(self) -> bool:
        """Whether a signal came to any process of the run, so that all stop after the same step."""
        self._agreed = processes.agreed(self.signal or 0) or None
        return self._agreed is not None

    def raise_if_asked(self, kept: str = CHECKPOINTED) -> None:
        """End the run; call after a checkpoint was written.

        Args:
            kept: what to say was kept, and how to go on.

        Raises:
            Interrupted: a signal came; with several processes, one that `is_asked` told all of them about.
        """
        signal = self.signal if processes.count() == 1 else self._agreed
        if signal is not None:
            raise Interrupted(signal, kept)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch Ctrl-C, SIGTERM and SIGUSR1 (what batch systems send before their limit) inside the block.

    Outside the main thread signals cannot be caught: there the request just never comes.
    """
    request = StopRequest()
    earlier = {}
    try:
        for number in _caught:
            earlier[number] = signal.signal(number, request.notice)
    except ValueError:
        earlier.clear()
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def stopping_on(number: int) -> Iterator[None]:
    """Inside the block `stop_on_signals` catches one more signal."""
    global _caught
    before, _caught = _caught, (*_caught, number)
    try:
        yield
    finally:
        _caught = before
