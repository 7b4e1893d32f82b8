import gzip
import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relabel.config import SourceOptions
from relabel.data.shards import suffix_of
from relabel.data.sources import Source, open_source
from relabel.data.trusted import read_trusted
from relabel.errors import RelabelError

Picture = Callable[..., bytes]
Greys = Callable[[Source], list[int | str]]
Members = Sequence[tuple[str, bytes | None]]

MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz"}


def pack(path: Path, members: Members) -> Path:
    """A .tar or .zip of the members; None is a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name + "/" * (content is None), content or b"")
        return path
    with tarfile.open(path, MODES[suffix_of(path.name)]) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(content or b""))
    return path


def labelled(source: Source) -> list[tuple[str, str | None]]:
    labels = [source.class_names[label] if label >= 0 else None for label in source.given]
    return list(zip(source.file_names, labels, strict=True))


def refusal(location: Path | str, **options: object) -> RelabelError:
    with pytest.raises(RelabelError) as caught:
        open_source(str(location), options=SourceOptions(**options))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("name", ["t.zip", "t.tar", "t.tar.gz", "t.tgz"])
def test_a_tree_of_class_folders(tmp_path: Path, picture: Picture, greys: Greys, name: str) -> None:
    members = [
        ("train/10/b.v2.png", picture(10)),
        ("train/2/a.png", picture(20)),
        ("loose.png", picture(30)),
        ("train/2/broken.png", picture(40)[:-30]),
        ("train/2/notes.txt", b"who knows"),
        ("train/emu", None),
        ("__MACOSX/train/2/._a.png", b"?"),
        ("train/2/.DS_Store", b"?"),
    ]
    source = open_source(str(pack(tmp_path / name, members)))
    assert source.kind == "archive"
    assert labelled(source) == [
        ("train/10/b.v2.png", "10"), ("train/2/a.png", "2"), ("loose.png", None), ("train/2/broken.png", "2"),
    ]  # fmt: skip
    assert source.class_names == ["2", "10", "emu"]
    assert source.ignored_files == 1
    assert [text.partition(" ")[0] for text in source.warnings] == ["No", "1"]
    found = greys(source)
    assert found[:3] == [10, 20, 30]
    assert "truncated or corrupt" in str(found[3])


@pytest.mark.parametrize(
    ("part", "contents"),
    [
        ("cls", [b"3", b"10\n", b""]),
        ("txt", [b"3", b" 10 ", b"\n"]),
        ("json", [b'{"label": 3}', b'{"label": "10"}', b'{"caption": "x"}']),
        ("json", [b'{"label": 3}', b'{"label": "10"}', b"not json"]),
        ("cls", [b"3", b"10", b"\xff\xfe"]),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.xz"])
def test_webdataset_shards(
    tmp_path: Path, picture: Picture, greys: Greys, suffix: str, part: str, contents: list[bytes]
) -> None:
    for shard in range(2):
        members: list[tuple[str, bytes]] = []
        for row, content in enumerate(contents):
            key = f"./{shard}/{row:04d}"
            members += [(f"{key}.{part}", content), (f"{key}.png", picture(10 * (3 * shard + row + 1)))]
            members.append((f"{key}.seg.png", picture(255)))
        pack(tmp_path / f"shard-{shard}{suffix}", members)
    source = open_source(f"{tmp_path}/shard-{{0..1}}{suffix}")
    assert labelled(source) == [
        ("0/0000.png", "3"), ("0/0001.png", "10"), ("0/0002.png", None),
        ("1/0000.png", "3"), ("1/0001.png", "10"), ("1/0002.png", None),
    ]  # fmt: skip
    assert greys(source) == [10, 20, 30, 40, 50, 60]
    assert source.ignored_files in (6, 8)  # the masks, and what holds no label
    assert labelled(open_source(str(tmp_path))) == labelled(source)


def test_the_label_is_in_the_part_or_the_field_that_is_named(tmp_path: Path, picture: Picture) -> None:
    members: list[tuple[str, bytes]] = []
    for row, (label, fine) in enumerate([("a", "x"), ("b", "y")]):
        fields = json.dumps({"label": label, "fine": fine}).encode()
        members += [(f"{row}.png", picture(9)), (f"{row}.json", fields), (f"{row}.txt", b"caption")]
        members.append((f"{row}.kind", label.upper().encode()))
    path = pack(tmp_path / "t.tar", members)
    for column, classes in ((None, ["a", "b"]), ("fine", ["x", "y"]), ("kind", ["A", "B"])):
        source = open_source(str(path), options=SourceOptions(label_column=column))
        assert source.class_names == classes
    one = open_source(str(path), options=SourceOptions(label_column="txt"), need_classes=False)
    assert one.class_names == ["caption"]
    assert "no image of" in refusal(path, label_column="nosuch").message


def test_numbers_are_indices_into_the_classes_beside_the_shards(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "classes.txt").write_text("wolf\ncat\nemu\n")
    pack(tmp_path / "t.tar", [("0.png", picture(9)), ("0.cls", b"1"), ("1.png", picture(9)), ("1.cls", b"0")])
    source = open_source(str(tmp_path / "t.tar"))
    assert labelled(source) == [("0.png", "cat"), ("1.png", "wolf")]
    assert source.class_names == ["wolf", "cat", "emu"]
    (tmp_path / "trusted.csv").write_text("file_name,label\n1.png,2\n")
    assert read_trusted(tmp_path / "trusted.csv", source).labels.tolist() == [2]


def test_equal_names_in_two_shards_are_told_apart(tmp_path: Path, picture: Picture) -> None:
    for shard in "ab":
        pack(tmp_path / f"{shard}.tar", [(f"{cls}/1.png", picture(9)) for cls in ("cat", "dog")])
    source = open_source(f"{tmp_path}/*.tar")
    assert source.file_names == ["a.tar/cat/1.png", "a.tar/dog/1.png", "b.tar/cat/1.png", "b.tar/dog/1.png"]
    assert source.class_names == ["cat", "dog"]
    twice = pack(tmp_path / "a.tar", [(f"{cls}/1.png", picture(9)) for cls in ("cat", "cat", "dog")])
    assert open_source(str(twice)).file_names == ["0", "1", "2"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_shard_that_ends_early_keeps_what_is_there_and_shifts_nothing(
    tmp_path: Path, picture: Picture, greys: Greys, suffix: str
) -> None:
    noise = [bytes(range(256)) * 40 for _ in range(2)]  # stands for pixels that do not compress
    members = [
        ("0.cls", b"a"), ("0.png", picture(10)), ("1.cls", b"b"), ("1.png", picture(20)),
        ("2.cls", b"a"), ("2.png", picture(30) + noise[0]), ("3.cls", b"b"), ("3.png", picture(40)),
    ]  # fmt: skip
    short = pack(tmp_path / f"a{suffix}", members)
    if suffix == ".tar":
        short.write_bytes(short.read_bytes()[: 12 * 512])
    else:
        whole = pack(tmp_path / "whole.tar", members).read_bytes()
        short.write_bytes(gzip.compress(whole[: 12 * 512]))
        (tmp_path / "whole.tar").unlink()
    pack(tmp_path / f"b{suffix}", [("9.cls", b"b"), ("9.png", picture(90))])
    source = open_source(f"{tmp_path}/*{suffix}")
    assert labelled(source) == [("0.png", "a"), ("1.png", "b"), ("2.png", "a"), ("9.png", "b")]
    assert greys(source) == [10, 20, "the archive ends within this image", 90]
    assert f"a{suffix} is damaged after 3 image(s)" in source.warnings[0]


def test_a_tar_cut_at_a_member_or_overwritten_is_told(tmp_path: Path, picture: Picture, greys: Greys) -> None:
    path = pack(tmp_path / "t.tar", [("0.cls", b"a"), ("0.png", picture(9)), ("1.cls", b"b")])
    whole = path.read_bytes()
    for damaged in (whole[: 6 * 512], whole[: 4 * 512] + b"\xff" * 512 + whole[5 * 512 :]):
        path.write_bytes(damaged)
        source = open_source(str(path), need_classes=False)
        assert source.file_names[0] == "0.png"
        assert len(source.warnings) == 1
        assert "t.tar is damaged after" in source.warnings[0]
    path.write_bytes(whole)
    source = open_source(str(path))  # a label without an image is a row all the same
    assert labelled(source) == [("0.png", "a"), ("1", "b")]
    assert greys(source) == [9, "the archive has a label for this row, and no image"]


def test_a_member_of_a_zip_that_is_damaged_is_an_error_of_its_row(
    tmp_path: Path, picture: Picture, greys: Greys
) -> None:
    path = pack(tmp_path / "t.zip", [("cat/1.png", picture(10)), ("dog/1.png", picture(20))])
    data = bytearray(path.read_bytes())
    place = data.index(b"cat/1.png") + len("cat/1.png")
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(data)
    found = greys(open_source(str(path)))
    assert "truncated or corrupt image" in str(found[0])
    assert found[1] == 20


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.zip", b"PK\x03\x04 and no more", "t.zip cannot be read: File is not a zip file."),
        ("t.zip", b"", "t.zip cannot be read"),
        ("t.tar", b"no archive" * 100, "t.tar cannot be read"),
        ("t.tar.gz", b"no archive", "t.tar.gz cannot be read"),
        ("t.tar.xz", b"", "t.tar.xz cannot be read"),
        ("t.rar", b"", "is not a kind of file"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name).message


def test_archives_that_hold_something_else(tmp_path: Path, picture: Picture) -> None:
    assert "There is no image in" in refusal(pack(tmp_path / "e.tar", [("readme.md", b"")])).message
    assert "--split has no meaning" in refusal(
        pack(tmp_path / "c.zip", [("a/1.png", picture(9))]), split="train"
    ).message  # fmt: skip


def test_images_of_a_compressed_archive_are_kept_no_larger_than_they_are_needed(
    tmp_path: Path, picture: Picture, greys: Greys
) -> None:
    members = [(f"{label}/1.png", picture(10, (90, 70))) for label in "ab"]
    source = open_source(str(pack(tmp_path / "t.tar.gz", members)), largest=4)
    assert source.references[0].open("rb").read(11) == b"P6 4 4 255\n"
    assert greys(source) == [10, 10]


def table(suffix: str, columns: dict[str, list[object]]) -> bytes:
    """The columns as a metadata file of that kind."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".csv":
        lines = [columns, *(row.values() for row in rows)]
        return "".join(
            ",".join("" if cell is None else str(cell) for cell in line) + "\n" for line in lines
        ).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("archive", ["t.zip", "t.tar", "t.tar.gz"])
