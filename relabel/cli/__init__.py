"""The command line: the only place that prints or exits."""

from collections.abc import Sequence

from relabel.cli import running
from relabel.cli.commands import app


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure is reported in one sentence."""
    return running.run(app, arguments)
