"""Names of files that make up one source together: patterns, and what the names tell."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from relabel.data.draft_source import natural_key
from relabel.errors import RelabelError

TAR_SUFFIXES = frozenset({".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"})
ARCHIVE_SUFFIXES = TAR_SUFFIXES | {".zip"}
SHARD_SUFFIXES = TAR_SUFFIXES | {".parquet"}

_JUNK = ("Thumbs.db", "desktop.ini", "__MACOSX")  # what file managers leave behind, beside dot-files
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000
_SPLIT = re.compile(r"(?:^|[-_.])(train|validation|valid|val|dev|test|eval)(?:[-_.]|$)")


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name in _JUNK


def suffix_of(name: str) -> str:
    """The extension in lower case, `.tar.gz` and its like as one."""
    stem, suffix = os.path.splitext(name.lower())
    return ".tar" + suffix if stem.endswith(".tar") else suffix


def expand(location: str) -> list[Path]:
    """The files that a pattern with `*`, `?`, `[...]`, `{a,b}` or `{000..011}` stands for, in natural order.

    No pattern gives none. Raises RelabelError for a pattern of which a part matches nothing: a missing shard
    would go unnoticed.
    """
    if "://" in location or not re.search(r"[*?\[{]", location):
        return []
    paths: set[str] = set()
    for pattern in _alternatives(location):
        found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        if os.path.isfile(pattern):  # a name that happens to hold a bracket
            found.append(pattern)
        if not found:
            raise RelabelError(f"No file matches {pattern!r}.", "Check the spelling of the pattern.")
        paths.update(found)
    return [Path(path) for path in sorted(paths, key=natural_key)]


def check_one_split(paths: Sequence[Path], folder: Path) -> None:
    """Refuse shards that are of several splits by their names."""
    found = [(_split_of(path.relative_to(folder)), path) for path in paths]
    splits = sorted({split for split, _ in found if split})
    if len(splits) > 1:
        example = next(path for split, path in found if split == splits[0])
        name = f"{splits[0]}*" if splits[0] in example.name else "*"
        raise RelabelError(
            f"{folder} holds shards of several splits: {', '.join(splits)}.",
            f"Name one of them, as in '{example.parent}/{name}{example.suffix}'.",
        )


def _split_of(path: Path) -> str:
    """The split in a shard's name, or else a folder above it; empty if none does."""
    if found := _SPLIT.search(path.name):
        return found[1]
    return next((part for part in reversed(path.parts[:-1]) if _SPLIT.fullmatch(part)), "")


def _alternatives(pattern: str) -> list[str]:
    """What braces stand for, as in a shell."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    span = _RANGE.fullmatch(braces[1])
    if span:
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        if last - first >= _MOST:
            raise RelabelError(f"{pattern!r} stands for too many files.", f"Name at most {_MOST:,}.")
        words = [str(number).zfill(width) for number in range(first, last + 1)]
    elif "," in braces[1]:
        words = braces[1].split(",")
    else:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for word in words for name in _alternatives(before + word + after)]