def test_a_metadata_file_labels_the_images_of_its_archive(
    tmp_path: Path, picture: Picture, greys: Greys, archive: str, suffix: str
) -> None:
    listed = {
        "file_name": ["2.png", "sub\\1.png", "gone.png"],
        "label": ["b", None, "a"],
        "kind": ["x", "y", None],
        "checked": [None, "x", None],
    }
    members = [
        ("train/sub/1.png", picture(10)),
        ("train/2.png", picture(20)),
        ("train/3.png", picture(30)),
        ("train/notes.txt", b"1"),
        (f"train/metadata{suffix}", table(suffix, listed)),
    ]
    path = pack(tmp_path / archive, members)
    source = open_source(str(path))
    assert labelled(source) == [
        ("train/2.png", "b"), ("train/sub/1.png", None), ("train/gone.png", "a"), ("train/3.png", None)
    ]  # fmt: skip
    assert greys(source) == [20, 10, "file not found", 30]
    assert source.warnings == [f"1 image(s) in {path} are in no metadata file: unlabelled."]
    assert source.ignored_files == 1
    options = SourceOptions(image_column="file_name", label_column="kind", trusted_column="checked")
    source = open_source(str(path), options=options)
    assert [label for _, label in labelled(source)] == ["x", "y", None, None]
    assert source.trusted == [None, "x", None, None]


