import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.config import SourceOptions
from relabel.data import parquet_images
from relabel.data.sources import Source, open_source
from relabel.data.trusted import trusted_of
from relabel.errors import RelabelError

DATA = Path(os.environ.get("RELABEL_DATA", "missing"))
Picture = Callable[..., bytes]
Greys = Callable[[Source], list[int | str]]


def class_label(**columns: list[str]) -> dict[str, str]:
    features = {name: {"_type": "ClassLabel", "names": names} for name, names in columns.items()}
    return {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, **features}}})}


@pytest.fixture
def write(picture: Picture) -> Callable[..., Path]:
    """A Parquet file with an image of grey 10, 20, ... a label, in row groups of three rows."""

    def make(
        path: Path,
        labels: object,
        names: list[str] | None = None,
        first: int = 1,
        paths: bool = True,
        **columns: object,
    ) -> Path:
        cells = [
            {"bytes": picture(10 * (first + row)), "path": f"{first + row}.png" if paths else None}
            for row in range(len(labels))
        ]
        table = pa.table({"image": cells, "label": labels, **columns})
        if names:
            table = table.replace_schema_metadata(class_label(label=names))
        pq.write_table(table, path, row_group_size=3)
        return path

    return make


def given(source: Source) -> list[str | None]:
    return [source.class_names[label] if label >= 0 else None for label in source.given]


def refusal(location: Path | str, **options: object) -> RelabelError:
    with pytest.raises(RelabelError) as caught:
        open_source(str(location), options=SourceOptions(**options))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_a_table_of_images_takes_its_classes_from_the_schema(
    tmp_path: Path, write: Callable[..., Path], greys: Greys
) -> None:
    source = open_source(str(write(tmp_path / "t.parquet", [1, 0, -1, 1, None], ["wolf", "cat", "emu"])))
    assert (source.kind, source.class_names) == ("table", ["wolf", "cat", "emu"])
    assert given(source) == ["cat", "wolf", None, "cat", None]
    assert source.file_names == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    assert greys(source) == [10, 20, 30, 40, 50]


def test_class_names_of_the_schema_are_read_in_one_unicode_form(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    assert open_source(str(write(tmp_path / "t.parquet", [1, 0], ["e\u0301", "e"]))).class_names == [
        "\u00e9",
        "e",
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([10, 2, None], (["2", "10"], ["10", "2", None])),
        ([" b ", "a", ""], (["a", "b"], ["b", "a", None])),
        ([1.0, 2.0, float("nan")], (["1", "2"], ["1", "2", None])),
        ([True, False, None], (["false", "true"], ["true", "false", None])),
        (pa.array(["b", "a", None]).dictionary_encode(), (["a", "b"], ["b", "a", None])),
        (["e\u0301", "\u00e9", "e"], (["e", "\u00e9"], ["\u00e9", "\u00e9", "e"])),
    ],
)
def test_other_labels_become_text(
    tmp_path: Path, write: Callable[..., Path], labels: object, expected: object
) -> None:
    source = open_source(str(write(tmp_path / "t.parquet", labels)))
    assert (source.class_names, given(source)) == expected


@pytest.mark.parametrize("where", ["*.parquet", "t-{0,1,10}.parquet", ""])
def test_shards_are_one_table_in_natural_order(
    tmp_path: Path, write: Callable[..., Path], greys: Greys, where: str
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "t-10.parquet", ["b", "b"], first=7)
    write(folder / "t-0.parquet", ["a", "b", "a", "b"])
    write(folder / "t-1.parquet", ["a", "b"], first=5)
    source = open_source(str(folder / where))
    assert greys(source) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert source.file_names == [f"{row}.png" for row in range(1, 9)]
    assert given(source) == ["a", "b", "a", "b", "a", "b", "b", "b"]


