"""Tables that hold the images themselves: Parquet with a column of bytes, in one file or in many shards.

Labels are read at once; the images stay in the file, and a row is read with the few around it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from relabel.data.draft_source import DraftSource, Request
from relabel.data.image_refs import Embedded, Reference
from relabel.data.label_columns import LabelColumns, class_names, is_text, row_names, warn_of_index
from relabel.data.tables import (
    NAME_COLUMNS,
    brief,
    check_single,
    first_few,
    parquet_file,
)
from relabel.errors import ImageError, RelabelError

IMAGE_COLUMN = "image"
_WINDOW_BYTES = 8 << 20  # read at a time; a row group may be the whole file
_WINDOWS = 4  # kept, because threads ask for their rows not quite in order


def image_column(schema: pa.Schema, where: str, wanted: str | None) -> str | None:
    """The column that holds images themselves; None when there is none, or `wanted` names files.

    where: names the table in a message. Raises RelabelError when the column is to be named first, or is there
    twice.
    """
    check_single(schema.names, [wanted or IMAGE_COLUMN], where)
    if wanted is not None:
        kind = schema.field(wanted).type if wanted in schema.names else None
        if kind is None:
            raise RelabelError(
                f"--image-column {wanted}: {where} has no such column.",
                f"Its columns are {first_few(schema.names, 10)}.",
            )
        if is_text(kind):
            return None
        if not (_holds_bytes(kind) or _is_binary(kind)):
            raise RelabelError(
                f"--image-column {wanted}: in {where} that column holds {kind}, not images.",
                f"Its columns are {first_few(schema.names, 10)}.",
            )
        return wanted
    columns = image_columns(schema)
    if IMAGE_COLUMN in columns:
        return IMAGE_COLUMN
    if columns and not set(NAME_COLUMNS) & set(schema.names):
        raise RelabelError(
            f"{where} has no column {IMAGE_COLUMN!r}; the column(s) {first_few(columns)} hold images.",
            f"Add --image-column {columns[0]}.",
        )
    return None


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold images themselves: as Hugging Face writes them, or bytes under the usual name."""
    return [
        field.name
        for field in schema
        if _holds_bytes(field.type) or (field.name == IMAGE_COLUMN and _is_binary(field.type))
    ]


def needed_image_column(schema: pa.Schema, where: str, wanted: str | None) -> str:
    """As `image_column`, for a table that cannot do without."""
    column = image_column(schema, where, wanted)
    if column is not None:
        return column
    if wanted is None:
        refuse_vectors(schema, where)
    named = repr(wanted or IMAGE_COLUMN)
    raise RelabelError(
        f"{where} has no column {named} that holds images; it has {first_few(schema.names, 10)}.",
        "Name the right one with --image-column.",
    )


def vector_column(schema: pa.Schema) -> str | None:
    """The first column of lists that a table of vectors would have; None without one."""
    named = bool(set(NAME_COLUMNS) & set(schema.names))
    for field in schema:
        # Beside names of files, lists of any length may be boxes.
        loose = not named and pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type)
        if loose or pa.types.is_fixed_size_list(field.type):
            return str(field.name)
    return None


def refuse_vectors(schema: pa.Schema, where: str, otherwise: str = "") -> None:
    """Tell a table of vectors, which `where` names, from one of images or of file names.

    otherwise: a sentence on what the table would need to be another one.
    """
    column = vector_column(schema)
    if column is not None:
        raise RelabelError(
            f"{where} holds vectors in the column {column!r}.",
            f"Add --features {column}. {otherwise}".strip(),
        )


def has_path(schema: pa.Schema, column: str) -> bool:
    """Whether an image column also has the paths the images came from."""
    kind = schema.field(column).type
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def open_tables(paths: Sequence[Path], request: Request) -> DraftSource:
    """The rows of Parquet files that hold images, in the order of the files.

    Raises RelabelError, naming the file, for one that is damaged or lacks a column.
    """
    images = ParquetImages()
    rows = DraftSource(Path(request.location), "table")
    labels = LabelColumns(request)
    cells: list[str | None] = []
    for path in paths:
        with parquet_file(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            column = needed_image_column(schema, str(path), request.options.image_column)
            names = [f"{column}.path"] if has_path(schema, column) else []
            table = file.read(columns=names + labels.present(schema.names, str(path)))
        count = metadata.num_rows
        labels.add(table, count, class_names(schema.metadata), str(path))
        cells += pc.struct_field(table[column], "path").to_pylist() if names else [None] * count
        images.add(path, column, metadata)
    rows.take_images(row_names(cells), images)
    labels.settle(rows)
    warn_of_index(paths, rows)
    return rows


class ParquetImages:
    """The image cells of Parquet files as references; `add` appends a file's rows.

    One reader goes through the files and keeps the last few windows of rows, so that reading in order takes
    little memory however large a row group is; a step back begins the row group again.
    """

    def __init__(self) -> None:
        self._groups: list[tuple[Path, str, int, int]] = []  # path, column, row group, rows of a window
        self._starts = [0]
        self._lock = Lock()
        self._windows: deque[tuple[int, pa.Array]] = deque(maxlen=_WINDOWS)  # first row, cells
        self._reading: Iterator[pa.Array] = iter(())
        self._group = -1
        self._next = 0  # the first row that the reader has not read
        self._damaged: dict[int, tuple[int, str]] = {}  # row group -> first lost row, reason

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Reference:
        if not 0 <= row < len(self):
            raise IndexError(row)
        group = bisect_right(self._starts, row) - 1
        path = self._groups[group][0]
        return Embedded(f"row {row + 1} of SOURCE, in {path.name}", partial(self._cell, row), path.parent)

    def add(self, path: Path, column: str, metadata: pq.FileMetaData) -> None:
        """Append the rows of a file; metadata: pyarrow's of the file."""
        counts = []
        for group in range(metadata.num_row_groups):
            described = metadata.row_group(group)
            chunks = map(described.column, range(described.num_columns))
            size = sum(
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema.split(".")[0] == column
            )
            count = described.num_rows
            window = max(1, min(1024, _WINDOW_BYTES * count // max(1, size)))
            self._groups.append((path, column, group, window))
            counts.append(count)
        self._starts += list(accumulate(counts, initial=self._starts.pop()))

    def _cell(self, row: int) -> object:
        with self._lock:
            while True:
                for first, cells in self._windows:
                    if first <= row < first + len(cells):
                        return cells[row - first].as_py()
                self._read_towards(row)

    def _read_towards(self, row: int) -> None:
        group = bisect_right(self._starts, row) - 1
        lost, reason = self._damaged.get(group, (len(self), ""))
        if row >= lost:
            raise ImageError(f"the Parquet file is damaged here: {reason}")
        if group != self._group or row < self._next:
            self._reading = _windows(*self._groups[group])
            self._group, self._next = group, self._starts[group]
        try:
            cells = next(self._reading, None)
            if cells is None:
                raise pa.ArrowInvalid("the row group has fewer rows than it should")
        except (OSError, pa.ArrowException) as error:
            self._damaged[group] = self._next, brief(error)
            self._group = -1
        else:
            self._windows.append((self._next, cells))
            self._next += len(cells)


def _windows(path: Path, column: str, group: int, rows: int) -> Iterator[pa.Array]:
    # Not pre-buffered, and through a small buffer: either would otherwise hold a whole row group.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        for batch in file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
            yield batch.column(0)


def _holds_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_binary(kind.field("bytes").type)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
