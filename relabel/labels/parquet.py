"""The labels file: one Parquet row for every input row, in input order, and in its metadata what made it.

Plain Arrow types only, so pandas, polars, DuckDB and `datasets` read it as it is.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.errors import RelabelError
from relabel.files import METADATA_KEY, atomic_path, check_output
from relabel.labels.metadata import Metadata

# What writer and streaming readers hold at a time: 64 MB of soft labels at the most.
_ROWS_PER_GROUP = 65_536
_SHARES_PER_GROUP = 2**24
COMPRESSION = "zstd"
UNLABELLED = -1


class SoftLabelRows(Protocol):
    """An array [N, C], or what computes its rows slice by slice."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a labels file, an entry a row, as arrays.

    given, corrected: [N] class ids, given -1 for an unlabelled row; soft_label: [N, C]; noise_probability:
    [N], NaN where undefined; action, trusted: [N]; errors: by row, why it could not be used. The labels of
    such a row do not matter: they are null in the file.
    """

    class_names: Sequence[str]
    file_names: Sequence[str]
    given: NDArray[np.int64]
    soft_label: SoftLabelRows
    corrected: NDArray[np.int64]
    noise_probability: NDArray[np.float32]
    action: NDArray[np.str_]
    trusted: NDArray[np.bool_]
    errors: Mapping[int, str]

    def __post_init__(self) -> None:
        """Our own mistakes must not reach a file."""
        columns = (
            self.file_names,
            self.given,
            self.corrected,
            self.noise_probability,
            self.action,
            self.trusted,
        )
        assert {len(column) for column in columns} == {self.soft_label.shape[0]}
        assert self.soft_label.shape[1] == len(self.class_names)

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """[N] rows without an error."""
        usable = np.ones(len(self), dtype=bool)
        usable[list(self.errors)] = False
        return usable

    def tables(self, described: pa.Schema) -> Iterator[pa.Table]:
        """The rows as Arrow, group by group: soft labels of one group are in memory at a time."""
        step = max(1, min(_ROWS_PER_GROUP, _SHARES_PER_GROUP // len(self.class_names)))
        names = pa.array(self.class_names, pa.string())
        for start in range(0, max(1, len(self)), step):
            part = slice(start, min(start + step, len(self)))
            yield pa.Table.from_arrays(self._arrays(part, names), schema=described)

    def _arrays(self, part: slice, class_names: pa.Array) -> list[pa.Array]:
        soft_label = np.ascontiguousarray(self.soft_label[part], dtype=np.float32)
        noise_probability, given = self.noise_probability[part], self.given[part]
        messages = np.array([self.errors.get(row) for row in range(part.start, part.stop)], dtype=object)
        failed = messages != None  # noqa: E711 — elementwise
        # A long run ends here, so rounding is forgiven; anything more is a defect of ours.
        assert np.allclose(soft_label[~failed].sum(axis=1), 1, atol=1e-3), "soft labels must sum to 1"
        scored = ~failed & (given >= 0)
        assert (np.abs(noise_probability[scored] - 0.5) <= 0.5 + 1e-6).all(), "probabilities must be in 0..1"
        given_id = pa.array(given, pa.int64(), mask=given < 0)
        corrected_id = pa.array(self.corrected[part], pa.int64(), mask=failed)
        shares = pa.array(soft_label.reshape(-1))
        return [
            pa.array(self.file_names[part], pa.string()),
            class_names.take(given_id),
            pa.FixedSizeListArray.from_arrays(shares, soft_label.shape[1], mask=pa.array(failed)),
            class_names.take(corrected_id),
            pa.array(noise_probability.clip(0, 1), pa.float32(), mask=~scored),
            pa.array(np.asarray(self.action[part], dtype=object), pa.string(), mask=failed),
            pa.array(self.trusted[part], pa.bool_()),
            pa.array(messages, pa.string()),
        ]


def schema(num_classes: int) -> pa.Schema:
    """Return the columns of a labels file over `num_classes` classes, in order."""
    return pa.schema(
        [
            pa.field("file_name", pa.string()),
            pa.field("original_label", pa.string()),
            pa.field("soft_label", pa.list_(pa.float32(), num_classes)),
            pa.field("corrected_label", pa.string()),
            pa.field("noise_probability", pa.float32()),
            pa.field("action", pa.string()),
            pa.field("trusted", pa.bool_()),
            pa.field("error", pa.string()),
        ]
    )


def described_schema(columns: Columns, metadata: Metadata) -> pa.Schema:
    """The columns' schema with that metadata."""
    return schema(len(columns.class_names)).with_metadata({METADATA_KEY: metadata.to_json()})


def write_labels(
    destination: Path | BinaryIO, columns: Columns, metadata: Metadata, overwrite: bool = False
) -> None:
    """Write the labels file; equal input gives equal bytes, to a path and to a stream alike.

    A stream is left open, and its `BrokenPipeError` is the caller's. Raises `RelabelError` as `check_output`
    does, and `RunError` when the disk refuses.
    """
    described = described_schema(columns, metadata)
    if isinstance(destination, Path):
        check_output(destination, overwrite)
        with atomic_path(destination) as temporary, temporary.open("wb") as stream:
            _write(stream, columns, described)
    else:
        _write(destination, columns, described)


def _write(stream: BinaryIO, columns: Columns, described: pa.Schema) -> None:
    gate = _Gate(stream)
    try:
        writer = pq.ParquetWriter(gate, described, compression=COMPRESSION)
        for table in columns.tables(described):
            writer.write_table(table)
        writer.close()
    finally:
        gate.shut = True


