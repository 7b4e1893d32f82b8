"""Reads the tables that name images: CSV, Parquet or JSON lines, with a name column and a label column.

Only the columns that matter are kept. Row numbers are what the user sees when opening the file: line
numbers for text (the CSV header is row 1), 1-based rows for Parquet.
"""

import csv
import io
import json
import math
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from relabel.data.in_memory import Frame
from relabel.errors import RelabelError

NAME_COLUMNS = ("file_name", "filename", "image_path", "path")
ROW_COLUMNS = (*NAME_COLUMNS, "index", "id")
"""What a table may name rows of SOURCE by; `index` counts them from 0, `id` is the name of a vector."""

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")


@dataclass
class Table:
    """A name and a label per entry; `rows[i]` is the row number to show for entry i."""

    name_column: str
    names: list[str]
    labels: list[str | None]  # None where empty
    rows: Sequence[int]
    trusted: list[str | None] | None  # None where empty; None without a trusted column


@dataclass
class _Cells:
    found: list[str]  # every column of the file
    columns: dict[str, list[object]]  # only the wanted ones among them
    rows: Sequence[int]


def read_table(
    path: Path | Frame,
    name_columns: Sequence[str] = NAME_COLUMNS,
    *,
    label_columns: Sequence[str] = ("label",),
    trusted_column: str | None = None,
    name_required: bool = True,
    label_required: bool = True,
    content: bytes | None = None,
) -> Table:
    """Read the first of `name_columns` that is there, the first of `label_columns`, and `trusted_column`.

    Without any of `name_columns`, where none is required, `name_column` is empty and the names are numbers
    from 0. content: what `path`, then only a name, would hold. Raises RelabelError, naming the file and row,
    for anything that is not such a table.
    """
    further = [] if trusted_column is None else [trusted_column]
    cells = _read_cells(path, content, list(dict.fromkeys((*name_columns, *label_columns, *further))))
    name_column = next((column for column in name_columns if column in cells.columns), None)
    label_column = next((column for column in label_columns if column in cells.columns), None)
    if (
        (name_required and name_column is None)
        or (label_required and label_column is None)
        or not cells.columns.keys() >= {*further}
    ):
        needed = [*name_columns[:name_required], *label_columns[-1:][:label_required], *further]
        others = f"; for {name_columns[0]}, also accepted: {', '.join(name_columns[1:])}"
        raise RelabelError(
            f"{path} needs the column{'s' * (len(needed) > 1)} {', '.join(needed[:-1])}"
            f"{' and ' * (len(needed) > 1)}{needed[-1]}, and has "
            f"{first_few(cells.found, 10) or 'none'}.",
            f"Rename the columns{others * (len(name_columns) > 1)}.",
        )
    names = [str(number) for number in range(len(cells.rows))]
    if name_column is not None:
        names = list(_texts(cells, name_column, path))
    for name, row in zip(names, cells.rows, strict=True):
        if not name:
            raise RelabelError(
                f"{path}, row {row}: {name_column} is empty.", "Fill it in, or remove the row."
            )
    labels: list[str | None] = [None] * len(names)
    if label_column is not None:
        labels = _labels(cells, label_column, path)
    trusted = None if trusted_column is None else _labels(cells, trusted_column, path)
    return Table(name_column or "", names, labels, cells.rows, trusted)


