"""The rows of a source as networks take them: images, which are decoded, or vectors, which are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from relabel.data.decode import probe_sizes
from relabel.data.image_refs import Joined, References
from relabel.data.vectors import standardisation
from relabel.modality import IMAGES, VECTORS, Modality
from relabel.progress import Watcher

if TYPE_CHECKING:  # torch takes a second to import
    from relabel.data.batches import Inputs

Standardisation = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Mean and scale [D] of vectors."""


@dataclass(frozen=True)
class Showing:
    """How images are shown: `--augment`, and whether they are kept decoded. remedies: of `scratch_array`."""

    augmentation: str = "none"
    cache: bool = True
    remedies: str = ""


class Content(Protocol):
    """What differs between images and vectors."""

    @property
    def modality(self) -> Modality:
        """What the rows are."""

    def size(self, wanted: int | None, largest: int) -> int:
        """Pixels a side: `wanted`, or the images' own up to `largest`; or else dimensions of the vectors."""

    def described(self, size: int, weights: str) -> dict[str, str | int | None]:
        """What the metadata says of the rows and of the weights that suit them."""

    def named(self) -> dict[str, str | None]:
        """What in `described` names which columns of a table the rows are."""

    def standardisation(self) -> Standardisation | None:
        """Of the usable rows, for a backbone that standardises; None for one that does not."""

    def open(
        self, size: int, showing: Showing, watcher: Watcher, external: Sequence[Path] = ()
    ) -> tuple[Inputs, dict[int, str]]:
        """What the backbone is shown, `external` images last, and why which rows could not be decoded."""

    def values(
        self, largest: int, watcher: Watcher, skip: Collection[int] = (), *, standardised: bool = False
    ) -> tuple[NDArray[np.uint8] | NDArray[np.float32], dict[int, str]]:
        """All rows for a small network, and why some have none: images [N, S, S, 3], S at least 8 and at most
        `largest`, or vectors [N, D], `standardised` if need be; skip: images that need no decoding.
        """


@dataclass(frozen=True)
class ImageContent:
    """Images by reference; errors: rows that are known to be of no use."""

    references: References
    errors: Mapping[int, str]
    modality: Modality = IMAGES

    def size(self, wanted: int | None, largest: int) -> int:
        """As `Content.size`."""
        return wanted or self._native(largest, self.errors)

    def described(self, size: int, weights: str) -> dict[str, str | int | None]:
        """As `Content.described`."""
        return {"weights": weights, self.modality.size_field: size}

    def named(self) -> dict[str, str | None]:
        """As `Content.named`."""
        return {}

    def standardisation(self) -> None:
        """None: images are normalised batch by batch."""

    def open(
        self, size: int, showing: Showing, watcher: Watcher, external: Sequence[Path] = ()
    ) -> tuple[Inputs, dict[int, str]]:
        """As `Content.open`."""
        from relabel.data.batches import open_images

        return open_images(
            Joined([self.references, external]),
            size,
            showing.augmentation,
            set(self.errors),
            watcher,
            cache=showing.cache,
            remedies=showing.remedies,
        )

    def values(
        self, largest: int, watcher: Watcher, skip: Collection[int] = (), *, standardised: bool = False
    ) -> tuple[NDArray[np.uint8] | NDArray[np.float32], dict[int, str]]:
        """As `Content.values`."""
        from relabel.data.batches import decode_all

        left_out = {*self.errors, *skip}
        size = self._native(largest, left_out)
        watcher.stage("Decoding", len(self.references) - len(left_out))
        images, unreadable = decode_all(self.references, size, left_out, watcher.advance)
        return images, {**self.errors, **unreadable}

    def _native(self, largest: int, skip: Collection[int]) -> int:
        return max(self.modality.sizes[0], min(probe_sizes(self.references, skip), largest))


@dataclass(frozen=True)
class VectorContent:
    """Vectors [N, D]; errors: rows that are of no use; features: `--features`."""

    vectors: NDArray[np.float32]
    errors: Mapping[int, str]
    features: str | None
    modality: Modality = VECTORS

    def size(self, wanted: int | None, largest: int) -> int:
        """As `Content.size`."""
        return int(self.vectors.shape[1])

    def described(self, size: int, weights: str) -> dict[str, str | int | None]:
        """As `Content.described`."""
        return {**self.named(), self.modality.size_field: size}

    def named(self) -> dict[str, str | None]:
        """As `Content.named`."""
        return {"features": self.features}

    def standardisation(self) -> Standardisation:
        """As `Content.standardisation`."""
        return standardisation(self.vectors, ~np.isin(np.arange(len(self.vectors)), list(self.errors)))

    def open(
        self, size: int, showing: Showing, watcher: Watcher, external: Sequence[Path] = ()
    ) -> tuple[Inputs, dict[int, str]]:
        """As `Content.open`."""
        import torch

        from relabel.data.batches import VectorInputs

        return VectorInputs(torch.from_numpy(self.vectors)), {}

    def values(
        self, largest: int, watcher: Watcher, skip: Collection[int] = (), *, standardised: bool = False
    ) -> tuple[NDArray[np.uint8] | NDArray[np.float32], dict[int, str]]:
        """As `Content.values`."""
        if not standardised:
            return self.vectors, dict(self.errors)
        mean, scale = self.standardisation()
        return (self.vectors - mean) * scale, dict(self.errors)