class _Gate:
    """Lets bytes through until it is shut.

    A Parquet writer that is given up half-way completes its file when it is freed, and a file of fewer rows
    would look whole.
    """

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self.shut = False
        self._stream = stream

    def write(self, content: bytes) -> int:
        if not self.shut:
            self._stream.write(content)
        return len(content)

    def flush(self) -> None:
        if not self.shut:
            self._stream.flush()

    def close(self) -> None:
        """The stream is the caller's."""


class FileSoftLabels:
    """The soft labels [N, C] of a labels file, read slice by slice; rows of zeros where
    there is none.

    The file stays open, so that one that replaces it changes nothing here.
    """

    def __init__(self, file: pq.ParquetFile, num_classes: int, name: str) -> None:
        self.shape: tuple[int, int] = (file.metadata.num_rows, num_classes)
        self._file = file
        self._name = name
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._latest: tuple[int, NDArray[np.float32]] | None = None
        self._type = schema(num_classes).field("soft_label").type
        _cast(pa.nulls(1, file.schema_arrow.field("soft_label").type), self._type, name)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """The rows [B, C]."""
        start, stop, _ = rows.indices(len(self))
        found = np.empty((max(0, stop - start), self.shape[1]), dtype=np.float32)
        for group in range(len(self._starts) - 1):
            first, last = max(start, self._starts[group]), min(stop, self._starts[group + 1])
            if first < last:
                offset = self._starts[group]
                found[first - start : last - start] = self._group(group)[first - offset : last - offset]
        return found

    def _group(self, group: int) -> NDArray[np.float32]:
        # The latest is kept, for slices come in order and may be smaller than a group.
        if self._latest is None or self._latest[0] != group:
            with _readable(self._name):
                column = self._file.read_row_group(group, columns=["soft_label"]).column("soft_label")
            soft = _cast(column, self._type, self._name).combine_chunks().fill_null([0.0] * self.shape[1])
            values = soft.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            self._latest = group, values
        return self._latest[1]


def open_labels(source: Path | BinaryIO) -> tuple[Columns, Metadata]:
    """A labels file's columns and metadata, from a path or, to its end, from a binary stream.

    Soft labels are read when they are first used. Raises `RelabelError` when the file is missing, not
    Parquet, cut short or not a labels file.
    """
    name = str(source) if isinstance(source, Path) else "standard input"
    if isinstance(source, Path) and not source.is_file():
        raise RelabelError(f"The labels file {name} does not exist or is not a file.", "Check the path.")
    with _readable(name):
        file = (
            pa.OSFile(os.fsencode(source), "r")  # as text, it would have to be UTF-8
            if isinstance(source, Path)
            else pa.BufferReader(source.read())
        )
        is_parquet = file.read(4) == b"PAR1"
        file.seek(0)
        if is_parquet:
            return _read(pq.ParquetFile(file), name)
    if not isinstance(source, Path):
        raise RelabelError(f"{name} holds no Parquet file.", "Check the command before the pipe.")
    raise RelabelError(f"{name} is not a Parquet file.", "Name a file that relabel wrote.")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise RelabelError(f"{name} is cut short or damaged.", "Write or copy it again.") from error


def _read(file: pq.ParquetFile, name: str) -> tuple[Columns, Metadata]:
    metadata = Metadata.of_json((file.schema_arrow.metadata or {}).get(METADATA_KEY))
    if metadata is None:
        raise RelabelError(
            f"{name} is a Parquet file without relabel's metadata.",
            "Name the file as relabel wrote it; other tools drop the metadata when they save.",
        )
    expected = schema(len(metadata.class_names))
    missing = [column for column in expected.names if column not in file.schema_arrow.names]
    if missing:
        raise RelabelError(f"{name} lacks the column {missing[0]}.", "Name the file as relabel wrote it.")
    soft_label = FileSoftLabels(file, len(metadata.class_names), name)
    expected = expected.remove(expected.names.index("soft_label"))
    table = _cast(
        file.read(expected.names), expected.with_metadata(file.schema_arrow.metadata), name
    ).combine_chunks()
    classes = pa.array(metadata.class_names, pa.string())

    def ids(column: str) -> NDArray[np.int64]:
        found = pc.index_in(table[column], classes).fill_null(UNLABELLED)
        return np.asarray(found.to_numpy(), dtype=np.int64)

    errors = table["error"]
    failed = np.flatnonzero(errors.is_valid().to_numpy())
    columns = Columns(
        class_names=metadata.class_names,
        file_names=table["file_name"].to_pylist(),
        given=ids("original_label"),
        soft_label=soft_label,
        corrected=ids("corrected_label"),
        noise_probability=table["noise_probability"].fill_null(np.nan).to_numpy(),
        action=np.array(table["action"].fill_null("").to_pylist(), dtype=np.str_),
        trusted=table["trusted"].fill_null(False).to_numpy(),
        errors={int(row): errors[int(row)].as_py() for row in failed},
    )
    return columns, metadata


def _cast(values: Any, to: pa.Schema | pa.DataType, name: str) -> Any:  # noqa: ANN401 — a table or an array
    try:
        return values.cast(to)
    except pa.ArrowException as error:
        raise RelabelError(
            f"{name} has a column of the wrong type: {error}.", "Name the file as relabel wrote it."
        ) from error
