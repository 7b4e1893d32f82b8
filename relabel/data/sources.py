"""Opens SOURCE, the images and the labels they came with, without decoding any of them.

This module tells the forms apart. `folders` and `manifests` read those whose images are files,
`parquet_images`, `archives` and `hub_datasets` the others, and `vectors` what takes the place of images.
Every form is held in columns, with no object per row beyond the name: a million rows stay cheap.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.config import SourceOptions
from relabel.data import archives, hub_datasets, label_columns, parquet_images
from relabel.data.content import Content, ImageContent, VectorContent
from relabel.data.decode import IMAGE_SUFFIXES
from relabel.data.draft_source import (
    CLASSES_FILE,
    METADATA_NAMES,
    DraftSource,
    Request,
    natural_key,
    read_classes,
    read_classes_file,
    suggestion,
)
from relabel.data.file_index import FileIndex, naming_hint
from relabel.data.folders import Scan, open_class_folders, open_listed, scan_folder
from relabel.data.image_refs import References
from relabel.data.in_memory import Frame
from relabel.data.manifests import file_key, listed_twice, locate, open_manifest, root_prefixes
from relabel.data.shards import ARCHIVE_SUFFIXES, SHARD_SUFFIXES, check_one_split, expand, suffix_of
from relabel.data.tables import (
    NAME_COLUMNS,
    TABLE_SUFFIXES,
    first_few,
    named,
    opened,
    printable,
    read_table,
)
from relabel.data.vectors import read_vectors
from relabel.errors import RelabelError
from relabel.files import METADATA_KEY
from relabel.hub import parse_dataset
from relabel.modality import Modality
from relabel.progress import Silent, Watcher

UNLABELLED = -1

_FORMS = (
    "SOURCE is a folder of images, a .csv, .parquet or .jsonl file, a .zip or .tar archive, or a data set of "
    "the Hugging Face Hub."
)
_TABLE_FLAGS = {"--classes", "--image-column", "--label-column", "--trusted-column"}
_FLAGS = {
    "folder": ({"--classes"}, "a folder of class folders"),
    "metadata": (_TABLE_FLAGS, "a folder with a metadata file"),
    "manifest": (_TABLE_FLAGS, "a list of files"),
    "table": (_TABLE_FLAGS, "a table of images"),
    "vectors": ({"--classes", "--features", "--label-column", "--trusted-column"}, "a table of vectors"),
    "archive": ({"--classes", "--label-column", "--trusted-column"}, "an archive without a metadata file"),
    "metadata archive": (_TABLE_FLAGS, "an archive with a metadata file"),
    "saved": (_TABLE_FLAGS | {"--split"}, "a saved data set"),
    "hub": (_TABLE_FLAGS | {"--config", "--split", "--revision", "--streaming"}, "a data set of the Hub"),
}
"""The flags each form has a use for, and what a message calls it."""


@dataclass
class Source:
    """The rows of a data set, in input order; every list and array has one entry a row unless said."""

    location: str  # as the user typed it
    root: Path  # file names are relative to it
    kind: str  # "folder" | "metadata" | "manifest" | "table" | "vectors" | "archive" | ...
    file_names: list[str]  # POSIX, or the rows' own names; as written to the output
    references: References  # what images.decode() reads; empty where rows are vectors
    given: NDArray[np.int64]  # [N] class id or UNLABELLED
    class_names: list[str]  # [C], in the order the source or the user fixed, else natural
    numbered: bool  # whether a number as a label stands for the class of that position
    trusted: list[str | None] | None  # labels of --trusted-column, None where it is empty; None without
    errors: dict[int, str]  # row -> why it cannot be used, known before decoding
    ignored_files: int  # files left alone because they are not images
    warnings: list[str]
    vectors: NDArray[np.float32] | None = None  # [N, D], zeros in rows with an error
    features: str | None = None  # the columns that vectors lie in
    frame: Frame | None = None  # what the rows were read from, where it is in memory

    def __len__(self) -> int:
        return len(self.file_names)

    @cached_property
    def content(self) -> Content:
        """What the rows hold."""
        if self.vectors is None:
            return ImageContent(self.references, self.errors)
        return VectorContent(self.vectors, self.errors, self.features)

    @property
    def modality(self) -> Modality:
        """What the rows are."""
        return self.content.modality

    @property
    def noun(self) -> str:
        """What the rows are, in messages."""
        return self.modality.noun


def open_source(
    location: str | Frame,
    labels: Path | Frame | None = None,
    options: SourceOptions | None = None,
    *,
    need_classes: bool = True,
    largest: int | None = None,
    watcher: Watcher | None = None,
) -> Source:
    """Open what the user gave as SOURCE; `labels` (`--labels`) replaces or adds given labels.

    A Frame with the columns of `--features` is one of vectors, and any other a list of image files, relative
    to the working directory.

    `need_classes=False` accepts a source with fewer than two classes or no label at all, for commands that
    bring their own classes. largest: the most pixels a side that an image will be decoded to; what is
    streamed is not kept larger. watcher: shows what takes long. Raises RelabelError when the source cannot be
    used as a whole; a row whose file is missing, or whose vector is of no use, is kept and noted in `errors`.
    """
    options = options or SourceOptions()
    expect_labels = need_classes and labels is None
    frame = location if isinstance(location, Frame) else None
    location = str(location)
    rows = _open(Request(location, options, watcher or Silent(), expect_labels, largest, frame))
    flags, form = _FLAGS[rows.kind]
    if idle := [flag for flag in options.given() if flag not in flags]:
        raise RelabelError(f"{idle[0]} has no meaning for {location}, which is {form}.", "Leave it out.")
    if len(rows.errors) == len(rows.names):
        raise _no_image(location, rows)
    own = []
    if labels is None:
        _check_trusted_column(rows, options)
    else:
        own = rows.class_names()
        _override(rows, labels, location)
    _fix_classes(rows, location, options.classes, in_memory=frame is not None)
    class_names = rows.class_names()
    known = {*own, *rows.order}  # --classes may have named the others
    if labels is not None and own and (strangers := [name for name in class_names if name not in known]):
        rows.warn(
            f"{named('--labels', labels)} has labels that are no class of {location}, and become classes: "
            f"{first_few(list(map(repr, strangers)))}. {suggestion(strangers[0], own)}"
        )
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
        numbered=bool(rows.order),
        trusted=rows.trusted,
        errors=rows.errors,
        ignored_files=rows.ignored,
        warnings=rows.warnings + _lookalikes(class_names),
        vectors=rows.vectors,
        features=options.features,
        frame=frame,
    )
    if need_classes:
        try:
            _check_classes(source)
        except RelabelError as error:
            if not rows.damage:
                raise
            raise RelabelError(" ".join([error.message, *rows.damage]), "Copy the archive again.") from None
    return source


def check_there(location: str) -> None:
    """Refuse what is neither a file, a folder, a pattern that matches some, nor could be on the Hub."""
    if os.path.exists(location) or expand(location) or parse_dataset(location):
        return
    if "://" in location:
        raise RelabelError(
            f"{location} is an address that cannot be read.",
            "Download it first, or name a data set as hf://datasets/user/name.",
        )
    raise RelabelError(f"There is no file or folder {location!r}.", "Check the spelling of the path.")


def _open(request: Request) -> DraftSource:
    location = request.location
    if request.frame is not None:
        return _from_frame(request.frame, request)
    if request.options.features is not None:
        check_there(location)
        return _from_vectors(_vector_files(request, request.options.features), request)
    if os.path.isdir(location):
        return (
            hub_datasets.open_saved(request)
            if hub_datasets.is_saved(Path(location))
            else _from_folder(request)
        )
    if os.path.isfile(location):
        return _from_file(request)
    if shards := expand(location):
        return _from_shards(shards, request)
    check_there(location)
    return hub_datasets.open_hub(request)


def _fix_classes(rows: DraftSource, location: str, given: str | None, *, in_memory: bool) -> None:
    """Let `--classes`, or else a file `classes.txt` in the source or beside it, order the classes."""
    if given is not None:
        rows.fix_classes(read_classes(given), location, "--classes")
        return
    if in_memory:
        return
    inside, beside = Path(location, CLASSES_FILE), Path(location).parent / CLASSES_FILE
    content = None
    if rows.listed is not None:
        found, content = Path(location, rows.listed[0]), rows.listed[1]
    else:
        there = next((path for path in (inside, beside) if path.is_file()), None)
        if there is None or rows.kind == "hub":
            return
        found = there
    try:
        rows.fix_classes(read_classes_file(found, content), location, str(found))
    except RelabelError as error:
        # Nobody named it: it may belong to something else.
        rows.warn(f"{found} is left alone: {error.message}")
    else:
        rows.ignore(-(found == inside and rows.kind in ("folder", "metadata")))


def _from_folder(request: Request) -> DraftSource:
    root = Path(request.location)
    scan = scan_folder(root)
    if scan.metadata:
        return open_listed(root, scan, request)
    shards = [] if scan.images else _shards(root, scan, SHARD_SUFFIXES)
    if shards:
        check_one_split(shards, root)
        return _from_shards(shards, request)
    return open_class_folders(root, scan, request)


def _from_file(request: Request) -> DraftSource:
    path = Path(request.location)
    suffix = suffix_of(path.name)
    if suffix in ARCHIVE_SUFFIXES:
        return archives.open_archives([path], request)
    if suffix not in TABLE_SUFFIXES:
        raise RelabelError(f"{path} is not a kind of file that can be a SOURCE.", _FORMS)
    if suffix == ".parquet" and _holds_images(path, path.parent, request.options):
        return parquet_images.open_tables([path], request)
    return open_manifest(path, path.parent, request)


def _from_frame(frame: Frame, request: Request) -> DraftSource:
    if request.options.features is not None:
        return _from_vectors([frame], request)
    if _holds_images(frame, Path.cwd(), request.options):
        raise RelabelError(
            f"{frame} holds images themselves, not the names of files.",
            "Write it to a .parquet file, and name that as SOURCE.",
        )
    return open_manifest(frame, Path.cwd(), request)


def _vector_files(request: Request, features: str) -> list[Path]:
    paths = parquet_files(request.location)
    if not paths:
        raise RelabelError(
            f"--features {features}: {request.location} is neither a .parquet file nor some in a folder.",
            "Write the vectors to one, one a row.",
        )
    return paths


def _from_vectors(paths: Sequence[Path] | Sequence[Frame], request: Request) -> DraftSource:
    options = request.options
    assert options.features is not None
    rows = DraftSource(paths[0].parent if isinstance(paths[0], Path) else Path.cwd(), "vectors")
    label_columns.read_labels(paths, rows, request)
    labels = [column for column in (options.label_column, options.trusted_column) if column]
    table = read_vectors(paths, options.features, labels)
    roots = root_prefixes(rows.root)
    seen: dict[str, int] = {}
    for row, name in enumerate(table.names):
        first = seen.setdefault(file_key(name, roots), row)
        if first != row:
            raise listed_twice(*table.place(row), name, *table.place(first))
    rows.take_vectors(list(map(printable, table.names)), table.vectors, table.errors)
    return rows


def parquet_files(location: str) -> list[Path]:
    """The Parquet files that a file, a folder or a pattern stands for; none if there is anything else."""
    if os.path.isdir(location):
        root = Path(location)
        paths = _shards(root, scan_folder(root), {".parquet"})
        check_one_split(paths, root)
        return paths
    paths = [Path(location)] if os.path.isfile(location) else expand(location)
    return paths if all(suffix_of(path.name) == ".parquet" for path in paths) else []


def _shards(root: Path, scan: Scan, suffixes: Collection[str]) -> list[Path]:
    """The shards in a folder; what relabel itself has written there is none."""
    paths = [root / path for path in scan.others if suffix_of(path) in suffixes]
    return [path for path in paths if not is_result(path)]


def is_result(path: Path) -> bool:
    """Whether a file is Parquet that relabel wrote: labels or noisy labels."""
    try:
        return suffix_of(path.name) == ".parquet" and METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False  # whoever reads it says what is wrong


def is_part(folder: Path, file: Path) -> bool:
    """Whether a file that exists is one of those, beside its images, that a folder as SOURCE is made of."""
    roots = root_prefixes(folder)
    for path in (file.absolute(), file.resolve()):
        name = file_key(str(path), roots)
        if os.path.isabs(name):
            continue
        if name == CLASSES_FILE or path.name in METADATA_NAMES:
            return True
        if not is_result(path) and (
            hub_datasets.is_saved(folder)
            or (suffix_of(name) in SHARD_SUFFIXES and not scan_folder(folder).images)
        ):
            return True
    return False


def _from_shards(paths: Sequence[Path], request: Request) -> DraftSource:
    for path in paths:
        if suffix_of(path.name) not in ARCHIVE_SUFFIXES | SHARD_SUFFIXES:
            raise RelabelError(
                f"{request.location} takes in {path}, which is no shard.",
                "Shards are .parquet or .tar files.",
            )
    tables = [path for path in paths if suffix_of(path.name) == ".parquet"]
    if tables and len(tables) < len(paths):
        raise RelabelError(
            f"{request.location} takes in both Parquet files and archives.", "Name one kind of shard."
        )
    return parquet_images.open_tables(paths, request) if tables else archives.open_archives(paths, request)


def _check_trusted_column(rows: DraftSource, options: SourceOptions) -> None:
    """Refuse a `--trusted-column` that the given labels come from: every one of them would be trusted."""
    named = {options.label_column} if options.label_column else {label_columns.LABEL_COLUMN, *archives.LABELS}
    if options.trusted_column in named and rows.trusted == rows.labels:
        raise RelabelError(
            f"--trusted-column {options.trusted_column} is where the given labels come from, so every one "
            "would count as trusted.",
            "Name the column of trusted labels, or with --label-column that of given ones.",
        )


def _override(rows: DraftSource, path: Path | Frame, location: str) -> None:
    flag = named("--labels", path)
    table, positions = FileIndex(rows.root, rows.names).read(path)
    labels: dict[int, str | None] = {}
    seen: dict[int, int] = {}
    for name, label, row, position in zip(table.names, table.labels, table.rows, positions, strict=True):
        if position is None:
            raise RelabelError(
                f"{flag}, row {row}: {name!r} is not in {location}.",
                naming_hint(table, rows.names),
            )
        if position in seen:
            raise RelabelError(
                f"{flag}, rows {seen[position]} and {row} both name {name!r}.",
                "Remove one of the two.",
            )
        seen[position] = row
        labels[position] = label
    rows.override_labels(labels)


def too_few_classes(source: Source) -> RelabelError:
    """What to say when the usable rows with a label are all of one class."""
    return RelabelError(
        f"{source.location}: fewer than two classes have {source.noun} that can be used.",
        source.modality.unusable_hint,
    )


def _check_classes(source: Source) -> None:
    if (source.given == UNLABELLED).all():
        raise RelabelError(
            f"None of the {source.noun} of {source.location} has a label.", source.modality.unlabelled_hint
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


def _no_image(location: str, rows: DraftSource) -> RelabelError:
    if rows.names and rows.kind in ("metadata", "manifest", "metadata archive"):
        return RelabelError(
            f"None of the {len(rows.names)} file(s) that {location} lists exists"
            f" (the first is {rows.names[0]!r}).",
            f"File names are relative to {rows.root}.",
        )
    if rows.names:
        return RelabelError(
            f"None of the {len(rows.names)} image(s) of {location} can be read ({rows.errors[0]}).",
            "Check that it was copied completely.",
        )
    if rows.kind not in ("folder", "archive"):
        return RelabelError(f"{location} has no rows.", "List one image a row.")
    if rows.kind == "folder" and (
        saved := [path for path in Path(location).iterdir() if hub_datasets.is_saved(path)]
    ):
        names = sorted((path.name for path in saved), key=natural_key)
        return RelabelError(f"{location} holds the saved data sets {first_few(names)}.", "Name one of them.")
    beside = f", only {rows.ignored} other file(s)" if rows.ignored else ""
    return RelabelError(
        f"There is no image in {location}{beside}.",
        f"Images are recognised by extension: {' '.join(sorted(IMAGE_SUFFIXES))}.",
    )


def _holds_images(path: Path | Frame, root: Path, options: SourceOptions) -> bool:
    """Whether a table holds images, not names of files relative to `root`; mere vectors are refused."""
    try:
        with opened(path) as file:
            schema = file.schema_arrow
    except RelabelError:
        return False  # read_table() says what is wrong
    if parquet_images.image_column(schema, str(path), options.image_column) is not None:
        return True
    if options.image_column is None and parquet_images.vector_column(schema) is not None:
        if not set(NAME_COLUMNS) & set(schema.names):
            parquet_images.refuse_vectors(schema, str(path))
        elif not _lists_files(path, root):
            parquet_images.refuse_vectors(
                schema, str(path), f"A list of images needs files that exist, relative to {root}."
            )
    return False


def _lists_files(path: Path | Frame, root: Path) -> bool:
    """Whether one of the files exists that a table names: the names of vectors need not be files."""
    names = read_table(path, label_columns=(), label_required=False).names
    return any(locate(name, "", lambda name: os.path.isfile(root / name))[1] for name in names)
