"""What the scripts of this folder share: their command line, their files, their tables and their mistakes."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from relabel.errors import RelabelError


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a script's docstring as it is laid out."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def run(main: Callable[[], None]) -> None:
    """Run a script. A user's mistake is one sentence on standard error and exit code 2."""
    try:
        main()
    except RelabelError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """One table of text."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