def test_every_shard_brings_its_own_metadata(tmp_path: Path, picture: Picture, greys: Greys) -> None:
    for shard in range(2):
        rows = table(".csv", {"file_name": ["a.png", "./b.png"], "label": [shard, 2]})
        images = [("b.png", picture(10 * shard + 1)), ("a.png", picture(10 * shard + 2))]
        pack(tmp_path / f"{shard}.zip", [("metadata.csv", rows), *images])
    pack(tmp_path / "2.zip", [("c.png", picture(99))])
    source = open_source(f"{tmp_path}/*.zip")
    assert labelled(source) == [
        ("0.zip/a.png", "0"), ("0.zip/b.png", "2"), ("1.zip/a.png", "1"), ("1.zip/b.png", "2"),
        ("2.zip/c.png", None),
    ]  # fmt: skip
    assert greys(source) == [2, 1, 12, 11, 99]


def test_names_and_labels_in_another_unicode_form(tmp_path: Path, picture: Picture, greys: Greys) -> None:
    rows = "file_name,label\ncaf\u00e9.png,\u00e9\nb.png,e\u0301\nc.png,e\n".encode()
    images = [("b.png", picture(10)), ("cafe\u0301.png", picture(20)), ("c.png", picture(30))]
    source = open_source(str(pack(tmp_path / "t.zip", [("metadata.csv", rows), *images])))
    assert [label for _, label in labelled(source)] == ["\u00e9", "\u00e9", "e"]
    assert (greys(source), source.errors) == ([20, 10, 30], {})
    beside = [("b.cls", "\u00e9".encode()), ("cafe\u0301.cls", "e\u0301".encode()), ("c.cls", b"e")]
    source = open_source(str(pack(tmp_path / "t.tar", [*images, *beside])))
    assert source.class_names == ["e", "\u00e9"]


