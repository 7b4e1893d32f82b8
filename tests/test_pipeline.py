"""The whole story on small real pictures, and on TrashNet where RELABEL_DATA names the folder that has it."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from relabel import noise, pipeline
from relabel.config import FitConfig
from relabel.data.sources import open_source
from relabel.demo import write_dataset
from relabel.metrics import Evaluation, evaluate
from relabel.output import calibration
from relabel.output.labelling import promise_sentence

NONE = np.zeros(0, dtype=np.int64)
TRASHNET = Path(os.environ.get("RELABEL_DATA", "missing")) / "trashnet"


def _evaluate(result: pipeline.FitResult, truth: np.ndarray) -> Evaluation:
    failed = np.zeros(len(truth), dtype=bool)
    failed[list(result.errors)] = True
    return evaluate(
        given=result.source.given,
        corrected=result.soft_label.argmax(axis=1),
        truth=truth,
        noise_probability=result.noise_probability,
        confidence=result.soft_label.max(axis=1),
        action=result.action,
        trusted=result.trusted,
        failed=failed,
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("demo"), overwrite=False)


def _truth(data, source):
    with data.truth.open(newline="") as file:
        true = {row["file_name"]: int(row["label"]) for row in csv.DictReader(file)}
    return np.array([true[name] for name in source.file_names])


@pytest.mark.parametrize("corrector", ["none", "mslc", "mlc", "metalabelnet", "tmlc"])
def test_corrected_labels_are_better_than_the_given_ones(digits, corrector):
    config = FitConfig(
        source=str(digits.images), trusted=digits.trusted, corrector=corrector, augment="shift", epochs=12
    )
    result = pipeline.fit(config)
    figures = _evaluate(result, _truth(digits, result.source))
    assert figures.label_accuracy_before == pytest.approx(0.7, abs=0.02)
    assert figures.label_accuracy_after > 0.85
    assert figures.noise_auroc > 0.9


def test_trusted_rows_come_back_as_verified_and_are_split_for_meta_and_probes(digits):
    result = pipeline.fit(
        FitConfig(source=str(digits.images), trusted=digits.trusted, augment="shift", epochs=2)
    )
    truth = _truth(digits, result.source)
    rows = np.flatnonzero(result.trusted)
    assert len(rows) == 150
    assert (result.soft_label[rows] == np.eye(10, dtype=np.float32)[truth[rows]]).all()
    wrong = result.source.given[rows] != truth[rows]
    assert (result.noise_probability[rows] == wrong).all()
    assert (result.action[rows] == np.where(wrong, "fix", "keep")).all()
    assert result.metadata["calibration"]["probes"] == 100
    np.testing.assert_allclose(result.soft_label.sum(axis=1), 1, atol=1e-5)


def test_a_frozen_backbone_trains_only_its_head_on_features_computed_once(digits, tmp_path):
    import torch

    from relabel import backbones

    weights = tmp_path / "cnn8.pt"
    torch.manual_seed(3)
    torch.save(backbones.build("cnn8", 5, 16).state_dict(), weights)
    config = FitConfig(
        source=str(digits.images), trusted=digits.trusted, corrector="none", weights=str(weights),
        backbone="cnn8", image_size=16, freeze=True, epochs=10,
    )  # fmt: skip
    result = pipeline.fit(config)
    figures = _evaluate(result, _truth(digits, result.source))
    # Random convolutions are features too; better than the given labels they must be.
    assert figures.label_accuracy_after > figures.label_accuracy_before


def test_a_trusted_folder_outside_the_source_drives_the_corrector_alone(digits, tmp_path):
    source = open_source(str(digits.images))
    truth = _truth(digits, source)
    for row in range(0, len(source), 30):
        target = tmp_path / "verified" / str(truth[row])
        target.mkdir(parents=True, exist_ok=True)
        (target / f"copy{row}.png").write_bytes(source.references[row].read_bytes())
    result = pipeline.fit(
        FitConfig(source=str(digits.images), trusted=tmp_path / "verified", augment="shift", epochs=2)
    )
    assert result.metadata["trusted_rows"] == 60
    assert result.metadata["corrector"] == "mslc"  # the default, tmlc, learns from rows of the source
    assert result.metadata["calibration"]["probes"] == 0
    assert result.metadata["verified_noise_rate"] is None
    assert not result.trusted.any()
    assert not (result.action == "fix").any()


@pytest.mark.parametrize(
    ("threshold", "probes", "right", "words"),
    [
        (0.97, 30, 30, "At least 95 % of the fixes are expected to be right; 30 of the 30 probe rows"),
        (None, 12, 12, "Too few verified rows to promise 95 %: 12 probe rows"),
        (None, 30, 25, "The probe rows do not support 95 %: 25 of the 30"),
    ],
)
def test_the_summary_says_what_fix_promises_or_why_it_cannot(threshold, probes, right, words):
    fitted = calibration.fit({}, NONE, NONE, np.eye(2, dtype=np.int64), seed=0)
    promise = calibration.Promise(0.95, threshold, probes, right, needed=19)
    assert promise_sentence(fitted, promise).startswith(words)


@pytest.mark.slow
@pytest.mark.skipif(not TRASHNET.is_dir(), reason="RELABEL_DATA names no folder with trashnet/")
def test_photographs_with_symmetric_noise_are_repaired(tmp_path):
    clean = open_source(str(TRASHNET))
    noisy = noise.corrupt(clean.given, clean.class_names, noise="symmetric", rate=0.3, seed=7)
    verified = np.random.default_rng(7).permutation(len(clean))[:300]
    for path, labels, rows in (
        (tmp_path / "noisy.csv", noisy.labels, range(len(clean))),
        (tmp_path / "trusted.csv", clean.given, verified),
    ):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "label"])
            writer.writerows([clean.file_names[row], clean.class_names[labels[row]]] for row in rows)
    result = pipeline.fit(
        FitConfig(
            source=str(TRASHNET),
            labels=tmp_path / "noisy.csv",
            trusted=tmp_path / "trusted.csv",
            image_size=32,
            epochs=30,
        )
    )
    figures = _evaluate(result, clean.given)
    assert figures.label_accuracy_after > figures.label_accuracy_before + 0.03
    assert figures.calibration_error < 0.1
    assert not result.errors
