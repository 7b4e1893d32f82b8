"""Images in .tar and .zip archives, read where they lie: WebDataset shards, and trees of class folders.

The WebDataset convention: members of a .tar whose names agree up to the first dot of their last part belong
to one row, and its `.cls`, `.json` or `.txt` holds the label.
"""

from __future__ import annotations

import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from relabel.data.images import IMAGE_SUFFIXES
from relabel.data.references import Embedded, Joined, Reference, Slices
from relabel.data.rows import METADATA_NAMES, Request, Rows
from relabel.data.shards import is_junk, suffix_of
from relabel.data.spool import Spool
from relabel.data.tables import brief, printable
from relabel.errors import ImageError, RelabelError

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
_LABELS = ("cls", "json", "txt")  # the first of them that a row has is its label
_LARGEST_LABEL = 1 << 20  # bytes; a longer member is no label
_CUT = "the archive ends within this image"


@dataclass
class _Listing:
    """What an archive holds.

    names, offsets and sizes: one entry an image; labels: by the key of a row, behind the rank of the member
    that said so; errors: by image; parents: folders that have something in them; others: files left alone;
    damage: why the archive could not be read to its end.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    others: int = 0
    damage: str = ""
    zip: zipfile.ZipFile | None = None

    def take(self, name: str, *, is_folder: bool) -> bool:
        """Note a member; True when it is an image. Raises RelabelError for a metadata file."""
        folder, _, last = name.rpartition("/")
        self.parents.add(folder)
        if is_folder:
            self.folders.add(name)
        elif PurePosixPath(last).suffix.lower() in IMAGE_SUFFIXES:
            return True
        elif last in METADATA_NAMES:
            raise RelabelError(
                f"{self.path} holds {name}, and metadata inside an archive is not read.", "Unpack it first."
            )
        else:
            self.others += 1
        return False

    def add(self, name: str, offset: int, size: int, error: str | None = None) -> None:
        """Append an image."""
        if error is not None:
            self.errors[len(self.names)] = error
        self.names.append(name)
        self.offsets.append(offset)
        self.sizes.append(size)


def open_archives(paths: Sequence[Path], request: Request) -> Rows:
    """Rows of archives, one after the other; compressed ones go through a `Spool`.

    An archive that ends early keeps the rows before its end. Raises RelabelError, naming the file, for what
    is no archive.
    """
    label_column = request.options.label_column
    listings = []
    request.watcher.stage("Reading archives", len(paths))
    with Spool(request.largest) as spool:
        for path in paths:
            is_zip = suffix_of(path.name) == ".zip"
            listings.append(_list_zip(path) if is_zip else _list_tar(path, label_column, spool))
            request.watcher.advance()
        kept = spool.mapped()
    grouped = any(_key(name)[0] in listing.labels for listing in listings for name in listing.names)
    if label_column is not None and not grouped:
        raise RelabelError(
            f"--label-column {label_column}: no image of {request.location} has such a label beside it.",
            "In a WebDataset shard the label of a.jpg is a.cls, a.txt or a field of a.json.",
        )
    if grouped:
        listings = [_one_image_a_row(listing) for listing in listings]
    rows = Rows(Path(request.location), "archive")
    for listing in listings:
        rows.errors |= {len(rows.names) + image: reason for image, reason in listing.errors.items()}
        rows.names += listing.names
        rows.ignored += listing.others
        if listing.damage:
            rows.warnings.append(
                f"{listing.path} is damaged after {len(listing.names)} image(s): {listing.damage}."
            )
    rows.references = Joined(
        _ZipImages(listing.zip, listing.names)
        if listing.zip
        else Slices(
            listing.path if suffix_of(listing.path.name) == ".tar" else kept,
            listing.offsets,
            listing.sizes,
            listing.path.name,
        )
        for listing in listings
    )
    if grouped:
        rows.labels = [
            listing.labels.get(_key(name)[0], (0, None))[1] for listing in listings for name in listing.names
        ]
    else:
        rows.classify_by_folder(_empty_folders(listings), request)
    rows.names = _distinct(rows.names, listings)
    return rows


def _list_zip(path: Path) -> _Listing:
    listing = _Listing(path)
    try:
        listing.zip = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise RelabelError(f"{path} cannot be read: {brief(error)}.", "Copy the archive again.") from None
    for member in listing.zip.infolist():
        name = member.filename.rstrip("/")
        if not _is_junk(name) and listing.take(name, is_folder=member.is_dir()):
            listing.add(member.filename, 0, 0)
    return listing


class _ZipImages:
    """Members of a .zip as references; `zipfile` itself takes turns between threads."""

    def __init__(self, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
        self._archive = archive
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Reference:
        return _ZipMember(self._names[row], self._archive)


@dataclass(frozen=True, slots=True)
class _ZipMember:
    name: str
    archive: zipfile.ZipFile

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return self.archive.open(self.name)


def _list_tar(path: Path, label_column: str | None, spool: Spool) -> _Listing:
    listing = _Listing(path)
    compressed = suffix_of(path.name) != ".tar"
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r|*" if compressed else "r:") as tar:
            for member in _members(tar, compressed):
                name = member.name.removeprefix("./").rstrip("/")
                if _is_junk(name) or not (member.isreg() or member.isdir()):
                    continue
                if not listing.take(name, is_folder=member.isdir()):
                    if member.isreg() and member.size <= _LARGEST_LABEL:
                        _read_label(listing, name, tar, member, label_column)
                elif compressed:
                    _spool(listing, name, tar, member, spool)
                else:
                    cut = member.offset_data + member.size > size
                    listing.add(name, member.offset_data, member.size, _CUT if cut else None)
    except _DAMAGE as error:
        listing.damage = brief(error)
    if listing.damage and not (listing.names or listing.labels):
        raise RelabelError(f"{path} cannot be read: {listing.damage}.", "Copy the archive again.")
    return listing


def _members(tar: tarfile.TarFile, compressed: bool) -> Iterator[tarfile.TarInfo]:
    """The members in their order. Raises tarfile.ReadError when the archive does not end as it should."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else a million of them stay
        yield member
    # tarfile takes a damaged header, or none at all, for the end: there must be a block of zeros.
    if compressed:
        return  # the compression has its own end
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends early")
    if any(block):
        raise tarfile.ReadError("what follows is no member")