def test_metadata_that_cannot_be_read_is_refused_by_its_row(tmp_path: Path, picture: Picture) -> None:
    image = ("a.png", picture(9))
    for content, message in (
        (
            b"name,label\na.png,x\n",
            "t.tar/sub/metadata.csv needs the columns file_name and label, and has name",
        ),
        (
            b"file_name,label\na.png,x\n./a.png,y\n",
            "metadata.csv, row 3: './a.png' is listed before, in row 2.",
        ),
        (b"file_name,label\na.png,\xff\n", "t.tar/sub/metadata.csv, row 2: the text is not UTF-8."),
        (b"file_name,label\nb.png,x\n", "None of the 1 file(s) that"),
    ):
        members = [("sub/metadata.csv", content)]
        path = pack(tmp_path / "t.tar", members if b"b.png" in content else [image, *members])
        assert message in refusal(path).message
    whole = pack(tmp_path / "u.tar", [image, ("metadata.csv", b"file_name,label\n" * 100)]).read_bytes()
    (tmp_path / "u.tar").write_bytes(whole[: whole.index(b"file_name") + 100])
    assert "u.tar: its metadata.csv cannot be read: " in refusal(tmp_path / "u.tar").message


def test_images_that_a_shard_lost_are_rows_when_its_metadata_lists_them(
    tmp_path: Path, picture: Picture, greys: Greys
) -> None:
    rows = table(".csv", {"file_name": [f"{n}.png" for n in range(4)], "label": ["a", "b", "a", "b"]})
    members = [("metadata.csv", rows), *((f"{n}.png", picture(10 * n)) for n in range(4))]
    path = pack(tmp_path / "t.tar", members)
    path.write_bytes(path.read_bytes()[: 512 * 6])  # the table and two images, each behind its header
    source = open_source(str(path))
    assert [label for _, label in labelled(source)] == ["a", "b", "a", "b"]
    assert greys(source) == [0, 10, *["the archive ends before this image"] * 2]
    assert "t.tar is damaged after 2 image(s): " in source.warnings[-1]


