"""The labels file: one Parquet row for every input row, in input order, and in its metadata what made it.

Plain Arrow types only, so pandas, polars, DuckDB and `datasets` read it as it is.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.data.tables import printable
from relabel.errors import RelabelError
from relabel.files import METADATA_KEY, atomic_path, check_output

# What writer and streaming readers hold at a time: 64 MB of soft labels at the most.
_ROWS_PER_GROUP = 65_536
_SHARES_PER_GROUP = 2**24
COMPRESSION = "zstd"
_WHOLE_MATRIX_CLASSES = 256
_CELLS_KEPT = 1_000
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class SoftLabelRows(Protocol):
    """An array [N, C], or what computes a part of its rows when asked for them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class LabelsFile:
    """A labels file in memory, but for the soft labels, the largest part of it.

    table: the other columns of `schema`; confidence: [N], the soft labels' maxima, 0 where there is none;
    metadata: its JSON.
    """

    table: pa.Table
    confidence: NDArray[np.float32]
    metadata: dict[str, Any]
    class_names: list[str]


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


def write_labels(
    destination: Path | BinaryIO,
    *,
    file_names: Sequence[str],
    given: NDArray[np.int64],
    soft_label: SoftLabelRows,
    noise_probability: NDArray[np.float32],
    action: Sequence[str] | NDArray[np.str_],
    trusted: NDArray[np.bool_],
    errors: Mapping[int, str],
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write the labels file; equal input gives equal bytes, to a path and to a stream alike.

    `given` is -1 for an unlabelled row; `soft_label` is [N, C], every other column [N]. `errors` names the
    rows, by index, that could not be used: their labels out are null whatever the arrays hold there.
    `metadata` is JSON data; the class names join it. A stream is left open, and its `BrokenPipeError` is the
    caller's.

    Raises `RelabelError` as `check_output` does, and `RunError` when the disk refuses.
    """
    rows, num_classes = soft_label.shape
    assert num_classes == len(class_names)
    assert {rows} == {len(column) for column in (file_names, given, noise_probability, action, trusted)}
    columns = _Columns(
        file_names, given, soft_label, noise_probability, action, trusted, errors, pa.array(class_names)
    )
    description = {**metadata, "class_names": list(class_names)}
    described = schema(num_classes).with_metadata({METADATA_KEY: metadata_json(description)})
    if isinstance(destination, Path):
        check_output(destination, overwrite)
        with atomic_path(destination) as temporary, temporary.open("wb") as stream:
            columns.write(stream, described)
    else:
        columns.write(destination, described)


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
        return len(content) if self.shut else self._stream.write(content)

    def flush(self) -> None:
        if not self.shut:
            self._stream.flush()

    def close(self) -> None:
        """The stream is the caller's."""


@dataclass(frozen=True)
class _Columns:
    """What `write_labels` is given."""

    file_names: Sequence[str]
    given: NDArray[np.int64]
    soft_label: SoftLabelRows
    noise_probability: NDArray[np.float32]
    action: Sequence[str] | NDArray[np.str_]
    trusted: NDArray[np.bool_]
    errors: Mapping[int, str]
    class_names: pa.Array

    def write(self, stream: BinaryIO, described: pa.Schema) -> None:
        """All rows, group by group: soft labels of one group are in memory at a time."""
        rows = len(self.file_names)
        step = max(1, min(_ROWS_PER_GROUP, _SHARES_PER_GROUP // len(self.class_names)))
        gate = _Gate(stream)
        try:
            writer = pq.ParquetWriter(gate, described, compression=COMPRESSION)
            for start in range(0, max(1, rows), step):
                part = slice(start, min(start + step, rows))
                writer.write_table(pa.Table.from_arrays(self._arrays(part), schema=described))
            writer.close()
        finally:
            gate.shut = True

    def _arrays(self, part: slice) -> list[pa.Array]:
        soft_label = np.ascontiguousarray(self.soft_label[part], dtype=np.float32)
        noise_probability, given = self.noise_probability[part], self.given[part]
        messages = np.array([self.errors.get(row) for row in range(part.start, part.stop)], dtype=object)
        failed = messages != None  # noqa: E711 — elementwise
        # A long run ends here, so rounding is forgiven; anything more is a defect of ours.
        assert np.allclose(soft_label[~failed].sum(axis=1), 1, atol=1e-3), "soft labels must sum to 1"
        scored = ~failed & (given >= 0)
        assert (np.abs(noise_probability[scored] - 0.5) <= 0.5 + 1e-6).all(), "probabilities must be in 0..1"
        given_id = pa.array(given, pa.int64(), mask=given < 0)
        corrected_id = pa.array(soft_label.argmax(axis=1), pa.int64(), mask=failed)
        shares = pa.array(soft_label.reshape(-1))
        return [
            pa.array(self.file_names[part], pa.string()),
            self.class_names.take(given_id),
            pa.FixedSizeListArray.from_arrays(shares, soft_label.shape[1], mask=pa.array(failed)),
            self.class_names.take(corrected_id),
            pa.array(noise_probability.clip(0, 1), pa.float32(), mask=~scored),
            pa.array(np.asarray(self.action[part], dtype=object), pa.string(), mask=failed),
            pa.array(self.trusted[part], pa.bool_()),
            pa.array(messages, pa.string()),
        ]


def read_labels(source: Path | BinaryIO) -> LabelsFile:
    """Read a labels file from a path or, to its end, from a binary stream.

    Raises `RelabelError` when it is missing, not Parquet, cut short or not a labels file.
    """
    name = str(source) if isinstance(source, Path) else "standard input"
    if isinstance(source, Path) and not source.is_file():
        raise RelabelError(f"The labels file {name} does not exist or is not a file.", "Check the path.")
    try:
        with (
            pa.OSFile(os.fsencode(source), "r")  # as text, it would have to be UTF-8
            if isinstance(source, Path)
            else pa.BufferReader(source.read()) as file
        ):
            is_parquet = file.read(4) == b"PAR1"
            file.seek(0)
            if is_parquet:
                return _read(pq.ParquetFile(file), name)
    except (pa.ArrowException, OSError) as error:
        raise RelabelError(f"{name} is cut short or damaged.", "Write or copy it again.") from error
    if not isinstance(source, Path):
        raise RelabelError(f"{name} holds no Parquet file.", "Check the command before the pipe.")
    raise RelabelError(f"{name} is not a Parquet file.", "Name a file that relabel wrote.")


def _read(file: pq.ParquetFile, name: str) -> LabelsFile:
    metadata = _from_json((file.schema_arrow.metadata or {}).get(METADATA_KEY))
    if metadata is None:
        raise RelabelError(
            f"{name} is a Parquet file without relabel's metadata.",
            "Name the file as relabel wrote it; other tools drop the metadata when they save.",
        )
    class_names: list[str] = metadata["class_names"]
    expected = schema(len(class_names))
    missing = [column for column in expected.names if column not in file.schema_arrow.names]
    if missing:
        raise RelabelError(f"{name} lacks the column {missing[0]}.", "Name the file as relabel wrote it.")
    place = expected.names.index("soft_label")
    type_of_soft_label, expected = expected.field(place).type, expected.remove(place)
    table = _cast(file.read(expected.names), expected.with_metadata(file.schema_arrow.metadata), name)
    confidence = [np.empty(0, dtype=np.float32)]
    rows = max(1, _SHARES_PER_GROUP // max(1, len(class_names)))
    for batch in file.iter_batches(rows, columns=["soft_label"]):
        soft = _cast(batch.column(0), type_of_soft_label, name).fill_null([0.0] * len(class_names))
        confidence.append(soft.flatten().to_numpy().reshape(len(batch), -1).max(axis=1))
    return LabelsFile(table, np.concatenate(confidence), metadata, class_names)


def _cast(values: Any, to: pa.Schema | pa.DataType, name: str) -> Any:  # noqa: ANN401 — a table or an array
    try:
        return values.cast(to)
    except pa.ArrowException as error:
        raise RelabelError(
            f"{name} has a column of the wrong type: {error}.", "Name the file as relabel wrote it."
        ) from error


def metadata_json(metadata: Mapping[str, Any]) -> bytes:
    """JSON data as the metadata of a file of ours; equal data give equal bytes.

    What is not valid Unicode, as in the path of a file, is escaped as `printable` does.
    """
    text = json.dumps(metadata, sort_keys=True, allow_nan=False, ensure_ascii=False)
    # With a second backslash, for to JSON one would be half of a character, which strict readers refuse.
    return _HALF_CHARACTER.sub(lambda half: "\\" + printable(half[0]), text).encode()


def matrix_metadata(
    name: str,
    matrix: NDArray[np.float64],
    class_names: Sequence[str],
    known: NDArray[np.bool_] | None = None,
) -> dict[str, list[Any]]:
    """A matrix [C, C] of p(given | true) as JSON data for the metadata, its shares to six digits.

    Of up to 256 classes it is whole, as lists under `name`. Readers of Parquet give up on metadata of 100 MB,
    so of more classes `NAME_diagonal` has the share [C] of each class that is given its own name, and
    `NAME_largest` the other cells above 0, the largest first and at the most 1,000 of them, as
    {true, given, share} with the classes' names. known: [C] true classes whose cells may be among these,
    where not all may.
    """
    rounded = matrix.round(6)
    if len(class_names) <= _WHOLE_MATRIX_CLASSES:
        return {name: rounded.tolist()}
    return {
        f"{name}_diagonal": rounded.diagonal().tolist(),
        f"{name}_largest": largest_confusions(
            rounded if known is None else rounded * known[:, None], class_names, _CELLS_KEPT
        ),
    }


def largest_confusions(
    matrix: NDArray[np.float64], class_names: Sequence[str], entries: int
) -> list[dict[str, Any]]:
    """The largest shares above 0 of a true class under another given label, of p(given | true) [C, C]."""
    shares = matrix.copy()
    np.fill_diagonal(shares, 0)
    cells = shares.ravel()
    shown = np.flatnonzero(cells > 0)
    if len(shown) > entries:  # of thousands of classes, millions, which would take long to sort
        shown = shown[cells[shown] >= np.partition(cells[shown], -entries)[-entries]]
    shown = shown[np.argsort(-cells[shown], kind="stable")][:entries]
    pairs = [divmod(int(cell), len(class_names)) for cell in shown]
    return [
        {"true": class_names[true], "given": class_names[given], "share": float(shares[true, given])}
        for true, given in pairs
    ]


def _from_json(text: bytes | None) -> dict[str, Any] | None:
    """Return the metadata, or None when it is not what `metadata_json` made."""
    try:
        metadata = json.loads(text or b"null")
    except ValueError:
        return None
    names = metadata.get("class_names") if isinstance(metadata, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return dict(metadata)
