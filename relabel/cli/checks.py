"""What is refused before any work: files that are not there, and outputs that would replace something."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from relabel.config import SourceOptions
from relabel.errors import RelabelError
from relabel.files import check_name, check_output, digest

_NO_PARQUET = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".xlsx", ".pt", ".zip", ".tar")


def checkpoint_path(output: str, arguments: Sequence[str]) -> Path:
    """Beside the output; for standard output here, under a name that two runs at a time do not share."""
    if output == "-":
        words = "\0".join(word for word in arguments if word not in ("--resume", "--overwrite"))
        return Path(f".relabel-{digest(words.encode(errors='replace'))[:8]}.checkpoint")
    return hidden_beside(Path(output), "checkpoint")


def hidden_beside(path: Path, suffix: str) -> Path:
    """The place of what a run keeps until its output is written."""
    # Not `with_name`, which refuses a folder's name such as "." before anyone could say what is wrong.
    hidden = path.parent / f".{path.name}.{suffix}"
    check_name(hidden, path)
    return hidden


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


def check_there(named: Mapping[str, Path | None]) -> None:
    """A file that is not there is told without waiting for torch."""
    for flag, path in named.items():
        if path is not None and not os.path.exists(path):
            raise RelabelError(
                f"{flag}: there is no file or folder {path}.", "Check the spelling of the path."
            )


def check_source(source: str) -> None:
    """A SOURCE that is not there is told without waiting for torch."""
    if not os.path.exists(source):
        from relabel.data import sources

        sources.check_there(source)


def files_of(source: str, reading: SourceOptions, name: str = "SOURCE") -> dict[str, Path]:
    """The files and folders of SOURCE, which no output may replace, by what a message calls them."""
    from relabel.data.draft_source import CLASSES_FILE
    from relabel.data.shards import expand

    files = {f"{name}'s classes": Path(source).parent / CLASSES_FILE}
    if reading.classes is not None:
        files["--classes"] = Path(reading.classes)
    if os.path.exists(source):
        return {**files, name: Path(source)}
    return files | {f"{name} ({path})": path for path in expand(source)}


def check_is_parquet(output: str) -> None:
    """Refuse a name for the labels that is one of something else."""
    if Path(output).suffix.lower() in _NO_PARQUET:
        raise RelabelError(
            f"--output {output}: the labels are written as Parquet.", "End the name in .parquet."
        )


def check_stdout(as_json: bool) -> None:
    """Refuse labels on a standard output that is a terminal, or has to take the summary as JSON too."""
    if as_json:
        raise RelabelError("--json and -o - both want standard output.", "Write the labels to a file.")
    if sys.stdout.isatty():
        raise RelabelError("-o - would write Parquet bytes to the terminal.", "Pipe them on, or name a file.")


def check_outputs(
    written: Mapping[str, Path | None], read: Mapping[str, Path | None], overwrite: bool
) -> None:
    """Refuse an output that cannot be written, or that would replace an input or another output."""
    owners = {path.resolve(): flag for flag, path in read.items() if path and os.path.isfile(path)}
    folders = {flag: path for flag, path in read.items() if path and os.path.isdir(path)}
    for flag, path in written.items():
        if path is None:
            continue
        try:
            check_output(path, overwrite or flag == "--checkpoint")
        except RelabelError as error:
            raise RelabelError(f"{flag}: {error.message}", error.hint) from None
        other = owners.setdefault(path.resolve(), flag)
        if other != flag:
            raise RelabelError(f"{flag} {path} is also {other}.", "Choose another name.")
        if path.exists():
            _check_replaced(flag, path, folders)


def _check_replaced(flag: str, path: Path, folders: Mapping[str, Path]) -> None:
    """Refuse to replace an image, or what else an input that is a folder is made of."""
    from relabel.data.decode import IMAGE_SUFFIXES
    from relabel.data.sources import is_part

    if {path.suffix.lower(), path.resolve().suffix.lower()} & IMAGE_SUFFIXES:
        raise RelabelError(f"{flag} {path} is an image.", "Choose another name.")
    for name, folder in folders.items():
        if is_part(folder, path):
            raise RelabelError(f"{flag} {path} is part of {name}.", "Choose another name.")
