"""The console command, and `python -m relabel`.

Signals and streams are seen to first: what the commands need takes a moment to import.
"""

import io
import os
import sys
from typing import NoReturn

from relabel import interrupts


def main() -> NoReturn:
    """Run the command line of this process."""
    interrupts.install()
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a class name the terminal cannot show
    try:
        from relabel import cli
    except interrupts.Stopped as stop:
        print(stop, file=sys.stderr)
        code = 128 + stop.signum
    else:
        code = cli.run(sys.argv[1:])
    interrupts.ignore()
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Put something in the place of standard streams that the caller has closed, which Python leaves out."""
    if sys.__stdin__ is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.__stdout__ is None:
        # For reading alone, so that what is written does not vanish without an error.
        nowhere = io.FileIO(os.open(os.devnull, os.O_RDONLY), "w")
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(nowhere), encoding="utf-8")
    if sys.__stderr__ is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


if __name__ == "__main__":
    main()
