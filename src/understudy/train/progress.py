"""What a person sees while a run goes on: a bar with the time left on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Shows progress on a console.

    Args:
        console: where to; None is silent.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "Display":
        if self.console is not None and self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=self.console, refresh_per_second=5)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)

    def begin(self, name: str, total: int, done: int) -> "Meter":
        """Start the bar of a stage.

        Args:
            name: of the stage.
            total: its steps.
            done: how many were done before.
        """
        return Meter(self, name, total, done)


class Meter:
    """The bar of one stage."""

    def __init__(self, display: Display, name: str, total: int, done: int) -> None:
        self.display = display
        self.name = name
        self.total = total
        self.done = done
        self.note = ""
        self._shown = time.monotonic()
        self._task = None
        if display._bar is not None:
            self._task = display._bar.add_task(name, total=total, completed=done, note="")

    def advance(self) -> None:
        """One step done; the bar is redrawn a few times a second at most."""
        self.done += 1
        now = time.monotonic()
        if now - self._shown < 0.2 and self.done < self.total:
            return
        self._shown = now
        bar = self.display._bar
        if bar is not None and self._task is not None:
            bar.update(self._task, completed=self.done, note=self.note)
        elif self.display.console is not None and now - self.display._last_line > _SECONDS_BETWEEN_LINES:
            self.display._last_line = now
            self.display.line(f"{self.name}: step {self.done:,} of {self.total:,}  {self.note}")

    def finish(self, total: int) -> None:
        """The stage is over, perhaps earlier than planned."""
        bar = self.display._bar
        if bar is not None and self._task is not None:
            bar.update(self._task, completed=total, total=total, note=self.note)
