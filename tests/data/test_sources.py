import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.config import SourceOptions
from relabel.data import manifests
from relabel.data.sources import UNLABELLED, Source, open_source
from relabel.errors import RelabelError

Tree = WriteTable = Callable[..., Path]
TYPED, MAC = "caf\u00e9", "cafe\u0301"  # one word in two Unicode forms


def labelled(source: Source) -> dict[str, str | None]:
    names = [None if given == UNLABELLED else source.class_names[given] for given in source.given]
    return dict(zip(source.file_names, names, strict=True))


def refusal(location: Path | str, labels: Path | None = None) -> RelabelError:
    with pytest.raises(RelabelError) as caught:
        open_source(str(location), labels)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_folder_takes_the_parent_folder_as_class_in_natural_order(tree: Tree) -> None:
    root = tree("train/10/b.png", "train/10/a10.png", "train/10/a2.png", "train/2/x.png", "val/10/v.png")
    source = open_source(str(root))
    assert labelled(source) == {
        "train/2/x.png": "2",
        "train/10/a2.png": "10",
        "train/10/a10.png": "10",
        "train/10/b.png": "10",
        "val/10/v.png": "10",
    }
    assert source.file_names[:3] == ["train/2/x.png", "train/10/a2.png", "train/10/a10.png"]
    assert (source.kind, source.class_names, len(source)) == ("folder", ["2", "10"], 5)
    assert source.references[0] == root / "train/2/x.png"
    assert (source.warnings, source.errors, source.ignored_files) == ([], {}, 0)


def test_odd_names_are_kept_and_other_files_are_counted(tree: Tree) -> None:
    odd = ["a b.png", "c,d.PNG", 'quo"te.Jpeg', "naïve 猫.JPG", "semi;colon.webp"]
    root = tree(
        *(f"cat/{name}" for name in odd), "dog/1.png",
        "cat/Thumbs.db", "cat/.DS_Store", "cat/.hidden.png", "dog/mask.txt", "README.md",
        ".git/x.png", "__MACOSX/cat/y.png", "notes/readme.txt",
    )  # fmt: skip
    source = open_source(str(root))
    assert set(source.file_names) == {*(f"cat/{name}" for name in odd), "dog/1.png"}
    assert source.ignored_files == 6
    assert source.class_names == ["cat", "dog"]  # `notes` has files, none of them an image


def test_images_directly_in_the_root_are_unlabelled(tree: Tree) -> None:
    source = open_source(str(tree("loose.png", "cat/1.png", "dog/1.png")))
    assert labelled(source)["loose.png"] is None
    assert source.class_names == ["cat", "dog"]
    assert "1 image(s) directly" in source.warnings[0]


def test_empty_class_folder_stays_a_class_with_a_warning(tree: Tree) -> None:
    root = tree("cat/1.png", "dog/1.png", "emu/.DS_Store", "val/cat/.DS_Store")
    (root / "fox").mkdir()
    source = open_source(str(root))
    assert source.class_names == ["cat", "dog", "emu", "fox"]
    assert len(source.warnings) == 1
    assert "'emu', 'fox'" in source.warnings[0]