def test_verified_labels_lie_beside_the_images_of_a_shard(tmp_path: Path, picture: Picture) -> None:
    members: list[tuple[str, bytes]] = []
    for row, (label, checked) in enumerate([("a", None), ("b", "a"), ("a", "b")]):
        members.append((f"{row}.png", picture(9)))
        members.append((f"{row}.json", json.dumps({"label": label, "checked": checked}).encode()))
        if checked:
            members.append((f"{row}.Trusted", checked.encode()))
    path = pack(tmp_path / "t.tar", members)
    for column in ("checked", "trusted", "Trusted"):
        source = open_source(str(path), options=SourceOptions(trusted_column=column))
        assert [label for _, label in labelled(source)] == ["a", "b", "a"]
        assert source.trusted == [None, "a", "b"]
    assert source.ignored_files == 0
    message = refusal(path, trusted_column="nosuch").message
    assert message == f"--trusted-column nosuch: no image of {path} has such a label beside it."
    message = refusal(path, image_column="file_name").message
    assert (
        message == f"--image-column has no meaning for {path}, which is an archive without a metadata file."
    )


@pytest.mark.parametrize(("part", "column"), [("cls", "cls"), ("json", "label")])
def test_the_labels_beside_images_do_not_verify_themselves(
    tmp_path: Path, picture: Picture, part: str, column: str
) -> None:
    said = {"cls": b"a", "json": b'{"label": "a"}'}[part]
    path = pack(tmp_path / "t.tar", [("1.png", picture(9)), (f"1.{part}", said), ("2.png", picture(9))])
    message = refusal(path, trusted_column=column).message
    assert message.startswith(f"--trusted-column {column} is where the given labels come from, so every one")


def test_verified_labels_beside_images_in_class_folders(tmp_path: Path, picture: Picture) -> None:
    members = [("cat/1.png", picture(9)), ("dog/2.png", picture(9)), ("dog/2.trusted", b"cat")]
    source = open_source(
        str(pack(tmp_path / "t.tar", members)), options=SourceOptions(trusted_column="trusted")
    )
    assert labelled(source) == [("cat/1.png", "cat"), ("dog/2.png", "dog")]
    assert source.trusted == [None, "cat"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_in_a_tar_are_the_images_they_stand_for(
    tmp_path: Path, picture: Picture, greys: Greys, mode: str
) -> None:
    path = tmp_path / ("t.tar.gz" if mode == "w:gz" else "t.tar")
    with tarfile.open(path, mode) as tar:

        def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, target
            tar.addfile(member, io.BytesIO(content))

        add("./cat/soft.png", kind=tarfile.SYMTYPE, target="../dog/2.png")
        add("./cat/1.png", picture(10))
        add("./cat/hard.png", kind=tarfile.LNKTYPE, target="./cat/1.png")
        add("./dog/2.png", picture(20))
        add("./dog/out.png", kind=tarfile.SYMTYPE, target="/etc/passwd.png")
        add("./dog/pipe.png", kind=tarfile.FIFOTYPE)
    source = open_source(str(path))
    assert [name for name, _ in labelled(source)] == [
        "cat/soft.png", "cat/1.png", "cat/hard.png", "dog/2.png", "dog/out.png"
    ]  # fmt: skip
    assert greys(source) == [20, 10, 10, 20, "a link to what the archive does not hold"]


def test_a_zip_with_the_slashes_of_windows(tmp_path: Path, picture: Picture, greys: Greys) -> None:
    members = [("photos\\", b""), ("photos\\cat\\1.png", picture(10)), ("photos\\dog\\2.png", picture(20))]
    source = open_source(str(pack(tmp_path / "t.zip", members)))
    assert labelled(source) == [("photos/cat/1.png", "cat"), ("photos/dog/2.png", "dog")]
    assert greys(source) == [10, 20]
    assert source.ignored_files == 0


def test_names_that_point_upwards_or_come_twice_keep_their_rows(
    tmp_path: Path, picture: Picture, greys: Greys
) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile's, of the name that comes twice
        for grey, name in enumerate(["../cat/1.png", "/dog/2.png", "./dog/3.png", "cat/4.png", "cat/4.png"]):
            archive.writestr(name, picture(grey))
    source = open_source(str(path))
    assert [source.class_names[label] for label in source.given] == ["cat", "dog", "dog", "cat", "cat"]
    assert greys(source) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["t.zip", "t.tar", "t.tgz"])
