"""Images in .tar and .zip archives, read where they lie: WebDataset shards, trees of class folders or images
with a metadata file.

The WebDataset convention: members of a .tar whose names agree up to the first dot of their last part belong
to one row, and its `.cls`, `.json` or `.txt` holds the label. A metadata file lists images of its archive.
"""

from __future__ import annotations

import json
import lzma
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from relabel.config import SourceOptions
from relabel.data.decode import IMAGE_SUFFIXES
from relabel.data.draft_source import CLASSES_FILE, METADATA_NAMES, DraftSource, Request, parent_folder
from relabel.data.image_refs import Embedded, Joined, Reference, Slices
from relabel.data.image_spool import Spool
from relabel.data.manifests import NOT_FOUND, Listing, file_key, unlisted_warnings
from relabel.data.shards import is_junk, suffix_of
from relabel.data.tables import brief, cell_text, label_of, printable
from relabel.errors import ImageError, RelabelError

_Said = dict[str, tuple[int, str | None]]

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
LABELS = ("cls", "json", "txt")
"""The parts of a WebDataset row that hold labels: the first of them that a row has is its label."""
_LARGEST_LABEL = 1 << 20  # bytes; a longer member is no label
_CUT = "the archive ends within this image"
_LOST = "the archive ends before this image"


