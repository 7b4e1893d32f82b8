"""Files listed by tables with their labels: a manifest, or `metadata.*` in a folder or an archive."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from relabel.data.draft_source import DraftSource, Request
from relabel.data.image_refs import Files
from relabel.data.in_memory import Frame
from relabel.data.tables import NAME_COLUMNS, printable, read_table
from relabel.errors import RelabelError

NOT_FOUND = "file not found"


class Listing:
    """The files that tables list, in their order.

    names: POSIX; labels and trusted: one each, trusted None without `--trusted-column`; missing: positions
    of files that do not exist; spelled: by position, names of files that are listed in another Unicode form.
    """

    def __init__(self, roots: Sequence[str], request: Request, exists: Callable[[str], bool]) -> None:
        """roots: the ways in which absolute names may begin that are relative all the same."""
        self._request = request
        self._exists = exists
        self._roots = roots
        self._places: dict[str, tuple[Path | Frame, int]] = {}  # the table and row that a file is listed in
        self.names: list[str] = []
        self.labels: list[str | None] = []
        self.trusted: list[str | None] | None = None if request.options.trusted_column is None else []
        self.missing: set[int] = set()
        self.spelled: dict[int, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def add_table(self, path: Path | Frame, folder: str, content: bytes | None = None) -> None:
        """Add the files that a table lists relative to `folder`; content: of a table that is no file itself.

        Raises RelabelError, naming the table and row, for what is no such table and for a file listed twice.
        """
        options = self._request.options
        table = read_table(
            path,
            (options.image_column,) if options.image_column else NAME_COLUMNS,
            label_columns=(options.label_column or "label",),
            trusted_column=options.trusted_column,
            label_required=self._request.expect_labels or options.label_column is not None,
            content=content,
        )
        for name, row in zip(table.names, table.rows, strict=True):
            listed, there = locate(name, folder, self._exists)
            key = file_key(there or listed, self._roots)
            if key in self._places:
                raise listed_twice(path, row, name, *self._places[key])
            self._places[key] = path, row
            if there not in (None, listed):
                self.spelled[len(self.names)] = key
            self._add(listed if os.path.isabs(listed) else file_key(listed, self._roots), there is not None)
        self.labels += table.labels
        if self.trusted is not None and table.trusted is not None:
            self.trusted += table.trusted

    def add_others(self, images: Iterable[str], missing: Collection[str] = ()) -> int:
        """Add the images that no table lists, without labels; returns how many they are."""
        unlisted = [name for name in images if name not in self]
        for name in unlisted:
            self._add(name, name not in missing)
        self.labels += [None] * len(unlisted)
        if self.trusted is not None:
            self.trusted += [None] * len(unlisted)
        return len(unlisted)

    def _add(self, name: str, found: bool) -> None:
        if not found:
            self.missing.add(len(self.names))
        self.names.append(name)


def locate(name: str, folder: str, exists: Callable[[str], bool]) -> tuple[str, str | None]:
    """The file that a table lists relative to `folder`, as `a/b.png` or `a\\b.png`, and its own name.

    The latter may have another Unicode form; None where there is no such file.
    """

    def own(listed: str) -> str | None:
        forms = (listed, *(unicodedata.normalize(form, listed) for form in ("NFC", "NFD")))
        return next(filter(exists, dict.fromkeys(forms)), None)

    listed = os.path.join(folder, name)
    there = own(listed)
    if there is None and "\\" in name:
        listed = os.path.join(folder, name.replace("\\", "/"))
        there = own(listed)
    return listed, there


def unlisted_warnings(count: int, request: Request) -> list[str]:
    """What to say of so many images that no table lists."""
    if count == 0 or not request.expect_labels:
        return []
    return [f"{count} image(s) in {request.location} are in no metadata file: unlabelled."]


def listed_twice(
    path: Path | Frame, row: int, name: str, before: Path | Frame, row_before: int
) -> RelabelError:
    """What to say of a file or row that two rows of tables name."""
    place = f"row {row_before}" if path == before else f"{before}, row {row_before}"
    return RelabelError(
        f"{path}, row {row}: {name!r} is listed before, in {place}.", "Remove one of the two."
    )


def root_prefixes(root: Path) -> tuple[str, ...]:
    """The ways an absolute path inside `root` may begin: as typed, and with links resolved."""
    paths = (os.path.abspath(root), os.path.realpath(root))
    return tuple(path.replace(os.sep, "/").rstrip("/") + "/" for path in paths)


def file_key(name: str, roots: Sequence[str]) -> str:
    """One spelling for each file: normalised, POSIX, relative to the root where it lies inside."""
    key = os.path.normpath(name).replace(os.sep, "/")
    if os.path.isabs(key):
        for root in roots:
            if key.startswith(root):
                return key[len(root) :]
    return key


@dataclass
class FileRows(DraftSource):
    """Rows that are files, one after the other."""

    def __post_init__(self) -> None:
        self._spelled: dict[int, str] = {}  # where the file's name cannot be printed
        self.references = Files(self.root, self.names, self._spelled)

    def add(self, name: str, label: str | None, *, found: bool, spelled: str | None = None) -> None:
        """spelled: the file's own name where `name` is only its name in a list."""
        if not found:
            self.errors[len(self.names)] = NOT_FOUND
        shown = printable(name)
        if spelled or shown != name:
            self._spelled[len(self.names)] = spelled or name
        self.names.append(shown)
        self.labels.append(label)

    def add_all(self, listing: Listing) -> None:
        """Append what tables list."""
        for row, (name, label) in enumerate(zip(listing.names, listing.labels, strict=True)):
            self.add(name, label, found=row not in listing.missing, spelled=listing.spelled.get(row))
        self.trusted = listing.trusted


def open_manifest(path: Path | Frame, root: Path, request: Request) -> DraftSource:
    """The files that a table lists, relative to `root`."""
    rows = FileRows(root, "manifest")
    listing = Listing(root_prefixes(root), request, lambda name: os.path.isfile(root / name))
    listing.add_table(path, "")
    rows.add_all(listing)
    return rows
