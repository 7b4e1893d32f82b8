"""How a long run reports its progress; `relabel.cli` shows it, tests and scripts may stay silent."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Watcher(Protocol):
    """What a run reports: one stage at a time with a number of steps, and lines of text."""

    def stage(self, name: str, total: int | None) -> None:
        """A new stage of `total` steps begins; None where their number is unknown."""

    def advance(self, steps: int = 1) -> None:
        """So many steps of the stage are done."""

    def say(self, text: str) -> None:
        """A line worth reading once."""

    def warn(self, text: str) -> None:
        """A line the user should not miss."""


class Silent:
    """A watcher that shows nothing."""

    def stage(self, name: str, total: int | None) -> None:
        """Ignore."""

    def advance(self, steps: int = 1) -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""


class Recorder:
    """A watcher that keeps the warnings, and passes everything on to another one where there is one."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.shown: Watcher = Silent()

    def stage(self, name: str, total: int | None) -> None:
        """Pass on."""
        self.shown.stage(name, total)

    def advance(self, steps: int = 1) -> None:
        """Pass on."""
        self.shown.advance(steps)

    def say(self, text: str) -> None:
        """Pass on."""
        self.shown.say(text)

    def warn(self, text: str) -> None:
        """Keep and pass on."""
        self.warnings.append(text)
        self.shown.warn(text)


class Terminal:
    """Bars with the time left on a terminal, plain lines elsewhere, warnings always; on standard error."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
        self._task: TaskID | None = None

    def __enter__(self) -> Terminal:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, name: str, total: int | None) -> None:
        """A new bar in place of the last one."""
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._bar and self._task is not None:
            self._bar.advance(self._task, steps)

    def say(self, text: str) -> None:
        """One plain line."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One marked line, also under `--quiet`."""
        self._console.print(f"Warning: {text}", markup=False, highlight=False, soft_wrap=True, style="yellow")
