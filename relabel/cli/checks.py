"""What only a command line can get wrong: the words of --option, and standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from relabel.config import TrainingConfig
from relabel.errors import RelabelError
from relabel.files import digest
from relabel.options import changed
from relabel.verbs.checks import hidden_beside

Config = TypeVar("Config", bound=TrainingConfig)


def with_checkpoint(config: Config, arguments: Sequence[str]) -> Config:
    """The config with a checkpoint: beside the output, unless the user names one.

    For standard output it is here, under a name that two runs at a time do not share.
    """
    if config.run.checkpoint is not None:
        return config
    output = str(config.outputs.output)
    if output == "-":
        words = "\0".join(word for word in arguments if word not in ("--resume", "--overwrite"))
        path = Path(f".relabel-{digest(words.encode(errors='replace'))[:8]}.checkpoint")
    else:
        path = hidden_beside(Path(output), "checkpoint")
    return changed(config, checkpoint=path)


def parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs as a mapping."""
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise RelabelError(f"--option {pair}: is not NAME=VALUE.", "Write for example start=random.")
        if name in options:
            raise RelabelError(f"--option {name} is given twice.", "Keep one of them.")
        options[name] = value
    return options


def check_stdout(as_json: bool) -> None:
    """Refuse labels on a standard output that is a terminal, or has to take the summary as JSON too."""
    if as_json:
        raise RelabelError("--json and -o - both want standard output.", "Write the labels to a file.")
    if sys.stdout.isatty():
        raise RelabelError("-o - would write Parquet bytes to the terminal.", "Pipe them on, or name a file.")
