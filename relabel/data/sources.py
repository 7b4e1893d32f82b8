"""Opens SOURCE, the images and the labels they came with, without decoding any of them.

A source is a folder of class folders, a folder with Hugging Face `metadata.*` files, a manifest, or a Parquet
file of vectors. It is held in columns, with no object per row beyond the path, so that a million rows stay
cheap.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.data.images import IMAGE_SUFFIXES
from relabel.data.tables import ROW_COLUMNS, TABLE_SUFFIXES, Table, first_few, printable, read_table
from relabel.data.vectors import read_vectors
from relabel.errors import RelabelError

UNLABELLED = -1

_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_JUNK = ("Thumbs.db", "desktop.ini")  # what file managers leave behind, beside dot-files
_ARCHIVES = (".tar", ".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_NUMBER = re.compile(r"[0-9]+")
_FORMS = "SOURCE is a folder of images, or a .csv, .parquet or .jsonl file with file_name and label."


@dataclass
class Source:
    """The rows of a data set, in input order; every list and array has one entry a row unless said."""

    location: str  # as the user typed it
    root: Path  # file names are relative to it
    kind: str  # "folder" | "metadata" | "manifest" | "vectors"
    file_names: list[str]  # POSIX, as written to the output
    references: list[Path]  # what images.decode() reads; empty where rows are vectors
    given: NDArray[np.int64]  # [N] class id or UNLABELLED
    class_names: list[str]  # [C], natural order
    errors: dict[int, str]  # row -> why it cannot be used, known before decoding
    ignored_files: int  # files left alone because they are not images
    warnings: list[str]
    vectors: NDArray[np.float32] | None = None  # [N, D], zeros in rows with an error

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def noun(self) -> str:
        """What the rows are, in messages."""
        return "images" if self.vectors is None else "vectors"


class FileIndex:
    """Finds the row of a file name as a person may write it: `./a/b.png`, `a\\b.png`, or absolute."""

    def __init__(self, root: Path, file_names: Sequence[str]) -> None:
        self._roots = _root_prefixes(root)
        self._rows = {_key(name, self._roots): row for row, name in enumerate(file_names)}
        self._length = len(file_names)

    def find(self, name: str) -> int | None:
        """Position of `name` in `file_names`, or None."""
        row = self._rows.get(_key(name, self._roots))
        if row is None and "\\" in name:
            row = self._rows.get(_key(name.replace("\\", "/"), self._roots))
        return row

    def find_all(self, table: Table) -> list[int | None]:
        """The row that each entry of a table names by one of `ROW_COLUMNS`, or None."""
        if table.name_column != "index":
            return [self.find(name) for name in table.names]
        return [_position(text, self._length) for text in table.names]


def open_source(
    location: str, labels: Path | None = None, *, features: str | None = None, need_classes: bool = True
) -> Source:
    """Open what the user named as SOURCE; `labels` (`--labels`) replaces or adds given labels.

    `features` (`--features`) names the columns of its vectors; without, it is a source of images.
    `need_classes=False` accepts a source with fewer than two classes or no label at all, for commands that
    bring their own classes. Raises RelabelError when the source cannot be used as a whole; a row whose file
    is missing, or whose vector cannot be used, is kept and noted in `errors`.
    """
    expect_labels = need_classes and labels is None
    if features is not None and os.path.exists(location):
        rows = _from_vectors(Path(location), features)
    elif os.path.isdir(location):
        rows = _from_folder(Path(location), expect_labels=expect_labels)
    elif os.path.isfile(location):
        rows = _from_manifest(Path(location), expect_labels=expect_labels)
    else:
        raise _not_there(location)
    if len(rows.errors) == len(rows.names):
        raise _no_image(location, rows)
    if labels is not None:
        _override(rows, labels, location)
    class_names = sorted(rows.classes.union(label for label in rows.labels if label), key=natural_key)
    ids: dict[str | None, int] = {name: position for position, name in enumerate(class_names)}
    ids[None] = UNLABELLED
    source = Source(
        location=location,
        root=rows.root,
        kind=rows.kind,
        file_names=rows.names,
        references=rows.references,
        given=np.fromiter((ids[label] for label in rows.labels), dtype=np.int64, count=len(rows.labels)),
        class_names=class_names,
        errors=rows.errors,
        ignored_files=rows.ignored,
        warnings=rows.warnings + _lookalikes(class_names),
        vectors=rows.vectors,
    )
    if need_classes:
        _check_classes(source)
    return source


def natural_key(name: str) -> tuple[str, str]:
    """Sort key that puts 2 before 10; the name itself settles ties such as 01 and 1."""
    return _NUMBER.sub(_ranked, name), name


def _ranked(number: re.Match[str]) -> str:
    # The length written before the digits makes text compare as the numbers would, however long.
    digits = number[0].lstrip("0")
    return f"0{chr(min(len(digits), sys.maxunicode))}{digits}"


@dataclass
class _Rows:
    """A source being put together, its labels still text."""

    root: Path
    kind: str
    names: list[str] = field(default_factory=list)
    references: list[Path] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)  # known even where no row has them
    errors: dict[int, str] = field(default_factory=dict)
    ignored: int = 0
    warnings: list[str] = field(default_factory=list)
    vectors: NDArray[np.float32] | None = None

    def add(self, name: str, label: str | None, *, found: bool) -> None:
        if not found:
            self.errors[len(self.names)] = "file not found"
        self.names.append(printable(name))
        self.references.append(self.root / name)
        self.labels.append(label)


@dataclass
class _Scan:
    """What a walk through a folder found; paths are POSIX and relative to it."""

    images: list[str] = field(default_factory=list)
    broken_links: set[str] = field(default_factory=set)  # among `images`
    others: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # leaf folders with no content


def _scan(root: Path) -> _Scan:
    scan = _Scan()
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        try:
            status = os.stat(root / folder)
            with os.scandir(root / folder) as listing:
                entries = sorted(listing, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            raise RelabelError(
                f"The folder {root / folder} cannot be read: {error.strerror}.", "Check its permissions."
            ) from None
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link back to a folder that holds it
        prefix = f"{folder}/" if folder else ""
        subfolders = []
        leaf_is_empty = bool(folder)
        for entry in entries:
            name, path = entry.name, prefix + entry.name
            if entry.is_dir():
                if not name.startswith(".") and name != "__MACOSX":
                    subfolders.append(path)
                continue
            junk = name.startswith(".") or name in _JUNK
            leaf_is_empty = leaf_is_empty and junk
            if not junk and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                if entry.is_symlink() and not os.path.exists(entry.path):
                    scan.broken_links.add(path)
                scan.images.append(path)
            elif name in _METADATA_NAMES:
                scan.metadata.append(path)
            else:
                scan.others.append(path)
        if leaf_is_empty and not subfolders:
            scan.empty.append(folder)
        pending += [(path, above | {identity}) for path in reversed(subfolders)]
    return scan


def _from_folder(root: Path, *, expect_labels: bool) -> _Rows:
    scan = _scan(root)
    if scan.metadata:
        return _from_metadata(root, scan, expect_labels=expect_labels)
    rows = _Rows(root, "folder", ignored=len(scan.others))
    for path in scan.images:
        folder = path.rpartition("/")[0].rpartition("/")[2]
        rows.add(path, printable(folder) or None, found=path not in scan.broken_links)
    rows.classes = {label for label in rows.labels if label}
    loose = sum(label is None for label in rows.labels)
    if rows.classes:
        empty = {printable(folder.rpartition("/")[2]) for folder in scan.empty} - rows.classes
        if empty:
            names = first_few([repr(name) for name in sorted(empty, key=natural_key)])
            rows.warnings.append(f"No image in the class folder(s) {names}: kept as classes all the same.")
            rows.classes |= empty
        if loose and expect_labels:
            rows.warnings.append(f"{loose} image(s) directly in {root} have no class folder: unlabelled.")
    return rows


def _from_metadata(root: Path, scan: _Scan, *, expect_labels: bool) -> _Rows:
    rows = _Rows(root, "metadata")
    seen: dict[str, str] = {}
    for path in scan.metadata:
        table = read_table(root / path, label_required=expect_labels)
        _add_listed(rows, table, root / path, path.rpartition("/")[0], seen)
    unlisted = [path for path in scan.images if path not in seen]
    for path in unlisted:
        rows.add(path, None, found=path not in scan.broken_links)
    if unlisted and expect_labels:
        rows.warnings.append(f"{len(unlisted)} image(s) in {root} are in no metadata file: unlabelled.")
    rows.ignored = sum(path not in seen for path in scan.others)
    return rows


def _from_manifest(path: Path, *, expect_labels: bool) -> _Rows:
    suffix = path.suffix.lower()
    if suffix in _ARCHIVES:
        raise RelabelError(f"{path} is an archive, which this version cannot read.", "Unpack it first.")
    if suffix not in TABLE_SUFFIXES:
        raise RelabelError(f"{path} is not a kind of file that can be a SOURCE.", _FORMS)
    if suffix == ".parquet":
        _refuse_embedded(path)
    rows = _Rows(path.parent, "manifest")
    _add_listed(rows, read_table(path, label_required=expect_labels), path, "", {})
    return rows


def _from_vectors(path: Path, features: str) -> _Rows:
    table = read_vectors(path, features)
    rows = _Rows(path.parent, "vectors", labels=table.labels, errors=table.errors, vectors=table.vectors)
    roots = _root_prefixes(rows.root)
    seen: dict[str, int] = {}
    for name, row in zip(table.names, table.rows, strict=True):
        first = seen.setdefault(_key(name, roots), row)
        if first != row:
            raise _listed_twice(path, row, name, f"row {first}")
        rows.names.append(printable(name))
    return rows


def _add_listed(rows: _Rows, table: Table, path: Path, folder: str, seen: dict[str, str]) -> None:
    """Add the files a table lists relative to `folder`; `seen` holds where each was listed before."""
    roots = _root_prefixes(rows.root)
    for name, label, row in zip(table.names, table.labels, table.rows, strict=True):
        listed = os.path.join(folder, name)
        found = os.path.isfile(rows.root / listed)
        if not found and "\\" in name:
            listed = os.path.join(folder, name.replace("\\", "/"))
            found = os.path.isfile(rows.root / listed)
        key = _key(listed, roots)
        if key in seen:
            raise _listed_twice(path, row, name, seen[key])
        seen[key] = f"row {row}" if rows.kind == "manifest" else f"{path}, row {row}"
        rows.add(listed if os.path.isabs(listed) else key, label, found=found)


def _listed_twice(path: Path, row: int, name: str, before: str) -> RelabelError:
    return RelabelError(
        f"{path}, row {row}: {name!r} is listed before, in {before}.", "Remove one of the two."
    )


def _override(rows: _Rows, path: Path, location: str) -> None:
    rows.classes.update(label for label in rows.labels if label)
    table = read_table(path, ROW_COLUMNS)
    positions = FileIndex(rows.root, rows.names).find_all(table)
    seen: dict[int, int] = {}
    for name, label, row, position in zip(table.names, table.labels, table.rows, positions, strict=True):
        if position is None:
            raise RelabelError(
                f"--labels {path}, row {row}: {name!r} is not in {location}.",
                naming_hint(table, rows.names),
            )
        if position in seen:
            raise RelabelError(
                f"--labels {path}, rows {seen[position]} and {row} both name {name!r}.",
                "Remove one of the two.",
            )
        seen[position] = row
        rows.labels[position] = label


def naming_hint(table: Table, names: Sequence[str]) -> str:
    """How a table should name the rows of SOURCE, whose names these are."""
    if table.name_column == "index":
        return f"index counts from 0 to {len(names) - 1}."
    return f"Name files as SOURCE does, for example {names[0]!r}."


def too_few_classes(source: Source) -> RelabelError:
    """What to say when the usable rows with a label are all of one class."""
    return RelabelError(
        f"{source.location}: fewer than two classes have {source.noun} that can be used.",
        "Check that the files are images and were copied completely."
        if source.vectors is None
        else "Write the file again, or label more rows with --labels FILE.",
    )


def _position(text: str, length: int) -> int | None:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
        return None
    return int(digits) if int(digits) < length else None


def _check_classes(source: Source) -> None:
    if (source.given == UNLABELLED).all():
        if source.vectors is not None:
            raise RelabelError(
                f"No row of {source.location} has a label.",
                "Write a column label beside the vectors, or name the labels with --labels FILE.",
            )
        raise RelabelError(
            f"No image of {source.location} has a label.",
            "Put the images in one folder a class, or name their labels with --labels FILE.",
        )
    if len(source.class_names) < 2:
        raise RelabelError(
            f"{source.location} has only one class, {source.class_names[0]!r}.",
            "At least two are needed; in a folder, an image's class is the folder it lies in.",
        )


def _lookalikes(class_names: Iterable[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in class_names:
        groups.setdefault(name.strip().casefold(), []).append(name)
    return [
        f"The classes {' and '.join(map(repr, names))} differ only in case or surrounding white space."
        for names in groups.values()
        if len(names) > 1
    ]


def _not_there(location: str) -> RelabelError:
    if "://" in location:
        return RelabelError(
            f"{location} is an address, which this version cannot read.", "Download it first."
        )
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", location):
        return RelabelError(
            f"There is no file or folder {location}, and this version cannot read data sets from a hub.",
            "Check the spelling of the path, or download the data set first.",
        )
    return RelabelError(f"There is no file or folder {location!r}.", "Check the spelling of the path.")


def _no_image(location: str, rows: _Rows) -> RelabelError:
    if rows.names:
        return RelabelError(
            f"None of the {len(rows.names)} file(s) that {location} lists exists"
            f" (the first is {rows.names[0]!r}).",
            f"File names are relative to {rows.root}.",
        )
    if rows.kind == "manifest":
        return RelabelError(f"{location} has no rows.", "List one image a row.")
    if any((rows.root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return RelabelError(
            f"{location} is a saved Hugging Face data set, which this version cannot read.",
            "Export its images to a folder with a metadata.csv.",
        )
    beside = f", only {rows.ignored} other file(s)" if rows.ignored else ""
    return RelabelError(
        f"There is no image in {location}{beside}.",
        f"Images are recognised by extension: {' '.join(sorted(IMAGE_SUFFIXES))}.",
    )


def _refuse_embedded(path: Path) -> None:
    """Say so when a Parquet file holds the images or vectors themselves instead of file names."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return  # read_table() says what is wrong
    for column in schema:
        if pa.types.is_fixed_size_list(column.type):
            raise RelabelError(
                f"{path} holds vectors in the column {column.name!r}.",
                f"fit, apply, predict and corrupt read them with --features {column.name}.",
            )
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            raise RelabelError(
                f"{path} holds images in the column {column.name!r}, which this version cannot read.",
                "Save the images as files and list them under file_name and label.",
            )


def _root_prefixes(root: Path) -> tuple[str, ...]:
    """The ways an absolute path inside `root` may begin: as typed, and with links resolved."""
    paths = (os.path.abspath(root), os.path.realpath(root))
    return tuple(path.replace(os.sep, "/").rstrip("/") + "/" for path in paths)


def _key(name: str, roots: Sequence[str]) -> str:
    """One spelling for each file: normalised, POSIX, relative to the root where it lies inside."""
    key = os.path.normpath(name).replace(os.sep, "/")
    if os.path.isabs(key):
        for root in roots:
            if key.startswith(root):
                return key[len(root) :]
    return key
