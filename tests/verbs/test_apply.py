"""A corrector from other rows labels digits without trusted rows; what it does is held to its parts."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relabel.calibration import calibrate, transfer
from relabel.calibration.decision_threshold import keep_given
from relabel.config import ApplyConfig
from relabel.correctors import registry
from relabel.data.in_memory import vectors_frame
from relabel.errors import RelabelError
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate, joint_counts
from relabel.options import build
from relabel.saved.corrector_file import CorrectorFile, read_corrector
from relabel.verbs import apply as verb

NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def corrector(vectors: Any, fit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a TMLC-Net has learned on the digits."""
    path: Path = tmp_path_factory.mktemp("corrector") / "tmlc.pt"
    fit(**vectors.keywords, trusted=vectors.trusted, corrector="tmlc", epochs=12, seed=1)[0].corrector.save(
        path
    )
    return path


@pytest.fixture(scope="module")
def applied(vectors: Any, apply: Any, corrector: Path) -> Any:
    """Labels of the digits without a trusted row, and the training behind them."""
    return apply(**vectors.keywords, corrector=str(corrector), epochs=6)


def test_labels_that_nobody_has_verified_are_repaired(vectors: Any, applied: Any) -> None:
    labels, _ = applied
    figures = labels.evaluate(vectors.true)
    assert figures.label_accuracy_before == pytest.approx(0.7, abs=0.02)
    assert figures.label_accuracy_after > 0.85
    assert figures.noise_auroc > 0.9
    assert figures.fix_rows > 100
    assert figures.fix_precision > 0.95
    np.testing.assert_allclose(labels.columns.soft_label[:].sum(axis=1), 1, atol=1e-5)


def test_nothing_is_learned_and_a_tenth_of_the_labels_is_not_trained_on(
    applied: Any, corrector: Path
) -> None:
    labels, training = applied
    file = read_corrector(corrector)
    torch.testing.assert_close(dict(training.corrector.state_dict()), file.state, rtol=0, atol=0)
    torch.testing.assert_close(labels.corrector.state, file.state, rtol=0, atol=0)
    held_out = transfer.held_out(labels.columns.given, 0)
    assert held_out.sum() == labels.metadata.run.held_out_rows == 180
    assert training.rows.train.tolist() == np.flatnonzero(~held_out).tolist()
    assert training.rows.unlabelled.tolist() == np.flatnonzero(held_out).tolist()
    assert (training.rows.given[held_out] == -1).all()
    assert not np.isnan(labels.columns.noise_probability[held_out]).any()
    assert len(training.rows.meta) == 0
    assert not labels.columns.trusted.any()


def test_the_metadata_says_where_the_corrector_and_the_calibration_come_from(
    applied: Any, corrector: Path
) -> None:
    labels, _ = applied
    metadata, file = labels.metadata.to_dict(), read_corrector(corrector)
    assert (metadata["corrector"], metadata["trusted_rows"]) == ("tmlc", 0)
    assert metadata["trusted_noise_rate"] is None
    assert metadata["pretrained"]["file"] == str(corrector)
    assert metadata["pretrained"]["class_names"] == [str(digit) for digit in range(10)]
    calibration = metadata["calibration"]
    assert calibration["transferred"] is True
    assert calibration["calibration_rows"] == 0
    assert calibration["accuracy_after"] is None
    sharpened = {
        name: calibration["weights"][name] / weight for name, weight in file.calibration_prior.weights.items()
    }
    assert sharpened["transition"] == sharpened["keep"] == 1
    assert sharpened["early"] == pytest.approx(sharpened["late"])
    assert sharpened["last"] >= 1
    assert "if these rows are like the data the corrector learned from" in labels.summary.selection


def test_a_corrector_in_memory_does_what_its_file_does(vectors: Any, apply: Any, corrector: Path) -> None:
    settings = {**vectors.keywords, "epochs": 3}
    of_file, _ = apply(**settings, corrector=str(corrector))
    in_memory, _ = apply(**settings, corrector=read_corrector(corrector))
    np.testing.assert_array_equal(in_memory.columns.soft_label[:], of_file.columns.soft_label[:])


def test_trusted_rows_calibrate_and_teach_nothing(vectors: Any, apply: Any, corrector: Path) -> None:
    labels, training = apply(**vectors.keywords, corrector=str(corrector), trusted=vectors.trusted, epochs=4)
    file, rows, given = read_corrector(corrector), vectors.rows, labels.columns.given
    torch.testing.assert_close(labels.corrector.state, file.state, rtol=0, atol=0)
    assert 0 < (~np.isin(rows, training.rows.train)).sum() < 30, "they are held out like any other row"
    assert len(training.rows.meta) == 0
    run, report = labels.metadata.run, labels.metadata.calibration
    assert run.trusted_rows == labels.columns.trusted.sum() == 150
    assert report.calibration_rows == 150, "not one of them is for the corrector"
    assert report.accuracy_after > report.accuracy_before
    evidence = {name: values[:].numpy() for name, values in training.evidence().items()}
    held_out = transfer.held_out(given, 0)
    seen = np.where(held_out, -1, given)
    apart = {name: values[held_out] for name, values in evidence.items()}
    transition = TransitionEstimate.of(anchor_points.count(training.sample_memory.early, seen)).matrix
    found = transfer.transferred_calibration(file.calibration_prior, apart, given[held_out], transition)
    found = transfer.raked(found, joint_counts(found.soft_labels(evidence, seen), seen))
    judges = {name: values[rows] for name, values in evidence.items()}
    expected = calibrate.refit(found, judges, given[rows], vectors.true[rows], held_out[rows], 0)
    assert report.weights == pytest.approx(expected.weights, abs=1e-3)
    assert "trusted rows" in labels.summary.selection
    assert labels.metadata.noise.trusted_noise_rate == pytest.approx(0.3, abs=0.1)
    assert (labels.columns.corrected[rows] == vectors.true[rows]).all()


