import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.errors import RelabelError
from relabel.labels import parquet
from relabel.labels.metadata import MatrixRecord, Metadata, NoiseReport, Run, matrix_metadata
from relabel.labels.parquet import Columns, open_labels, schema, write_labels

CLASSES = ["Katze 🐈", "犬", "bird"]
FILE_NAMES = ["Katze/é.png", "犬/2.png", "x/broken.png", "new/4.png", "犬/5.png"]


SOFT = np.array([[0.75, 0.25, 0], [0.25, 0.25, 0.5], [0, 0, 0], [0.5, 0.25, 0.25], [0, 1, 0]], np.float32)
METADATA = Metadata(CLASSES, run=Run(corrector="mslc", seed=1))


def columns(junk: float = np.nan, **changes: Any) -> Columns:
    """Five rows; row 2 failed and holds `junk`, row 3 is unlabelled, row 4 trusted."""
    soft_label = SOFT.copy()
    soft_label[2] = junk
    values = {
        "class_names": CLASSES,
        "file_names": FILE_NAMES,
        "given": np.array([0, 1, 2, -1, 0]),
        "soft_label": soft_label,
        "corrected": np.array([0, 2, 2, 0, 1]),
        "noise_probability": np.array([0.25, 0.75, junk, junk, 1], np.float32),
        "action": np.array(["keep", "fix", "keep", "review", "fix"]),
        "trusted": np.array([False, False, True, False, True]),
        "errors": {2: "cannot identify the image: ü"},
    }
    return Columns(**{**values, **changes})


EXPECTED = {
    "file_name": FILE_NAMES,
    "original_label": ["Katze 🐈", "犬", "bird", None, "Katze 🐈"],
    "soft_label": [[0.75, 0.25, 0], [0.25, 0.25, 0.5], None, [0.5, 0.25, 0.25], [0, 1, 0]],
    "corrected_label": ["Katze 🐈", "bird", None, "Katze 🐈", "犬"],
    "noise_probability": [0.25, 0.75, None, None, 1],
    "action": ["keep", "fix", None, "review", "fix"],
    "trusted": [False, False, True, False, True],
    "error": [None, None, "cannot identify the image: ü", None, None],
}


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    path = tmp_path / "split=train" / "labels.parquet"  # a folder that looks like a Hive partition
    path.parent.mkdir()
    write_labels(path, columns(), METADATA)
    return path


def test_round_trip_from_a_path_and_from_a_stream(labels_file: Path) -> None:
    with labels_file.open("rb") as stream:
        for source in (labels_file, stream):
            found, metadata = open_labels(source)
            assert found.class_names == CLASSES
            assert found.file_names == FILE_NAMES
            assert found.given.tolist() == [0, 1, 2, -1, 0]
            assert found.corrected.tolist() == [0, 2, -1, 0, 1]
            np.testing.assert_array_equal(found.soft_label[:], SOFT)
            np.testing.assert_array_equal(found.noise_probability, [0.25, 0.75, np.nan, np.nan, 1])
            assert found.action.tolist() == ["keep", "fix", "", "review", "fix"]
            assert found.trusted.tolist() == [False, False, True, False, True]
            assert found.errors == {2: "cannot identify the image: ü"}
            assert metadata.to_dict() == METADATA.to_dict()


def test_the_schema_is_the_documented_one() -> None:
    assert [(field.name, str(field.type)) for field in schema(3)] == [
        ("file_name", "string"),
        ("original_label", "string"),
        ("soft_label", "fixed_size_list<item: float>[3]"),
        ("corrected_label", "string"),
        ("noise_probability", "float"),
        ("action", "string"),
        ("trusted", "bool"),
        ("error", "string"),
    ]


def test_the_metadata_is_sorted_readable_json(labels_file: Path) -> None:
    text = pq.read_schema(labels_file).metadata[b"relabel"].decode()
    assert text.startswith('{"class_names": ["Katze 🐈", "犬", "bird"], "corrector": "mslc", ')
    assert [*json.loads(text)] == sorted(json.loads(text))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_labels(io.BytesIO(), columns(), Metadata(CLASSES, noise=NoiseReport(np.nan)))


def test_what_is_not_unicode_is_escaped_in_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "la\udcffbels.parquet"
    odd = Metadata(CLASSES, command="relabel fit 'src\udcff'", run=Run(described={"\ud800": [r"\d"]}))
    write_labels(path, columns(), odd)
    _, stored = open_labels(path)
    assert stored.command == r"relabel fit 'src\udcff'"
    assert stored.run.described == {r"\ud800": [r"\d"]}


