"""The label columns of tables with images or vectors: text, or numbers with names that `datasets` keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from relabel.data.draft_source import DraftSource, Request
from relabel.data.in_memory import Frame
from relabel.data.tables import cell_text, check_single, first_few, label_of, nfc, opened, printable
from relabel.errors import RelabelError

LABEL_COLUMN = "label"


def read_labels(paths: Sequence[Path | Frame], rows: DraftSource, request: Request) -> None:
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
    warn_of_index(paths, rows)


def warn_of_index(paths: Sequence[Path | Frame], rows: DraftSource) -> None:
    """Say where the column `index` of Parquet files misleads."""
    if not in_order(paths):
        rows.warn(
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
        self._trusted = options.trusted_column
        self._names: list[str] | None = None
        # Numbers may stand for --classes.
        self._kinds_to_check = (
            set() if options.classes else {self._label, options.trusted_column or self._label}
        )
        self._kinds: dict[str, str] = {}
        self.labels: list[str | None] = []
        self.trusted: list[str | None] = []

    def present(self, columns: Sequence[str], where: str) -> list[str]:
        """Those of the wanted columns that are there; RelabelError when a needed one is not."""
        flags = {self._label: "--label-column"} if self._required else {}
        if self._trusted is not None:
            flags[self._trusted] = "--trusted-column"
        for column, flag in flags.items():
            if column not in columns:
                raise RelabelError(
                    f"{where} has no column {column!r}; it has {first_few(list(columns), 10)}.",
                    f"Name the right one with {flag}.",
                )
        wanted = [self._label] if self._label in columns else []
        wanted += [self._trusted] if self._trusted else []
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
        if self._trusted is not None:
            trusted_names = names.get(self._trusted, own)
            self.trusted += _texts(table[self._trusted], trusted_names, where, self._trusted)

    def _check_kind(self, name: str, column: pa.ChunkedArray, where: str) -> None:
        """Refuse numbers in one file and text in another: the classes would be twice as many."""
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if column.null_count == len(column):
            return
        found = "text" if is_text(kind) else "numbers"
        before = self._kinds.setdefault(name, found)
        if before != found:
            raise RelabelError(
                f"{where} has {found} in the column {name!r}, and the files before it {before}.",
                "Write the labels of all files alike, or name the classes with --classes.",
            )

    def settle(self, rows: DraftSource) -> None:
        """Give what was collected to the rows."""
        trusted = None if self._trusted is None else self.trusted
        rows.take_labels(self.labels, trusted, self._names or ())


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


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text, as it is or by categories."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_plain(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null, is_text)
    return any(test(kind) for test in tests)
