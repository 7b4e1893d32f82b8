"""What rows are: images or vectors. What hangs on it is answered here and in `data/content.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Modality:
    """One kind of rows.

    noun: what messages call them; unit: of their size; size_field: what metadata and files call their size;
    sizes: the least and the most; backbone, pretrained_backbone: the defaults, from scratch and with weights;
    unlabelled_hint, unusable_hint: what to do where no row has a label, and where too few can be used.
    """

    noun: str
    unit: str
    size_field: str
    sizes: tuple[int, int]
    backbone: str
    pretrained_backbone: str
    unlabelled_hint: str
    unusable_hint: str

    def extent(self, size: int) -> str:
        """A size in words."""
        return f"{size} {self.unit}"

    def default_backbone(self, weights: str) -> str:
        """The backbone that takes these rows; weights: as `--weights`."""
        return self.backbone if weights == "none" else self.pretrained_backbone


IMAGES = Modality(
    noun="images",
    unit="px",
    size_field="image_size",
    sizes=(8, 1024),
    backbone="cnn8",
    pretrained_backbone="resnet18",
    unlabelled_hint="Put the images in one folder a class, or name their labels with --labels FILE.",
    unusable_hint="Check that the files are images and were copied completely.",
)
VECTORS = Modality(
    noun="vectors",
    unit="dimensions",
    size_field="dimension",
    sizes=(1, 2**20),
    backbone="mlp",
    pretrained_backbone="mlp",
    unlabelled_hint="Write a column label beside the vectors, or name the labels with --labels FILE.",
    unusable_hint="Write the file again, or label more rows with --labels FILE.",
)


def of_features(features: str | None) -> Modality:
    """The modality that `--features` asks for."""
    return IMAGES if features is None else VECTORS


def of_backbone(name: str) -> Modality:
    """What a backbone takes."""
    return VECTORS if name == VECTORS.backbone else IMAGES


def of_values(dimensions: int) -> Modality:
    """What an array with that number of dimensions holds: images [N, S, S, 3] or vectors [N, D]."""
    return VECTORS if dimensions == 2 else IMAGES
