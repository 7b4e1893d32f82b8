"""Clean sources of vectors and images made noisy, as `relabel.corrupt` returns them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from relabel.errors import RelabelError
from relabel.metrics import noise_matrix, row_shares
from relabel.progress import Silent
from relabel.simulate.corrupt import CorruptConfig, corrupt
from relabel.simulate.noisy_labels_file import NoisyLabels, is_noisy_labels, read

NAMES = ["ant", "bee", "cow"]


class Listening(Silent):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)


def write_vectors(path: Path, rows: int = 240, classes: int = 3, unlabelled: int = 0) -> NDArray[np.float32]:
    """Class k around the k-th corner, in a Parquet file; gives the vectors."""
    rng = np.random.default_rng(0)
    true = np.arange(rows) % classes
    values = (4 * np.eye(3)[true] + rng.normal(size=(rows, 3))).astype(np.float32)
    labels = [NAMES[label] if row >= unlabelled else None for row, label in enumerate(true)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 3)
    pq.write_table(pa.table({"v": vectors, "label": pa.array(labels, pa.string())}), path)
    return values


def config_of(path: Path, noise: str = "symmetric", **options: Any) -> CorruptConfig:
    made = CorruptConfig(source=str(path), noise=noise, rate=0.4, device="cpu", **options)
    return replace(made, reading=replace(made.reading, features="v" if path.suffix == ".parquet" else None))


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    write_vectors(tmp_path / "v.parquet", unlabelled=30)
    return tmp_path / "v.parquet"


def test_a_source_comes_back_with_noisy_labels_beside_the_clean_ones(vectors: Path) -> None:
    made = corrupt(config_of(vectors), Silent())
    assert (len(made), made.class_names) == (240, NAMES)
    assert made.labelled_rows == 210
    assert made.actual_rate == pytest.approx(0.4)
    assert (made.noisy < 0).sum() == (made.clean < 0).sum() == 30
    assert "240 rows, 3 classes, 40.0% of the labels wrong" in repr(made)
    table = made.to_pandas()
    assert list(table) == ["file_name", "label", "clean_label"]
    wrong = (table.label != table.clean_label) & table.label.notna()
    assert wrong.sum() == made.wrong_rows == 84
    matrix = row_shares(noise_matrix(made.noisy, made.clean, 3))
    assert np.array(made.metadata["noise_matrix"]) == pytest.approx(matrix, abs=1e-6)


def test_a_seed_decides_which_labels_are_flipped(vectors: Path) -> None:
    one, again, other = (corrupt(config_of(vectors, seed=seed), Silent()).noisy for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


@pytest.mark.parametrize("name", ["noisy.csv", "noisy.parquet"])
def test_what_is_saved_is_what_is_read(vectors: Path, tmp_path: Path, name: str) -> None:
    made = corrupt(config_of(vectors), Silent())
    made.save(tmp_path / name)
    again = read(tmp_path / name)
    assert again.table.select(["file_name", "label", "clean_label"]).equals(made.table)
    assert (name == "noisy.parquet") == (again.metadata.get("actual_rate") == made.actual_rate)
    assert is_noisy_labels(tmp_path / name)
    with pytest.raises(RelabelError, match="exists"):
        made.save(tmp_path / name)
    made.save(tmp_path / name, overwrite=True)
    with pytest.raises(RelabelError, match="CSV or Parquet"):
        made.save(str(tmp_path / "noisy.txt"))


def test_feature_dependent_noise_flips_what_lies_near_other_classes(tmp_path: Path) -> None:
    values = write_vectors(tmp_path / "v.parquet", rows=600)
    before, watcher = torch.get_rng_state(), Listening()
    made = corrupt(
        replace(config_of(tmp_path / "v.parquet", "feature-dependent"), rate=0.1, epochs=6), watcher
    )
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers stay as they were"
    assert "agrees with" in watcher.said[-1]
    assert made.actual_rate == pytest.approx(0.1)
    ordered = np.sort(values, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    flipped = made.noisy != made.clean
    assert margin[flipped].mean() < margin[~flipped].mean() / 2
    assert "torch" in made.metadata["versions"]


def test_a_network_needs_two_classes(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.parquet", rows=30, classes=1)
    with pytest.raises(RelabelError):
        corrupt(config_of(tmp_path / "v.parquet", "feature-dependent"), Silent())


def write_images(folder: Path, broken: int = 0) -> None:
    rng = np.random.default_rng(1)
    for row in range(30):
        path = folder / NAMES[row % 3] / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if row < broken:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


def test_images_that_cannot_be_read_keep_their_label_and_are_told_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", broken=2)
    watcher = Listening()
    made = corrupt(replace(config_of(tmp_path / "images", "instance-dependent"), rate=0.9), watcher)
    flipped = dict(zip(made.file_names, made.noisy != made.clean, strict=True))
    assert not flipped["ant/00.png"]
    assert not flipped["bee/01.png"]
    assert sum(flipped.values()) > 10
    [warning] = watcher.warnings
    assert "2 of 30 images cannot be used and keep their label; first 'ant/00.png'" in warning


def test_a_source_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", broken=30)
    with pytest.raises(RelabelError, match=r"None of the .*images .*can be read"):
        corrupt(config_of(tmp_path / "images", "instance-dependent"), Silent())


def test_noise_that_needs_labels_only_reads_no_image(tmp_path: Path) -> None:
    write_images(tmp_path / "images", broken=30)
    assert corrupt(config_of(tmp_path / "images"), Silent()).actual_rate == pytest.approx(0.4)


def test_nothing_labelled_has_no_rate() -> None:
    nothing = np.full(2, -1)
    made = NoisyLabels(["a", "b"], nothing, nothing, NAMES, {})
    assert made.actual_rate is None
    assert "no label" in repr(made)
    assert made.table["label"].null_count == 2