def test_a_matrix_of_thousands_of_classes_leaves_the_file_readable(tmp_path: Path) -> None:
    """Arrow writes metadata twice, the second time in base64, and readers stop at 100 MB."""
    names = [f"class{number}" for number in range(4_000)]
    matrix = np.full((4_000, 4_000), 1e-5)
    np.fill_diagonal(matrix, np.linspace(0, 1, 4_000))
    matrix[7, 3_000], matrix[3_999, 0] = 0.5, 0.25
    path = tmp_path / "labels.parquet"
    wide = columns(class_names=names, soft_label=np.full((5, 4_000), 1 / 4_000, np.float32))
    write_labels(path, wide, Metadata(names, noise_matrix=MatrixRecord.of(matrix, names)))
    assert path.stat().st_size < 1e6
    assert len(pq.read_table(path)) == 5
    stored = json.loads(pq.read_schema(path).metadata[b"relabel"])
    assert "noise_matrix" not in stored
    assert stored["noise_matrix_diagonal"] == matrix.diagonal().round(6).tolist()
    assert len(stored["noise_matrix_largest"]) == 1_000
    largest = [
        {"true": "class7", "given": "class3000", "share": 0.5},
        {"true": "class3999", "given": "class0", "share": 0.25},
        {"true": "class0", "given": "class1", "share": 1e-5},
    ]
    assert stored["noise_matrix_largest"][:3] == largest
    _, metadata = open_labels(path)
    assert metadata.to_json() == pq.read_schema(path).metadata[b"relabel"]
    assert metadata.noise_matrix is not None
    assert [vars(cell) for cell in metadata.noise_matrix.confusions(names, 3)] == largest


def test_a_matrix_of_some_classes_is_whole() -> None:
    assert matrix_metadata("noise_matrix", np.eye(256), list(map(str, range(256)))) == {
        "noise_matrix": np.eye(256).tolist()
    }
    assert matrix_metadata("noise_matrix", np.eye(257), list(map(str, range(257)))) == {
        "noise_matrix_diagonal": [1] * 257,
        "noise_matrix_largest": [],
    }


def test_equal_input_gives_equal_bytes_whatever_failed_rows_hold(labels_file: Path) -> None:
    for junk in (np.nan, np.inf, 7.0):
        stream = io.BytesIO()
        write_labels(stream, columns(junk), METADATA)
        assert stream.getvalue() == labels_file.read_bytes()


def test_several_row_groups_keep_nulls_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROWS_PER_GROUP", 2)
    path = tmp_path / "labels.parquet"
    write_labels(path, columns(), METADATA)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert pq.read_table(path).to_pydict() == EXPECTED
    again = io.BytesIO()
    write_labels(again, *open_labels(path))
    assert again.getvalue() == path.read_bytes()


