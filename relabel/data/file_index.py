"""Finds the rows of SOURCE that a table names, as people write file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from relabel.data.in_memory import Frame
from relabel.data.manifests import file_key, root_prefixes
from relabel.data.tables import ROW_COLUMNS, Table, nfc, read_table
from relabel.errors import RelabelError


class FileIndex:
    """Finds the row of a file name as a person may write it: `./a/b.png`, `a\\b.png`, or absolute.

    A name that is none as it stands may be one in another Unicode form.
    """

    def __init__(self, root: Path, file_names: Sequence[str]) -> None:
        self._roots = root_prefixes(root)
        self._rows = {file_key(name, self._roots): row for row, name in enumerate(file_names)}
        self._names = file_names

    def find(self, name: str) -> int | None:
        """Position of `name` in `file_names`, or None."""
        spellings = (name, name.replace("\\", "/"))
        exact = (self._rows.get(file_key(spelling, self._roots)) for spelling in spellings)
        row = next((row for row in exact if row is not None), None)
        if row is None:
            roots, rows = self._composed
            alike = (rows.get(file_key(nfc(spelling), roots)) for spelling in spellings)
            row = next((row for row in alike if row is not None), None)
        return row

    @cached_property
    def _composed(self) -> tuple[list[str], dict[str, int | None]]:
        """The roots and the rows' names in NFC; None for names that differ in their form alone."""
        rows: dict[str, int | None] = {}
        for key, row in self._rows.items():
            composed = nfc(key)
            rows[composed] = None if composed in rows else row
        return list(map(nfc, self._roots)), rows

    def find_all(self, table: Table) -> list[int | None]:
        """The row that each entry of a table names by one of `ROW_COLUMNS`, or None."""
        if table.name_column != "index":
            return [self.find(name) for name in table.names]
        return [_position(text, len(self._names)) for text in table.names]

    def read(
        self, path: Path | Frame, label_columns: Sequence[str] = ("label",)
    ) -> tuple[Table, list[int | None]]:
        """The table `path`, which names rows by one of `ROW_COLUMNS`, and each entry's row, None if unknown.

        Where it has both `index` and `id`, it names rows by `id` if any is the name of one: an `index` may be
        left over from a table whose rows had another order. Raises RelabelError as `read_table`, and for a
        Frame with an entry for each row of another number of rows.
        """
        if isinstance(path, Frame) and path.source_rows not in (None, len(self._names)):
            raise RelabelError(
                f"{path} has an entry for each of {path.source_rows} rows, and there are {len(self._names)}.",
                "Give one entry for each row, in the order of the rows.",
            )
        table = read_table(path, ROW_COLUMNS, label_columns=label_columns)
        if table.name_column == "index" and any(
            name != str(number) for number, name in enumerate(self._names)
        ):
            ids = read_table(
                path, (), label_columns=("id",), name_required=False, label_required=False
            ).labels
            by_id = [None if name is None else self.find(name) for name in ids]
            if any(row is not None for row in by_id):
                return replace(table, name_column="id", names=[name or "" for name in ids]), by_id
        return table, self.find_all(table)


def naming_hint(table: Table, names: Sequence[str]) -> str:
    """How a table should name the rows of SOURCE, whose names these are."""
    if table.name_column == "index":
        return f"index counts from 0 to {len(names) - 1}."
    return f"Name files as SOURCE does, for example {names[0]!r}."


def _position(text: str, length: int) -> int | None:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
        return None
    return int(digits) if int(digits) < length else None
