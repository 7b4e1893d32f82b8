"""A source being put together: rows whose labels are still text, and how these become classes."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relabel.config import SourceOptions
from relabel.data.image_refs import References
from relabel.data.in_memory import Frame
from relabel.data.tables import first_few, nfc, printable
from relabel.errors import RelabelError
from relabel.progress import Watcher

CLASSES_FILE = "classes.txt"
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Request:
    """What a form reads: SOURCE as the user typed it, and the options.

    expect_labels: a source without labels is a mistake; largest: the most pixels a side that an image
    will be decoded to, None for no limit; frame: SOURCE itself where it is in memory, named `location`.
    """

    location: str
    options: SourceOptions
    watcher: Watcher
    expect_labels: bool
    largest: int | None
    frame: Frame | None = None


@dataclass
class DraftSource:
    """The rows that a form has found so far, which it hands in through the methods. One entry a row in every
    list, unless said.

    root: what file names are relative to; kind: the form of SOURCE; trusted: labels of `--trusted-column`,
    None without it; classes: known even where no row has them; order: class names whose
    order is fixed; damage: sentences on what could not be read to its end; listed: name and content of a
    `classes.txt` among the rows; vectors: [N, D], None where rows are images.
    """

    root: Path
    kind: str
    names: list[str] = field(default_factory=list)
    references: References = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    trusted: list[str | None] | None = None
    classes: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    ignored: int = 0
    damage: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    listed: tuple[str, bytes] | None = None
    vectors: NDArray[np.float32] | None = None

    def take_images(
        self, names: Sequence[str], references: References, errors: Mapping[int, str] | None = None
    ) -> None:
        """Make images the rows; errors: by row, why an image cannot be used."""
        self.names, self.references, self.errors = list(names), references, dict(errors or {})

    def take_vectors(
        self, names: Sequence[str], vectors: NDArray[np.float32], errors: Mapping[int, str]
    ) -> None:
        """Make vectors [N, D] the rows; errors: by row, why one cannot be used."""
        self.names, self.vectors, self.errors = list(names), vectors, dict(errors)

    def take_labels(
        self,
        labels: Sequence[str | None],
        trusted: Sequence[str | None] | None = None,
        order: Sequence[str] = (),
    ) -> None:
        """Give the rows their labels and those of `--trusted-column`; order: of classes that have one."""
        self.labels, self.order = list(labels), list(order)
        self.trusted = None if trusted is None else list(trusted)

    def override_labels(self, labels: Mapping[int, str | None]) -> None:
        """Replace the labels of some rows, which may be numbers of classes; the classes so far stay."""
        self.classes.update(label for label in self.labels if label)
        ids = class_ids(self.order, numbered=True)
        for row, label in labels.items():
            self.labels[row] = self.order[ids[label]] if label in ids else label

    def take_class_list(self, name: str, content: bytes) -> None:
        """Note a `classes.txt` among the rows."""
        self.listed = name, content

    def rename(self, names: Sequence[str]) -> None:
        """Give the rows other names."""
        self.names = list(names)

    def warn(self, *sentences: str) -> None:
        """Keep sentences for the user."""
        self.warnings += sentences

    def note_damage(self, sentence: str) -> None:
        """Say what could not be read to its end."""
        self.damage.append(sentence)
        self.warn(sentence)

    def ignore(self, count: int) -> None:
        """Count files that are left alone, or take so many back where less than 0."""
        self.ignored += count

    def classify_by_folder(self, empty: Iterable[str], request: Request) -> None:
        """Take each image's parent folder for its class; `empty` are folders without anything in them."""
        self.labels = [parent_folder(name) for name in self.names]
        self.classes = {label for label in self.labels if label}
        loose = sum(label is None for label in self.labels)
        if not self.classes:
            return
        named = [parent_folder(folder + "/") for folder in empty]
        bare = {printable(name) for name in named if name} - self.classes
        if bare:
            names = first_few([repr(name) for name in sorted(bare, key=natural_key)])
            self.warn(f"No image in the class folder(s) {names}: kept as classes all the same.")
            self.classes |= bare
        if loose and request.expect_labels:
            self.warn(f"{loose} image(s) directly in {request.location} have no class folder: unlabelled.")

    def class_names(self) -> list[str]:
        """Those with a fixed order first, the others in natural order."""
        others = self.classes.union(label for label in self.labels if label).difference(self.order)
        return self.order + sorted(others, key=natural_key)

    def fix_classes(self, names: Sequence[str], where: str, flag: str) -> None:
        """Let `names` be the classes, in their order; a label that is none of them may be an index.

        where: names the data in a message; flag: whatever named the classes. Raises RelabelError for a label
        outside.
        """
        labels = self._as_classes(self.labels, names, where, flag)
        if self.trusted is not None:
            self.trusted = self._as_classes(self.trusted, names, where, flag)
        self.labels = labels
        self.order, self.classes = list(names), set()

    def _as_classes(
        self, labels: Sequence[str | None], classes: Sequence[str], where: str, flag: str
    ) -> list[str | None]:
        known = class_ids(classes, numbered=True)
        for row, label in enumerate(labels):
            if label is not None and label not in known:
                raise RelabelError(
                    f"{where}, row {row + 1} ({self.names[row]!r}): the label {label!r} is none of the "
                    f"classes of {flag}.",
                    f"They are {first_few([repr(name) for name in classes], 10)}.",
                )
        return [None if label is None else classes[known[label]] for label in labels]