@pytest.mark.parametrize("folders", [(".", "./cat", "./dog"), ("images", "images/cat"), ("images",), ()])
def test_folders_above_the_class_folders_are_no_classes(
    tmp_path: Path, picture: Picture, name: str, folders: Sequence[str]
) -> None:
    """As `tar -cf t.tar -C images .` packs them, or a program that leaves some of the folders out."""
    top = "./" if "." in folders else "images/"
    images = [(f"{top}{label}/{n}.png", picture(50 * n)) for label in ("cat", "dog") for n in range(2)]
    source = open_source(str(pack(tmp_path / name, [(folder, None) for folder in folders] + images)))
    assert source.class_names == ["cat", "dog"]
    assert source.warnings == []


@pytest.mark.parametrize(("flags", "found"), [({}, "folders"), ({"label_column": "txt"}, "texts")])
@pytest.mark.parametrize("notes", [[b"blurry"], [b"a", b"b", b"c", b"d"]])
def test_texts_beside_some_images_of_class_folders_are_notes(
    tmp_path: Path, picture: Picture, flags: dict[str, str], found: str, notes: list[bytes]
) -> None:
    names = [f"{label}/{n}" for label in ("cat", "dog") for n in range(2)]
    members: list[tuple[str, bytes | None]] = [(f"{name}.png", picture(9)) for name in names]
    members += [(f"{name}.txt", note) for name, note in zip(names, notes, strict=False)]
    path = pack(tmp_path / "t.tar", members)
    source = open_source(str(path), options=SourceOptions(**flags), need_classes=False)
    warnings = [text for text in source.warnings if "taken for notes" in text]
    if found == "folders":
        assert [label for _, label in labelled(source)] == ["cat", "cat", "dog", "dog"]
        assert len(warnings) == 1
    else:
        assert [label for _, label in labelled(source) if label] == [note.decode() for note in notes]
        assert warnings == []


def test_texts_that_come_again_are_labels_even_of_images_in_folders(tmp_path: Path, picture: Picture) -> None:
    names = [f"{folder}/{n}" for folder in ("one", "two") for n in range(4)]
    members: list[tuple[str, bytes | None]] = [(f"{name}.png", picture(9)) for name in names]
    members += [(f"{name}.txt", name[-1:].encode()) for name in names]
    assert open_source(str(pack(tmp_path / "t.tar", members))).class_names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("name", ["t.zip", "t.tar", "t.tgz"])
@pytest.mark.parametrize("folder", ["", "images/"])
def test_classes_come_along_in_an_archive(tmp_path: Path, picture: Picture, name: str, folder: str) -> None:
    members = [(f"{folder}{label}/0.png", picture(9)) for label in ("cat", "dog")]
    listed = [(f"{folder}classes.txt", b"dog\ncat\nbird\n"), (f"{folder}deep/er/classes.txt", b"x\n")]
    source = open_source(str(pack(tmp_path / name, [*listed, *members])))
    assert source.class_names == ["dog", "cat", "bird"]
    assert source.numbered
    assert source.ignored_files == 1, "the one of a folder deep below"
    (tmp_path / name).unlink()
    strange = pack(tmp_path / name, [(f"{folder}classes.txt", b"emu\nowl\n"), *members])
    left = open_source(str(strange))
    assert left.class_names == ["cat", "dog"]
    assert [f"{folder}classes.txt is left alone" in text for text in left.warnings] == [True]


def test_a_damaged_archive_is_not_told_as_one_of_too_few_classes(tmp_path: Path, picture: Picture) -> None:
    members = [(f"{label}/{n}.png", picture(9)) for label in ("cat", "dog") for n in range(3)]
    path = pack(tmp_path / "t.tar", members)
    path.write_bytes(path.read_bytes()[:1536])
    refused = refusal(path)
    assert "has only one class, 'cat'." in refused.message
    assert "is damaged after" in refused.message
    assert refused.hint == "Copy the archive again."


def test_images_behind_a_password_are_told_as_such(tmp_path: Path, picture: Picture) -> None:
    path = pack(tmp_path / "t.zip", [(f"{label}/0.png", picture(9)) for label in ("cat", "dog")])
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + flags] |= 1
    path.write_bytes(data)
    assert open_source(str(path)).errors == {0: "the image is encrypted"}
