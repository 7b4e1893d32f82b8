import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

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
    path = pack(tmp_path / "t.zip", [("metadata.csv", b"file_name,label\n"), ("a.png", picture(9))])
    assert "t.zip holds metadata.csv" in refusal(path).message
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
