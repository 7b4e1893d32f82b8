"""Vectors as people keep them: lists or columns, any number format, with rows that are broken."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.config import SourceOptions
from relabel.data import vectors
from relabel.data.sources import UNLABELLED, open_source
from relabel.data.trusted import read_trusted, trusted_of
from relabel.data.vectors import read_vectors, standardisation
from relabel.errors import RelabelError

VALUES = np.arange(12).reshape(4, 3)
LABELS = ["cat", "dog", "cat", None]
V = SourceOptions(features="v")


@pytest.fixture
def write(tmp_path):
    """Write columns as `v.parquet`, and return its path."""

    def go(**columns: object) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "v.parquet")
        return tmp_path / "v.parquet"

    return go


def lists(kind: pa.DataType | None = None, size: int = -1, values: object = VALUES) -> pa.Array:
    return pa.array(
        [None if row is None else list(row) for row in values], pa.list_(kind or pa.float32(), size)
    )


@pytest.mark.parametrize(
    "kind", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64(), pa.uint8()]
)
@pytest.mark.parametrize("form", ["fixed", "list", "large", "columns"])
def test_every_form_and_number_format_gives_the_same_vectors(write, kind, form):
    rows = VALUES.astype(kind.to_pandas_dtype())
    if form == "columns":
        path, features = write(**{f"f_{n}": pa.array(rows[:, n], kind) for n in range(3)}), "f_*"
    else:
        whole = lists(kind, 3 if form == "fixed" else -1, rows)
        path, features = write(v=whole.cast(pa.large_list(kind)) if form == "large" else whole), "v"
    table = read_vectors([path], features)
    assert table.vectors.dtype == np.float32
    np.testing.assert_array_equal(table.vectors, VALUES)
    assert table.errors == {}
    assert table.names == ["0", "1", "2", "3"]


def test_a_tensor_column_is_read_as_its_storage(write):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES.astype(np.float32))
    np.testing.assert_array_equal(read_vectors([write(v=tensors)], "v").vectors, VALUES)


@pytest.mark.parametrize("size", [-1, 3])
@pytest.mark.parametrize("batch", [1, 3, 8192])
def test_a_broken_row_is_an_error_and_shifts_no_other(write, monkeypatch, size, batch):
    monkeypatch.setattr(vectors, "_BATCH", batch)
    rows = [
        [1, 2, 3],
        None,
        [4, None, 6],
        [7, 8, 9],
        [np.nan, 1, 1],
        [1, np.inf, 1],
        [1e300, 0, 0],
        [1, 1, 1],
    ]
    odd = [] if size == 3 else [[1, 2], [], [1, 2, 3, 4]]
    table = read_vectors([write(v=lists(pa.float64(), size, rows + odd))], "v")
    np.testing.assert_array_equal(table.vectors[[0, 3, 7]], [[1, 2, 3], [7, 8, 9], [1, 1, 1]])
    assert sorted(table.errors) == [1, 2, 4, 5, 6, *range(8, 8 + len(odd))]
    assert not table.vectors[list(table.errors)].any()
    assert table.errors[1] == "there is no vector"
    assert {table.errors[row] for row in (2, 4, 5, 6)} == {
        "the vector has a value that is missing or not finite"
    }
    if odd:
        assert table.errors[8] == "the vector has 2 values, not 3"
        assert table.errors[9] == "the vector has 0 values, not 3"


def test_a_hole_in_one_of_many_columns_is_an_error(write):
    table = read_vectors([write(a=[1.0, None, 3.0], b=[1, 2, 3], c=[True, False, True])], "a,b,c")
    np.testing.assert_array_equal(table.vectors, [[1, 1, 1], [0, 0, 0], [3, 3, 1]])
    assert table.errors == {1: "the vector has a value that is missing or not finite"}


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        ("b", ["b"]),
        ("b, a", ["b", "a"]),
        ("f*", ["f1", "f2", "f[0]"]),
        ("f2,f*", ["f2", "f1", "f[0]"]),
        ("f[0]", ["f[0]"]),
        ("*", ["a", "b", "f1", "f2", "f[0]"]),
        ("a,b", ["a,b"]),
    ],
)
def test_names_and_globs_choose_columns_but_never_labels_or_row_names(write, features, chosen):
    columns = {name: [float(place)] for place, name in enumerate(["b", "a", "f1", "f2", "f[0]"])}
    if features == "a,b":
        columns["a,b"] = [9.0]
    path = write(**columns, label=[7], clean_label=[7], id=[7], index=[7], __index_level_0__=[7])
    expected = [[columns[name][0] for name in chosen]]
    np.testing.assert_array_equal(read_vectors([path], features).vectors, expected)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("w", "v.parquet has no column 'w', but v, f_0, text, label, w_0"),
        ("f_0,g_*", "v.parquet has no column 'g_*'"),
        ("", "v.parquet has no column ''"),
        ("text", "the column 'text' of"),
        ("f_0,text", "holds string, neither numbers nor lists of numbers."),
        ("v,f_0", "holds whole vectors. Name it alone: --features v."),
        ("label", "the column 'label' of"),
        ("names", "holds list<element: string>, neither"),
        ("empty", "no row of"),
        ("hollow", "can be used (the first: there is no vector)."),
    ],
)
def test_columns_that_hold_no_vectors_are_refused_by_name(write, features, message):
    path = write(
        v=lists(), f_0=[1, 2, 3, 4], text=["a"] * 4, label=[1, 2, 1, 2], w_0=[1] * 4, names=[["a"]] * 4,
        empty=pa.array([[]] * 4, pa.list_(pa.float32())), hollow=pa.array([None] * 4, pa.list_(pa.int8(), 3)),
    )  # fmt: skip
    with pytest.raises(RelabelError) as refusal:
        read_vectors([path], features)
    assert message in str(refusal.value)
    assert str(path) in refusal.value.message
    assert refusal.value.hint


def test_files_that_are_no_whole_parquet_file_are_refused(write, tmp_path):
    path = write(v=lists())
    with pytest.raises(RelabelError, match="has no rows"):
        read_vectors([write(v=pa.array([], pa.list_(pa.float32())))], "v")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(RelabelError, match=r"v\.parquet cannot be read"):
        read_vectors([path], "v")
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["f", "f"])
    pq.write_table(twice, path)
    with pytest.raises(RelabelError, match="several columns 'f'"):
        read_vectors([path], "f")


def test_a_page_that_cannot_be_decoded_is_one_sentence(write):
    path = write(v=lists(values=np.random.default_rng(0).random((2000, 3))))
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(RelabelError, match=r"v\.parquet cannot be read"):
        read_vectors([path], "v")


@pytest.mark.parametrize("batch", [3, 8192])
def test_standardisation_is_over_usable_rows_and_safe_where_nothing_varies(monkeypatch, batch):
    monkeypatch.setattr(vectors, "_BATCH", batch)
    rng = np.random.default_rng(0)
    units = np.array([1.0, 1e-6, 1e6, 1.0, 1.0])
    rows = (rng.normal(3, 1, (50, 5)) * units).astype(np.float32)
    rows[:, 3] = 0.1
    rows[:, 4] = 1e6 + np.float32(0.0625) * (np.arange(50) % 2)  # the last bit of float32
    usable = np.arange(50) % 7 != 0
    rows[~usable] = 1e9
    mean, scale = standardisation(rows, usable)
    assert mean.dtype == scale.dtype == np.float32
    scaled = ((rows - mean) * scale)[usable]
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled[:, :3].std(axis=0), 1, rtol=1e-3)
    assert (scale[3:] == 0).all()


def test_a_source_of_vectors_has_names_labels_and_errors_in_order(write):
    path = write(id=[10, 11, 12, 13], v=lists(values=[[1, 2], None, [3, 4], [5, 6]]), label=[2, 10, 10, None])
    source = open_source(str(path), options=V)
    assert (source.kind, source.noun, source.references) == ("vectors", "vectors", [])
    assert source.file_names == ["10", "11", "12", "13"]
    assert source.class_names == ["2", "10"]
    assert source.given.tolist() == [0, 1, 1, UNLABELLED]
    assert source.errors == {1: "there is no vector"}
    assert source.vectors.shape == (4, 2)


@pytest.mark.parametrize("column", ["file_name", "id", "index"])
def test_labels_and_verified_rows_are_named_as_the_source_does_or_by_index(write, tmp_path, column):
    path = write(file_name=["t/a", "t/b", "t/c", "t/d"], v=lists(), label=LABELS)
    names = ["1", "3"] if column == "index" else ["t/b", "t/d"]
    table = tmp_path / "t.csv"
    table.write_text(f"{column},label\n{names[0]},dog\n{names[1]},cat\n")
    labelled = open_source(str(path), table, V)
    assert labelled.given.tolist() == [0, 1, 0, 0]
    trusted = read_trusted(table, open_source(str(path), options=V))
    assert (trusted.rows.tolist(), trusted.labels.tolist()) == ([1, 3], [1, 0])
    table.write_text(f"{column},label\n9,dog\n")
    for read in (lambda: open_source(str(path), table, V), lambda: read_trusted(table, labelled)):
        with pytest.raises(RelabelError, match="index counts from 0 to 3" if column == "index" else "'t/a'"):
            read()


def test_rows_without_names_are_named_by_number(write, tmp_path):
    source = open_source(str(write(v=lists(), label=LABELS)), options=V)
    (tmp_path / "t.csv").write_text("file_name,label\n0,cat\n1,dog\n")
    assert read_trusted(tmp_path / "t.csv", source).rows.tolist() == [0, 1]


def test_what_cannot_be_a_source_of_vectors_is_refused(write, tmp_path):
    path = write(id=["a", "b", "./a", "c"], v=lists(), label=LABELS)
    with pytest.raises(RelabelError, match=r"row 3: '\./a' is listed before, in row 1"):
        open_source(str(path), options=V)
    source = str(write(v=lists()))
    with pytest.raises(RelabelError, match=r"v\.parquet has no column 'label'; it has v\."):
        open_source(source, options=V)
    with pytest.raises(RelabelError, match="There is no file or folder 'nosuch'"):
        open_source("nosuch", options=V)
    with pytest.raises(RelabelError, match=r"is a folder of images, and .* holds vectors"):
        read_trusted(tmp_path, open_source(source, options=V, need_classes=False))


def test_rows_none_of_which_has_a_label_are_refused(write):
    path = str(write(v=lists(), label=pa.nulls(4)))
    with pytest.raises(RelabelError, match=r"None of the vectors of .* has a label. Write a column label"):
        open_source(path, options=V)
    assert open_source(path, options=V, need_classes=False).class_names == []


@pytest.mark.parametrize("form", ["v.csv", "v.zip", "folder.parquet", "*.*", "user/name"])
def test_a_form_that_has_no_vectors_is_refused(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    Path("folder.parquet").mkdir()
    for name in ("v.csv", "v.zip", "v.parquet"):
        Path(name).touch()
    with pytest.raises(RelabelError) as refusal:
        open_source(form, options=V)
    assert refusal.value.message == f"--features v: {form} is neither a .parquet file nor some in a folder."
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ({"image_column": "x"}, "--image-column"),
        ({"split": "x"}, "--split"),
        ({"streaming": True}, "--streaming"),
    ],
)
def test_flags_that_vectors_have_no_use_for_are_refused(write, option, flag):
    path = write(v=lists(), label=LABELS)
    with pytest.raises(RelabelError, match=f"^{flag} has no meaning for .*, which is a table of vectors"):
        open_source(str(path), options=SourceOptions(features="v", **option))


def test_labels_and_verified_labels_lie_in_columns_of_any_name_that_no_glob_takes(write):
    path = write(f_0=[1.0, 2, 3, 4], f_kind=[7, 5, None, 5], f_checked=[None, None, 7, 5])
    options = SourceOptions(features="f_*", label_column="f_kind", trusted_column="f_checked")
    source = open_source(str(path), options=options)
    np.testing.assert_array_equal(source.vectors, [[1], [2], [3], [4]])
    assert (source.class_names, source.given.tolist()) == (["5", "7"], [1, 0, UNLABELLED, 0])
    trusted = trusted_of(source, None)
    assert (trusted.rows.tolist(), trusted.labels.tolist()) == ([2, 3], [1, 0])
    with pytest.raises(RelabelError, match=r"the column 'f_kind' of .* holds the labels"):
        open_source(str(path), options=SourceOptions(features="f_kind", label_column="f_kind"))
    with pytest.raises(RelabelError, match=r"no column 'nosuch'.*--trusted-column"):
        open_source(
            str(path), options=SourceOptions(features="f_0", label_column="f_kind", trusted_column="nosuch")
        )


def test_classes_order_the_labels_of_vectors_and_numbers_are_indices(write, tmp_path):
    path = write(v=lists(), label=[0, 2, 1, None])
    named = open_source(str(path), options=SourceOptions(features="v", classes="dog,cat,emu"))
    assert (named.class_names, named.given.tolist()) == (["dog", "cat", "emu"], [0, 2, 1, UNLABELLED])
    assert named.numbered
    (tmp_path / "t.csv").write_text("index,label\n3,1\n")
    assert read_trusted(tmp_path / "t.csv", named).labels.tolist() == [1]
    (tmp_path / "classes.txt").write_text("emu\ncat\ndog\n")
    labelled = open_source(str(path), tmp_path / "t.csv", V)
    assert (labelled.class_names, labelled.given.tolist()) == (["emu", "cat", "dog"], [0, 2, 1, 1])


def test_the_class_names_that_datasets_stores_name_the_labels_of_vectors(write):
    table = pa.table({"v": lists(), "label": [1, 0, -1, 1]})
    features = {"label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = write(v=lists())
    pq.write_table(table.replace_schema_metadata(metadata), path)
    source = open_source(str(path), options=V)
    assert (source.class_names, source.given.tolist()) == (["dog", "cat"], [1, 0, UNLABELLED, 1])


def test_vectors_without_the_flag_are_recognised_and_the_flag_is_named(write):
    path = write(v=lists(size=3), label=LABELS)
    with pytest.raises(RelabelError, match="holds vectors in the column 'v'") as refusal:
        open_source(str(path))
    assert "--features v" in refusal.value.hint


def shards(folder: Path, *tables: dict[str, object]) -> str:
    folder.mkdir()
    for number, columns in enumerate(tables):
        pq.write_table(pa.table(columns), folder / f"train-{number}.parquet")
    return str(folder)


@pytest.mark.parametrize("place", ["{}", "{}/*.parquet", "{}/train-{{0..2}}.parquet"])
def test_shards_of_vectors_are_one_source(tmp_path, place):
    path = shards(
        tmp_path / "shards",
        {"v": lists(pa.float64()), "label": LABELS, "checked": [None, "dog", None, None]},
        {"v": lists(values=[]), "label": pa.array([], pa.string()), "checked": pa.array([], pa.string())},
        {"checked": ["cat", None], "label": ["dog", "cat"], "v": lists(pa.float32(), 2, [(1, 2), None])},
    )
    source = open_source(place.format(path), options=SourceOptions(features="v", trusted_column="checked"))
    assert source.file_names == list("012345")
    assert [label and source.class_names[label - 1] for label in source.given + 1] == [
        *LABELS[:3],
        0,
        "dog",
        "cat",
    ]
    assert source.trusted == [None, "dog", None, None, "cat", None]
    np.testing.assert_array_equal(source.vectors[:4], VALUES)
    assert source.errors == {4: "the vector has 2 values, not 3", 5: "there is no vector"}


def test_what_relabel_wrote_into_a_folder_of_shards_is_no_shard(tmp_path):
    path = shards(tmp_path / "shards", {"v": lists(), "label": LABELS})
    written = pa.table({"file_name": ["0"], "label": ["cat"]}).replace_schema_metadata({"relabel": "{}"})
    pq.write_table(written, tmp_path / "shards/test.parquet")  # nor one of another split
    assert len(open_source(path, options=V)) == 4


def test_names_of_shards_are_one_list(tmp_path):
    one, two = ({"v": lists(), "label": LABELS, "id": [f"{letter}{n}" for n in range(4)]} for letter in "ab")
    both = shards(tmp_path / "both", one, two)
    assert open_source(both, options=V).file_names == [*one["id"], *two["id"]]
    for name, (first, second), message in (
        ("twice", (one, one), "train-1.parquet, row 1: 'a0' is listed before, in {}/train-0.parquet, row 1."),
        (
            "bare",
            ({**one}, {"v": lists(), "label": LABELS}),
            "train-1.parquet does not name its rows, as {}/",
        ),
        ("kinds", (one, {**one, "v": [1.0] * 4}), "train-1.parquet has other such columns than {}/"),
    ):
        path = shards(tmp_path / name, first, second)
        with pytest.raises(RelabelError) as refusal:
            open_source(path, options=V)
        assert message.format(path) in refusal.value.message
    (Path(both) / "test-0.parquet").touch()
    with pytest.raises(RelabelError, match="holds shards of several splits: test, train"):
        open_source(both, options=V)


def test_columns_of_shards_agree(tmp_path):
    numbers = {"label": LABELS, "f_0": [1.0, 2, 3, 4]}
    path = shards(tmp_path / "s", {**numbers, "f_1": [5, 6, 7, 8]}, {"f_1": [1, 2, 3, 4], **numbers})
    source = open_source(path, options=SourceOptions(features="f_*"))
    np.testing.assert_array_equal(source.vectors[[0, 4]], [[1, 5], [1, 1]])
    other = shards(tmp_path / "t", {**numbers, "f_1": [5, 6, 7, 8]}, numbers)
    with pytest.raises(RelabelError, match=r"train-1\.parquet has other such columns than"):
        open_source(other, options=SourceOptions(features="f_*"))


@pytest.mark.parametrize("column", ["--trusted", "--labels"])
def test_rows_are_named_by_id_even_beside_an_index_of_another_order(write, tmp_path, column):
    source = write(v=lists(), label=["cat", "dog", "cat", "dog"], id=["a", "b", "c", "d"])
    table = tmp_path / "table.csv"
    table.write_text("index,id,label\n0,d,dog\n3,a,dog\n")
    if column == "--trusted":
        trusted = read_trusted(table, open_source(str(source), options=V))
        assert dict(zip(trusted.rows.tolist(), trusted.labels.tolist(), strict=True)) == {3: 1, 0: 1}
    else:
        assert open_source(str(source), table, V).given.tolist() == [1, 1, 0, 1]


def test_an_id_that_names_no_row_leaves_the_index_to_name_it(write, tmp_path):
    source = open_source(str(write(v=lists(), label=["cat", "dog", "cat", "dog"])), options=V)
    table = tmp_path / "table.csv"
    table.write_text("index,id,label\n3,1,dog\n2,,cat\n")
    assert sorted(read_trusted(table, source).rows.tolist()) == [2, 3]
    named = write(v=lists(), label=["cat", "dog", "cat", "dog"], id=["a", "b", "c", "d"])
    assert sorted(read_trusted(table, open_source(str(named), options=V)).rows.tolist()) == [2, 3]
    table.write_text("index,id,label\n3,d,dog\n2,,cat\n")
    with pytest.raises(RelabelError, match=r"not in SOURCE: row 3 \(''\)"):
        read_trusted(table, open_source(str(named), options=V))


@pytest.mark.parametrize(
    ("numbers", "warned"),
    [
        ([0, 1, 2, 3], False),
        ([3, 1, 2, 0], True),
        ([1, 2, 3, 4], True),
        ([0, None, 2, 3], True),
        (None, False),
    ],
)
def test_an_index_that_does_not_count_the_rows_is_warned_of(write, numbers, warned):
    columns = {} if numbers is None else {"index": pa.array(numbers, pa.int64())}
    source = open_source(str(write(v=lists(), label=["cat", "dog", "cat", "dog"], **columns)), options=V)
    assert [text for text in source.warnings if "column 'index'" in text] == source.warnings
    assert len(source.warnings) == warned
