import contextlib
import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from relabel.data.decode import decode, probe_sizes
from relabel.errors import ImageError, RelabelError

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def png(width: int, height: int) -> bytes:
    """The signature and header of a PNG, with no pixels behind them."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 99) + b"IDAT"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 64, height: int = 64) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    return encoded(image, "PNG", **({"transparency": 1} if transparent else {}))


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("RGB", (20, 10), "red"), "JPEG"), RED),
        (encoded(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"), RED),
        (encoded(Image.new("YCbCr", (9, 9), (76, 84, 255)), "JPEG"), RED),
        (encoded(Image.new("RGB", (9, 9), "red"), "WEBP", lossless=True), RED),
        (encoded(Image.new("RGB", (9, 9), "red"), "BMP"), RED),
        (encoded(Image.new("RGB", (9, 9), "red"), "PPM"), RED),
        (encoded(Image.new("RGB", (9, 9), "red"), "TIFF", compression="tiff_lzw"), RED),
        (encoded(Image.new("LAB", (9, 9), (255, 128, 128)), "TIFF"), WHITE),
        (encoded(Image.new("1", (9, 9), 1), "PNG"), WHITE),
        (encoded(Image.new("L", (9, 9), 100), "PNG"), (100, 100, 100)),
        (encoded(Image.new("LA", (9, 9), (0, 0)), "PNG"), WHITE),
        (encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 255)), "PNG"), RED),
        (encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 51)), "PNG"), (204, 204, 204)),
        (encoded(Image.new("RGB", (9, 9), "red"), "PNG", transparency=RED), WHITE),
        (palette(transparent=False), RED),
        (palette(transparent=True), WHITE),
        (animation("GIF"), RED),
        (animation("PNG"), RED),
        (encoded(Image.new("RGB", (1, 1), "red"), "PNG"), RED),
        (encoded(Image.new("I;16", (9, 9), 257 * 100), "PNG"), (100, 100, 100)),
        (encoded(Image.new("I;16", (9, 9), 257 * 100), "TIFF"), (100, 100, 100)),
        (encoded(Image.new("I;16B", (9, 9), 257 * 100), "TIFF"), (100, 100, 100)),
        (encoded(Image.new("I", (9, 9), 257 * 100), "TIFF"), (100, 100, 100)),
        (encoded(Image.new("I", (9, 9), 100_000), "TIFF"), BLACK),
        (encoded(Image.new("F", (9, 9), 0.2), "TIFF"), (51, 51, 51)),
        (encoded(Image.new("F", (9, 9), 51.0), "TIFF"), (51, 51, 51)),
        (encoded(Image.new("F", (9, 9), float("nan")), "TIFF"), BLACK),
    ],
    ids=[
        "jpeg", "cmyk jpeg", "ycbcr", "webp", "bmp", "ppm", "tiff", "lab", "1-bit", "grey",
        "transparent grey", "rgba", "half transparent", "colour key", "palette", "transparent palette", "gif",
        "apng", "1x1",
        "16-bit png", "16-bit tiff", "16-bit big-endian", "32-bit in 16-bit range", "32-bit constant",
        "float 0..1", "float 0..255", "float nan",
    ],
)  # fmt: skip
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path, content: bytes, expected: tuple[int, int, int]
) -> None:
    path = tmp_path / "wrong extension.jpg"
    path.write_bytes(content)
    pixels = decode(path, 8)
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert pixels.flags.writeable
    assert np.abs(pixels.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, dtype: type[np.generic]) -> None:
    ramp = np.tile(np.linspace(0, 65535, 16), (16, 1)).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    np.testing.assert_array_equal(decode(tmp_path / "ramp.tif", 16)[0, :, 0], np.arange(16) * 17)


def corners(pixels: NDArray[np.uint8]) -> str:
    """Name the colours of the four corners: top left, top right, bottom left, bottom right."""
    names = {RED: "r", WHITE: "w", BLACK: "k", (0, 0, 255): "b"}
    values = np.where(pixels > 127, 255, 0)
    return "".join(names[tuple(values[y, x].tolist())] for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2)))


@pytest.mark.parametrize(
    ("orientation", "expected"),
    list(enumerate(["rwbk", "wrkb", "kbwr", "bkrw", "rbwk", "brkw", "kwbr", "wkrb"], 1)),
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(tmp_path: Path, kind: str, orientation: int, expected: str) -> None:
    image = Image.new("RGB", (48, 32))  # corners before rotation: red, white, blue, black
    for x, y, colour in ((0, 0, "red"), (24, 0, "white"), (0, 16, "blue")):
        image.paste(colour, (x, y, x + 24, y + 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned", kind, exif=exif)
    assert corners(decode(tmp_path / "turned", 16)) == expected


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0not a TIFF header", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"],
    ids=["makes Pillow raise", "makes Pillow warn"],
)
def test_broken_exif_does_not_cost_the_image(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png", exif=exif)
    assert (decode(tmp_path / "a.png", 4) == RED).all()


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (800, 400)])
def test_the_centre_square_is_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "blue")
    side, (width, height) = min(size), size
    left, top = (width - side) // 2, (height - side) // 2
    image.paste("red", (left, top, left + side, top + side))
    image.save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 16) == RED).all()


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    checks = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "a.png")
    assert np.abs(decode(tmp_path / "a.png", 32).astype(int) - 127).max() < 8


def test_large_jpegs_are_decoded_at_reduced_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(1600, 1200).save(tmp_path / "a.jpg")
    loaded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda im: loaded.append(im.size) or load(im))
    assert decode(tmp_path / "a.jpg", 64).shape == (64, 64, 3)
    assert loaded[0] == (200, 150)


def test_a_very_long_image(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1), "red").save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 32) == RED).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "file is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image Pillow"),
        (b"\x00" * 1000, "not an image Pillow can read"),
        (png(20_000, 5_000), "image has 100000000 pixels, over the limit of 89478485"),
        (png(60_000, 60_000), "image has 3600000000 pixels, over the limit of 89478485"),
        (png(8, 8), "truncated or corrupt image: "),
        *(
            (content[: len(content) // 2], "truncated or corrupt image: ")
            for content in (encoded(noise(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM"))
        ),
        (encoded(noise(), "TIFF")[:9000], "truncated or corrupt image: "),
    ],
    ids=[
        "empty", "svg", "eps", "zeros", "bomb", "huge bomb", "no pixels", "jpeg", "png", "gif", "bmp", "webp",
        "ppm", "tiff",
    ],
)  # fmt: skip
def test_unusable_files(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "some name.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        decode(path, 8)
    assert caught.value.message.startswith(expected)
    assert "some name" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^file not found$"):
        decode(tmp_path / "gone.png", 8)
    with pytest.raises(ImageError, match=r"^file cannot be read: Is a directory$"):
        decode(tmp_path, 8)


@pytest.mark.parametrize(
    "error",
    [OSError, SyntaxError, ValueError, struct.error, zlib.error, OverflowError, MemoryError, EOFError],
)
def test_whatever_pillow_raises_becomes_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    noise().save(tmp_path / "a.png")

    def fail(_: Image.Image) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match="memory" if error is MemoryError else error.__name__):
        decode(tmp_path / "a.png", 8)


def test_an_interrupt_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")

    def interrupt(_: Image.Image) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode(tmp_path / "a.png", 8)


def test_damage_anywhere_in_a_file_is_no_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    usable = 0
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        for _ in range(40):
            content = np.frombuffer(encoded(noise(16, 16), kind), np.uint8).copy()
            content[rng.integers(0, min(200, len(content)), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(content.tobytes())
            with contextlib.suppress(ImageError):
                usable += decode(path, 8).shape == (8, 8, 3)
    assert 0 < usable < 280


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    # This palette makes Pillow warn while converting.
    image = Image.new("P", (9, 9))
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                decode(tmp_path / "a.png", 8)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(warnings.filters) == before


def test_probe_takes_the_median_shorter_side_of_what_can_be_read(tmp_path: Path) -> None:
    paths = []
    for index in range(9):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (100, 10 + index)).save(paths[-1])
    assert probe_sizes(paths) == 14
    assert probe_sizes(paths, sample=3) == 14  # rows 0, 4 and 8
    assert probe_sizes(paths, {7, 8}) == 13
    paths[0].write_bytes(b"")
    paths[1].unlink()
    assert probe_sizes(paths) == 15


def test_probe_refuses_when_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for paths, reason in (([tmp_path / "a.png"], "a.png: file is empty"), ([], "no images")):
        with pytest.raises(RelabelError, match=reason):
            probe_sizes(paths)
