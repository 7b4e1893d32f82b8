"""Signals that end a run, as an exception that never strikes where a lock would stay taken.

Python runs a signal handler between any two steps of the main thread. An exception out of it can leave a
`threading.Condition` locked for ever, as its `__enter__` is Python code: it takes the lock, is interrupted,
and the lock is never released. Thread pools are built on these, so that a worker then waits, and whoever
waits for the worker. While the main thread deals with a pool, a signal is therefore only noted (`held`).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_PATIENCE = 2.0  # seconds in which a repeated signal is taken for the same one
_GLANCE = 0.1  # seconds from one look for a signal to the next

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end; an exception, so that temporary files are removed on the way out."""

    def __init__(self, signum: int, message: str = "Nothing was written.") -> None:
        word = "Interrupted" if signum == signal.SIGINT else "Terminated"
        super().__init__(f"{word}. {message}")
        self.signum = signum

    def saying(self, message: str) -> Stopped:
        """The same signal with something more to tell."""
        return Stopped(self.signum, message)


class _Handler:
    """What the process does with a signal: `holders` counts the regions it may not interrupt."""

    def __init__(self) -> None:
        self.holders = 0
        self._noted: int | None = None
        self._last = -math.inf

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        # A second Ctrl-C from an impatient finger must not cut the cleaning up short.
        if time.monotonic() - self._last <= _PATIENCE:
            return
        self._last = time.monotonic()
        if not self.holders:
            raise Stopped(signum)
        self._noted = signum

    def check(self) -> None:
        """Raise Stopped for a signal that was noted."""
        signum, self._noted = self._noted, None
        if signum is not None:
            raise Stopped(signum)


_handler = _Handler()


def install() -> None:
    """Let the signals that ask a process to end raise Stopped."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, _handler)


def ignore() -> None:
    """Let no signal change an exit code that is settled: leaving takes a moment."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """A region in which a signal raises Stopped only where what this yields is called, and at its end."""
    _handler.holders += 1
    try:
        yield _handler.check
    finally:
        _handler.holders -= 1
        if not _handler.holders:
            _handler.check()


def in_threads(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item]
) -> list[Result]:
    """`pool.map` as a list, which a signal ends well: what has begun is finished, and no more is begun."""
    with held() as check:
        futures = [pool.submit(work, item) for item in items]
        try:
            while wait(futures, _GLANCE).not_done:
                check()
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