def test_linked_folders_are_followed_without_a_loop_and_broken_links_are_errors(tree: Tree) -> None:
    root = tree("cat/1.png", "dog/1.png")
    elsewhere = tree("2.png", root="elsewhere")
    (root / "emu").symlink_to(elsewhere)
    (root / "cat/loop").symlink_to(root)
    (root / "dog/gone.png").symlink_to(root / "nowhere.png")
    source = open_source(str(root))
    assert source.file_names == ["cat/1.png", "dog/1.png", "dog/gone.png", "emu/2.png"]
    assert source.errors == {2: "file not found"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_unicode_can_be_written_out(tree: Tree) -> None:
    root = tree("cat/1.png", "dog/1.png")
    (root / "cat/1.png").rename(root / "cat/\udcff.png")
    source = open_source(str(root))
    assert source.file_names[0] == "cat/\\udcff.png"
    assert source.references[0].exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two names are one")
def test_a_class_is_the_same_in_either_unicode_form(tree: Tree, write_table: WriteTable) -> None:
    root = tree(f"a/{MAC}/1.png", f"b/{TYPED}/2.png", "a/dog/3.png", "a/dog/4.png")
    (root / "a" / MAC.replace("f", "v")).mkdir()
    labels = write_table(root.parent / "labels.csv", [["a/dog/4.png", MAC]])
    source = open_source(str(root), labels)
    assert source.class_names == [TYPED, TYPED.replace("f", "v"), "dog"]
    assert list(labelled(source).items()) == [
        (f"a/{MAC}/1.png", TYPED), ("a/dog/3.png", "dog"), ("a/dog/4.png", TYPED), (f"b/{TYPED}/2.png", TYPED)
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two names are one")
@pytest.mark.parametrize(("on_disk", "listed"), [(MAC, TYPED), (TYPED, MAC)])
@pytest.mark.parametrize("table", ["list.csv", "metadata.csv"])
def test_listed_names_of_another_unicode_form_are_the_files(
    tree: Tree, write_table: WriteTable, on_disk: str, listed: str, table: str
) -> None:
    root = tree(f"{on_disk}1.png", f"sub/{on_disk}2.png")
    rows = [[f"{listed}1.png", "cat"], [f"sub\\{listed}2.png", "dog"]]
    path = write_table(root / table, rows)
    source = open_source(str(root if table == "metadata.csv" else path))
    assert labelled(source) == {f"{listed}1.png": "cat", f"sub/{listed}2.png": "dog"}  # as they are listed
    assert [source.references[row] for row in range(2)] == [
        root / f"{on_disk}1.png", root / f"sub/{on_disk}2.png"
    ]  # fmt: skip
    assert (source.errors, source.warnings) == ({}, [])
    write_table(root / table, [*rows, [f"{on_disk}1.png", "cat"]])
    assert "is listed before, in row 2" in refusal(root if table == "metadata.csv" else path).message


def test_classes_that_look_alike_are_warned_of(tree: Tree) -> None:
    assert "'Cat' and 'cat' differ" in open_source(str(tree("Cat/1.png", "cat /1.png"))).warnings[0]


def test_white_space_around_a_folder_s_name_is_no_part_of_the_class(tree: Tree) -> None:
    root = tree("cat /1.png", "cat/1.png", " dog/1.png")
    (root / "emu ").mkdir()
    (root / "dog").mkdir()
    source = open_source(str(root))
    assert source.class_names == ["cat", "dog", "emu"]
    assert labelled(source) == {"cat /1.png": "cat", "cat/1.png": "cat", " dog/1.png": "dog"}
    assert all(source.references[row].exists() for row in range(3))
    assert len(source.warnings) == 1
    assert "'emu'" in source.warnings[0]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_metadata_rows_come_first_and_unlisted_images_follow(
    tree: Tree, write_table: WriteTable, suffix: str
) -> None:
    root = tree("z.png", "a.png", "extra.png", "sub/m.png", "sub/notes.txt")
    write_table(root / f"metadata{suffix}", [["z.png", "cat"], ["a.png", "dog"], ["gone.png", "dog"]])
    write_table(root / f"sub/metadata{suffix}", [["m.png", "cat"]])
    source = open_source(str(root))
    assert source.kind == "metadata"
    assert list(labelled(source).items()) == [
        ("z.png", "cat"), ("a.png", "dog"), ("gone.png", "dog"), ("sub/m.png", "cat"), ("extra.png", None),
    ]  # fmt: skip
    assert source.errors == {2: "file not found"}
    assert source.references[3] == root / "sub/m.png"
    assert source.ignored_files == 1
    assert "1 image(s)" in source.warnings[0]


def test_a_file_in_two_metadata_files_is_refused(tree: Tree, write_table: WriteTable) -> None:
    root = tree("a.png", "sub/b.png")
    write_table(root / "metadata.csv", [["a.png", "cat"], ["sub/b.png", "dog"]])
    write_table(root / "sub/metadata.csv", [["b.png", "dog"]])
    message = refusal(root).message
    assert f"{root / 'sub/metadata.csv'}, row 2" in message
    assert f"{root / 'metadata.csv'}, row 3" in message


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["file_name", "filename", "image_path", "path"])
def test_manifest(tree: Tree, write_table: WriteTable, suffix: str, column: str) -> None:
    root = tree("b.png", "sub/a.png", 'c,d "e" 猫.png')
    rows = [
        ["./b.png", " 10 "],
        ["sub\\a.png", "2"],
        ["gone.png", "2"],
        [str(root / 'c,d "e" 猫.png'), ""],
    ]
    manifest = write_table(root / f"list{suffix}", rows, (column, "label"))
    source = open_source(str(manifest))
    assert list(labelled(source).items()) == [
        ("b.png", "10"), ("sub/a.png", "2"), ("gone.png", "2"), (rows[3][0], None),
    ]  # fmt: skip
    assert (source.kind, source.root, source.class_names) == ("manifest", root, ["2", "10"])
    assert source.errors == {2: "file not found"}
    assert [reference.exists() for reference in source.references] == [True, True, False, True]


@pytest.mark.parametrize(
    "labels",
    [[1, 10, None], [1.0, 10.0, float("nan")], pa.array(["1", "10", None]).dictionary_encode()],
    ids=["integers", "floats from pandas", "dictionary"],
)
def test_number_labels_become_their_text(tree: Tree, labels: object) -> None:
    root = tree("a.png", "b.png", "c.png")
    pq.write_table(pa.table({"file_name": ["a.png", "b.png", "c.png"], "label": labels}), root / "m.parquet")
    assert list(labelled(open_source(str(root / "m.parquet"))).values()) == ["1", "10", None]


@pytest.mark.parametrize(
    "text",
    [
        "\ufefffile_name,label\na.png,cat\nb.png,dog\n",
        "file_name;label\na.png;cat\nb.png;dog\n",
        "file_name\tlabel\r\na.png\tcat\r\n\r\nb.png\tdog\r\n",
        'id,label,file_name\n"1\n2",cat,a.png\n3,"dog","b.png"\n',
        "file_name;label;note, or none\na.png;cat;x,y\nb.png;dog;\n",
        "note, or none;x\tfile_name\tlabel\n,\ta.png\tcat\n\tb.png\tdog\n",
        "file_name , label,note;none\na.png,cat,\nb.png,dog,\n",
    ],
    ids=[
        "byte order mark",
        "semicolons",
        "tabs, CRLF, blank line",
        "extra column with a newline",
        "semicolons, comma in the header",
        "tabs, other marks in the header",
        "commas, white space",
    ],
)
def test_csv_dialects(tree: Tree, text: str) -> None:
    root = tree("a.png", "b.png")
    (root / "m.csv").write_bytes(text.encode())
    assert labelled(open_source(str(root / "m.csv"))) == {"a.png": "cat", "b.png": "dog"}


def test_tabs_part_a_tsv_whatever_else_is_in_it(tree: Tree) -> None:
    root = tree("a,1.png", "b;2.png")
    (root / "m.tsv").write_text("label\tfile_name\tof, or by\ncat\ta,1.png\t\ndog\tb;2.png\t\n")
    assert labelled(open_source(str(root / "m.tsv"))) == {"a,1.png": "cat", "b;2.png": "dog"}
    (root / "bare.tsv").write_text("file_name\na,1.png\nb;2.png\n")
    assert len(open_source(str(root / "bare.tsv"), need_classes=False)) == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.csv", b"file_name,label\na.png,cat\nb.png,dog\n./a.png,cat\n", "row 4: './a.png'.*row 2"),
        ("m.csv", b'file_name,label\n"a.png","c\nat"\n,dog\n', "row 4: file_name is empty"),
        ("m.csv", b"file_name,label\na.png,cat\nb.png,dog,emu\n", "row 3: 3 cells"),
        ("m.csv", b"file_name,label\na.png,cat\nb.png,\xe9mu\n", "row 3: .*UTF-8"),
        ("m.csv", b'file_name,label\na.png,cat\nb.png,"dog\n\n', "row 3: not valid CSV"),
        ("m.csv", b"name,class\na.png,cat\n", "file_name and label, and has name, class"),
        ("m.csv", b"file_name,class\na.png,cat\n", "file_name and label, and has file_name, class"),
        ("m.csv", b"", "and has none"),
        ("m.csv", b"file_name,label\n", "has no rows"),
        ("m.csv", b"file_name,label\nx.png,cat\ny.png,dog\n", "None of the 2 file.*'x.png'"),
        ("m.csv", b"file_name,label\na.png,cat\nb.png,cat\n", "only one class, 'cat'"),
        ("m.csv", b"file_name,label\na.png,\nb.png,\n", "has a label"),
        ("m.jsonl", b'{"file_name": "a.png", "label": "cat"}\n\nnonsense\n', "row 3: not a JSON object"),
        ("m.jsonl", b'{"file_name": "a.png", "label": ["cat"]}\n', "row 1: label is a list"),
        ("m.jsonl", b'{"file_name": "a.png", "label": "x"}\n{"label": "x"}\n', "row 2: file_name is empty"),
        ("m.parquet", b"PAR1 nonsense", "cannot be read"),
        ("m.xlsx", b"", "not a kind of file"),
        ("m.tar", b"", "cannot be read"),
        ("m.7z", b"", "not a kind of file"),
    ],
)  # fmt: skip
def test_bad_manifests(tree: Tree, name: str, content: bytes, expected: str) -> None:
    root = tree("a.png", "b.png")
    (root / name).write_bytes(content)
    error = refusal(root / name)
    assert str(root / name) in error.message
    assert re.search(expected, error.message), error.message


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), "holds vectors in the column 'image'"),
    ],
)
def test_forms_of_a_later_version_are_named(tmp_path: Path, column: pa.Array, expected: str) -> None:
    pq.write_table(pa.table({"image": column, "label": ["cat"]}), tmp_path / "t.parquet")
    assert expected in refusal(tmp_path / "t.parquet").message


