"""Keeps images that pass by only once, in a file without a name that is gone with the process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relabel.data.decode import decode
from relabel.data.image_refs import Embedded, Reference
from relabel.errors import ImageError, RunError
from relabel.files import digest
from relabel.interrupts import in_threads

_MARK = b"relabel: made from "


def original(data: bytes) -> tuple[int, str] | None:
    """The size and SHA-256 of the encoded image that a decoded one was made from; None if it was not."""
    _, mark, origin = data[-100:].rpartition(_MARK)
    if not mark:
        return None
    size, sha256 = origin.split()
    return int(size), sha256.decode()


class Spool:
    """Encoded images as they are or, where that takes less, decoded to `largest` pixels a side.

    No image then takes more than about 3 · largest² bytes of disk; None keeps all of them as they are. To be
    used in a `with` block; what `mapped` returned outlives it.
    """

    def __init__(self, largest: int | None) -> None:
        self._largest = largest
        self._file = tempfile.TemporaryFile(prefix="relabel-")  # noqa: SIM115
        self._size = 0
        # More than there are cores: a streamed image is waited for most of the time.
        self._pool = ThreadPoolExecutor(max(8, os.cpu_count() or 1))

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._file.close()

    def add(self, reference: Reference) -> tuple[int, int]:
        """Keep an image; returns its offset and size. Raises OSError and ImageError where there is none."""
        return self._keep(self._reduced(reference))

    def add_all(self, references: Iterable[Reference]) -> list[tuple[int, int] | ImageError]:
        """As `add` for some images at a time, which are fetched and decoded by several threads."""
        return [
            found if isinstance(found, ImageError) else self._keep(found)
            for found in in_threads(self._pool, self._attempt, references)
        ]

    def _attempt(self, reference: Reference) -> bytes | ImageError:
        try:
            return self._reduced(reference)
        except ImageError as error:
            return error

    def _reduced(self, reference: Reference) -> bytes:
        with reference.open("rb") as file:
            data = file.read()
        if self._largest is None or len(data) <= 3 * self._largest**2:
            return data
        header = f"P6 {self._largest} {self._largest} 255\n".encode()  # PPM: no loss, no time to decode
        pixels = decode(Embedded(reference.name, lambda: data, Path()), self._largest).tobytes()
        # Behind the pixels, where nothing reads on: a copy of the file must be known for one.
        return b"".join([header, pixels, _MARK, f"{len(data)} {digest(data)}".encode()])

    def _keep(self, data: bytes) -> tuple[int, int]:
        try:
            self._file.write(data)
        except OSError as error:
            raise RunError(
                f"Images could not be kept in {tempfile.gettempdir()}: {error.strerror}.",
                "Free some space, or set TMPDIR to another folder.",
            ) from error
        self._size += len(data)
        return self._size - len(data), len(data)

    def mapped(self) -> NDArray[np.uint8]:
        """Everything that was kept; nothing can be added any more."""
        self._file.flush()
        self._file.truncate(max(1, self._size))  # nothing cannot be mapped
        return np.memmap(self._file, dtype=np.uint8, mode="r")
