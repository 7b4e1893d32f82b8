"""Reads vectors, one a row of one or more Parquet files: embeddings of text, of sound, of anything.

`--features` names the column of lists they lie in, or the numeric columns they are spread over: names and
globs (`f_*`) between commas. Columns are read in batches, into a mapped file, and never as Python objects.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from relabel.data.in_memory import Frame
from relabel.data.tables import NAME_COLUMNS, ROW_COLUMNS, check_single, first_few, opened, read_table
from relabel.errors import RelabelError
from relabel.files import scratch_array

_LABELS = ("label", "clean_label")
# What a glob does not stand for, beside labels; `__index_level_0__` holds pandas' own row numbers.
_NO_FEATURES = (*ROW_COLUMNS, "__index_level_0__")
_Read = Callable[[], Iterator[tuple[int, list[pa.Array]]]]
_BATCH = 8192  # rows held as Arrow arrays at a time


@dataclass
class VectorTable:
    """The rows of Parquet files, one file after the other.

    names: the name column's, or else row numbers from 0; starts: the first row of each of `paths`; vectors:
    [N, D], zeros in the rows that `errors` says are unusable, and why.
    """

    names: list[str]
    paths: Sequence[Path | Frame]
    starts: Sequence[int]
    vectors: NDArray[np.float32]
    errors: dict[int, str]

    def place(self, row: int) -> tuple[Path | Frame, int]:
        """The file that a row lies in, and its number there, from 1."""
        file = bisect_right(self.starts, row) - 1
        return self.paths[file], row - self.starts[file] + 1


def read_vectors(paths: Sequence[Path | Frame], features: str, labels: Sequence[str] = ()) -> VectorTable:
    """Read the vectors that `features` names, and the names that lie beside them.

    labels: columns that hold labels, beside those that always do. Raises RelabelError, naming the file and
    column, for what holds no vectors at all and for files of different columns; a row whose list is missing,
    of another length than most, or not finite in float32 is noted in `errors`.
    """
    names, starts = names_of(paths)
    if not names:
        raise RelabelError(f"{first_few(list(map(str, paths)))} has no rows.", "Write one vector a row.")
    columns: list[str] = []
    kinds: list[pa.DataType] = []
    for path in paths:
        with opened(path) as file:
            schema = file.schema_arrow
        found = _columns(schema, features, path, (*_LABELS, *labels))
        kinds.append(_storage(schema.field(found[0]).type))
        if (columns and found != columns) or _is_list(kinds[-1]) != _is_list(kinds[0]):
            raise RelabelError(
                f"--features {features}: {path} has other such columns than {paths[0]}.",
                "Name one kind of file at a time.",
            )
        columns = found
    read = partial(_batches, paths, columns)
    if _is_list(kinds[0]):
        vectors, errors = _read_lists(read, len(names), kinds)
    else:
        vectors, errors = _read_scalars(read, len(names), len(columns))
    table = VectorTable(names, paths, starts, vectors, errors)
    if len(errors) == len(names):
        raise RelabelError(
            f"--features {features}: no row of {table.place(0)[0]} can be used (the first: {errors[0]}).",
            "Name another column, or write the file again.",
        )
    return table


def names_of(paths: Sequence[Path | Frame]) -> tuple[list[str], list[int]]:
    """The names of all rows of Parquet files with vectors, and the first row of each file."""
    tables = [
        read_table(path, (*NAME_COLUMNS, "id"), label_columns=(), name_required=False, label_required=False)
        for path in paths
    ]
    starts = list(accumulate((len(table.names) for table in tables), initial=0))
    named = [path for path, table in zip(paths, tables, strict=True) if table.name_column]
    if not named:
        return list(map(str, range(starts[-1]))), starts[:-1]
    if bare := {str(path) for path in paths if path not in named}:
        raise RelabelError(
            f"{min(bare)} does not name its rows, as {named[0]} does.",
            f"Add one of the columns {', '.join((*NAME_COLUMNS, 'id'))}.",
        )
    return [name for table in tables for name in table.names], starts[:-1]


def holds_vectors(schema: pa.Schema, features: str) -> bool:
    """Whether a table has the columns that `features` names."""
    try:
        return bool(_columns(schema, features, Path(), _LABELS))
    except RelabelError:
        return False


def standardisation(
    vectors: NDArray[np.float32], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale [D] that make each dimension's mean 0 and its deviation 1 over the rows `usable` [N].

    The scale of a dimension that does not vary beyond float32's rounding is 0: a vector to come must not be
    multiplied by a million for differing there.
    """
    rows = np.flatnonzero(usable)
    parts = np.array_split(rows, -(-len(rows) // _BATCH))
    mean = sum(vectors[part].sum(axis=0, dtype=np.float64) for part in parts) / len(rows)
    variance = sum(((vectors[part] - mean) ** 2).sum(axis=0) for part in parts) / len(rows)
    deviation = np.sqrt(variance)
    varies = deviation > 1e-6 * np.abs(mean) + 1e-30
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    return mean.astype(np.float32), scale.astype(np.float32)


def _columns(schema: pa.Schema, features: str, path: Path | Frame, labels: Sequence[str]) -> list[str]:
    """The columns that `features` stands for, all of numbers or one of lists."""
    names = schema.names
    chosen = [features] if features in names else _matching(names, features, path, labels)
    for name in chosen:
        if name in labels:
            raise RelabelError(
                f"--features {features}: the column {name!r} of {path} holds the labels.", "Name another."
            )
        check_single(names, [name], str(path))
        kind = _storage(schema.field(name).type)
        if not _is_number(kind.value_type if _is_list(kind) else kind):
            raise RelabelError(
                f"--features {features}: the column {name!r} of {path} holds {kind}, neither numbers nor "
                "lists of numbers.",
                "Name the columns of the vectors.",
            )
        if _is_list(kind) and len(chosen) > 1:
            raise RelabelError(
                f"--features {features}: the column {name!r} of {path} holds whole vectors.",
                f"Name it alone: --features {name}.",
            )
    return chosen


def _matching(names: Sequence[str], features: str, path: Path | Frame, labels: Sequence[str]) -> list[str]:
    apart = {*labels, *_NO_FEATURES}
    chosen: dict[str, None] = {}
    for pattern in (part.strip() for part in features.split(",")):
        # Sorted, so that a file to predict may have its columns in another order than the one of the fit.
        found = sorted(name for name in names if fnmatchcase(name, pattern) and name not in apart)
        found = [pattern] if pattern in names else found
        if not found:
            raise RelabelError(
                f"--features {features}: {path} has no column {pattern!r}, but {first_few(names, 10)}.",
                "Name columns between commas, or several by a glob such as 'f_*'.",
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _batches(paths: Sequence[Path | Frame], columns: Sequence[str]) -> Iterator[tuple[int, list[pa.Array]]]:
    """(first row, the columns' arrays) batch by batch. Raises RelabelError for a damaged file."""
    start = 0
    for path in paths:
        with opened(path) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                arrays = [batch.column(name) for name in columns]
                yield start, [getattr(array, "storage", array) for array in arrays]
                start += len(batch)


def _read_lists(
    read: _Read, count: int, kinds: Sequence[pa.DataType]
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Vectors [N, D] and errors; D is the commonest length, which lists of any length take two passes for."""
    if all(kind == kinds[0] and pa.types.is_fixed_size_list(kind) for kind in kinds):
        dimension = kinds[0].list_size
    else:
        lengths = [pc.list_value_length(lists).cast(pa.int64()) for _, (lists,) in read()]
        found, counts = np.unique(pa.chunked_array(lengths).drop_null().to_numpy(), return_counts=True)
        dimension = int(found[counts.argmax()]) if len(found) else 0
    vectors = scratch_array((count, dimension), np.float32)
    errors: dict[int, str] = {}
    for start, (lists,) in read():
        lengths = pc.list_value_length(lists)
        fits = pc.fill_null(pc.and_(pc.equal(lengths, dimension), pc.greater(lengths, 0)), False)
        fitting = fits.to_numpy(zero_copy_only=False)
        values = _float32(lists.filter(fits).flatten())
        _fill(vectors, start + np.flatnonzero(fitting), values.reshape(-1, max(1, dimension)), errors)
        for row in np.flatnonzero(~fitting):
            length = lengths[row].as_py()
            error = f"the vector has {length} values" + (f", not {dimension}" if length != dimension else "")
            errors[start + int(row)] = "there is no vector" if length is None else error
    return vectors, errors


def _read_scalars(read: _Read, count: int, dimension: int) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Vectors [N, D] and errors, one of the D columns a dimension."""
    vectors = scratch_array((count, dimension), np.float32)
    errors: dict[int, str] = {}
    for start, arrays in read():
        rows = np.arange(start, start + len(arrays[0]))
        _fill(vectors, rows, np.column_stack([_float32(array) for array in arrays]), errors)
    return vectors, errors


def _fill(
    vectors: NDArray[np.float32], rows: NDArray[np.intp], values: NDArray[np.float32], errors: dict[int, str]
) -> None:
    """Put `values` [n, D] into the rows [n]; those that are not finite become errors."""
    finite = np.isfinite(values).all(axis=1)
    vectors[rows[finite]] = values[finite]
    for row in rows[~finite]:
        errors[int(row)] = "the vector has a value that is missing or not finite"


def _float32(values: pa.Array) -> NDArray[np.float32]:
    """Nulls become NaN, and what float32 cannot hold infinite."""
    floats: NDArray[np.float32] = values.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return floats