@pytest.mark.parametrize("names", [["a.png", "gone.png"], ["gone.png", "x\\b.png"]])
@pytest.mark.parametrize("column", ["bbox", "image"])
def test_a_list_of_files_may_have_boxes_or_embeddings(tree: Tree, names: list[str], column: str) -> None:
    root = tree("a.png", "x/b.png")
    boxes = pa.array([[0.5, 1.0], [0.0, 0.5]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"file_name": names, "label": ["cat", "dog"], column: boxes}), root / "m.parquet")
    source = open_source(str(root / "m.parquet"))
    assert (source.kind, list(source.errors)) == ("manifest", [names.index("gone.png")])


def test_the_named_column_of_file_names_makes_a_list(tree: Tree) -> None:
    root = tree("a.png", "b.png")
    vectors = pa.array([[0.5, 1.0], [0.0, 0.5]], pa.list_(pa.float32(), 2))
    table = pa.table({"picture": ["a.png", "b.png"], "label": ["cat", "dog"], "v": vectors})
    pq.write_table(table, root / "m.parquet")
    assert "Add --features v." in refusal(root / "m.parquet").hint
    options = SourceOptions(image_column="picture")
    assert labelled(open_source(str(root / "m.parquet"), options=options)) == {"a.png": "cat", "b.png": "dog"}