def test_what_is_written_is_what_the_parts_say(vectors: Any, apply: Any, corrector: Path) -> None:
    """By hand, of what training left; every fifth row has no label."""
    table = vectors.source.table
    names = table["label"].to_pylist()
    given = [None if row % 5 == 0 else int(name) for row, name in enumerate(names)]
    values = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    settings = {**vectors.keywords, "source": vectors_frame(values, given)}
    labels, training = apply(**settings, corrector=str(corrector), epochs=12)
    columns, given = labels.columns, labels.columns.given
    without = given < 0
    assert without.sum() == 360
    assert np.isnan(columns.noise_probability[without]).all()
    assert not np.isnan(columns.noise_probability[~without]).any()
    assert set(columns.action[without]) == {"review"}
    assert (columns.corrected == vectors.true)[without].mean() > 0.4, "one in ten by chance"
    held_out = transfer.held_out(given, 0)
    assert held_out.sum() == 144
    seen = ~without & ~held_out
    evidence = {name: stored[:].double().numpy() for name, stored in training.evidence().items()}
    apart = {name: stored[held_out] for name, stored in evidence.items()}
    anchors = anchor_points.count(training.sample_memory.early, np.where(seen, given, -1))
    found = transfer.transferred_calibration(
        read_corrector(corrector).calibration_prior,
        apart,
        given[held_out],
        TransitionEstimate.of(anchors).matrix,
    )
    report = labels.metadata.calibration
    weights, transition = report.weights, found.transition
    assert weights == pytest.approx(found.weights, abs=1e-4)
    logits = sum(weights[name] * np.log(np.clip(stored, 1e-4, None)) for name, stored in evidence.items())
    logits[seen] += weights["transition"] * np.log(transition[:, given[seen]].T)
    logits[held_out] += np.log(transition[:, given[held_out]].T)
    logits[seen, given[seen]] += weights["keep"]
    expected = torch.from_numpy(logits).softmax(dim=1).numpy()
    by_label = np.bincount(given[seen], minlength=10)
    own = joint_counts(expected[seen], given[seen]) / by_label
    raking_factors = anchor_points.posterior(transition, by_label) / np.maximum(own, 1e-4)
    expected[seen] *= raking_factors[:, given[seen]].T
    expected /= expected.sum(axis=1, keepdims=True)
    threshold = transfer.with_decision_threshold(found, expected[seen], given[seen]).decision_threshold
    assert report.decision_threshold == pytest.approx(threshold, abs=1e-2)
    if threshold:
        expected = keep_given(expected, given, threshold)
    np.testing.assert_allclose(columns.soft_label[:], expected, atol=1e-3)


def test_rows_that_training_saw_decide_the_threshold(
    vectors: Any, apply: Any, corrector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def with_decision_threshold(fitted: Any, soft_label: Any, given: Any) -> Any:
        calls.append((fitted, soft_label, given))
        return replace(fitted, decision_threshold=math.log(5))

    monkeypatch.setattr(transfer, "with_decision_threshold", with_decision_threshold)
    monkeypatch.setattr(verb, "_THRESHOLD_ROWS", 400)
    labels, _ = apply(**vectors.keywords, corrector=str(corrector), epochs=4)
    [(fitted, soft_label, given)] = calls
    assert fitted.raking_factors is not None
    assert soft_label.shape == (400, 10)
    held_out = transfer.held_out(labels.columns.given, 0)
    seen = np.random.default_rng(0).permutation(np.flatnonzero(~held_out))[:400]
    np.testing.assert_array_equal(given, labels.columns.given[seen])
    expected = keep_given(soft_label, given, math.log(5))
    np.testing.assert_allclose(labels.columns.soft_label[:][seen], expected, atol=1e-6)
    assert labels.metadata.calibration.decision_threshold == math.log(5)
    assert (soft_label.argmax(axis=1) != given).sum() > (expected.argmax(axis=1) != given).sum() > 0


def test_a_corrector_that_means_nothing_here_is_refused_before_anything_is_decoded(
    vectors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mslc = registry.create("mslc", 10, 256)
    transition = TransitionEstimate.of(np.eye(10, dtype=np.int64))
    nothing = calibrate.fit({}, NONE, NONE, transition, seed=0).calibration_prior
    CorrectorFile.of(mslc, "mslc", 10, 256, {}, {}, nothing).save(tmp_path / "mslc.pt")
    monkeypatch.setattr(verb, "decode", None)
    for trusted in (None, vectors.trusted):
        config = build(ApplyConfig, **vectors.keywords, corrector=str(tmp_path / "mslc.pt"), trusted=trusted)
        with pytest.raises(RelabelError, match="A trained mslc is of no use on other data") as refusal:
            verb.apply(config)
        assert "--corrector tmlc" in refusal.value.hint


def test_images_that_are_not_the_source_s_calibrate_nothing_and_are_reported(
    digits: Any, apply: Any, corrector: Path, draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "trusted/3/other.png", "red", 0)
    warnings: list[str] = []
    monkeypatch.setattr("relabel.progress.Silent.warn", lambda _, text: warnings.append(text))
    labels, _ = apply(
        source=str(digits.images), trusted=tmp_path / "trusted", corrector=str(corrector), epochs=2,
        image_size=8, augment="none", device="cpu", amp="off",
    )  # fmt: skip
    assert any("1 images are not among those of SOURCE and calibrate nothing" in text for text in warnings)
    assert labels.summary.trusted_outside_source == 1
    assert labels.metadata.calibration.transferred
