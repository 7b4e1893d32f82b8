import io
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from relabel.config import SourceOptions
from relabel.data.sources import Source, open_source
from relabel.data.trusted import TrustedSet, read_trusted
from relabel.errors import RelabelError

Tree = WriteTable = Callable[..., Path]
Picture = Callable[..., bytes]


@pytest.fixture
def source(tree: Tree) -> Source:
    """Rows 0..4: cat/1 cat/2 cat/10 dog/1 dog/2; classes cat, dog."""
    return open_source(str(tree("cat/1.png", "cat/2.png", "cat/10.png", "dog/1.png", "dog/2.png")))


def pairs(trusted: TrustedSet) -> list[tuple[int, int]]:
    return list(zip(trusted.rows.tolist(), trusted.labels.tolist(), strict=True))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["file_name", "filename", "image_path", "path", "index"])
def test_table_of_rows(source: Source, write_table: WriteTable, suffix: str, column: str) -> None:
    names: list[object] = [str(source.root / "dog/1.png"), "./cat/10.png", "cat\\1.png"]
    if column == "index":
        names = [3, 2, 0]
    rows = list(zip(names, [" cat ", "cat", "dog"], strict=True))
    trusted = read_trusted(write_table(source.root.parent / f"t{suffix}", rows, (column, "label")), source)
    assert pairs(trusted) == [(3, 0), (2, 0), (0, 1)]
    assert (trusted.external, len(trusted.external_labels), trusted.warnings) == ([], 0, [])


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        ("file_name,label", [["cat/1.png", "cat"], ["x.png", "cat"], ["y.png", "cat"]],
         ["not in SOURCE: row 3 ('x.png'), row 4 ('y.png').", "'cat/1.png'"]),
        ("file_name,label", [["cat/1.png", "cta"], ["cat/2.png", "cat"]],
         ["row 2 ('cta')", "Did you mean 'cat'?", "Known classes: 'cat', 'dog'."]),
        ("file_name,label", [["cat/1.png", "cat"], ["./cat/1.png", "dog"]], ["row 3 (same image as row 2)"]),
        ("file_name,label", [["cat/1.png", "cat"], ["cat/2.png", " "]], ["label is empty: row 3."]),
        ("file_name,label", [["", "cat"]], ["row 2: file_name is empty"]),
        ("file_name,label", [["cat/1.png", "cat"]] * 6, ["6 rows, more than the 5"]),
        ("file_name,label", [], ["no usable row"]),
        ("file_name,class", [["cat/1.png", "cat"]], ["has file_name, class"]),
        ("index,label", [["-1", "cat"], ["5", "cat"], ["4", "cat"], ["one", "cat"], ["9" * 5000, "cat"]],
         ["row 2 ('-1'), row 3 ('5'), row 5 ('one'), row 6", "from 0 to 4"]),
    ],
)  # fmt: skip
def test_refusals_name_the_rows(
    source: Source, write_table: WriteTable, columns: str, rows: list[list[str]], expected: list[str]
) -> None:
    path = write_table(source.root.parent / "t.csv", rows, columns.split(","))
    with pytest.raises(RelabelError) as caught:
        read_trusted(path, source)
    assert str(path) in caught.value.message
    assert caught.value.hint
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_and_classes_in_another_unicode_form_are_found(
    tree: Tree, write_table: WriteTable, forms: tuple[str, str]
) -> None:
    on_disk, typed = (normalize(form, "caf\u00e9") for form in forms)
    source = open_source(str(tree(f"{on_disk}/1.png", f"{on_disk}/2.png", "dog/3.png", root=on_disk)))
    rows = [[f"{typed}/1.png", typed], [f"{typed}\\2.png", "dog"], [f"{source.root}/dog/3.png", "dog"]]
    rows[2][0] = normalize(forms[1], rows[2][0])
    trusted = read_trusted(write_table(source.root / "t.csv", rows), source)
    assert pairs(trusted) == [(0, 0), (1, 1), (2, 1)]
    write_table(source.root / "t.csv", [rows[0], [f"{on_disk}/1.png", on_disk]])
    with pytest.raises(RelabelError, match=r"row 3 \(same image as row 2\)"):
        read_trusted(source.root / "t.csv", source)


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two names are one")
def test_a_name_that_may_mean_two_files_means_neither(tree: Tree, write_table: WriteTable) -> None:
    one, other, third = "\u1ec7", "e\u0323\u0302", "\u1eb9\u0302"
    source = open_source(str(tree(f"cat/{one}.png", f"cat/{other}.png", "dog/1.png")))
    rows = [[f"cat/{name}.png", "dog"] for name in (one, other)]
    assert len(pairs(read_trusted(write_table(source.root / "t.csv", rows), source))) == 2
    with pytest.raises(RelabelError, match=r"not in SOURCE: row 2"):
        read_trusted(write_table(source.root / "t.csv", [[f"cat/{third}.png", "dog"]]), source)


