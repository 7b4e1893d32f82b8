"""What is in memory reads as the same rows in a file would."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.config import SourceOptions
from relabel.data.file_index import FileIndex
from relabel.data.in_memory import (
    EMBEDDING,
    Frame,
    check_indexes,
    frame_of,
    labels_frame,
    trusted_frame,
    vectors_frame,
)
from relabel.data.sources import Source, open_source
from relabel.data.tables import read_table
from relabel.data.trusted import TrustedSet, trusted_of
from relabel.errors import RelabelError

Kind = Callable[[dict[str, list[object]]], object]
Tree = Callable[..., Path]

VECTORS = SourceOptions(features=EMBEDDING)
LISTED: dict[str, list[object]] = {
    "file_name": ["cat/a.png", "dog/b.png", "cat/c.png", "none.png"],
    "label": ["cat", "dog", None, "dog"],
    "verified": ["cat", None, None, None],
}


def pandas_frame(columns: dict[str, list[object]]) -> object:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(columns, index=[f"row {number}" for number in range(4)])


def pandas_categories(columns: dict[str, list[object]]) -> object:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(columns).astype({"label": "category"})


def polars_categories(columns: dict[str, list[object]]) -> object:
    return pl.DataFrame(columns).cast({"label": pl.Categorical})


class Interchanged:
    """A data frame of a library that knows the interchange protocol alone."""

    def __init__(self, columns: dict[str, list[object]]) -> None:
        self._table = pa.table(columns)

    def __dataframe__(self, *words: object, **options: object) -> object:
        return self._table.__dataframe__()


KINDS = [
    dict, pa.table, pl.DataFrame, polars_categories, pandas_frame, pandas_categories, Interchanged,
]  # fmt: skip


def rows_of(source: Source) -> dict[str, object]:
    """All of a source but where it is from."""
    vectors = source.vectors
    return {
        "names": source.file_names,
        "given": source.given.tolist(),
        "classes": source.class_names,
        "trusted": source.trusted,
        "errors": source.errors,
        "warnings": source.warnings,
        "kind": source.kind,
        "vectors": None if vectors is None else vectors.tolist(),
    }


def trusted_rows(trusted: TrustedSet) -> tuple[list[int], list[int], list[str]]:
    return trusted.rows.tolist(), trusted.labels.tolist(), trusted.warnings


def written(frame: Frame, path: Path) -> Path:
    pq.write_table(frame.table, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_of_file_names_is_a_manifest(kind: Kind, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree("cat/a.png", "dog/b.png", "cat/c.png")
    pq.write_table(pa.table(LISTED), folder / "list.parquet")
    monkeypatch.chdir(folder)
    options = SourceOptions(trusted_column="verified")
    source = open_source(frame_of(kind(LISTED), "source"), options=options)
    file = open_source("list.parquet", options=options)
    assert rows_of(source) == rows_of(file)
    assert source.errors == {3: "file not found"}
    assert source.location == "source"
    monkeypatch.chdir("/")
    with source.references[0].open("rb") as image:  # whatever the working directory becomes
        assert image.read(4) == b"\x89PNG"


def test_a_column_named_for_the_images(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree("a.png", "b.png"))
    frame = frame_of({"where": ["a.png", "b.png"], "kind": ["x", "y"]}, "source")
    source = open_source(frame, options=SourceOptions(image_column="where", label_column="kind"))
    assert (source.file_names, source.class_names) == (["a.png", "b.png"], ["x", "y"])


def test_classes_of_the_working_directory_are_not_those_of_a_frame(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree("a.png", "b.png"))
    Path("classes.txt").write_text("y\nx\n")
    frame = frame_of({"file_name": ["a.png", "b.png"], "label": ["x", "y"]}, "source")
    assert open_source(frame).class_names == ["x", "y"]
    named = open_source(frame, options=SourceOptions(classes="classes.txt"))
    assert named.class_names == ["y", "x"]


@pytest.mark.parametrize("kind", [dict, pa.table, pl.DataFrame, polars_categories, pandas_frame])
@pytest.mark.parametrize("features", ["f0,f1", "f*", "vector"])
def test_a_frame_of_vectors(kind: Kind, features: str, tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "id": ["a", "b", "c", "d"],
        "f0": [0.5, 1.5, None, 4.0],
        "f1": [1, 2, 3, 4],
        "vector": [[1.0, 2.0], [3.0, float("nan")], None, [1.0, 2.0]],
        "label": ["x", "y", "x", ""],
    }
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    options = SourceOptions(features=features)
    source = open_source(frame_of(kind(columns), "source"), options=options)
    assert rows_of(source) == rows_of(open_source(str(tmp_path / "vectors.parquet"), options=options))
    assert 2 in source.errors
    assert 3 not in source.errors


ARRAY = np.array([[0.5, 1, 2], [3, np.nan, 5], [6, 7, 1e39], [9, 10, 11]])


@pytest.mark.parametrize(
    "features",
    [
        ARRAY,
        ARRAY.tolist(),
        np.asfortranarray(ARRAY),
        ARRAY.astype(object),
        ARRAY[:, ::-1][:, ::-1],
        pl.DataFrame(ARRAY),
    ],
    ids=["array", "lists", "columns first", "objects", "view", "polars"],
)
def test_vectors_in_an_array(features: object, tmp_path: Path) -> None:
    labels = ["a", "b", None, "b"]
    source = open_source(vectors_frame(features, labels), options=VECTORS)
    lists = pa.table({EMBEDDING: ARRAY.tolist(), "label": labels})
    pq.write_table(lists, tmp_path / "vectors.parquet")
    assert rows_of(source) == rows_of(open_source(str(tmp_path / "vectors.parquet"), options=VECTORS))
    assert list(source.errors) == [1, 2]  # not finite, and not in float32


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int8, np.uint64, np.bool_, np.longdouble])
def test_vectors_of_any_kind_of_number(kind: type[np.generic]) -> None:
    source = open_source(vectors_frame(np.eye(3).astype(kind), list("aba")), options=VECTORS)
    assert source.vectors is not None
    assert (source.vectors == np.eye(3)).all()


def test_vectors_in_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.eye(3, requires_grad=True), torch.eye(3, dtype=torch.bfloat16)):
        source = open_source(vectors_frame(tensor, torch.tensor([0, 1, 0])), options=VECTORS)
        assert source.vectors is not None
        assert (source.vectors == np.eye(3)).all()
        assert source.class_names == ["0", "1"]


def test_vectors_of_other_lengths_are_rows_with_an_error() -> None:
    source = open_source(vectors_frame([[1, 2], [3], None, [4, 5]], list("abab")), options=VECTORS)
    assert list(source.errors) == [1, 2]


def test_an_array_is_not_copied() -> None:
    array = np.zeros((1000, 8), np.float32)
    held = vectors_frame(array).table[EMBEDDING].chunk(0).values
    assert held.buffers()[1].address == array.ctypes.data


@pytest.mark.parametrize(
    "labels",
    [
        ["10", "9", None, "9"],
        ["10", "9", "", "9"],
        ["10", "9", float("nan"), "9"],
        [10, 9, None, 9],
        [10, 9, -1, 9],
        np.array([10, 9, -1, 9]),
        np.array([10, 9, np.nan, 9]),
        np.array(["10", "9", "", "9"]),
        np.array(["10", "9", None, "9"], dtype=object),
        [np.int64(10), np.int64(9), np.int64(-1), np.int64(9)],
        pl.Series([10, 9, None, 9]),
        pl.Series(["10", "9", None, "9"], dtype=pl.Categorical),
        pa.chunked_array([[10, 9], [-1, 9]]),
        (text for text in ("10", "9", "", "9")),
    ],
)
def test_labels_of_any_kind(labels: object) -> None:
    source = open_source(vectors_frame(np.ones((4, 2)), labels), options=VECTORS)
    assert source.class_names == ["9", "10"]  # in the order of their numbers
    assert source.given.tolist() == [1, 0, -1, 0]


@pytest.mark.parametrize("kind", ["object", "category", "Int64", "float"])
def test_labels_in_a_series(kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([3, 2, None, 2], index=[7, 5, 3, 1], dtype="Int64").astype(kind)
    source = open_source(vectors_frame(np.ones((4, 2)), series), options=VECTORS)
    assert (source.class_names, source.given.tolist()) == (["2", "3"], [1, 0, -1, 0])


def test_numbers_may_stand_for_named_classes() -> None:
    options = replace(VECTORS, classes="cat,dog")
    source = open_source(vectors_frame(np.ones((3, 2)), [1, 0, -1]), options=options)
    assert (source.class_names, source.given.tolist()) == (["cat", "dog"], [1, 0, -1])


def test_vectors_get_their_labels_from_a_frame_or_an_array(tmp_path: Path) -> None:
    vectors = vectors_frame(np.eye(4))
    by_name = frame_of({"index": [0, 1, 3], "label": ["a", "b", "b"]}, "labels")
    path = written(by_name, tmp_path / "labels.parquet")
    expected = rows_of(open_source(vectors, path, VECTORS))
    assert rows_of(open_source(vectors, by_name, VECTORS)) == expected
    assert rows_of(open_source(vectors, labels_frame(["a", "b", None, "b"]), VECTORS)) == expected
    assert expected["given"] == [0, 1, -1, 1]


def labelled(count: int = 4) -> Source:
    frame = vectors_frame(np.eye(count), [["a", "b"][row % 2] for row in range(count)])
    return open_source(frame, options=VECTORS)


@pytest.mark.parametrize(
    "value",
    [
        ([2, 1], ["b", "a"]),
        (np.array([2, 1]), np.array(["b", "a"])),
        (np.array([2.0, 1.0]), pl.Series(["b", "a"])),
        (("2", "1"), ("b", "a")),
        ([False, True, True, False], ["a", "b"]),
        (np.array([False, True, True, False]), ["b", "a", "b", "a"]),
        (pl.Series([False, True, True, None]), pl.Series(["b", "a", "b", "a"], dtype=pl.Categorical)),
    ],
    ids=["numbers", "arrays", "floats", "names", "mask", "mask and all labels", "series"],
)
def test_trusted_rows_and_their_labels(value: tuple[object, object], tmp_path: Path) -> None:
    source = labelled()
    trusted = trusted_of(source, trusted_frame(value))
    assert dict(zip(trusted.rows.tolist(), trusted.labels.tolist(), strict=True)) == {1: 0, 2: 1}
    path = written(trusted_frame(value), tmp_path / "trusted.parquet")
    assert trusted_rows(trusted) == trusted_rows(trusted_of(source, path))


@pytest.mark.parametrize("kind", [dict, pa.table, pl.DataFrame, pandas_frame])
def test_a_frame_of_trusted_rows(kind: Kind, tree: Tree, tmp_path: Path) -> None:
    source = open_source(str(tree("cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png")))
    columns: dict[str, list[object]] = {
        "file_name": ["dog/a.png", "cat/a.png", "./cat/b.png", str(source.root / "dog/b.png")],
        "label": ["cat", "cat", "dog", "dog"],
    }
    path = written(frame_of(columns, "trusted"), tmp_path / "trusted.parquet")
    trusted = trusted_of(source, frame_of(kind(columns), "trusted"))
    assert trusted_rows(trusted) == trusted_rows(trusted_of(source, path))
    assert trusted.rows.tolist() == [2, 0, 1, 3]


TRUSTED_MISTAKES: list[dict[str, list[object]]] = [
    {"index": [0, 9], "label": ["a", "b"]},
    {"index": [0, 1], "label": ["a", "c"]},
    {"index": [0, 0], "label": ["a", "b"]},
    {"index": [0, 1], "label": ["a", None]},
    {"index": [0, None], "label": ["a", "b"]},
    {"index": [0, 1, 2, 3, 0], "label": list("ababa")},
    {"index": [], "label": []},
    {"index": [1]},
    {"index": [1], "label": [b"a"]},
]


@pytest.mark.parametrize("columns", TRUSTED_MISTAKES)
def test_a_mistake_is_told_as_of_a_file(columns: dict[str, list[object]], tmp_path: Path) -> None:
    source, frame = labelled(), frame_of(columns, "trusted")
    path = written(frame, tmp_path / "trusted.parquet")
    with pytest.raises(RelabelError) as in_file:
        trusted_of(source, path)
    with pytest.raises(RelabelError) as in_memory:
        trusted_of(source, frame)
    message = in_file.value.message.replace(f"--trusted {path}", "trusted").replace(str(path), "trusted")
    assert (in_memory.value.message, in_memory.value.hint) == (message, in_file.value.hint)


def test_a_message_names_the_frame_and_the_row() -> None:
    with pytest.raises(RelabelError, match=r"^trusted: the class is not one of SOURCE's: row 2 \('dog'\)"):
        trusted_of(labelled(), trusted_frame(([0, 1], ["a", "dog"])))
    frame = frame_of({"index": [0, 1, 7], "label": ["a", "b", "a"]}, "labels")
    with pytest.raises(RelabelError, match=r"^labels, row 3: '7' is not in features"):
        open_source(vectors_frame(np.eye(4)), frame, VECTORS)


def test_the_source_itself_is_no_trusted_set() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"index": [0, 1], "f": [1.0, 2.0], "label": ["a", "b"]})
    source = open_source(frame_of(table, "source"), options=SourceOptions(features="f"))
    with pytest.raises(RelabelError, match="trusted is SOURCE itself, so every given label"):
        trusted_of(source, frame_of(table, "trusted"))


def test_a_trusted_file_beside_a_frame_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("features")  # as the Frame is called
    path.with_suffix(".csv").write_text("index,label\n0,b\n1,a\n")
    path.symlink_to("features.csv")
    with pytest.raises(RelabelError, match="not a kind of table"):
        trusted_of(labelled(), path)
    assert trusted_of(labelled(), path.with_suffix(".csv")).rows.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: frame_of(3, "source"), "source is a int, not a table"),
        (lambda: frame_of([1, 2], "source"), "source is a list, not a table"),
        (lambda: frame_of(pl.Series([1, 2]), "source"), "source is a Series, not a table"),
        (lambda: frame_of({"a": [1], "b": [1, 2]}, "source"), "column 'a', has 1 entries and column 'b' 2"),
        (lambda: vectors_frame(np.ones(3)), r"features has the shape \[3\], not \[rows, dimensions\]"),
        (lambda: vectors_frame(np.ones((2, 0))), "features is empty"),
        (lambda: vectors_frame(5), r"features has the shape \[\]"),
        (lambda: vectors_frame([["a"], ["b"]]), "features holds <U1, not numbers"),
        (lambda: vectors_frame([["a", 1], ["b"]]), "something other than rows of numbers"),
        (lambda: vectors_frame(np.ones((3, 2)), ["a"]), "features has 3 entries and labels 1"),
        (lambda: vectors_frame(np.ones((2, 2)), np.ones((2, 2))), "labels holds fixed_size_list"),
        (lambda: vectors_frame(np.ones((2, 2)), "ab"), "labels cannot be read: it is a str, not a list"),
        (lambda: labels_frame([1, "a", 2]), "labels cannot be read: Could not convert 'a'"),
        (lambda: labels_frame([1, -1, 1]), "-1 stands for a row without a label"),
        (lambda: trusted_frame(([0, 1], ["a"])), "trusted, rows has 2 entries and its labels 1"),
        (lambda: trusted_frame(([0.5], ["a"])), "not all are whole numbers"),
        (lambda: trusted_frame(([True, False, True], ["a"])), "trusted, rows has 2 entries"),
        (lambda: trusted_frame([0, 1]), "trusted is a list, not a pair"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_table(make: Callable[[], Frame], message: str) -> None:
    with pytest.raises(RelabelError, match=message):
        make()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a"], "label": ["b"]},
            "source needs the columns file_name and label, and has text, label",
        ),
        ({"vector": [[1.0]], "label": ["b"]}, "source holds vectors in the column 'vector'"),
        ({"image": [b"png"], "label": ["b"]}, "source holds images themselves"),
        ({"file_name": [], "label": []}, "source has no rows"),
        ({"file_name": ["a.png"], "label": ["b"]}, "None of the 1 file"),
        (
            {"file_name": ["a.png", "./a.png"], "label": ["b", "c"]},
            "source, row 2: './a.png' is listed before",
        ),
        ({"file_name": ["a.png"], "label": [[1]]}, "source, row 1: label is a list, not text or a number"),
    ],
)
def test_a_frame_that_is_no_source(
    columns: dict[str, list[object]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RelabelError, match=message):
        open_source(frame_of(columns, "source"))


def test_entries_for_another_number_of_rows() -> None:
    with pytest.raises(RelabelError, match="labels has an entry for each of 3 rows, and there are 4"):
        open_source(vectors_frame(np.eye(4)), labels_frame(["a", "b", "a"]), VECTORS)
    with pytest.raises(RelabelError, match="trusted has an entry for each of 3 rows, and there are 4"):
        trusted_of(labelled(), trusted_frame(([True, True, False], ["a", "b"])))


def test_a_column_that_no_one_asks_for_may_hold_anything() -> None:
    mixed = frame_of({"file_name": ["a", "b"], "label": ["x", 3], "other": [object(), {}]}, "source")
    assert read_table(mixed, label_columns=(), label_required=False).names == ["a", "b"]
    with pytest.raises(RelabelError, match="source: the column 'label' cannot be read: "):
        read_table(mixed)


def test_columns_of_one_name_are_told_apart() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([["a", "x", "y"]], columns=["file_name", "label", "label"])
    with pytest.raises(RelabelError, match="source has several columns 'label'"):
        read_table(frame_of(table, "source"))


def test_the_truth_is_found_by_name() -> None:
    table, rows = FileIndex(Path(), ["a", "b", "c"]).read(
        frame_of({"file_name": ["c", "z"], "clean_label": ["x", "y"]}, "truth"), ("clean_label", "label")
    )
    assert (table.labels, rows) == (["x", "y"], [2, None])


def test_minus_one_is_no_label_even_where_gaps_made_the_numbers_floats():
    assert labels_frame([0.0, -1.0, float("nan"), 2.0]).table["label"].to_pylist() == [0, None, None, 2]
    assert labels_frame([0.5, -1.0]).table["label"].to_pylist() == [0.5, -1.0]


def test_what_is_masked_is_missing():
    labels = np.ma.masked_array([0, 1, 2], mask=[False, True, False])
    assert labels_frame(labels).table["label"].to_pylist() == [0, None, 2]
    vectors = np.ma.masked_array(np.ones((2, 2)), mask=[[True, False], [False, False]])
    found = vectors_frame(vectors).table[EMBEDDING].to_pylist()
    assert np.isnan(found[0][0])
    assert found[1] == [1, 1]


def test_indexes_that_tell_another_order_of_rows_are_refused():
    pandas = pytest.importorskip("pandas")
    moved = pandas.DataFrame({"x": [1.0, 2.0, 3.0]}, index=[2, 0, 1])
    labels = pandas.Series([0, 1, 2], index=[0, 1, 2])
    with pytest.raises(RelabelError, match="source and labels have the same index in different orders"):
        check_indexes({"source": moved, "labels": labels})
    with pytest.raises(RelabelError, match="trusted, rows is a pandas index, and that of source"):
        check_indexes({"source": moved}, (moved.index[:2], [0, 1]))
    with pytest.raises(RelabelError, match="trusted names rows by the column index"):
        check_indexes({"source": moved}, moved[:2].reset_index())
    mask = pandas.Series([True, False, True])
    with pytest.raises(RelabelError, match="source and trusted, rows have the same index"):
        check_indexes({"source": moved}, (mask, [0, 1]))
    with pytest.raises(RelabelError, match="trusted, rows and trusted, labels"):
        check_indexes({}, (labels, labels[::-1]))


def test_indexes_that_agree_with_positions_or_with_nothing_pass():
    pandas = pytest.importorskip("pandas")
    plain = pandas.DataFrame({"x": [1.0, 2.0, 3.0]})
    moved = plain.set_axis([2, 0, 1])
    check_indexes({"source": plain, "labels": pandas.Series([0, 1, 2])}, (plain.index[:2], [0, 1]))
    check_indexes({"source": moved, "labels": pandas.Series([0, 1, 2], index=[7, 8, 9])}, ([0, 1], [0, 1]))
    check_indexes({"features": moved, "labels": pandas.Series([0, 1, 2], index=[2, 0, 1])})
    check_indexes({"source": moved}, {"index": [0], "file_name": ["a"]})
    check_indexes({"source": plain.set_axis(["c", "a", "b"])}, plain.reset_index())
