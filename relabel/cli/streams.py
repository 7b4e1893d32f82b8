"""The standard streams: what is read from and written to them, and what happens when that fails."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import typer
from rich.console import Console

from relabel.errors import RelabelError, RunError

Shown = TypeVar("Shown")


@contextmanager
def guarded_stdout() -> Iterator[BinaryIO]:
    """Standard output, for text and bytes. Raises RunError when full, and BrokenPipeError as it comes."""
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        raise RunError(
            f"Standard output could not be written: {error.strerror or error}.",
            "Free some space or choose another place.",
        ) from error


def abandon_stdout() -> None:
    """The reader of our output has gone; a second error at interpreter exit would say nothing more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_console(*, stderr: bool = False) -> Console:
    """Plain text unless the stream is a terminal, whatever the environment forces: logs stay readable."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, force_terminal=None if stream.isatty() else False)


@contextmanager
def standard_input() -> Iterator[Path]:
    """Standard input as a file, which a RelabelError in the block then calls by what it is."""
    with tempfile.TemporaryDirectory(prefix="relabel-") as folder:
        path = Path(folder, "stdin.csv")  # readers know the kind of a table by its name
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise RunError(
                f"Standard input could not be kept in {tempfile.gettempdir()}: {error.strerror}.",
                "Free some space, or set TMPDIR to another folder.",
            ) from error
        if starts_with(path, b"PAR1"):
            path = path.rename(path.with_suffix(".parquet"))
        try:
            yield path
        except RelabelError as error:
            message = error.message.replace(str(path), "standard input")
            raise type(error)(message, error.hint) from error


def labels_source(argument: str) -> Path | BinaryIO:
    """The file of that name, or for - standard input."""
    return sys.stdin.buffer if argument == "-" else Path(argument)


def starts_with(path: Path, magic: bytes) -> bool:
    """Whether these are the first bytes of a file; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def show_table(show: Callable[[Console, Shown], None], what: Shown) -> None:
    """Have one of the tables of `summary` on standard output."""
    with guarded_stdout():
        show(make_console(), what)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output, in ASCII where that cannot say more."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    with guarded_stdout():
        typer.echo(json.dumps(value, indent=2, ensure_ascii=ascii_only, default=str))
