"""Turns one encoded image into pixels, or says in a short sentence why it cannot.

Nothing here trusts the file: its extension, its header, its metadata and its length may all be wrong.
"""

import re
import statistics
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from relabel.data.image_refs import Reference, References
from relabel.errors import ImageError, RelabelError

# Pillow's other formats are left out on purpose: EPS runs Ghostscript, TGA has no signature to tell it
# from noise, and the rest are not photographs. Keys are Pillow's names, values the file extensions.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(reference: Reference, size: int) -> NDArray[np.uint8]:
    """Read one image as upright RGB: shorter side resized to `size` pixels, then centre-cropped.

    Returns uint8 [size, size, 3]. The first frame of an animation is taken and transparency is laid over
    white. Safe to call from several threads. Raises ImageError, whose text holds no path.
    """
    with _opened(reference) as image:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 scale; twice the target leaves the resize room to filter.
        image.draft(None, (2 * size, 2 * size))
        image.load()
        # Cropping first keeps every later step small, however long and thin the image is.
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = _rgb(image.crop((left, top, left + side, top + side)), size)
        # Read after loading: a PNG may store it behind the pixels, and TIFF loading already applies it.
        method = _UPRIGHT.get(_orientation(image))
        return np.array(square if method is None else square.transpose(method))


def probe_sizes(references: References, skip: Collection[int] = (), sample: int = 64) -> int:
    """Median of the shorter side, in pixels, over an evenly spaced sample; reads headers only.

    skip: rows that are left out. Raises RelabelError when no image of the sample can be read.
    """
    reason = "there are no images"
    sides = []
    rows = np.setdiff1d(np.arange(len(references)), np.fromiter(skip, dtype=np.int64, count=len(skip)))
    for place in np.linspace(0, len(rows) - 1, min(len(rows), sample)).astype(int):
        reference = references[int(rows[place])]
        try:
            with _opened(reference) as image:
                sides.append(min(image.size))
        except ImageError as error:
            reason = f"{reference.name}: {error.message}"
    if not sides:
        raise RelabelError(
            f"None of the images sampled from the data set can be read ({reason}).",
            "Check that the files are images and were copied completely.",
        )
    return statistics.median_low(sides)


@contextmanager
def _opened(reference: Reference) -> Iterator[Image.Image]:
    """Open an image whose header is sound; whatever Pillow throws inside the block becomes ImageError."""
    try:
        with reference.open("rb") as file, _quiet_pillow:
            if not file.read(1):
                raise ImageError("file is empty")
            file.seek(0)
            with Image.open(file, formats=_formats()) as image:
                pixels = image.width * image.height
                if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
                    raise ImageError(_too_many(pixels))
                if pixels == 0:
                    raise ImageError("image has no pixels")
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("file not found") from None
    except UnidentifiedImageError:
        raise ImageError("not an image Pillow can read") from None
    except Image.DecompressionBombError as error:
        # Pillow raises this by itself only at twice its limit, and only its text holds the number.
        found = re.search(r"\d+", str(error))
        raise ImageError(_too_many(int(found[0]) if found else None)) from None
    except MemoryError:
        raise ImageError("image does not fit in memory") from None
    except OSError as error:
        if error.filename is not None:  # the file system's complaint, whose full text would hold the path
            raise ImageError(f"file cannot be read: {error.strerror}") from None
        raise ImageError(_corrupt(error)) from None
    except Exception as error:  # broken input makes Pillow's plugins raise almost any type
        raise ImageError(_corrupt(error)) from None


def _too_many(pixels: int | None) -> str:
    return f"image has {pixels or 'too many'} pixels, over the limit of {Image.MAX_IMAGE_PIXELS}"


def _corrupt(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] if error.args else type(error).__name__
    return f"truncated or corrupt image: {reason}"


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the pixels are good, so broken metadata must not cost the image
        return 1


def _rgb(square: Image.Image, size: int) -> Image.Image:
    if square.mode == "F" or square.mode.startswith("I"):
        deep = square if square.mode == "F" else square.convert("I")
        return Image.fromarray(_eight_bit(_resized(deep, size))).convert("RGB")
    if square.has_transparency_data:
        coloured = square.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return _resized(Image.alpha_composite(white, coloured).convert("RGB"), size)
    return _resized(square.convert("RGB"), size)


def _resized(square: Image.Image, size: int) -> Image.Image:
    return square.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _eight_bit(deep: Image.Image) -> NDArray[np.uint8]:
    """Scale deep grey values to 0..255: Pillow's own conversion would clip them at 255 instead."""
    values = np.nan_to_num(np.asarray(deep, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = 0.0, 65535.0
    if deep.mode == "F":  # floats have no agreed range: 0..1 and 0..255 are the usual two
        high = 1.0 if values.max() <= 1.0 else 255.0
    if values.min() < low or values.max() > high:
        low, high = float(values.min()), float(values.max())
    scaled: NDArray[np.float64] = (values - low) * (255.0 / ((high - low) or 1.0))
    return np.rint(scaled).astype(np.uint8)


class _QuietPillow:
    """Silences warnings raised in Pillow while any thread decodes.

    `warnings.catch_warnings` alone is not thread-safe: two overlapping uses can leave the filters changed.
    The first thread in therefore saves the filters and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._saved.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()
