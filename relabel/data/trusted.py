"""Reads the rows of SOURCE, or the separate images, whose labels can be trusted: a person has checked them.

Everything wrong with it is reported by row number here, before any training starts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relabel.data.draft_source import METADATA_NAMES, class_ids, suggestion
from relabel.data.file_index import FileIndex, naming_hint
from relabel.data.image_refs import Reference, known_size
from relabel.data.image_spool import original
from relabel.data.in_memory import Frame
from relabel.data.sources import Source, open_source
from relabel.data.tables import first_few, named
from relabel.errors import RelabelError
from relabel.files import digest
from relabel.modality import IMAGES


@dataclass
class TrustedSet:
    """Trusted labels: M rows of SOURCE and, from a folder, images that are not in it."""

    rows: NDArray[np.int64]  # [M] positions in the Source
    labels: NDArray[np.int64]  # [M] true class ids
    external: list[Path]  # files of trusted images that are not in SOURCE
    external_labels: NDArray[np.int64]  # [len(external)] true class ids
    warnings: list[str]

    def without(self, unreadable: Mapping[int, str], source: Source) -> TrustedSet:
        """Less the rows of `source` that turned out to be of no use, for the reason given, with a warning."""
        kept = np.array([row not in unreadable for row in self.rows.tolist()], dtype=bool)
        lost = self.rows[~kept].tolist()
        warnings = _unusable(lost, unreadable, source) if lost else []
        return replace(self, rows=self.rows[kept], labels=self.labels[kept], warnings=warnings)

    @classmethod
    def empty(cls) -> TrustedSet:
        """No trusted rows."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, [], nothing, [])


def trusted_of(source: Source, path: Path | Frame | None) -> TrustedSet:
    """What `--trusted` names, or `--trusted-column` in the source, or nothing."""
    if path is not None:
        return read_trusted(path, source)
    if source.trusted is not None:
        return _trusted_set("--trusted-column", _column_entries(source.trusted), source)
    return TrustedSet.empty()


def read_trusted(path: Path | Frame, source: Source) -> TrustedSet:
    """Read a table that points into `source`, or a folder of trusted images in class folders.

    Images of a folder that are images of SOURCE, by their path or as copies of the same bytes, become trusted
    rows, so that they cannot leak into both sides. Copies of images that were made smaller on their way out
    of a compressed archive or a stream, whose bytes are gone, are not recognised. Raises RelabelError for
    whatever cannot be trusted as it stands.
    """
    if isinstance(path, Frame):
        if source.frame is not None and path.origin is source.frame.origin:
            raise _is_source(f"{path} is SOURCE itself")
        return _trusted_set(str(path), _table_entries(path, source), source)
    if not path.exists():
        raise RelabelError(
            f"--trusted: there is no file or folder {path}.", "Check the spelling of the path."
        )
    _refuse_source(path, source)
    if path.is_dir() and source.modality is not IMAGES:
        raise RelabelError(
            f"--trusted {path} is a folder of images, and {source.location} holds {source.noun}.",
            "List its trusted rows in a CSV: file_name (or index, which counts from 0) and label.",
        )
    entries = _folder_entries(path, source) if path.is_dir() else _table_entries(path, source)
    return _trusted_set(f"--trusted {path}", entries, source)


def _refuse_source(path: Path, source: Source) -> None:
    """Refuse the table or folder that the given labels come from: every one of them would be trusted."""
    if source.frame is not None:
        return
    own, place, root = path.resolve(), Path(source.location).resolve(), source.root.resolve()
    holds = source.kind in ("folder", "metadata", "manifest") and own in (root, *root.parents)
    lists = source.kind == "metadata" and own.name in METADATA_NAMES and root in own.parents
    if own == place or holds or lists:
        what = (
            "is SOURCE itself" if own == place else "holds SOURCE" if holds else "lists SOURCE's own labels"
        )
        raise _is_source(f"--trusted {path} {what}")


def _is_source(what: str) -> RelabelError:
    return RelabelError(
        f"{what}, so every given label would count as trusted.",
        "Name a table or a folder of those rows alone whose labels are checked.",
    )


