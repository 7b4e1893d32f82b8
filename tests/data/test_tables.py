from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.data.in_memory import frame_of
from relabel.data.tables import (
    ROW_COLUMNS,
    Table,
    cell_text,
    first_few,
    label_of,
    named,
    opened,
    printable,
    read_table,
)
from relabel.errors import RelabelError

WriteTable = Callable[..., Path]
SUFFIXES = [".csv", ".jsonl", ".parquet"]


def shown(table: Table) -> tuple[list[str], list[str | None], list[int]]:
    return table.names, table.labels, list(table.rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_and_a_label_a_row(write_table: WriteTable, tmp_path: Path, suffix: str) -> None:
    rows = [("a.png", "cat"), ("b.png", ""), ("c.png", " dog ")]
    table = read_table(write_table(tmp_path / f"t{suffix}", rows))
    first = 2 if suffix == ".csv" else 1  # the header is a line of a text file
    assert shown(table) == (["a.png", "b.png", "c.png"], ["cat", None, "dog"], [first, first + 1, first + 2])
    assert (table.name_column, table.trusted) == ("file_name", None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_that_is_no_file_reads_the_same(write_table: WriteTable, tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"t{suffix}", [("a.png", "cat"), ("b.png", "dog")])
    content = path.read_bytes()
    assert shown(read_table(Path(f"inside/t{suffix}"), content=content)) == shown(read_table(path))


def test_the_first_of_several_columns_counts(write_table: WriteTable, tmp_path: Path) -> None:
    columns = ("path", "clean_label", "file_name", "label", "checked")
    path = write_table(tmp_path / "t.csv", [("p", "x", "f", "y", "z")], columns)
    table = read_table(path, label_columns=("clean_label", "label"), trusted_column="checked")
    assert (table.name_column, table.names, table.labels, table.trusted) == (
        "file_name",
        ["f"],
        ["x"],
        ["z"],
    )


def test_rows_may_have_no_names(write_table: WriteTable, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", [("x",), ("y",)], ("label",))
    table = read_table(path, ROW_COLUMNS, name_required=False)
    assert (table.name_column, table.names) == ("", ["0", "1"])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("file_name;label\na;x\nb;y\n", [2, 3]),
        ("file_name\tlabel\na\tx\nb\ty\n", [2, 3]),
        ("\ufefflabel , file_name\r\nx,a\r\n\r\ny,b\r\n", [2, 4]),
        ('file_name,note,label\n"a","two\nlines",x\nb,,y', [2, 4]),
        ("label,a;b,file_name\nx,1,a\ny,2,b\n", [2, 3]),
    ],
    ids=["semicolons", "tabs", "byte order mark and blank line", "quoted line", "semicolon in a name"],
)
def test_csv_as_programs_write_it(tmp_path: Path, text: str, rows: list[int]) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert shown(read_table(tmp_path / "t.csv")) == (["a", "b"], ["x", "y"], rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"file_name,label\na,x\nb\n", "t.csv, row 3: 1 cells where the header has 2"),
        ("t.csv", b'file_name,label\na,"x\n', "t.csv, row 2: not valid CSV"),
        ("t.csv", b"file_name,label\na,x\n\xff,y\n", "t.csv, row 3: the text is not UTF-8"),
        ("t.csv", b"file_name,label\n,x\n", "t.csv, row 2: file_name is empty"),
        ("t.csv", b"file_name,label,label\na,x,y\n", "t.csv has several columns 'label'"),
        ("t.csv", b"file,label\na,x\n", "t.csv needs the columns file_name and label, and has file, label"),
        ("t.csv", b"", "t.csv needs the columns file_name and label, and has none"),
        ("t.jsonl", b'{"file_name": "a", "label": "x"}\n[1]\n', "t.jsonl, row 2: not a JSON object"),
        ("t.jsonl", b"[" * 100_000, "t.jsonl, row 1: not a JSON object"),
        (
            "t.jsonl",
            b'{"file_name": "a", "label": {"x": 1}}\n',
            "row 1: label is a dict, not text or a number",
        ),
        ("t.parquet", b"nonsense", "t.parquet cannot be read"),
        ("t.xlsx", b"", "t.xlsx is not a kind of table"),
        ("gone.csv", None, "There is no file .*gone.csv"),
        ("gone.parquet", None, "There is no file .*gone.parquet"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_row(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RelabelError, match=message) as caught:
        read_table(tmp_path / name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (None, ""), (True, "true"), (3, "3"), (3.0, "3"), (2.5, "2.5"), (float("nan"), "")],
)
def test_a_cell_as_text(value: object, text: str) -> None:
    assert cell_text(value, "t.csv", 1, "label") == text


def test_labels_are_compared_in_one_form() -> None:
    assert label_of(" cafe\u0301 ") == "caf\u00e9"
    assert label_of("  ") is None
    assert printable("a\udcff") == "a\\udcff"


@pytest.mark.parametrize(("count", "text"), [(0, ""), (2, "a, b"), (4, "a, b, c, and 1 more")])
def test_the_first_few(count: int, text: str) -> None:
    items: Sequence[str] = "abcd"[:count]
    assert first_few(list(items), 3) == text


def test_columns_are_read_alike_from_a_file_and_from_memory(tmp_path: Path) -> None:
    table = pa.table({"a": range(5), "b": list("vwxyz")})
    pq.write_table(table, tmp_path / "t.parquet")
    for place in (tmp_path / "t.parquet", frame_of(table, "frame")):
        with opened(place) as file:
            assert file.schema_arrow.names == ["a", "b"]
            assert file.read(columns=["b"]).to_pydict() == {"b": list("vwxyz")}
            assert file.read(columns=[]).num_rows == 5
            batches = [batch.column("a").to_pylist() for batch in file.iter_batches(2, columns=["a"])]
        assert batches == [[0, 1], [2, 3], [4]]


def test_a_message_names_the_flag_of_a_file_alone() -> None:
    assert named("--trusted", Path("t.csv")) == "--trusted t.csv"
    assert named("--trusted", frame_of({"a": [1]}, "trusted")) == "trusted"