def test_what_relabel_wrote_into_a_folder_of_shards_is_no_shard(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    write(tmp_path / "train-0.parquet", ["a", "b"])
    written = pa.table({"file_name": ["0"], "label": ["a"]}).replace_schema_metadata({"relabel": "{}"})
    pq.write_table(written, tmp_path / "test-labels.parquet")  # nor one of another split
    assert open_source(str(tmp_path)).file_names == ["1.png", "2.png"]


@pytest.mark.parametrize("paths", [True, False])
def test_names_that_are_not_of_one_row_give_way_to_numbers(
    tmp_path: Path, write: Callable[..., Path], paths: bool
) -> None:
    write(tmp_path / "a.parquet", ["a", "b"], paths=paths)
    write(tmp_path / "b.parquet", ["a", "b"], paths=paths)
    source = open_source(f"{tmp_path}/*.parquet")
    assert source.file_names == ["0", "1", "2", "3"]
    table = tmp_path / "trusted.csv"
    for column in ("file_name", "index"):
        table.write_text(f"{column},label\n3,a\n0,b\n")
        trusted = trusted_of(source, table)
        assert (trusted.rows.tolist(), trusted.labels.tolist()) == ([3, 0], [0, 1])


def test_rows_without_an_image_keep_their_place(tmp_path: Path, picture: Picture, greys: Greys) -> None:
    (tmp_path / "beside.png").write_bytes(picture(50))
    cells = [
        {"bytes": picture(10), "path": "a.png"},
        None,
        {"bytes": b"no image", "path": "c.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": "beside.png"},
        {"bytes": b"", "path": "f.png"},
        {"bytes": picture(70)[:-30], "path": "g.png"},
    ]
    pq.write_table(pa.table({"image": cells, "label": list("abababa")}), tmp_path / "t.parquet")
    found = greys(open_source(str(tmp_path / "t.parquet")))
    assert found[:2] == [10, "the row has no image"]
    assert found[2:5] == ["not an image Pillow can read", "file not found", 50]
    assert found[5] == "file is empty"
    assert "truncated or corrupt" in str(found[6])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("named", ["png", "image", None])
def test_a_plain_column_of_bytes_is_read_when_it_is_named_or_called_image(
    tmp_path: Path, picture: Picture, greys: Greys, kind: pa.DataType, named: str | None
) -> None:
    images = pa.array([picture(10), None, picture(30)], kind)
    table = pa.table({"mask": images[::-1], named or "image": images, "kind": ["a", "b", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    options = SourceOptions(image_column=named, label_column="kind")
    source = open_source(str(tmp_path / "t.parquet"), options=options)
    assert greys(source) == [10, "the row has no image", 30]
    assert source.file_names == ["0", "1", "2"]


def test_verified_labels_in_a_column_of_their_own(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "t.parquet", [0, 1, 1, 0], ["cat", "dog"], true=[None, 1, 0, None])
    source = open_source(str(path), options=SourceOptions(trusted_column="true"))
    trusted = trusted_of(source, None)
    assert (trusted.rows.tolist(), trusted.labels.tolist()) == ([1, 2], [1, 0])
    assert trusted_of(open_source(str(path)), None).rows.tolist() == []

    path = write(tmp_path / "t.parquet", ["cat", "dog"], true=["emu", None])
    source = open_source(str(path), options=SourceOptions(trusted_column="true"))
    with pytest.raises(RelabelError, match=r"--trusted-column: the class .* row 1 \('emu'\)"):
        trusted_of(source, None)
    path = write(tmp_path / "t.parquet", ["cat", "dog"], true=pa.nulls(2))
    source = open_source(str(path), options=SourceOptions(trusted_column="true"))
    with pytest.raises(RelabelError, match="--trusted-column holds no usable row"):
        trusted_of(source, None)


def test_numbers_in_other_tables_stand_for_the_classes_of_the_schema(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(tmp_path / "t.parquet", [0, 1, 1], ["wolf", "cat"])
    (tmp_path / "by_number.csv").write_text("file_name,label\n1.png,1\n2.png,wolf\n")
    assert given(open_source(str(path), tmp_path / "by_number.csv")) == ["cat", "wolf", "cat"]
    trusted = trusted_of(open_source(str(path)), tmp_path / "by_number.csv")
    assert trusted.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"img": 1}, {}, "has no column 'image'; the column(s) img hold images. Add --image-column img."),
        ({"image": 1}, {"image_column": "img"}, "--image-column img: {path} has no such column."),
        ({"image": 1}, {"label_column": "kind"}, "{path} has no column 'kind'; it has image, label."),
        ({"image": 1}, {"trusted_column": "true"}, "{path} has no column 'true'"),
        ({"image": 1}, {"split": "train"}, "--split has no meaning for {path}, which is a table of images."),
        ({"image": 1}, {"classes": "a,c"}, "{path}, row 2 ('1'): the label 'b' is none of the classes"),
    ],
)
def test_columns_that_are_not_there(
    tmp_path: Path, picture: Picture, columns: dict[str, int], options: dict[str, str], expected: str
) -> None:
    path = tmp_path / "t.parquet"
    cells = [{"bytes": picture(10), "path": None}] * 2
    pq.write_table(pa.table({**dict.fromkeys(columns, cells), "label": ["a", "b"]}), path)
    error = refusal(path, **options)
    assert expected.format(path=path) in f"{error.message} {error.hint}"


def test_labels_that_cannot_be_classes(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "t.parquet", [0, 1, 0, 2], ["cat", "dog"])
    assert f"{path}, row 4: label is 2, and the classes are 0 to 1." in refusal(path).message
    path = write(tmp_path / "t.parquet", [["cat"], ["dog"]])
    assert "the column 'label' holds list" in refusal(path).message
    write(tmp_path / "u.parquet", [0, 1], ["dog", "cat"])
    write(tmp_path / "t.parquet", [0, 1], ["cat", "dog"])
    assert "u.parquet has other classes in 'label'" in refusal(f"{tmp_path}/*.parquet").message


def test_a_pattern_that_takes_in_a_table_of_another_kind(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(tmp_path / "a.parquet", ["a", "b"])
    pq.write_table(pa.table({"soft_label": [1.0]}), tmp_path / "b.parquet")
    assert "b.parquet has no column 'image' that holds images" in refusal(f"{tmp_path}/*.parquet").message
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    assert "b.parquet cannot be read" in refusal(f"{tmp_path}/*.parquet").message
    (tmp_path / "notes.txt").touch()
    assert "notes.txt, which is no shard" in refusal(f"{tmp_path}/*").message
    (tmp_path / "notes.txt").rename(tmp_path / "c.tar")
    for location in (tmp_path, f"{tmp_path}/*"):
        assert "takes in both Parquet files and archives" in refusal(location).message


def test_a_damaged_row_group_loses_its_own_rows_only(
    tmp_path: Path, write: Callable[..., Path], greys: Greys
) -> None:
    path = write(tmp_path / "t.parquet", list("ababababa"))
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)
    found = greys(open_source(str(path)))
    assert [grey for grey in found if isinstance(grey, int)] == [10, 20, 30, 70, 80, 90]
    assert all("the Parquet file is damaged here" in str(reason) for reason in found[3:6])


def test_rows_are_found_in_any_order(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_images, "_WINDOW_BYTES", 1)  # a window a row
    write(tmp_path / "a.parquet", ["a", "b"] * 10)
    write(tmp_path / "b.parquet", ["a", "b"] * 10, first=21, paths=False)
    references = open_source(f"{tmp_path}/*.parquet").references
    in_order = [references[row].open("rb").read() for row in range(40)]
    assert len(set(in_order)) == 40 - 14  # above 255 greys repeat
    for row in np.random.default_rng(0).permutation(40):
        assert references[int(row)].open("rb").read() == in_order[row]


def test_one_huge_row_group_is_read_in_little_memory(tmp_path: Path) -> None:
    """150 MB of images in one row group: a sample and then all of them take the process 64 MB at most."""
    rng = np.random.default_rng(0)
    path = tmp_path / "t.parquet"
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": kind, "label": pa.string()})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        cells = [{"bytes": rng.bytes(250_000), "path": str(row)} for row in range(600)]
        writer.write_table(pa.table({"image": cells, "label": ["a", "b"] * 300}, schema), row_group_size=600)
        del cells
    code = (
        "import resource, sys; from relabel.data.sources import open_source\n"
        f"references = open_source({str(path)!r}).references\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for row in [*range(0, 600, 50), *range(600)]: references[row].open('rb')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64


@pytest.mark.skipif(not DATA.is_dir(), reason="RELABEL_DATA names no folder")
def test_cifar10n_and_its_verified_labels(greys: Greys) -> None:
    path = DATA / "cifar10n_worse_25k.parquet"
    source = open_source(str(path), options=SourceOptions(trusted_column="clean_label"))
    assert (len(source), source.class_names[:2]) == (25_000, ["airplane", "automobile"])
    trusted = trusted_of(source, None)
    assert len(trusted.rows) == 25_000
    assert (trusted.labels != source.given).mean() == pytest.approx(0.4, abs=0.01)
    assert all(source.references[row].open("rb").read(2) == b"\xff\xd8" for row in (0, 24_999, 12_000))


def test_numbers_and_text_as_labels_of_one_source_are_refused(tmp_path: Path, picture: Picture) -> None:
    def shard(number: int, label: pa.Array) -> None:
        cells = [{"bytes": picture(9), "path": f"{number}.png"}] * len(label)
        pq.write_table(pa.table({"image": cells, "label": label}), tmp_path / f"train-{number}.parquet")

    shard(0, pa.array(["a", "b"]))
    shard(1, pa.array([None, None], pa.int64()))
    shard(2, pa.array(["b", "a"]).dictionary_encode())
    assert open_source(str(tmp_path)).class_names == ["a", "b"]
    shard(3, pa.array([0, 1]))
    message = f"{tmp_path}/train-3.parquet has numbers in the column 'label', and the files before it text."
    assert refusal(tmp_path).message.startswith(message)
    numbered = open_source(str(tmp_path), options=SourceOptions(classes="b,a"))
    assert numbered.given.tolist() == [1, 0, -1, -1, 0, 1, 0, 1]


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, picture: Picture, name: str) -> None:
    columns = [pa.array([{"bytes": picture(9), "path": "a.png"}]), pa.array(["x"])]
    names = ["image", "label"]
    table = pa.Table.from_arrays([*columns, columns[names.index(name)]], names=[*names, name])
    pq.write_table(table, tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet").message.startswith(
        f"{tmp_path}/t.parquet has several columns {name!r}."
    )


def test_vectors_in_shards_are_told_from_images(tmp_path: Path) -> None:
    for number in range(2):
        table = pa.table({"v": [[0.5, 1.0]], "label": ["x"]})
        pq.write_table(table, tmp_path / f"train-{number}.parquet")
    message = "holds vectors in the column 'v'. Add --features v."
    assert message in str(refusal(tmp_path))
    assert message in str(refusal(tmp_path / "train-0.parquet"))
