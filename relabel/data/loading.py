"""Batches: decoded inputs by row index, augmented and normalised.

Images are decoded once into a memory-mapped uint8 array, so that memory does not grow with the
collection and an epoch costs no decoding; vectors (and features computed once) stay float32. Both answer
the same two questions, so training never asks which of them it has.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel.data.images import decode
from relabel.data.references import References
from relabel.errors import ImageError
from relabel.files import scratch_array

# ImageNet's channel statistics: what pretrained weights expect, and as good as any other for fresh ones.
_MEAN = torch.tensor([0.485, 0.456, 0.406])
_STD = torch.tensor([0.229, 0.224, 0.225])

AUGMENTATIONS = ("flip", "shift", "none")


class Inputs(ABC):
    """Everything the backbone can be shown, by row index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, index: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """The rows `index` [B] as a float batch on `device`, augmented when a generator is given."""


class ImageInputs(Inputs):
    """Images uint8 [N, S, S, 3]; batches float32 [B, 3, S, S], channels last.

    `augmentation` is `flip` (random shift by an eighth of the side, reflected at the border, and mirror
    image), `shift` (for digits and letters) or `none`.
    """

    def __init__(self, images: NDArray[np.uint8], augmentation: str) -> None:
        self.images = torch.from_numpy(images)
        self.size = images.shape[1]
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Shift, reflection and mirror are one gather: the index arithmetic is far cheaper than padding."""
        if generator is None or self.augmentation == "none":
            picked = self.images[index]
        else:
            along = torch.arange(self.size)
            reach = self.size // 8
            shift = torch.randint(-reach, reach + 1, (2, len(index), 1), generator=generator)
            rows, columns = along + shift[0], along + shift[1]
            if self.augmentation == "flip":
                mirrored = torch.rand(len(index), 1, generator=generator) < 0.5
                columns = torch.where(mirrored, self.size - 1 - columns, columns)
            picked = self.images[
                index[:, None, None], self._reflect(rows)[:, :, None], self._reflect(columns)[:, None, :]
            ]
        picked = picked.to(device, non_blocking=True)
        scaled = (picked.float() / 255 - _MEAN.to(device)) / _STD.to(device)
        return scaled.permute(0, 3, 1, 2)

    def _reflect(self, position: Tensor) -> Tensor:
        last = self.size - 1
        reflected: Tensor = last - (last - position.abs()).abs()
        return reflected


class VectorInputs(Inputs):
    """Vectors float32 [N, D], shown as they are."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def batch(self, index: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """The rows [B, D]."""
        return self.vectors[index].to(device, non_blocking=True)


def decode_all(
    references: References,
    size: int,
    skip: set[int],
    progress: Callable[[int], None],
    workers: int | None = None,
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode every image to size × size into a memory-mapped array [N, size, size, 3].

    Rows in `skip` and rows that cannot be used stay black. Returns the array and the reason per unusable
    row. Pillow decodes outside the interpreter lock, so threads are enough, and a thread cannot hang the run
    the way a dead worker process can.
    """
    images: NDArray[np.uint8] = scratch_array((len(references), size, size, 3), np.uint8)
    errors: dict[int, str] = {}

    def one(row: int) -> tuple[int, str | None]:
        try:
            images[row] = decode(references[row], size)
        except ImageError as error:
            return row, str(error)
        return row, None

    rows = (row for row in range(len(references)) if row not in skip)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        # Chunks keep the queue short: a million pending futures would weigh more than the images.
        while chunk := list(islice(rows, 1024)):
            for row, reason in pool.map(one, chunk):
                if reason is not None:
                    errors[row] = reason
            progress(len(chunk))
    return images, errors
