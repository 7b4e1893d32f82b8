"""Keeps images that pass by only once, in a file without a name that is gone with the process."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

from relabel.data.images import decode
from relabel.data.references import Reference
from relabel.errors import RunError


class Spool:
    """Encoded images as they are or, where that takes less, decoded to `largest` pixels a side.

    No image then takes more than about 3 · largest² bytes of disk; None keeps all of them as they are. To be
    used in a `with` block; what `mapped` returned outlives it.
    """

    def __init__(self, largest: int | None) -> None:
        self._largest = largest
        self._file = tempfile.TemporaryFile(prefix="relabel-")  # noqa: SIM115
        self._size = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, reference: Reference) -> tuple[int, int]:
        """Keep an image; returns its offset and size. Raises OSError and ImageError where there is none."""
        with reference.open("rb") as file:
            data = file.read()
        if self._largest is not None and len(data) > 3 * self._largest**2:
            header = f"P6 {self._largest} {self._largest} 255\n".encode()  # PPM: no loss, no time to decode
            data = header + decode(reference, self._largest).tobytes()
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