def test_only_the_first_five_offenders_are_listed(tree: Tree, write_table: WriteTable) -> None:
    source = open_source(str(tree(*(f"{kind}/{i}.png" for kind in ("a", "b") for i in range(6)))))
    path = write_table(source.root / "t.csv", [[f"x{i}", "a"] for i in range(8)])
    with pytest.raises(RelabelError, match=r"row 6 \('x4'\), and 3 more\.") as caught:
        read_trusted(path, source)
    assert "x5" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.csv", "gone"])
def test_missing_file(source: Source, name: str) -> None:
    with pytest.raises(RelabelError, match=f"no file or folder .*{name}"):
        read_trusted(source.root / name, source)


def test_classes_without_a_trusted_row_are_warned_of(tree: Tree, write_table: WriteTable) -> None:
    source = open_source(str(tree(*(f"{i}/x.png" for i in range(9)))))
    trusted = read_trusted(write_table(source.root / "t.csv", [["0/x.png", 0]]), source)
    assert trusted.warnings == ["No trusted row for the class(es) '1', '2', '3', '4', '5', and 3 more."]


def test_trusted_rows_whose_image_is_missing_are_dropped(tree: Tree, write_table: WriteTable) -> None:
    root = tree("a.png", "b.png")
    rows = [["gone.png", "cat"], ["a.png", "cat"], ["b.png", "dog"]]
    source = open_source(str(write_table(root / "m.csv", rows)))
    trusted = read_trusted(write_table(root / "t.csv", rows), source)
    assert pairs(trusted) == [(1, 0), (2, 1)]
    assert "'gone.png' (file not found)" in trusted.warnings[0]
    with pytest.raises(RelabelError, match="no usable row"):
        read_trusted(write_table(root / "t.csv", rows[:1]), source)


