"""Tables that are in memory: data frames and arrays of the Python API, read as a Parquet file would be.

A `Frame` is accepted wherever a path to a table is, and its name stands for the file in messages. Rows count
from 1 there, as in Parquet files. A data frame's index is not one of its columns: rows count by position.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa

from relabel.errors import RelabelError
from relabel.types import PathLike

EMBEDDING = "embedding"
"""The column of `vectors_frame` that holds the vectors: what `--features` names."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Columns in memory, under the name that messages call them by.

    source_rows: for entries that stand for the rows of SOURCE by position, how many rows it must have, else
    None; broken: columns that Arrow cannot hold, and why; origin: what the columns were taken from.
    """

    table: pa.Table
    name: str
    source_rows: int | None = None
    broken: Mapping[str, str] = field(default_factory=dict)
    origin: object = None

    def __str__(self) -> str:
        return self.name

    @property
    def schema_arrow(self) -> pa.Schema:
        """As `pq.ParquetFile.schema_arrow`."""
        return self.table.schema

    def read(self, columns: Sequence[str]) -> pa.Table:
        """As `pq.ParquetFile.read`: the named columns. Raises RelabelError for a broken one."""
        for column in columns:
            if column in self.broken:
                raise RelabelError(
                    f"{self.name}: the column {column!r} cannot be read: {self.broken[column]}.",
                    "Write text or numbers, one kind in a column.",
                )
        table = self.table.select(columns)
        for at, column in enumerate(table.columns):
            if (contiguous := _without_views(column)) is not column:
                table = table.set_column(at, columns[at], contiguous)
        return table

    def iter_batches(self, batch_size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """As `pq.ParquetFile.iter_batches`; nothing is copied."""
        yield from self.read(columns).to_batches(max_chunksize=batch_size)


def frame_of(value: object, name: str) -> Frame:
    """The Frame of a pandas or polars data frame, an Arrow table, or a dict of columns by name.

    Columns of numbers are not copied where Arrow can share them. Raises RelabelError for anything else, and
    for columns of different lengths.
    """
    if isinstance(value, Frame):
        return value
    if isinstance(value, pa.Table):
        return Frame(value, name, origin=value)
    if hasattr(value, "iloc") and hasattr(value, "columns"):
        columns = [(str(column), value.iloc[:, at]) for at, column in enumerate(value.columns)]
        return _from_columns(columns, name, value)
    if isinstance(value, Mapping):
        return _from_columns([(str(column), values) for column, values in value.items()], name, value)
    if hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__"):
        try:
            return Frame(pa.table(value), name, origin=value)
        except (TypeError, ValueError, pa.ArrowException):
            pass  # a series, whose stream is none of tables
    elif hasattr(value, "__dataframe__"):
        from pyarrow.interchange import from_dataframe

        return Frame(from_dataframe(value), name, origin=value)
    raise RelabelError(
        f"{name} is a {type(value).__name__}, not a table.",
        "Give a path, a pandas or polars DataFrame, an Arrow table, or a dict of lists.",
    )


def is_path(value: object) -> TypeGuard[PathLike]:
    """Whether a value names a file, a folder or a data set."""
    return isinstance(value, str | os.PathLike)


def is_table(value: object) -> bool:
    """Whether a value is a data frame, an Arrow table or a dict of columns, not one value a row."""
    return isinstance(value, Frame | Mapping) or hasattr(value, "columns")


def path_or_frame(labels: object, name: str) -> Path | Frame:
    """A path as it is, a table, or one label for each row of SOURCE, as `labels_frame` has them."""
    if is_path(labels):
        return Path(labels)
    return frame_of(labels, name) if is_table(labels) else labels_frame(labels, name)


def vectors_frame(features: object, labels: object = None, name: str = "features") -> Frame:
    """The Frame of an array of vectors [N, D] and, unless None, their labels [N], as `labels_frame` has them.

    `EMBEDDING` is its column of vectors. Rows of numbers that differ in length are rows with an error, as in
    a file. Raises RelabelError for anything that is no such array, and for another number of labels.
    """
    vectors = _vectors(features, name)
    columns = {EMBEDDING: vectors}
    if labels is not None:
        texts = _labels(labels, "labels")
        if len(texts) != len(vectors):
            raise _unequal(name, len(vectors), "labels", len(texts))
        columns["label"] = texts
    return Frame(pa.table(columns), name, origin=features)


def labels_frame(labels: object, name: str = "labels") -> Frame:
    """The Frame of labels [N], one for each row of SOURCE in its order: a list, an array or a series.

    Labels are text or numbers; a number is the name of its class, as text, and such names are in the order
    of their numbers. None, NaN, empty text and, among whole numbers, -1 are unlabelled.
    """
    texts = _labels(labels, name)
    table = pa.table({"index": pa.array(np.arange(len(texts))), "label": texts})
    return Frame(table, name, source_rows=len(texts), origin=labels)


def trusted_frame(value: object, name: str = "trusted") -> Frame:
    """The Frame of (rows, true labels): M rows of SOURCE and the true label of each.

    rows: positions from 0, a mask [N] of booleans, or names of rows; with a mask, the labels may also be one
    for every row of SOURCE, of which only those of the mask are read.
    """
    if not isinstance(value, tuple) or len(value) != 2:
        raise RelabelError(
            f"{name} is a {type(value).__name__}, not a pair of rows and labels.",
            "Give (rows, labels): the numbers of the trusted rows, from 0, and the true label of each.",
        )
    rows, labels = _column(value[0], f"{name}, rows"), _labels(value[1], f"{name}, labels")
    source_rows = None
    if pa.types.is_boolean(rows.type):
        mask = rows.fill_null(False).to_numpy(zero_copy_only=False)
        source_rows = len(mask)
        rows = pa.array(np.flatnonzero(mask))
        if len(labels) == source_rows:
            labels = labels.take(rows)
    elif pa.types.is_floating(rows.type):
        rows = _whole(rows, f"{name}, rows")
    if len(rows) != len(labels):
        raise _unequal(f"{name}, rows", len(rows), "its labels", len(labels))
    column = "index" if pa.types.is_integer(rows.type) else "file_name"
    return Frame(pa.table({column: rows, "label": labels}), name, source_rows=source_rows, origin=value)


def check_indexes(rows: Mapping[str, object], trusted: object = None) -> None:
    """Refuse pandas indexes by which rows would stand elsewhere than by their positions, which alone count.

    rows: what has one entry for every row of SOURCE, by name; trusted: as a caller of `fit` gave it.
    """
    frames: dict[str, Any] = {name: value for name, value in rows.items() if hasattr(value, "iloc")}
    indexes = {
        name: value.index
        for name, value in frames.items()
        if name != "labels" or not hasattr(value, "columns")
    }
    _check_order(indexes)
    moved = next((name for name, index in indexes.items() if not _counts_rows(index)), None)
    pair: Any = trusted if isinstance(trusted, tuple) and len(trusted) == 2 else (None, None)
    parts = dict(zip(("trusted, rows", "trusted, labels"), pair, strict=True))
    named = pair[0]
    if moved and hasattr(named, "get_indexer") and named.dtype.kind in "iu":
        raise _moved("trusted, rows is a pandas index", moved)
    own = {name: value.index for name, value in parts.items() if hasattr(value, "iloc")}
    _check_order(own)
    if getattr(getattr(named, "dtype", None), "kind", None) == "b":
        _check_order(indexes | own)
    for name, table in (("trusted", trusted), ("labels", rows.get("labels"))):
        columns = {str(column) for column in getattr(table, "columns", ())}
        if moved and "index" in columns and not columns & _ROW_NAMES:
            raise _moved(f"{name} names rows by the column index", moved)


_ROW_NAMES = {"file_name", "filename", "image_path", "path", "id"}


def _counts_rows(index: Any) -> bool:  # noqa: ANN401
    """Whether a pandas index counts from 0, or is none of numbers, by which nobody counts rows."""
    return index.dtype.kind not in "iu" or np.array_equal(index, np.arange(len(index)))


def _check_order(indexes: Mapping[str, Any]) -> None:
    """Refuse two pandas indexes that have the same entries in another order."""
    for (one, index), (other, own) in combinations(indexes.items(), 2):
        if len(index) != len(own) or index.equals(own) or not (index.is_unique and own.is_unique):
            continue
        if index.isin(own).all():
            raise RelabelError(
                f"{one} and {other} have the same index in different orders, and rows count by position.",
                "Bring them into one order, or give .to_numpy() of both.",
            )


def _moved(what: str, moved: str) -> RelabelError:
    return RelabelError(
        f"{what}, and that of {moved} does not count from 0: rows count by position.",
        f"Give positions: {moved}.index.get_indexer(rows).",
    )


def _from_columns(columns: Iterable[tuple[str, object]], name: str, origin: object) -> Frame:
    names: list[str] = []
    arrays: list[pa.Array | pa.ChunkedArray] = []
    broken: dict[str, str] = {}
    for column, values in columns:
        try:
            array = _column(values, f"{name}, column {column!r}")
        except RelabelError as error:  # raised only where the column is used
            array = pa.nulls(len(values) if hasattr(values, "__len__") else 0)
            broken[column] = error.message.partition(" cannot be read: ")[2].rstrip(".") or "it is no list"
        if arrays and len(array) != len(arrays[0]):
            raise _unequal(f"{name}, column {names[0]!r},", len(arrays[0]), f"column {column!r}", len(array))
        names.append(column)
        arrays.append(array)
    return Frame(pa.Table.from_arrays(arrays, names=names), name, broken=broken, origin=origin)


def _column(values: object, where: str) -> pa.Array | pa.ChunkedArray:
    """One value a row as Arrow has them, NaN as null in text, integers and labels alike."""
    try:
        if hasattr(values, "columns"):
            raise TypeError("it is a table, not one value a row")
        if hasattr(values, "iloc"):
            return pa.Array.from_pandas(values)
        if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
            return pa.chunked_array(values)
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise TypeError(f"it is a {type(values).__name__}, not a list")
        array = as_numpy(values) if hasattr(values, "__array__") else None
        if array is None:
            return pa.array(list(values), from_pandas=True)
        if array.ndim == 1:
            return pa.array(array, from_pandas=True)
        if array.ndim == 2:
            return _lists(array)
        raise TypeError(f"it has the shape {list(array.shape)}, not one value a row")
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise RelabelError(
            f"{where} cannot be read: {' '.join(str(error).split()).rstrip('.')}.",
            "Give a list, an array or a series of text or numbers.",
        ) from None


def as_numpy(values: object) -> np.ndarray[Any, np.dtype[Any]]:
    """An array of numpy's; a tensor, which may need its gradient or lie on a GPU, through its own methods.

    What a masked array masks is None.
    """
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        return np.asarray(tensor.float() if "bfloat16" in str(tensor.dtype) else tensor)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        held: np.ndarray[Any, np.dtype[Any]] = values.data.astype(object)
        held[np.ma.getmaskarray(values)] = None
        return held
    return np.asarray(values)


def _lists(array: np.ndarray[Any, np.dtype[Any]]) -> pa.Array:
    """The rows of [N, D] as lists of one length, which share the array's memory where it lies row by row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _vectors(features: object, name: str) -> pa.Array:
    if hasattr(features, "toarray") and hasattr(features, "nnz"):
        raise RelabelError(f"{name} is a sparse matrix.", "Give an array: features=matrix.toarray().")
    try:
        array = as_numpy(features)
    except (TypeError, ValueError):  # rows of different lengths
        return _ragged(features, name)
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            return _ragged(features, name)
    if array.ndim != 2:
        raise RelabelError(
            f"{name} has the shape {list(array.shape)}, not [rows, dimensions].", "Give one vector a row."
        )
    if array.dtype.kind not in "fiub":
        raise RelabelError(f"{name} holds {array.dtype}, not numbers.", "Give an array of floats.")
    if 0 in array.shape:
        raise RelabelError(f"{name} is empty: its shape is {list(array.shape)}.", "Give one vector a row.")
    return _lists(array.astype(np.float64) if array.dtype.itemsize > 8 else array)