def _read_cells(path: Path | Frame, content: bytes | None, wanted: Sequence[str]) -> _Cells:
    if isinstance(path, Frame) or path.suffix.lower() == ".parquet":
        return _read_columns(path, content, wanted)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise RelabelError(
            f"{path} is not a kind of table that can be read here.",
            "Use .csv, .parquet or .jsonl with the columns file_name and label.",
        )
    read = _read_jsonl if path.suffix.lower() == ".jsonl" else _read_csv
    try:
        return read(path, content, wanted)
    except FileNotFoundError:
        raise _missing(path) from None
    except UnicodeDecodeError:
        raise RelabelError(
            f"{path}, row {_undecodable_line(path, content)}: the text is not UTF-8.",
            "Save the file as UTF-8.",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _texts(cells: _Cells, column: str, path: Path | Frame) -> Iterator[str]:
    for value, row in zip(cells.columns[column], cells.rows, strict=True):
        yield cell_text(value, path, row, column)


def _labels(cells: _Cells, column: str, path: Path | Frame) -> list[str | None]:
    return [label_of(text) for text in _texts(cells, column, path)]


def opened(
    path: Path | Frame, content: bytes | None = None
) -> AbstractContextManager[pq.ParquetFile | Frame]:
    """As `parquet_file`, or a Frame in place of one."""
    return nullcontext(path) if isinstance(path, Frame) else parquet_file(path, content)


@contextmanager
def parquet_file(path: Path, content: bytes | None = None) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read columns of; content: what `path`, then only a name, would hold.

    What goes wrong while it is open raises RelabelError, naming the file.
    """
    try:
        # Not through a Python file: a thread of Arrow's that still holds a buffer of one when the interpreter
        # ends aborts the process.
        source = pa.OSFile(os.fsencode(path), "r") if content is None else pa.BufferReader(content)
        with source, pq.ParquetFile(source) as file:
            yield file
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def named(flag: str, path: Path | Frame) -> str:
    """What a message calls the table of a flag: the flag and the path, or the name of what is in memory."""
    return str(path) if isinstance(path, Frame) else f"{flag} {path}"


def unreadable(path: Path | Frame, error: Exception) -> RelabelError:
    """What to say of a table that the file system or Arrow gave up on."""
    return RelabelError(f"{path} cannot be read: {brief(error)}.", "Write the file again.")


def _missing(path: Path) -> RelabelError:
    return RelabelError(f"There is no file {path}.", "Check the spelling of the path.")


def check_single(columns: Sequence[str], wanted: Iterable[str], where: str) -> None:
    """Refuse a table, which `where` names, that has a wanted column more than once."""
    for name in wanted:
        if columns.count(name) > 1:
            raise RelabelError(f"{where} has several columns {name!r}.", "Rename all but one of them.")


def first_few(items: Sequence[str], limit: int = 5) -> str:
    """List `items` for a sentence: the first `limit`, then how many more there are."""
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return ", ".join([*items[:limit], *more])


def brief(error: BaseException) -> str:
    """What an error of the system or of a library says, as part of a sentence."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200].rstrip(".")


def printable(text: str) -> str:
    """Escape what is not valid Unicode (odd file names, JSON half-characters): Arrow would refuse it."""
    return text.encode("utf-8", "backslashreplace").decode()


def nfc(text: str) -> str:
    """Text in the Unicode form of keyboards and most programs; names of files made on a Mac have another."""
    return unicodedata.normalize("NFC", text)


def label_of(text: str) -> str | None:
    """A label as it is compared and written: printable, in one Unicode form; None where it is empty."""
    return nfc(printable(text.strip())) or None


def _open(path: Path, content: bytes | None) -> IO[bytes]:
    return open(path, "rb") if content is None else io.BytesIO(content)


def _read_csv(path: Path, content: bytes | None, wanted: Sequence[str]) -> _Cells:
    with io.TextIOWrapper(_open(path, content), encoding="utf-8-sig", newline="") as file:
        found: list[str] = []
        columns: dict[str, list[object]] = {}
        picked: list[tuple[int, list[object]]] = []
        rows: list[int] = []
        row = 1
        try:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(file.readline(), wanted)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if not cells:
                    pass  # a blank line
                elif not found:
                    found = [name.strip() for name in cells]
                    check_single(found, wanted, str(path))
                    columns = {name: [] for name in wanted if name in found}
                    picked = [(found.index(name), values) for name, values in columns.items()]
                elif len(cells) != len(found):
                    raise RelabelError(
                        f"{path}, row {row}: {len(cells)} cells where the header has {len(found)}.",
                        "Put quotes around a cell that holds a separator.",
                    )
                else:
                    rows.append(row)
                    for position, values in picked:
                        values.append(cells[position])
                row = reader.line_num + 1  # a quoted cell may span lines: report where the row starts
        except csv.Error as error:
            raise RelabelError(
                f"{path}, row {row}: not valid CSV ({error}).", "Check the quotes in that row."
            ) from None
    return _Cells(found, columns, rows)


def _delimiter(header: str, wanted: Collection[str]) -> str:
    """The mark of those in the header line that parts it into most of the wanted columns."""

    def columns(mark: str) -> set[str]:
        return {name.strip() for name in next(csv.reader([header], delimiter=mark), [])}

    marks = [mark for mark in ",;\t" if mark in header] or [","]
    return max(marks, key=lambda mark: len(columns(mark).intersection(wanted)))


def _undecodable_line(path: Path, content: bytes | None) -> int:
    with _open(path, content) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _read_jsonl(path: Path, content: bytes | None, wanted: Sequence[str]) -> _Cells:
    found: dict[str, None] = {}
    columns: dict[str, list[object]] = {name: [] for name in wanted}
    rows = []
    with io.TextIOWrapper(_open(path, content), encoding="utf-8-sig") as file:
        for row, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise RelabelError(
                    f"{path}, row {row}: not a JSON object.",
                    'Write one object a line, such as {"file_name": "a.png", "label": "cat"}.',
                )
            found.update(dict.fromkeys(entry))
            rows.append(row)
            for name, values in columns.items():
                values.append(entry.get(name))
    return _Cells(list(found), {name: columns[name] for name in wanted if name in found}, rows)


def _read_columns(path: Path | Frame, content: bytes | None, wanted: Sequence[str]) -> _Cells:
    with opened(path, content) as file:
        found = list(file.schema_arrow.names)
        check_single(found, wanted, str(path))
        table = file.read(columns=[name for name in wanted if name in found])
        columns = {name: table.column(name).to_pylist() for name in wanted if name in found}
        return _Cells(found, columns, range(1, table.num_rows + 1))


def cell_text(value: object, path: object, row: int, column: str) -> str:
    """A cell as text, empty where there is nothing; RelabelError for anything but text and numbers."""
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float() if math.isnan(value):
            return ""
        case float():  # pandas turns integers with gaps into floats
            return str(int(value)) if value.is_integer() else str(value)
    raise RelabelError(
        f"{path}, row {row}: {column} is a {type(value).__name__}, not text or a number.",
        f"Write {column} as text.",
    )
