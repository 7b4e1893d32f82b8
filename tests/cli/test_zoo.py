"""A user's folder is a mess: what can be used is used, the rest become rows with an error, in order."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"0"))
    + chunk(b"IEND", b"")
)
BROKEN = {
    "bomb.png": "over the limit",
    "dangling.png": "file not found",
    "junk.png": "not an image",
    "truncated.png": "truncated",
    "zero.png": "file is empty",
}
ODD_NAMES = [
    "naïve 名.png",
    "a, b.png",
    'it\'s "so".png',
    " lead.png",
    "[red].png",
    "-o.png",
    "UPPER.JPG",
    "100%.png",
]


@pytest.fixture
def zoo(folder, tools):
    """Broken, odd and foreign files among the red pictures."""
    red = folder / "images/red"

    def draw(name, size=(8, 8), **save):
        return tools["draw"](red / name, "red", size, **save)

    picture = Image.open(red / "red0.png")
    picture.convert("CMYK").save(red / "cmyk.jpg")
    picture.quantize(8).save(red / "palette.png")
    picture.save(red / "animated.gif", save_all=True, append_images=[picture.rotate(90)])
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(red / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    draw("turned.jpg", (12, 8), exif=turned)
    draw("one.png", (1, 1))
    draw("really_png.jpg", format="PNG")
    for name in ODD_NAMES:
        draw(name)
    whole = io.BytesIO()
    picture.resize((64, 64)).save(whole, "PNG")
    (red / "truncated.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (red / "zero.png").touch()
    (red / "junk.png").write_bytes(b"junk" * 50)
    (red / "bomb.png").write_bytes(BOMB)
    os.symlink("nosuch.png", red / "dangling.png")
    os.symlink("red0.png", red / "link.png")
    for name in ("Thumbs.db", ".DS_Store", "mask.txt"):
        (red / name).write_bytes(b"left alone")
    (folder / "images/void").mkdir()
    return folder


def test_every_image_is_a_row_and_one_bad_image_never_ends_the_run(fit, zoo):
    done = fit("--json")
    assert done.code == 0
    summary = json.loads(done.out, parse_constant=pytest.fail)
    assert summary["ignored_files"] == 3
    assert summary["unusable_rows"] == len(BROKEN)
    assert "No image in the class folder(s) 'void'" in done.err
    assert "No trusted row for the class(es) 'void'" in done.err
    assert "5 of 49 images cannot be used" in done.err

    table = pq.read_table("labels.parquet")
    rows = {row["file_name"]: row for row in table.to_pylist()}
    assert table.schema.field("soft_label").type.list_size == 3  # void is known though it is empty
    on_disk = [f"{path.parent.name}/{path.name}" for path in zoo.glob("images/*/*")]
    assert set(rows) == {name for name in on_disk if name.endswith(("png", "jpg", "JPG", "gif"))}
    assert {f"red/{name}" for name in ODD_NAMES} <= set(rows)
    assert {name for name, row in rows.items() if row["error"]} == {f"red/{name}" for name in BROKEN}
    for name, sentence in BROKEN.items():
        row = rows[f"red/{name}"]
        assert sentence in row["error"]
        assert row["original_label"] == "red"
        assert {row[key] for key in ("corrected_label", "noise_probability", "action")} == {None}
    good = [row for row in rows.values() if not row["error"]]
    assert all(abs(sum(row["soft_label"]) - 1) < 1e-3 for row in good)
    assert fit("--json", "-o", "again.parquet").code == 0
    assert pq.read_table("again.parquet").equals(table)  # order and numbers


def test_trusted_images_that_are_all_broken_are_refused(fit, zoo, files, tools):
    tools["write_csv"]("bad.csv", [("red/zero.png", "red"), ("red/junk.png", "red")])
    before = files()
    done = fit("--trusted", "bad.csv")
    assert done.code == 2
    assert "none of the trusted images can be read" in done.err
    assert files() == before


def test_some_broken_trusted_images_are_left_out(fit, zoo, tools):
    rows = [
        ("red/red0.png", "red"),
        ("red/red1.png", "red"),
        ("blue/blue0.png", "blue"),
        ("red/zero.png", "red"),
    ]
    tools["write_csv"]("some.csv", [*rows, ("blue/blue1.png", "blue"), ("blue/blue2.png", "blue")])
    assert fit("--trusted", "some.csv", "-o", "labels.parquet").code == 0


def test_a_class_of_broken_images_only_is_refused(run, folder, tools):
    for name in ("a", "b"):
        tools["draw"](folder / f"two/red/{name}.png", "red")
        (folder / f"two/blue/{name}.png").parent.mkdir(exist_ok=True)
        (folder / f"two/blue/{name}.png").write_bytes(b"")
    tools["write_csv"]("t.csv", [("red/a.png", "red")])
    done = run("fit", "two", "--trusted", "t.csv")
    assert done.code == 2
    assert "fewer than two classes have images that can be used" in done.err