def test_soft_labels_of_a_file_are_read_group_by_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROWS_PER_GROUP", 2)
    path = tmp_path / "labels.parquet"
    write_labels(path, columns(), METADATA)
    read = []
    plain = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.append(group)
        return plain(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    soft_label = open_labels(path)[0].soft_label
    assert read == [], "none before its first use"
    for start in range(5):
        for stop in range(start, 6):
            np.testing.assert_array_equal(soft_label[start:stop], SOFT[start:stop])
    read.clear()
    for row in range(5):
        np.testing.assert_array_equal(soft_label[row : row + 1], SOFT[row : row + 1])
    assert read == [0, 1, 2], "small parts in order read no group twice"


def test_a_file_that_is_replaced_does_not_change_labels_read_before(labels_file: Path) -> None:
    found, metadata = open_labels(labels_file)
    other = columns(soft_label=SOFT[:, ::-1].copy() + np.float32([[0]] * 2 + [[1]] + [[0]] * 2))
    write_labels(labels_file, other, metadata, overwrite=True)
    np.testing.assert_array_equal(found.soft_label[:], SOFT)


def test_soft_labels_are_asked_for_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once may be more than memory holds."""
    monkeypatch.setattr(parquet, "_SHARES_PER_GROUP", 6)
    read = []
    whole = SOFT

    class SoftLabels:
        shape = whole.shape

        def __getitem__(self, rows: slice) -> np.ndarray:
            read.append((rows.start, rows.stop))
            return whole[rows]

    write_labels(tmp_path / "labels.parquet", columns(soft_label=SoftLabels()), METADATA)
    assert read == [(0, 2), (2, 4), (4, 5)]
    assert pq.read_table(tmp_path / "labels.parquet").to_pydict() == EXPECTED


def test_no_rows(tmp_path: Path) -> None:
    whole = columns()
    empty = {name: getattr(whole, name)[:0] for name in vars(whole) if name not in ("errors", "class_names")}
    path = tmp_path / "labels.parquet"
    write_labels(path, Columns(class_names=CLASSES, errors={}, **empty), METADATA)
    found, _ = open_labels(path)
    assert len(found) == 0
    assert found.soft_label[:].shape == (0, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"file_names": FILE_NAMES[:4]},
        {"class_names": CLASSES[:2]},
        {"soft_label": np.ones((5, 3), np.float32)},
        {"errors": {}},  # row 2 then has a soft label of NaN
        {"noise_probability": np.full(5, np.nan, np.float32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_our_own_mistakes_do_not_reach_a_file(change: dict[str, Any]) -> None:
    stream = io.BytesIO()
    with pytest.raises(AssertionError):
        write_labels(stream, columns(**change), METADATA)
    gc.collect()  # a writer that is freed completes its file
    with pytest.raises(RelabelError):
        open_labels(io.BytesIO(stream.getvalue()))


def test_an_existing_file_is_replaced_only_when_told(labels_file: Path) -> None:
    before = labels_file.read_bytes()
    with pytest.raises(RelabelError, match="--overwrite"):
        write_labels(labels_file, columns(), Metadata(CLASSES))
    assert labels_file.read_bytes() == before
    write_labels(labels_file, columns(), Metadata(CLASSES), overwrite=True)
    assert open_labels(labels_file)[1].run == Run()


def test_an_interrupt_midway_leaves_the_old_file(labels_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = labels_file.read_bytes()

    def interrupted(writer: pq.ParquetWriter, table: pa.Table) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq.ParquetWriter, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_labels(labels_file, columns(), METADATA, overwrite=True)
    assert labels_file.read_bytes() == before
    assert os.listdir(labels_file.parent) == [labels_file.name]


def test_standard_output_gets_the_same_bytes_through_a_pipe(labels_file: Path) -> None:
    script = (
        "import sys, runpy\n"
        f"here = runpy.run_path({__file__!r})\n"
        "from relabel.labels.parquet import write_labels\n"
        "write_labels(sys.stdout.buffer, here['columns'](), here['METADATA'])\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert finished.stdout == labels_file.read_bytes()


def test_a_closed_pipe_is_the_callers() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "wb", buffering=0)
    with pytest.raises(BrokenPipeError):
        write_labels(stream, columns(), METADATA)
    stream.close()


def test_files_that_are_not_labels_files(labels_file: Path) -> None:
    content = labels_file.read_bytes()
    good = pq.read_table(pa.BufferReader(content))
    path = labels_file.with_name("bad.parquet")

    def refused(message: str) -> None:
        with pytest.raises(RelabelError, match=message):
            open_labels(path)

    refused("bad.parquet does not exist")
    path.write_bytes(b"file_name,label\n")
    refused("not a Parquet file")
    path.write_bytes(b"")
    refused("not a Parquet file")
    for length in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused("cut short or damaged")
    pq.write_table(good.replace_schema_metadata(None), path)
    refused("without relabel's metadata")
    for text in ("{", "[]", "{}", '{"class_names": [1]}'):
        pq.write_table(good.replace_schema_metadata({"relabel": text}), path)
        refused("without relabel's metadata")
    pq.write_table(good.drop_columns(["action"]), path)
    refused("lacks the column action")
    pq.write_table(good.replace_schema_metadata({"relabel": '{"class_names": ["a", "b"]}'}), path)
    refused("wrong type")
    pq.write_table(good.append_column("note", pa.array([1] * 5)), path)
    assert open_labels(path)[0].file_names == FILE_NAMES
    with pytest.raises(RelabelError, match="standard input is cut short"):
        open_labels(io.BytesIO(content[:100]))


def test_pandas(labels_file: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(labels_file, partitioning=None)
    assert list(frame.columns) == list(EXPECTED)
    assert frame["file_name"].tolist() == FILE_NAMES
    assert frame["soft_label"][1].tolist() == [0.25, 0.25, 0.5]
    assert frame["soft_label"].isna().tolist() == [False, False, True, False, False]
    assert frame["original_label"].isna().tolist() == [False, False, False, True, False]


def test_polars(labels_file: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(labels_file, hive_partitioning=False)
    assert frame.to_dict(as_series=False) == EXPECTED


def test_duckdb(labels_file: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT * FROM read_parquet('{labels_file}', hive_partitioning = false)"
    with duckdb.connect() as connection:
        rows = connection.execute(query).fetchall()
    for row, expected in zip(rows, zip(*EXPECTED.values(), strict=True), strict=True):
        assert [list(value) if isinstance(value, tuple) else value for value in row] == list(expected)


def test_datasets(labels_file: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(labels_file), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["soft_label"].length == 3
    assert loaded.to_dict() == EXPECTED
