"""Batches: decoded inputs by row index, augmented and normalised.

Images are decoded once into a memory-mapped uint8 array, so that memory does not grow with the
collection and an epoch costs no decoding, or else batch by batch, which takes no disk; vectors (and features
computed once) stay float32. All answer the same two questions, so training never asks which of them it has.
"""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel.data.decode import decode
from relabel.data.image_refs import References
from relabel.device import upload
from relabel.errors import ImageError, RunError
from relabel.files import digest, release, scratch_array
from relabel.interrupts import in_threads
from relabel.progress import Watcher

_RELEASED = 32  # images that are read before their part of a mapped file is let go
AUGMENTATIONS = ("flip", "shift", "none")


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and standard deviation of each channel [3].

    What pretrained weights expect, and as good as any other for fresh ones.
    """
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


class Inputs(ABC):
    """Everything the backbone can be shown, by row index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, index: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """The rows `index` [B] as a float batch on `device`, augmented when a generator is given."""

    @abstractmethod
    def digest(self) -> str:
        """Of all rows as they are before augmentation, to tell others under the same names."""


class _SquareImages(Inputs):
    """Images of `size` px; batches float32 [B, 3, S, S], channels last.

    `augmentation` is `flip` (random shift by an eighth of the side, reflected at the border, and mirror
    image), `shift` (for digits and letters) or `none`.
    """

    def __init__(self, size: int, augmentation: str) -> None:
        self.size = size
        self.augmentation = augmentation

    @abstractmethod
    def _pixels(self, index: Tensor) -> Tensor:
        """The rows `index` [B] as uint8 [B, S, S, 3]."""

    def batch(self, index: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Shift, reflection and mirror are one gather: the index arithmetic is far cheaper than padding.

        It takes place on the device, and nothing on the way there waits for earlier steps
        (examples/RESULTS.md, "Speed").
        """
        pixels = upload(self._pixels(index), device)
        if generator is not None and self.augmentation != "none":
            along = torch.arange(self.size, device=device)
            reach = self.size // 8
            shift = torch.randint(-reach, reach + 1, (2, len(index), 1), generator=generator)
            down, right = upload(shift, device)
            rows, columns = along + down, along + right
            if self.augmentation == "flip":
                mirrored = upload(torch.rand(len(index), 1, generator=generator) < 0.5, device)
                columns = torch.where(mirrored, self.size - 1 - columns, columns)
            image = torch.arange(len(index), device=device)[:, None, None]
            pixels = pixels[image, self._reflect(rows)[:, :, None], self._reflect(columns)[:, None, :]]
        mean, std = _statistics(device)
        # In place: on a CPU fresh memory for each step would cost more than the arithmetic.
        scaled = pixels.float().div_(255).sub_(mean).div_(std)
        return scaled.permute(0, 3, 1, 2)

    def _reflect(self, position: Tensor) -> Tensor:
        last = self.size - 1
        reflected: Tensor = last - (last - position.abs()).abs()
        return reflected


class ImageInputs(_SquareImages):
    """Images that are decoded already: uint8 [N, S, S, 3]."""

    def __init__(self, images: NDArray[np.uint8], augmentation: str) -> None:
        super().__init__(images.shape[1], augmentation)
        self.images = torch.from_numpy(images)
        self._array = images

    def __len__(self) -> int:
        return len(self.images)

    def _pixels(self, index: Tensor) -> Tensor:
        rows = index.numpy()
        images = torch.empty(len(rows), *self.images.shape[1:], dtype=torch.uint8)
        picked = images.numpy()
        # An image can bring two megabytes of its surroundings into memory, and an epoch all of the file.
        for start in range(0, len(rows), _RELEASED):
            part = slice(start, start + _RELEASED)
            np.take(self._array, rows[part], axis=0, out=picked[part], mode="clip")  # "raise" copies twice
            release(self._array)
        return images

    def digest(self) -> str:
        """The same as that of `EncodedInputs`."""
        checksums = np.empty(len(self), dtype=np.uint32)
        for row, pixels in enumerate(self._array):
            checksums[row] = zlib.crc32(pixels.data)
            if row % _RELEASED == 0:
                release(self._array)
        return digest(checksums)


class EncodedInputs(_SquareImages):
    """Images that are decoded anew for each batch; rows in `skip` are black, as they are in `decode_all`.

    checksums: [N], CRC-32 of each as it was decoded when the run began. `batch` raises RunError for an image
    that cannot be decoded.
    """

    def __init__(
        self,
        references: References,
        size: int,
        augmentation: str,
        skip: Collection[int],
        checksums: NDArray[np.uint32],
    ) -> None:
        super().__init__(size, augmentation)
        self._references = references
        self._checksums = checksums
        self._skip = skip
        self._pool = ThreadPoolExecutor(_workers())

    def __len__(self) -> int:
        return len(self._references)

    def _pixels(self, index: Tensor) -> Tensor:
        # In the order of the rows, in which Parquet is read fastest.
        rows, places = torch.unique(index, return_inverse=True)
        images = torch.zeros(len(rows), self.size, self.size, 3, dtype=torch.uint8)
        pixels = images.numpy()

        def one(place_and_row: tuple[int, int]) -> None:
            place, row = place_and_row
            if row not in self._skip:
                pixels[place] = self._decoded(row)

        in_threads(self._pool, one, enumerate(rows.tolist()))
        return images[places]

    def digest(self) -> str:
        """The same as that of `ImageInputs`."""
        return digest(self._checksums)

    def _decoded(self, row: int) -> NDArray[np.uint8]:
        reference = self._references[row]
        try:
            return decode(reference, self.size)
        except ImageError as error:
            name = reference if isinstance(reference, Path) else reference.name
            raise RunError(
                f"{name} could be read when the run began and no longer can: {error.message}.",
                "Leave the images in their place while relabel works on them.",
            ) from error


class VectorInputs(Inputs):
    """Vectors float32 [N, D], shown as they are."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def batch(self, index: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """The rows [B, D]."""
        return upload(self.vectors[index], device)

    def digest(self) -> str:
        """Of all values."""
        return digest(self.vectors.numpy())


def open_images(
    references: References,
    size: int,
    augmentation: str,
    skip: set[int],
    watcher: Watcher,
    *,
    cache: bool,
    remedies: str,
) -> tuple[Inputs, dict[int, str]]:
    """Decode every image once, to keep it (`cache`) or only to know that it can be: `decode_all`'s errors.

    What is shown is the same either way. remedies: of `scratch_array`.
    """
    watcher.stage("Decoding" if cache else "Checking", len(references) - len(skip))
    if cache:
        images, errors = decode_all(references, size, skip, watcher.advance, remedies=remedies)
        return ImageInputs(images, augmentation), errors
    black = zlib.crc32(bytes(3 * size * size))
    checksums = np.full(len(references), black, dtype=np.uint32)

    def note(row: int, pixels: NDArray[np.uint8]) -> None:
        checksums[row] = zlib.crc32(np.ascontiguousarray(pixels).data)

    errors = _decode_each(references, size, skip, watcher.advance, note)
    return EncodedInputs(references, size, augmentation, skip | set(errors), checksums), errors


def decode_all(
    references: References,
    size: int,
    skip: set[int],
    progress: Callable[[int], None],
    workers: int | None = None,
    remedies: str = "",
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode every image to size × size into a memory-mapped array [N, size, size, 3].

    Rows in `skip` and rows that cannot be used stay black. remedies: of `scratch_array`, whose RunError this
    raises before any image is decoded. Returns the array and the reason per unusable row.
    """
    images: NDArray[np.uint8] = scratch_array((len(references), size, size, 3), np.uint8, remedies)

    def chunk_done(count: int) -> None:
        release(images)
        progress(count)

    return images, _decode_each(references, size, skip, chunk_done, images.__setitem__, workers)


def _decode_each(
    references: References,
    size: int,
    skip: set[int],
    progress: Callable[[int], None],
    keep: Callable[[int, NDArray[np.uint8]], None],
    workers: int | None = None,
) -> dict[int, str]:
    """Hand every image [size, size, 3] to `keep`; returns why which rows cannot be used.

    Pillow decodes outside the interpreter lock, so threads are enough, and a thread cannot hang the run the
    way a dead worker process can.
    """
    errors: dict[int, str] = {}

    def one(row: int) -> tuple[int, str | None]:
        try:
            keep(row, decode(references[row], size))
        except ImageError as error:
            return row, str(error)
        return row, None

    rows = (row for row in range(len(references)) if row not in skip)
    pool = ThreadPoolExecutor(_workers(workers))
    try:
        # Chunks keep the queue short: a million pending futures would weigh more than the images.
        while chunk := list(islice(rows, 1024)):
            for row, reason in in_threads(pool, one, chunk):
                if reason is not None:
                    errors[row] = reason
            progress(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the images in hand alone
    return errors


def _workers(wanted: int | None = None) -> int:
    return wanted or os.cpu_count() or 1