def _trusted_set(flag: str, entries: _Entries, source: Source) -> TrustedSet:
    ids = class_ids(source.class_names, numbered=source.numbered)
    strangers = [
        (where, label) for where, label in zip(entries.where, entries.labels, strict=True) if label not in ids
    ]
    if strangers:
        unknown = [f"{where} ({label!r})" for where, label in strangers]
        hint = suggestion(strangers[0][1], source.class_names)
        _refuse(flag, "the class is not one of SOURCE's", unknown, hint)

    seen: dict[int, str] = {}
    twice = []
    labels, external_labels = [], []
    for position, label, where in zip(entries.positions, entries.labels, entries.where, strict=True):
        if position is None:
            external_labels.append(ids[label])
        elif position in seen:
            twice.append(f"{where} (same image as {seen[position]})")
        elif position not in source.errors:
            labels.append(ids[label])
        if position is not None:
            seen.setdefault(position, where)
    _refuse(flag, f"{source.noun} are listed twice", twice, "Keep one row for each.")

    unusable = [position for position in seen if position in source.errors]
    warnings = _unusable(unusable, source.errors, source) if unusable else []
    if not labels and not external_labels:
        raise RelabelError(
            f"{flag} holds no usable row.", "Verify the labels of at least a few images a class."
        )
    covered = {*labels, *external_labels}
    bare = [repr(name) for position, name in enumerate(source.class_names) if position not in covered]
    if bare:
        warnings.append(f"No trusted row for the class(es) {first_few(bare)}.")
    return TrustedSet(
        rows=np.array([row for row in seen if row not in source.errors], dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        external=entries.external,
        external_labels=np.array(external_labels, dtype=np.int64),
        warnings=warnings,
    )


def _unusable(rows: Sequence[int], errors: Mapping[int, str], source: Source) -> list[str]:
    names = first_few([f"{source.file_names[row]!r} ({errors[row]})" for row in rows])
    return [f"{len(rows)} trusted row(s) cannot be used: {names}."]


@dataclass
class _Entries:
    """Every entry's label and where it stands; its position in SOURCE, or None for the next `external`."""

    where: list[str]
    labels: list[str]
    positions: list[int | None]
    external: list[Path] = field(default_factory=list)

    def add(self, where: str, label: str, position: int | None) -> None:
        self.where.append(where)
        self.labels.append(label)
        self.positions.append(position)


def _table_entries(path: Path | Frame, source: Source) -> _Entries:
    flag = named("--trusted", path)
    table, positions = FileIndex(source.root, source.file_names).read(path)
    if len(table.names) > len(source):
        raise RelabelError(
            f"{flag} has {len(table.names)} rows, more than the {len(source)} of SOURCE.",
            "Every trusted row must be a row of SOURCE, listed once.",
        )
    where = [f"row {row}" for row in table.rows]
    unknown = [
        f"{at} ({name!r})"
        for at, name, position in zip(where, table.names, positions, strict=True)
        if position is None
    ]
    _refuse(flag, "not in SOURCE", unknown, naming_hint(table, source.file_names))
    empty = [at for at, label in zip(where, table.labels, strict=True) if label is None]
    _refuse(flag, "the label is empty", empty, "Fill in the true class, or remove the row.")
    return _Entries(where, [label for label in table.labels if label], positions)


def _folder_entries(path: Path, source: Source) -> _Entries:
    folder = open_source(str(path), need_classes=False)
    missing = [f"{folder.file_names[row]!r} ({reason})" for row, reason in folder.errors.items()]
    _refuse(
        f"--trusted {path}",
        "images cannot be read",
        missing,
        "Restore the files, or remove them from the folder.",
    )
    where = [repr(name) for name in folder.file_names]
    loose = [at for at, label in zip(where, folder.given, strict=True) if label < 0]
    _refuse(
        f"--trusted {path}", "images have no class", loose, "Put each one in a folder named after its class."
    )
    files = [folder.references[row] for row in range(len(folder))]
    paths = [file for file in files if isinstance(file, Path)]
    if len(paths) < len(files):
        raise RelabelError(
            f"--trusted {path}: the folder does not hold its images as files.",
            "Name a folder of class folders, or a table with file_name and label.",
        )
    index = FileIndex(source.root, source.file_names)
    rows: dict[Path, list[int]] = {}
    for file in paths:
        position = index.find(str(file.absolute()))
        if position is None:  # the folder may be made of links into SOURCE
            position = index.find(str(file.resolve()))
        rows[file] = [] if position is None else [position]
    rows |= _copied_rows([file for file in paths if not rows[file]], source)
    entries = _Entries([], [], [])
    seen: set[tuple[int, str]] = set()
    for at, label, file in zip(where, folder.given, paths, strict=True):
        name = folder.class_names[label]
        if not rows[file]:
            entries.add(at, name, None)
            entries.external.append(file)
        for row in rows[file]:
            # The images of SOURCE may be copies of each other: one image, however often it is listed so.
            if (row, name) not in seen:
                seen.add((row, name))
                entries.add(at, name, row)
    return entries


def _copied_rows(files: Sequence[Path], source: Source) -> dict[Path, list[int]]:
    """For the files with the same bytes as an image of SOURCE its rows, of which there may be several.

    An image is read when its size is that of a file, or where that is not known before (in tables); a file
    when its size is that of an image.
    """
    sizes = {file.stat().st_size for file in files} - {0}  # what is empty is no image, and a copy of nothing
    found: dict[tuple[int, str], list[int]] = {}
    for row in range(len(source)) if sizes else ():
        if row not in source.errors and (content := _content(source.references[row], sizes)):
            found.setdefault(content, []).append(row)
    sizes = {size for size, _ in found}
    return {
        file: rows
        for file in files
        if (content := _content(file, sizes)) is not None and (rows := found.get(content))
    }


def _content(reference: Reference, sizes: Collection[int]) -> tuple[int, str] | None:
    """The size and SHA-256 of an image as it came; None when it has none of the sizes, or cannot be read."""
    try:
        size = known_size(reference)
        if size is not None and size not in sizes:
            return None
        with reference.open("rb") as file:
            data = file.read()
    except Exception:  # a broken archive raises almost any type; decoding reports it
        return None
    if (made_from := original(data)) is not None:
        return made_from if made_from[0] in sizes else None
    return (len(data), digest(data)) if len(data) in sizes else None


def _column_entries(trusted: Sequence[str | None]) -> _Entries:
    rows = [row for row, label in enumerate(trusted) if label is not None]
    return _Entries([f"row {row + 1}" for row in rows], [label for label in trusted if label], list(rows))


def _refuse(flag: str, problem: str, offenders: Sequence[str], hint: str) -> None:
    if offenders:
        raise RelabelError(f"{flag}: {problem}: {first_few(offenders)}.", hint)
