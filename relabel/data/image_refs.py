"""Where the encoded image of a row lies: a file, a cell of a table, a member of an archive.

A reference is opened when its image is decoded and holds no bytes before. Paths are references as they are.
All are made from columns when a row is read, so that a million rows stay cheap.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from relabel.errors import ImageError


class Reference(Protocol):
    """One encoded image."""

    @property
    def name(self) -> str:
        """What a message calls the image."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The encoded bytes from the start. Raises OSError or ImageError."""


def known_size(reference: Reference) -> int | None:
    """Bytes of an encoded image where that takes no reading, else None. Raises OSError for a file."""
    if isinstance(reference, Path):
        return reference.stat().st_size
    size: int | None = getattr(reference, "size", None)
    return size


class References(Protocol):
    """One reference a row; safe to index from several threads, cheapest in the order of the rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Reference: ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image that lies among other data.

    fetch: its bytes, Hugging Face's struct of `bytes` and `path` as a dict, or None; folder: what such a path
    is relative to; size: in bytes, where it is known before they are fetched.
    """

    name: str
    fetch: Callable[[], object]
    folder: Path
    size: int | None = None

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The bytes, or the file that stands in for them. Raises OSError or ImageError."""
        cell = self.fetch()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(data, bytes):
            return io.BytesIO(data)
        if not path:
            raise ImageError("the row has no image")
        if "://" in path:  # a dataset that is streamed names files of the Hub, or in archives there
            import fsspec

            with fsspec.open(path, "rb") as file:
                return io.BytesIO(file.read())
        return Path(self.folder, path).open(mode)


class Files:
    """Files by name, relative to `root` or absolute; a list of names may grow later.

    spelled: the true name of a row where it differs from that in `names`.
    """

    def __init__(self, root: Path, names: Sequence[str], spelled: Mapping[int, str]) -> None:
        self._root = root
        self._names = names
        self._spelled = spelled

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Path:
        return self._root / self._spelled.get(row, self._names[row])


class Joined:
    """References one after the other."""

    def __init__(self, parts: Iterable[References]) -> None:
        self._parts = list(parts)
        self._starts = list(accumulate(map(len, self._parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Reference:
        if not 0 <= row < len(self):
            raise IndexError(row)
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][row - self._starts[part]]


class Slices:
    """Byte ranges of a file, or of a `Spool` that is mapped to memory: offset and size in bytes, [N] each.

    A path is opened anew for every image, because a thousand shards may be more than the system lets open.
    """

    def __init__(
        self,
        file: Path | NDArray[np.uint8],
        offsets: Sequence[int],
        sizes: Sequence[int],
        name: str,
    ) -> None:
        self._file = file
        self._offsets = np.array(offsets, dtype=np.int64)
        self._sizes = np.array(sizes, dtype=np.int64)
        self._name = name

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> Reference:
        # What a spool holds may have been of another size.
        size = int(self._sizes[row]) if isinstance(self._file, Path) else None
        return Embedded(f"image {row + 1} of {self._name}", partial(self._read, row), Path(), size)

    def _read(self, row: int) -> bytes:
        offset, size = int(self._offsets[row]), int(self._sizes[row])
        if not isinstance(self._file, Path):
            return self._file[offset : offset + size].tobytes()
        with self._file.open("rb") as file:
            file.seek(offset)
            return file.read(size)
