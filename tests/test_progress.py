"""What a run reports to its watcher."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from relabel.progress import Silent, Terminal, Watcher

LONG = "[red]" + "many words " * 30 + "100"


def run(watcher: Watcher) -> None:
    watcher.say(LONG)
    watcher.stage("Decoding", 10)
    watcher.advance(4)
    watcher.warn("[bold] 3 rows are lost")
    watcher.stage("Training", None)
    watcher.advance()


def lines_of(
    *, terminal: bool, quiet: bool = False, term: str = "xterm", run: Callable[[Watcher], None] = run
) -> str:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=60, _environ={"TERM": term})
    with Terminal(console, quiet) as watcher:
        run(watcher)
    return written.getvalue()


def test_plain_lines_where_there_is_no_terminal() -> None:
    plain = f"{LONG}\nWarning: [bold] 3 rows are lost\n"
    assert lines_of(terminal=False) == plain, "neither wrapped nor styled"


def test_bars_on_a_terminal() -> None:
    def half(watcher: Watcher) -> None:
        watcher.stage("Decoding", 10)
        watcher.advance(4)
        watcher.advance()

    shown = lines_of(terminal=True, run=half)
    assert "Decoding" in shown
    assert "5/10" in shown.rpartition("Decoding")[2]


def test_one_bar_takes_the_place_of_the_last() -> None:
    shown = lines_of(terminal=True)
    assert "3 rows are lost" in shown
    assert "Decoding" not in shown.rpartition("Training")[2]


def test_no_bars_on_a_terminal_that_cannot_move_its_cursor() -> None:
    assert "Decoding" not in lines_of(terminal=True, term="dumb")


def test_warnings_alone_where_it_is_to_be_quiet() -> None:
    assert lines_of(terminal=False, quiet=True) == "Warning: [bold] 3 rows are lost\n"
    shown = lines_of(terminal=True, quiet=True)
    assert "3 rows are lost" in shown
    assert "Decoding" not in shown


def test_the_terminal_is_whole_again_after_an_error() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=60, _environ={"TERM": "xterm"})
    try:
        with Terminal(console, quiet=False) as watcher:
            watcher.stage("Decoding", 10)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    hidden, cursor = "\x1b[?25l", "\x1b[?25h"
    assert written.getvalue().rfind(cursor) > written.getvalue().rfind(hidden) >= 0


def test_a_silent_watcher_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    run(Silent())
    assert capfd.readouterr() == ("", "")