@pytest.fixture
def verify(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of trusted images out of their names and bytes."""

    def make(**contents: bytes) -> Path:
        for name, content in contents.items():
            path = tmp_path / "checked" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "checked"

    return make


def test_folder_of_separate_images(source: Source, verify: Callable[..., Path], picture: Picture) -> None:
    folder = verify(**{"dog/b.png": picture(1), "cat/a.png": picture(2)})
    trusted = read_trusted(folder, source)
    assert trusted.external == [folder / "cat/a.png", folder / "dog/b.png"]
    assert trusted.external_labels.tolist() == [0, 1]
    assert pairs(trusted) == []


def test_folder_images_that_are_rows_of_source_become_rows(
    source: Source, verify: Callable[..., Path], picture: Picture
) -> None:
    folder = verify(**{"dog/new.png": picture(1)})
    (folder / "cat").mkdir()
    (folder / "cat/link.png").symlink_to(source.root / "cat/1.png")
    (folder / "cat/link2.png").symlink_to(source.root / "dog/2.png")
    trusted = read_trusted(folder, source)
    assert pairs(trusted) == [(0, 0), (4, 0)]
    assert (trusted.external, trusted.external_labels.tolist()) == ([folder / "dog/new.png"], [1])


def test_what_the_given_labels_come_from_verifies_none_of_them(tree: Tree, write_table: WriteTable) -> None:
    root = tree("cat/1.png", "dog/1.png")
    (root.parent / "link").symlink_to(root)

    def refused(path: Path, source: Path) -> str:
        with pytest.raises(RelabelError, match="so every given label would count as trusted") as caught:
            read_trusted(path, open_source(str(source)))
        return caught.value.message

    assert "images is SOURCE itself," in refused(root, root)
    assert "link is SOURCE itself," in refused(root.parent / "link", root)
    assert "holds SOURCE," in refused(root.parent, root)
    rows = [["cat/1.png", "cat"], ["dog/1.png", "dog"]]
    manifest = write_table(root / "m.csv", rows)
    assert "m.csv is SOURCE itself," in refused(manifest, manifest)
    assert "images holds SOURCE," in refused(root, manifest)
    metadata = write_table(root / "metadata.csv", rows)
    assert "metadata.csv lists SOURCE's own labels," in refused(metadata, root)
    assert pairs(read_trusted(write_table(root / "t.csv", rows[:1]), open_source(str(root)))) == [(0, 0)]


def test_a_folder_beside_an_archive_is_no_part_of_it(tree: Tree, picture: Picture) -> None:
    root = tree("cat/1.png", "dog/1.png")
    (root / "dog/1.png").write_bytes(picture(99))
    path = shutil.make_archive(str(root / "a"), "zip", root)
    source = open_source(path)
    trusted = read_trusted(root, source)
    entries = {source.file_names[row]: source.class_names[label] for row, label in pairs(trusted)}
    assert (entries, trusted.external) == ({"cat/1.png": "cat", "dog/1.png": "dog"}, [])


@pytest.mark.parametrize("column", ["label", "kind"])
def test_the_column_of_given_labels_verifies_none_of_them(
    tree: Tree, write_table: WriteTable, column: str
) -> None:
    root = tree("1.png", "2.png", "3.png")
    rows = [["1.png", "cat", "cat"], ["2.png", "dog", ""], ["3.png", "cat", ""]]
    path = write_table(root / "m.csv", rows, ("file_name", column, "true"))
    named = None if column == "label" else column
    options = SourceOptions(label_column=named, trusted_column=column)
    with pytest.raises(RelabelError, match=f"--trusted-column {column} is where the given labels come from"):
        open_source(str(path), options=options)
    labels = write_table(root / "l.csv", [["1.png", "dog"], ["2.png", "dog"]])
    assert open_source(str(path), labels, options).trusted == ["cat", "dog", "cat"]
    source = open_source(str(path), options=replace(options, trusted_column="true"))
    assert source.trusted == ["cat", None, None]


@pytest.fixture
def grey_source(tmp_path: Path, picture: Picture) -> Callable[[str], Source]:
    """A source of that kind with the grey_source 0 to 50 in rows 0 to 5, half of them cats and half dogs."""
    names = [
        f"{kind}/{grey}.png"
        for kind, first in (("cat", 0), ("dog", 30))
        for grey in range(first, first + 30, 10)
    ]
    contents = [picture(10 * row) for row in range(6)]

    def make(kind: str) -> Source:
        path = tmp_path / f"source{kind}"
        match kind:
            case "":
                for name, content in zip(names, contents, strict=True):
                    (path / name).parent.mkdir(parents=True, exist_ok=True)
                    (path / name).write_bytes(content)
            case ".zip":
                with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                    for name, content in zip(names, contents, strict=True):
                        archive.writestr(name, content)
            case ".parquet":
                labels = [name[:3] for name in names]
                pq.write_table(pa.table({"image": [{"bytes": c} for c in contents], "label": labels}), path)
            case _:
                with tarfile.open(path, "w:gz" if kind == ".tar.gz" else "w") as tar:
                    for name, content in zip(names, contents, strict=True):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        return open_source(str(path))

    return make


@pytest.mark.parametrize("kind", ["", ".zip", ".tar", ".tar.gz", ".parquet"])
def test_folder_images_that_are_copies_of_images_of_source_become_rows(
    grey_source: Callable[[str], Source], verify: Callable[..., Path], picture: Picture, kind: str
) -> None:
    folder = verify(**{"cat/a.png": picture(40), "dog/b.png": picture(10), "dog/new.png": picture(11)})
    trusted = read_trusted(folder, grey_source(kind))
    assert pairs(trusted) == [(4, 0), (1, 1)]
    assert (trusted.external, trusted.external_labels.tolist()) == ([folder / "dog/new.png"], [1])


def test_a_copy_verifies_every_row_with_its_bytes_and_counts_once(
    grey_source: Callable[[str], Source], verify: Callable[..., Path], picture: Picture
) -> None:
    source = grey_source("")
    (source.root / "dog/30.png").write_bytes(picture(0))
    (source.root / "cat/empty.png").touch()
    folder = verify(**{"cat/a.png": picture(0), "cat/b.png": picture(0), "cat/c.png": b""})
    (folder / "cat/link.png").symlink_to(source.root / "dog/30.png")
    trusted = read_trusted(folder, open_source(str(source.root)))
    assert pairs(trusted) == [(0, 0), (4, 0)]
    assert trusted.external == [folder / "cat/c.png"]  # it holds nothing that could be a copy
    (folder / "dog").mkdir()
    (folder / "dog/d.png").write_bytes(picture(0))
    with pytest.raises(RelabelError, match=r"listed twice: 'dog/d\.png' \(same image as 'cat/a\.png'\)"):
        read_trusted(folder, source)


def test_only_images_of_the_same_size_are_read_to_find_copies(
    grey_source: Callable[[str], Source],
    verify: Callable[..., Path],
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = grey_source("")
    folder = verify(**{"cat/large.png": picture(0) + bytes(9), "dog/copy.png": picture(10)})
    (source.root / "dog/50.png").write_bytes(picture(50) + bytes(99))
    opened = []
    plain = Path.open

    def noted(path: Path, *rest: object) -> object:
        opened.append(path.name)
        return plain(path, *rest)

    monkeypatch.setattr(Path, "open", noted)
    assert pairs(read_trusted(folder, source)) == [(1, 1)]
    assert not {"large.png", "50.png"} & {*opened}
    assert {"10.png", "copy.png"} <= {*opened}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.png", "emu/1.png"], r"'emu/1.png' \('emu'\)"),
        (["cat/1.png", "loose.png"], "no class: 'loose.png'"),
        (["readme.txt"], "no image in"),
    ],
)
def test_bad_folders(source: Source, tree: Tree, names: list[str], expected: str) -> None:
    with pytest.raises(RelabelError, match=expected):
        read_trusted(tree(*names, root="checked"), source)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_copies_of_images_that_an_archive_holds_larger_than_they_are_needed(
    tmp_path: Path, picture: Picture, suffix: str
) -> None:
    """Those of a compressed one are kept decoded, and known by the bytes they came as."""
    for label in ("cat", "dog"):
        for number in range(2):
            path = tmp_path / f"images/{label}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([number, len(label), label == "cat"]).integers(0, 256, (40, 40, 3))
            Image.fromarray(noise.astype(np.uint8)).save(path)
    with tarfile.open(tmp_path / f"t{suffix}", "w:gz" if suffix == ".tar.gz" else "w") as tar:
        tar.add(tmp_path / "images", ".")
    source = open_source(str(tmp_path / f"t{suffix}"), largest=8)
    (tmp_path / "checked/dog").mkdir(parents=True)
    shutil.copy(tmp_path / "images/cat/1.png", tmp_path / "checked/dog/copy.png")
    trusted = read_trusted(tmp_path / "checked", source)
    assert trusted.external == []
    assert [source.file_names[row] for row in trusted.rows] == ["cat/1.png"]
    assert trusted.labels.tolist() == [1]


def test_rows_that_turn_out_unreadable_are_no_trusted_rows(source: Source) -> None:
    trusted = replace(TrustedSet.empty(), rows=np.array([3, 0, 2]), labels=np.array([1, 1, 0]))
    left = trusted.without({0: "file is empty", 1: "torn"}, source)
    assert pairs(left) == [(3, 1), (2, 0)]
    assert left.warnings == ["1 trusted row(s) cannot be used: 'cat/1.png' (file is empty)."]
    assert left.without({}, source).warnings == []