def _spool(listing: _Listing, name: str, tar: tarfile.TarFile, member: tarfile.TarInfo, spool: Spool) -> None:
    def content() -> bytes:
        file = tar.extractfile(member)
        assert file is not None
        return file.read()

    try:
        listing.add(name, *spool.add(Embedded(name, content, listing.path.parent)))
    except ImageError as error:
        listing.add(name, 0, 0, error.message)
    except _DAMAGE:
        listing.add(name, 0, 0, _CUT)
        raise


def _read_label(
    listing: _Listing, name: str, tar: tarfile.TarFile, member: tarfile.TarInfo, label_column: str | None
) -> None:
    """Note the label in a member beside an image, where it is one."""
    key, part = _key(name)
    if part not in _LABELS and part != label_column:
        return
    rank = -1 if part == label_column else _LABELS.index(part)
    if part != "json" and rank >= 0 and label_column is not None:
        return  # it was not asked for
    file = tar.extractfile(member)
    assert file is not None
    try:
        text: object = file.read().decode("utf-8-sig").strip()
        if part == "json" and rank >= 0:
            fields = json.loads(str(text))
            text = fields.get(label_column or "label") if isinstance(fields, dict) else None
    except ValueError:
        text = None
    if rank <= listing.labels.get(key, (rank, None))[0] and isinstance(text, str | int):
        listing.labels[key] = rank, printable(str(text)) or None


def _is_junk(name: str) -> bool:
    return any(map(is_junk, name.split("/")))


def _key(name: str) -> tuple[str, str]:
    """The row a member of a WebDataset shard belongs to, and which part of it the member is."""
    folder, slash, last = name.rpartition("/")
    stem, _, part = last.partition(".")
    return folder + slash + stem, part.lower()


def _one_image_a_row(listing: _Listing) -> _Listing:
    """The listing with the first image of each row alone, masks such as `a.seg.png` left out.

    A label whose image is not there becomes a row too, with an error.
    """
    kept = _Listing(listing.path, labels=listing.labels, damage=listing.damage)
    kept.others = listing.others - len(listing.labels)
    seen = set()
    for image, name in enumerate(listing.names):
        key, part = _key(name)
        if key in seen or "." in part:
            kept.others += 1
            continue
        seen.add(key)
        kept.add(name, listing.offsets[image], listing.sizes[image], listing.errors.get(image))
    text = _LABELS.index("txt")  # which may be a note on the whole
    for key in [key for key, (rank, _) in listing.labels.items() if key not in seen and rank < text]:
        kept.add(key, 0, 0, "the archive has a label for this row, and no image")
    return kept


def _empty_folders(listings: Sequence[_Listing]) -> set[str]:
    return {folder for listing in listings for folder in listing.folders}.difference(
        *(listing.parents for listing in listings)
    )


def _distinct(names: list[str], listings: Sequence[_Listing]) -> list[str]:
    """The members' names; where two are the same, with their archives' names, or else numbers."""
    if len(set(names)) == len(names):
        return [printable(name) for name in names]
    longer = [f"{listing.path.name}/{name}" for listing in listings for name in listing.names]
    return (
        [printable(name) for name in longer]
        if len(set(longer)) == len(longer)
        else [str(row) for row in range(len(names))]
    )