@pytest.mark.parametrize("name", ["file_name", "id"])
def test_vectors_whose_names_are_no_files_are_vectors(tree: Tree, name: str) -> None:
    root = tree("a.png", "b.png")
    vectors = pa.array([[0.5, 1.0], [0.0, 0.5]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({name: ["gone.png", "c"], "kind": ["x", "y"], "v": vectors}), root / "m.parquet")
    error = refusal(root / "m.parquet")
    assert error.message == f"{root}/m.parquet holds vectors in the column 'v'."
    assert error.hint.startswith("Add --features v.")
    assert (f"needs files that exist, relative to {root}." in error.hint) == (name == "file_name")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://example.org/images.zip", "an address"),
        ("hf://user/a-model", "an address"),
        ("hf://datasets/user/repo/one/file.zip", "an address"),
        ("train-*.parquet", "No file matches"),
        ("/no/such/folder", "no file or folder"),
        ("", "no file or folder"),
    ],
)
def test_places_that_are_not_there(location: str, expected: str) -> None:
    assert expected in refusal(location).message


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "no image in"),
        (["a.heic", "b.txt"], "no image in .*2 other"),
        (["a.png", "b.png"], "has a label"),
        (["cat/a.png", "loose.png"], "only one class, 'cat'"),
    ],
)
def test_bad_folders(tree: Tree, names: list[str], expected: str) -> None:
    root = tree(*names)
    error = refusal(root)
    assert str(root) in error.message
    assert re.search(expected, error.message), error.message


