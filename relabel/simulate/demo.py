"""`relabel demo`: a small folder of real images with synthetic noise, without any download.

scikit-learn ships 1,797 handwritten digits (8 × 8 px; UCI "Optical Recognition of Handwritten Digits").
They become PNG files in class folders named after their GIVEN label, 30 % of which are wrong.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from relabel.errors import RelabelError
from relabel.files import check_output, make_folder
from relabel.simulate import noise

NOISE_RATE = 0.3
TRUSTED_ROWS = 150
_SEED = 0
_SCALE = 2  # 8 px digits as 16 px images: room for the three poolings of cnn8


@dataclass(frozen=True)
class DemoData:
    """Where the demo's files lie."""

    images: Path
    trusted: Path
    truth: Path
    output: Path
    rows: int
    actual_rate: float

    @property
    def fit_arguments(self) -> list[str]:
        """The words behind `relabel` that a user would type."""
        return [
            *("fit", str(self.images), "--trusted", str(self.trusted)),
            *("--augment", "shift", "--epochs", "30", "--precision", "0.9", "-o", str(self.output)),
            *(["--overwrite"] if self.output.exists() else []),
        ]

    def describe(self) -> str:
        """What was written, for a reader."""
        return (
            f"Wrote {self.rows:,} handwritten digits to {self.images} "
            f"({self.actual_rate:.0%} of the labels wrong), {TRUSTED_ROWS} trusted rows to {self.trusted} "
            f"and the truth to {self.truth}."
        )


def write_dataset(directory: Path, overwrite: bool) -> DemoData:
    """Write images, `trusted.csv` and `truth.csv` into `directory`.

    Raises RelabelError when the folder already holds a demo (unless `overwrite`) or anything else, or cannot
    be made.
    """
    data_files = {name: directory / name for name in ("trusted.csv", "truth.csv", "labels.parquet")}
    images = directory / "images"
    there = os.path.exists(directory)  # no exception where the name is too long
    if there and not directory.is_dir():
        raise RelabelError(f"{directory} is not a folder.", "Name a new folder.")
    if there and any(directory.iterdir()) and not overwrite:
        raise RelabelError(f"The folder {directory} is not empty.", "Name a new folder or add --overwrite.")
    for path in data_files.values():
        if there:
            check_output(path, overwrite)
    if there and images.exists() and any(not path.name.startswith("digit") for path in images.glob("*/*")):
        raise RelabelError(f"{images} holds files that are not the demo's.", "Name a new folder.")

    make_folder(images, f"The folder {images}")

    from sklearn.datasets import load_digits

    digits = load_digits()
    truth = digits.target.astype(np.int64)
    class_names = [str(digit) for digit in range(10)]
    corrupted = noise.corrupt(truth, class_names, noise="symmetric", rate=NOISE_RATE, seed=_SEED)
    names = [f"{given}/digit{row:04d}.png" for row, given in enumerate(corrupted.labels)]
    for given in class_names:
        (images / given).mkdir(exist_ok=True)
    for name, pixels in zip(names, digits.images, strict=True):
        grey = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
        side = pixels.shape[0] * _SCALE
        grey.resize((side, side), Image.Resampling.BICUBIC).save(images / name)
    trusted = np.sort(np.random.default_rng(_SEED).permutation(len(names))[:TRUSTED_ROWS])
    _write_csv(data_files["trusted.csv"], ((names[row], class_names[truth[row]]) for row in trusted))
    _write_csv(data_files["truth.csv"], zip(names, (class_names[label] for label in truth), strict=True))
    return DemoData(
        images=images,
        trusted=data_files["trusted.csv"],
        truth=data_files["truth.csv"],
        output=data_files["labels.parquet"],
        rows=len(names),
        actual_rate=corrupted.actual_rate,
    )


def _write_csv(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        writer.writerows(rows)
