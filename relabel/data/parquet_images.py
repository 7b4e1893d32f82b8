"""Tables that hold the images themselves: Parquet with a column of bytes, in one file or in many shards.

Labels are read at once; the images stay in the file, and a row is read with the few around it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from relabel.data.draft_source import Request, Rows
from relabel.data.image_refs import Embedded, Reference
from relabel.data.in_memory import Frame
from relabel.data.tables import (
    NAME_COLUMNS,
    brief,
    cell_text,
    check_single,
    first_few,
    label_of,
    nfc,
    opened,
    parquet_file,
    printable,
)
from relabel.errors import ImageError, RelabelError

IMAGE_COLUMN = "image"
LABEL_COLUMN = "label"
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
        if _is_text(kind):
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


def open_tables(paths: Sequence[Path], request: Request) -> Rows:
    """Rows of Parquet files that hold images, in the order of the files.

    Raises RelabelError, naming the file, for one that is damaged or lacks a column.
    """
    images = ParquetImages()
    rows = Rows(Path(request.location), "table", references=images)
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
    rows.names = row_names(cells)
    labels.settle(rows)
    _warn_of_index(paths, rows)
    return rows


def read_labels(paths: Sequence[Path | Frame], rows: Rows, request: Request) -> None:
    """Give `rows` the labels of Parquet files, or of a Frame, that hold something other than images.

    Raises RelabelError, naming the file, when one is damaged or lacks a column.
    """
    labels = LabelColumns(request)
    for path in paths:
        with opened(path) as file:
            schema = file.schema_arrow
            table = file.read(columns=labels.present(schema.names, str(path)))
        labels.add(table, table.num_rows, class_names(schema.metadata), str(path))
    labels.settle(rows)
    _warn_of_index(paths, rows)


def _warn_of_index(paths: Sequence[Path | Frame], rows: Rows) -> None:
    if not in_order(paths):
        rows.warnings.append(
            f"{paths[0]} has a column 'index' that does not count its rows from 0. Rows that --trusted, "
            "--labels or --truth name by index are counted as they stand in the file, whatever it says."
        )


def in_order(paths: Sequence[Path | Frame]) -> bool:
    """Whether the column `index` of Parquet files, where there is one, counts their rows from 0 on.

    What is left over from a table that was shuffled or filtered does not.
    """
    start = 0
    for path in paths:
        with opened(path) as file:
            positions = file.schema_arrow.get_all_field_indices("index")
            counts = len(positions) == 1 and pa.types.is_integer(file.schema_arrow.field(positions[0]).type)
            try:
                table = file.read(columns=["index"] if counts else [])
            except (OSError, pa.ArrowException):
                return False  # damaged, and of no other use
        end = start + table.num_rows
        if counts and not np.array_equal(table["index"].to_numpy(), np.arange(start, end)):
            return False
        start = end
    return True


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of the classes by column, from what `datasets` writes into a schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [nfc(str(name)) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def row_names(cells: Sequence[str | None]) -> list[str]:
    """The rows' own names where every row has one of its own, else the rows' numbers from 0."""
    names = [printable(name) for name in cells if name]
    if len(set(names)) < len(cells):
        return [str(row) for row in range(len(cells))]
    return names


class LabelColumns:
    """Collects the label column, and that of `--trusted-column`, of one table after the other."""

    def __init__(self, request: Request) -> None:
        options = request.options
        self._label = options.label_column or LABEL_COLUMN
        self._required = request.expect_labels or options.label_column is not None
        self._verified = options.trusted_column
        self._names: list[str] | None = None
        # Numbers may stand for --classes.
        self._kinds_to_check = (
            set() if options.classes else {self._label, options.trusted_column or self._label}
        )
        self._kinds: dict[str, str] = {}
        self.labels: list[str | None] = []
        self.verified: list[str | None] = []

    def present(self, columns: Sequence[str], where: str) -> list[str]:
        """Those of the wanted columns that are there; RelabelError when a needed one is not."""
        flags = {self._label: "--label-column"} if self._required else {}
        if self._verified is not None:
            flags[self._verified] = "--trusted-column"
        for column, flag in flags.items():
            if column not in columns:
                raise RelabelError(
                    f"{where} has no column {column!r}; it has {first_few(list(columns), 10)}.",
                    f"Name the right one with {flag}.",
                )
        wanted = [self._label] if self._label in columns else []
        wanted += [self._verified] if self._verified else []
        check_single(columns, wanted, where)
        return list(dict.fromkeys(wanted))

    def add(self, table: pa.Table, count: int, names: dict[str, list[str]], where: str) -> None:
        """Take the labels of a table of `count` rows; names: of the classes, for columns of integers."""
        own = names.get(self._label)
        if self.labels and own != self._names:
            raise RelabelError(
                f"{where} has other classes in {self._label!r} than the files before it.",
                "Name one kind of file at a time.",
            )
        self._names = own
        for name in self._kinds_to_check.difference(names).intersection(table.column_names):
            self._check_kind(name, table[name], where)
        if self._label in table.column_names:
            self.labels += _texts(table[self._label], own, where, self._label)
        else:
            self.labels += [None] * count
        if self._verified is not None:
            verified_names = names.get(self._verified, own)
            self.verified += _texts(table[self._verified], verified_names, where, self._verified)

    def _check_kind(self, name: str, column: pa.ChunkedArray, where: str) -> None:
        """Refuse numbers in one file and text in another: the classes would be twice as many."""
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if column.null_count == len(column):
            return
        found = "text" if _is_text(kind) else "numbers"
        before = self._kinds.setdefault(name, found)
        if before != found:
            raise RelabelError(
                f"{where} has {found} in the column {name!r}, and the files before it {before}.",
                "Write the labels of all files alike, or name the classes with --classes.",
            )

    def settle(self, rows: Rows) -> None:
        """Give what was collected to the rows."""
        rows.labels = self.labels
        rows.order = self._names or []
        if self._verified is not None:
            rows.verified = self.verified


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


def _texts(
    column: pa.ChunkedArray, names: Sequence[str] | None, where: str, column_name: str
) -> list[str | None]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not _is_plain(kind):
        raise RelabelError(
            f"{where}: the column {column_name!r} holds {kind}, not text or numbers.", "Name another column."
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)  # dictionaries of several row groups may not fit one type of index
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    # A text is made once, for all rows that have it.
    texts: list[str | None] = []
    for place, value in enumerate(encoded.dictionary.to_pylist()):
        try:
            texts.append(_text(value, names, where, column_name))
        except ValueError as error:
            row = pc.index(encoded.indices, place).as_py() + 1
            raise RelabelError(
                f"{where}, row {row}: {column_name} is {value}, and {error}.",
                "Correct the label, or the names of the classes.",
            ) from None
    texts.append(None)
    return [texts[place] for place in encoded.indices.fill_null(len(texts) - 1).to_pylist()]


def _text(value: object, names: Sequence[str] | None, where: str, column: str) -> str | None:
    """A label as text. Raises ValueError for the number of a class that is not there."""
    if names is None or not isinstance(value, int):
        return label_of(cell_text(value, where, 0, column))
    if value == -1:  # how datasets writes that there is no label
        return None
    if not 0 <= value < len(names):
        raise ValueError(f"the classes are 0 to {len(names) - 1}")
    return names[value]


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


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_plain(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null, _is_text)
    return any(test(kind) for test in tests)