@dataclass
class _Content:
    """What an archive holds.

    names, offsets and sizes: one entry an image, in a .zip the offset is the member's number; errors: by
    image; said and trusted: labels by the key of a row, behind the rank of the member that said so;
    metadata: files by name; classes: name and content of a `classes.txt`; parents: folders that have
    something in them; others: files left alone; damage: why the archive could not be read to its end.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    said: _Said = field(default_factory=dict)
    trusted: _Said = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    classes: tuple[str, bytes] | None = None
    folders: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    others: int = 0
    damage: str = ""
    zip: zipfile.ZipFile | None = None

    def take(self, name: str, *, is_folder: bool) -> bool:
        """Note a member; True when it is an image."""
        folder, _, last = name.rpartition("/")
        while folder not in self.parents:  # an archive need not have members for its folders
            self.parents.add(folder)
            folder = folder.rpartition("/")[0]
        if is_folder:
            self.folders.add(name)
        elif PurePosixPath(last).suffix.lower() in IMAGE_SUFFIXES:
            return True
        elif last not in METADATA_NAMES and not _is_classes(name):
            self.others += 1
        return False

    def add(self, name: str, offset: int, size: int, error: str | None = None) -> None:
        """Append an image."""
        if error is not None:
            self.errors[len(self.names)] = error
        self.names.append(name)
        self.offsets.append(offset)
        self.sizes.append(size)

    def rearranged(self) -> _Content:
        """The same archive, to which its images are still to be added."""
        return replace(self, names=[], offsets=[], sizes=[], errors={})

    def keep(self, image: int, listed: _Content) -> None:
        """Append an image that the archive lists."""
        self.add(listed.names[image], listed.offsets[image], listed.sizes[image], listed.errors.get(image))


def open_archives(paths: Sequence[Path], request: Request) -> DraftSource:
    """The rows of archives, one after the other; compressed ones go through a `Spool`.

    An archive that ends early keeps the rows before its end. Raises RelabelError, naming the file, for what
    is no archive, and for a metadata file that is no table or lists an image twice.
    """
    contents = []
    request.watcher.stage("Reading archives", len(paths))
    with Spool(request.largest) as spool:
        for path in paths:
            is_zip = suffix_of(path.name) == ".zip"
            contents.append(_list_zip(path) if is_zip else _list_tar(path, request.options, spool))
            request.watcher.advance()
        kept = spool.mapped()
    if any(content.metadata for content in contents):
        rows = DraftSource(Path(request.location), "metadata archive")
        contents = _label_by_metadata(rows, contents, request)
    else:
        rows = DraftSource(Path(request.location), "archive")
        contents = _label_by_members(rows, contents, request)
    names: list[str] = []
    errors: dict[int, str] = {}
    for content in contents:
        errors |= {len(names) + image: reason for image, reason in content.errors.items()}
        names += content.names
        rows.ignore(content.others)
        if content.damage:
            there = len(content.names) - list(content.errors.values()).count(_LOST)
            rows.note_damage(f"{content.path} is damaged after {there} image(s): {content.damage}.")
    if listed := next((content.classes for content in contents if content.classes), None):
        rows.take_class_list(*listed)
    references = Joined(
        _ZipImages(content.zip, content.offsets)
        if content.zip
        else Slices(
            content.path if suffix_of(content.path.name) == ".tar" else kept,
            content.offsets,
            content.sizes,
            content.path.name,
        )
        for content in contents
    )
    rows.take_images(names, references, errors)
    if not rows.labels:
        rows.classify_by_folder(_empty_folders(contents), request)
    rows.rename(_distinct(names, contents))
    return rows


def _label_by_metadata(rows: DraftSource, contents: Sequence[_Content], request: Request) -> list[_Content]:
    """Give `rows` the labels of the metadata files; returns the archives with their images in that order."""
    unlisted = 0
    labels: list[str | None] = []
    trusted: list[str | None] = []
    arranged = []
    for content in contents:
        # As when unpacked, the last of several members of one name is the one that stands.
        images = {file_key(name, ()): image for image, name in enumerate(content.names)}
        listing = Listing((), request, partial(_holds, images))
        for name, table in content.metadata.items():
            listing.add_table(content.path / name, name.rpartition("/")[0], table)
        unlisted += listing.add_others(images)
        kept = content.rearranged()
        kept.others += len(content.names) - len(images)
        for row, name in enumerate(listing.names):
            if row in listing.missing:
                kept.add(name, 0, 0, _LOST if content.damage else NOT_FOUND)
            else:
                kept.keep(images[file_key(listing.spelled.get(row, name), ())], content)
        arranged.append(kept)
        labels += listing.labels
        trusted += listing.trusted or []
    rows.take_labels(labels, None if request.options.trusted_column is None else trusted)
    rows.warn(*unlisted_warnings(unlisted, request))
    return arranged


def _holds(images: Mapping[str, int], name: str) -> bool:
    return file_key(name, ()) in images


def _label_by_members(rows: DraftSource, contents: Sequence[_Content], request: Request) -> list[_Content]:
    """Give `rows` the labels beside images, if there are any; returns the archives with one image a row."""
    options = request.options
    said = _in_order(contents, [content.said for content in contents])
    trusted = _in_order(contents, [content.trusted for content in contents])
    for flag, column, labels in (
        ("--label-column", options.label_column, said),
        ("--trusted-column", options.trusted_column, trusted),
    ):
        if column is not None and labels is None:
            raise RelabelError(
                f"{flag} {column}: no image of {request.location} has such a label beside it.",
                f"In a WebDataset shard that of a.jpg is in a.{column}, or the field {column} of a.json.",
            )
    if said is None and trusted is None:
        return list(contents)
    arranged = list(map(_one_image_a_row, contents))
    if said is not None and trusted is None and options.label_column is None and _are_notes(arranged):
        rows.warn(
            f"{request.location}: the .txt files beside images are taken for notes, and the class folders "
            "for labels; --label-column txt takes the texts for labels."
        )
        return list(contents)
    rows.take_labels(
        _in_order(arranged, [content.said for content in arranged]) or [],
        _in_order(arranged, [content.trusted for content in arranged]),
    )
    return arranged


def _are_notes(contents: Sequence[_Content]) -> bool:
    """Whether texts beside images in several class folders of an archive are no labels.

    Some images have none then, or there are more texts than half the images.
    """
    folders = [{parent_folder(name) for name in content.names} for content in contents]
    ranks = {rank for content in contents for rank, _ in content.said.values()}
    if None in set().union(*folders) or max(map(len, folders)) < 2 or ranks != {LABELS.index("txt")}:
        return False
    texts = _in_order(contents, [content.said for content in contents]) or []
    return None in texts or len(set(texts)) > len(texts) / 2


def _in_order(contents: Sequence[_Content], labels: Sequence[_Said]) -> list[str | None] | None:
    """The labels of all images, archive by archive, or None when no image has one beside it."""
    if not any(labels):
        return None
    found = [
        said.get(_key(name)[0])
        for content, said in zip(contents, labels, strict=True)
        for name in content.names
    ]
    return None if not any(found) else [said and said[1] for said in found]


def _list_zip(path: Path) -> _Content:
    content = _Content(path)
    try:
        content.zip = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise RelabelError(f"{path} cannot be read: {brief(error)}.", "Copy the archive again.") from None
    for number, member in enumerate(content.zip.infolist()):
        # A .zip has slashes alone, except what some programs write on Windows.
        name = member.filename.replace("\\", "/").removeprefix("./").rstrip("/")
        if name in ("", ".") or _is_junk(name):
            continue
        if content.take(name, is_folder=member.filename.endswith(("/", "\\"))):
            locked = member.flag_bits & 1
            content.add(name, number, 0, "the image is encrypted" if locked else None)
        elif _is_metadata(name):
            with _metadata_of(content, name):
                content.metadata[name] = content.zip.read(member)
        elif _is_classes(name):
            with _metadata_of(content, name):
                content.classes = name, content.zip.read(member)
    return content


class _ZipImages:
    """Members of a .zip, by their numbers, as references; `zipfile` itself takes turns between threads."""

    def __init__(self, archive: zipfile.ZipFile, numbers: Sequence[int]) -> None:
        self._archive = archive
        self._members = archive.infolist()
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> Reference:
        return _ZipMember(self._members[self._numbers[row]], self._archive)


@dataclass(frozen=True, slots=True)
class _ZipMember:
    member: zipfile.ZipInfo  # not its name, which may be that of another one too
    archive: zipfile.ZipFile

    @property
    def name(self) -> str:
        return self.member.filename

    @property
    def size(self) -> int:
        return self.member.file_size

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return self.archive.open(self.member)


def _list_tar(path: Path, options: SourceOptions, spool: Spool) -> _Content:
    content = _Content(path)
    links: dict[int, str] = {}
    compressed = suffix_of(path.name) != ".tar"
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r|*" if compressed else "r:") as tar:
            for member in _members(tar, compressed):
                name = member.name.removeprefix("./").rstrip("/")
                if name in ("", ".") or _is_junk(name) or member.isdev():
                    continue
                if content.take(name, is_folder=member.isdir()):
                    if not member.isreg():
                        links[len(content.names)] = _target(member)
                        content.add(name, 0, 0, "a link to what the archive does not hold")
                    elif compressed:
                        _spool(content, name, tar, member, spool)
                    else:
                        cut = member.offset_data + member.size > size
                        content.add(name, member.offset_data, member.size, _CUT if cut else None)
                elif member.isreg() and _is_metadata(name):
                    with _metadata_of(content, name):
                        content.metadata[name] = _bytes_of(tar, member)
                elif member.isreg() and _is_classes(name):
                    with _metadata_of(content, name):
                        content.classes = name, _bytes_of(tar, member)
                elif member.isreg() and member.size <= _LARGEST_LABEL:
                    _read_labels(content, name, tar, member, options)
    except _DAMAGE as error:
        content.damage = brief(error)
    if content.damage and not (content.names or content.said):
        raise RelabelError(f"{path} cannot be read: {content.damage}.", "Copy the archive again.")
    if links:
        _follow(links, content)
    return content


def _target(link: tarfile.TarInfo) -> str:
    """The name of the member that a hard link, or a symbolic one, stands for."""
    folder = "" if link.islnk() else posixpath.dirname(link.name)
    return file_key(posixpath.join(folder, link.linkname), ())


def _follow(links: Mapping[int, str], content: _Content) -> None:
    """Let images that are links, by number, be the images they stand for."""
    images = {file_key(name, ()): image for image, name in enumerate(content.names) if image not in links}
    for link, target in links.items():
        if (image := images.get(target)) is not None:
            content.offsets[link], content.sizes[link] = content.offsets[image], content.sizes[image]
            del content.errors[link]
            if image in content.errors:
                content.errors[link] = content.errors[image]


def _is_metadata(name: str) -> bool:
    return name.rpartition("/")[2] in METADATA_NAMES


def _is_classes(name: str) -> bool:
    """At the top, or in the one folder that an archive of a folder begins with."""
    return name.rpartition("/")[2] == CLASSES_FILE and name.count("/") <= 1


@contextmanager
def _metadata_of(content: _Content, name: str) -> Iterator[None]:
    """Refuse an archive whose metadata file, without which its labels would be others, cannot be read."""
    try:
        yield
    except (*_DAMAGE, zipfile.BadZipFile, RuntimeError) as error:  # the last for a password
        raise RelabelError(
            f"{content.path}: its {name} cannot be read: {brief(error)}.", "Copy the archive again."
        ) from None


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


def _spool(content: _Content, name: str, tar: tarfile.TarFile, member: tarfile.TarInfo, spool: Spool) -> None:
    try:
        content.add(name, *spool.add(Embedded(name, partial(_bytes_of, tar, member), content.path.parent)))
    except ImageError as error:
        content.add(name, 0, 0, error.message)
    except _DAMAGE:
        content.add(name, 0, 0, _CUT)
        raise


def _bytes_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _read_labels(
    content: _Content, name: str, tar: tarfile.TarFile, member: tarfile.TarInfo, options: SourceOptions
) -> None:
    """Note the labels, given and trusted, in a member beside an image, where it holds any."""
    key, part = _key(name)
    wanted = [(content.said, options.label_column)]
    if options.trusted_column is not None:
        wanted.append((content.trusted, options.trusted_column))
    ranks = [_rank(part, column) for _, column in wanted]
    if ranks.count(None) == len(ranks):
        return
    try:
        text = _bytes_of(tar, member).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return
    for (labels, column), rank in zip(wanted, ranks, strict=True):
        if rank is None:
            continue
        label = text if part != "json" or rank < 0 else _json_field(text, column or "label")
        if label is not None and rank <= labels.get(key, (rank, None))[0]:
            labels[key] = rank, label_of(label)


def _rank(part: str, column: str | None) -> int | None:
    """How a part ranks among those that may hold the label, the named one first; None if it holds none."""
    if column is not None and part == column.lower():
        return -1
    if part == "json" or (column is None and part in LABELS):
        return LABELS.index(part)
    return None


def _json_field(text: str, name: str) -> str | None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = fields.get(name) if isinstance(fields, dict) else None
    return cell_text(value, Path(), 0, name).strip() if isinstance(value, str | int | float) else None


def _is_junk(name: str) -> bool:
    return any(is_junk(part) for part in name.split("/") if part not in (".", ".."))


def _key(name: str) -> tuple[str, str]:
    """The row a member of a WebDataset shard belongs to, and which part of it the member is."""
    folder, slash, last = name.rpartition("/")
    stem, _, part = last.partition(".")
    return folder + slash + stem, part.lower()


def _one_image_a_row(content: _Content) -> _Content:
    """The archive with the first image of each row alone, masks such as `a.seg.png` left out.

    A label whose image is not there becomes a row too, with an error.
    """
    kept = content.rearranged()
    kept.others -= len(content.said) + sum(rank < 0 for rank, _ in content.trusted.values())
    seen = set()
    for image, name in enumerate(content.names):
        key, part = _key(name)
        if key in seen or "." in part:
            kept.others += 1
            continue
        seen.add(key)
        kept.keep(image, content)
    text = LABELS.index("txt")  # which may be a note on the whole
    for key in [key for key, (rank, _) in content.said.items() if key not in seen and rank < text]:
        kept.add(key, 0, 0, "the archive has a label for this row, and no image")
    return kept


def _empty_folders(contents: Sequence[_Content]) -> set[str]:
    return {folder for content in contents for folder in content.folders}.difference(
        *(content.parents for content in contents)
    )


def _distinct(names: list[str], contents: Sequence[_Content]) -> list[str]:
    """The members' names; where two are the same, with their archives' names, or else numbers."""
    if len(set(names)) == len(names):
        return [printable(name) for name in names]
    longer = [f"{content.path.name}/{name}" for content in contents for name in content.names]
    return (
        [printable(name) for name in longer]
        if len(set(longer)) == len(longer)
        else [str(row) for row in range(len(names))]
    )