def _ragged(features: object, name: str) -> pa.Array:
    try:
        if not isinstance(features, Iterable):
            raise TypeError
        rows = [None if row is None else np.asarray(row, np.float64) for row in features]
        return pa.array(rows, type=pa.list_(pa.float64()))
    except (TypeError, ValueError, pa.ArrowException):
        raise RelabelError(
            f"{name} holds something other than rows of numbers.",
            "Give one vector of floats a row.",
        ) from None


def _labels(labels: object, where: str) -> pa.Array:
    """One label a row; -1 among whole numbers, which gaps may have made floats, is null."""
    column = _column(labels, where)
    column = _without_views(pa.chunked_array(column)).combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type):
        raise RelabelError(f"{where} holds {column.type}, not one label a row.", "Give one label a row.")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column
    numbers = [number if number is None or math.isfinite(number) else None for number in column.to_pylist()]
    if not all(number is None or number == int(number) for number in numbers):
        return column
    if set(numbers) - {None} == {-1, 1}:
        raise RelabelError(
            f"{where} holds the numbers -1 and 1 alone, and -1 stands for a row without a label.",
            "Write the classes as text, or as 0 and 1.",
        )
    return pa.array([None if number == -1 else number for number in numbers], column.type)


def _without_views(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text as Arrow computes with: of views of text, as polars has them, it cannot take rows."""
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_dictionary(column.type) and pa.types.is_string_view(column.type.value_type):
        chunks = [
            pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string()))
            for chunk in column.chunks
        ]
        return pa.chunked_array(chunks, pa.dictionary(column.type.index_type, pa.large_string()))
    return column


def _whole(rows: pa.Array | pa.ChunkedArray, where: str) -> pa.Array:
    """Row numbers that some library has made floats."""
    try:
        return rows.cast(pa.int64())
    except pa.ArrowException:
        raise RelabelError(f"{where}: not all are whole numbers.", "Count rows from 0.") from None


def _unequal(one: str, count: int, other: str, other_count: int) -> RelabelError:
    return RelabelError(
        f"{one} has {count} entries and {other} {other_count}.", "Give as many of the one as of the other."
    )