def class_ids(names: Sequence[str], *, numbered: bool) -> dict[str, int]:
    """The id of a class by its name and, where labels may be `numbered`, by its number as text."""
    ids: dict[str, int] = {}
    for position in range(len(names) if numbered else 0):
        # pandas writes integers among which some are missing as 1.0.
        ids |= {str(position): position, f"{position}.0": position}
    return ids | {name: position for position, name in enumerate(names)}  # a name is no number


def suggestion(label: str, class_names: Sequence[str]) -> str:
    """What to say of a label that is no class: the class it may mean, and some of those that there are."""
    by_lower = {name.lower(): name for name in class_names}
    close = difflib.get_close_matches(label.lower(), by_lower, n=1)
    did_you_mean = f"Did you mean {by_lower[close[0]]!r}? " if close else ""
    return f"{did_you_mean}Known classes: {first_few([repr(name) for name in class_names], 10)}."


def parent_folder(path: str) -> str | None:
    """Name of the folder a POSIX path lies in, as tables write labels: without white space around it, in one
    Unicode form. None where it lies in no folder.
    """
    name = nfc(path.rpartition("/")[0].rpartition("/")[2].strip())
    return sys.intern(name) or None  # one text a class, not a row


def natural_key(name: str) -> tuple[str, str]:
    """Sort key that puts 2 before 10; the name itself settles ties such as 01 and 1."""
    return _NUMBER.sub(_ranked, name), name


def read_classes(given: str) -> list[str]:
    """`--classes`: a file with one name a line, or names with commas between them.

    Raises RelabelError, naming the flag, for what is neither, and for names that are empty or come twice.
    """
    path = Path(given)
    if os.path.isfile(path):  # which also takes names longer than those of files
        return read_classes_file(path)
    if "," not in given:
        raise RelabelError(
            f"--classes {given}: there is no such file.",
            "Name a file with one class a line, or write the classes with commas between them.",
        )
    return _different([name.strip() for name in nfc(given).split(",")], "--classes")


def read_classes_file(path: Path, content: bytes | None = None) -> list[str]:
    """The lines of a file, without the white space around them and empty lines at its end.

    content: what `path`, then only a name, would hold. Raises RelabelError for a file that cannot be read,
    and for names that are empty or come twice.
    """
    try:
        text = nfc((path.read_bytes() if content is None else content).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "the text is not UTF-8"
        raise RelabelError(f"{path} cannot be read: {reason}.", "Write one class a line, in UTF-8.") from None
    return _different([line.strip() for line in text.rstrip().splitlines()], str(path))


def _different(names: list[str], where: str) -> list[str]:
    for position, name in enumerate(names):
        if not name:
            raise RelabelError(f"{where}: class {position + 1} has no name.", "Name it, or leave it out.")
        if name in names[:position]:
            raise RelabelError(f"{where} names the class {name!r} twice.", "Remove one of the two.")
    return names


def _ranked(number: re.Match[str]) -> str:
    # The length written before the digits makes text compare as the numbers would, however long.
    digits = number[0].lstrip("0")
    return f"0{chr(min(len(digits), sys.maxunicode))}{digits}"