def test_no_classes_are_needed_to_predict(tree: Tree, write_table: WriteTable) -> None:
    root = tree("a.png", "b.png")
    assert labelled(open_source(str(root), need_classes=False)) == {"a.png": None, "b.png": None}
    manifest = write_table(root / "m.csv", [["a.png"]], ["file_name"])
    assert labelled(open_source(str(manifest), need_classes=False)) == {"a.png": None}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_replace_and_add(tree: Tree, write_table: WriteTable, suffix: str) -> None:
    root = tree("loose.png", "cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png")
    rows = [
        ["loose.png", "dog"],
        ["./cat/1.png", "emu"],
        ["cat\\2.png", ""],
        [str(root / "dog/1.png"), "cat"],
    ]
    labels = write_table(root.parent / f"labels{suffix}", rows)
    source = open_source(str(root), labels)
    assert labelled(source) == {
        "loose.png": "dog", "cat/1.png": "emu", "cat/2.png": None, "cat/3.png": "cat", "dog/1.png": "cat",
    }  # fmt: skip
    assert source.class_names == ["cat", "dog", "emu"]
    assert len(source.warnings) == 1  # nothing about loose images: they have labels now
    assert "become classes: 'emu'." in source.warnings[0]


def test_labels_that_bring_classes_along_are_warned_of(tree: Tree, write_table: WriteTable) -> None:
    root = tree("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    labels = write_table(root.parent / "l.csv", [["dog/1.png", "dgo"], ["cat/1.png", "dog"]])
    assert open_source(str(root), labels).warnings == [
        f"--labels {labels} has labels that are no class of {root}, and become classes: 'dgo'. "
        "Did you mean 'dog'? Known classes: 'cat', 'dog'."
    ]
    fixed = SourceOptions(classes="cat,dog,dgo")
    assert open_source(str(root), labels, fixed).warnings == []
    numbers = write_table(root.parent / "n.csv", [["dog/1.png", "0"], ["cat/1.png", "1"]])
    assert open_source(str(root), numbers, fixed).warnings == []
    assert "classes: '0', '1'. Known" in open_source(str(root), numbers).warnings[0]


def test_labels_make_a_flat_folder_or_bare_list_usable(tree: Tree, write_table: WriteTable) -> None:
    root = tree("a.png", "b.png")
    labels = write_table(root.parent / "labels.csv", [["a.png", "cat"], ["b.png", "dog"]])
    bare = write_table(root / "bare.csv", [["a.png"], ["b.png"]], ["file_name"])
    for location in (root, bare):
        source = open_source(str(location), labels)
        assert labelled(source) == {"a.png": "cat", "b.png": "dog"}
        assert source.warnings == []


def test_replaced_classes_stay_known(tree: Tree, write_table: WriteTable) -> None:
    root = tree("cat/1.png", "dog/1.png")
    manifest = write_table(root / "m.csv", [["cat/1.png", "cat"], ["dog/1.png", "dog"]])
    labels = write_table(root / "labels.csv", [["dog/1.png", "cat"]])
    for location in (root, manifest):
        assert open_source(str(location), labels).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["cat/1.png", "dog"], ["cat/9.png", "dog"]], "row 3: 'cat/9.png' is not in"),
        ([["cat/1.png", "dog"], ["./cat/1.png", "dog"]], "rows 2 and 3"),
    ],
)
def test_bad_labels(tree: Tree, write_table: WriteTable, rows: list[list[str]], expected: str) -> None:
    root = tree("cat/1.png", "dog/1.png")
    labels = write_table(root / "labels.csv", rows)
    message = refusal(root, labels).message
    assert expected in message
    assert str(labels) in message


def test_missing_labels_file(tree: Tree) -> None:
    assert "no-such.csv" in refusal(tree("cat/1.png", "dog/1.png"), Path("no-such.csv")).message


def test_sources_are_read_without_torch() -> None:
    code = "import sys, relabel.data.trusted; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_row_of_files_takes_little_more_memory_than_its_name() -> None:
    rows = manifests.FileRows(Path("root"), "folder")
    names = [f"class{row % 10}/{row}.png" for row in range(5000)]
    tracemalloc.start()
    for name in names:
        rows.add(name, None, found=True)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / 5000 < 150, "bytes; a path of its own would be 300 more"
    assert rows.references[4321] == Path("root/class1/4321.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_no_file_is_none_of_the_images(tree: Tree) -> None:
    """Whoever opened a pipe would wait for its other end."""
    root = tree("cat/1.png", "dog/1.png")
    os.mkfifo(root / "cat/pipe.png")
    (root / "dog/link.png").symlink_to(root / "cat/pipe.png")
    (root / "dog/gone.png").symlink_to(root / "nowhere.png")
    source = open_source(str(root))
    assert source.file_names == ["cat/1.png", "dog/1.png", "dog/gone.png"]
    assert source.errors == {2: "file not found"}
