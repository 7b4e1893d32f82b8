"""What `label_rows` makes of evidence, row by row: eight rows, of which one failed and one is trusted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from relabel.calibration import calibrate
from relabel.data.sources import Source
from relabel.data.trusted import TrustedSet
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.assemble import SoftLabels, label_rows
from relabel.labels.metadata import Run
from relabel.labels.table import Labels

EVIDENCE = np.array(
    [[8, 1, 1], [1, 8, 1], [8, 1, 1], [1, 8, 1], [1, 1, 8], [8, 1, 1], [8, 1, 1], [2, 7, 1]], np.float32
) / 10  # fmt: skip
GIVEN = np.array([0, 1, 1, 1, 1, -1, 1, 0])
FAILED, VERIFIED, TRUE = 4, 6, 0  # row 4, which alone looks like class 2, cannot be read; row 6 is class 0


def labelled() -> Labels:
    """By the evidence alone."""
    none = np.zeros(0, dtype=np.int64)
    fitted = calibrate.fit(
        {"last": np.zeros((0, 3))}, none, none, TransitionEstimate.of(np.zeros((3, 3), dtype=np.int64)), 0
    )
    fitted = replace(fitted, weights={"last": 1.0, "transition": 0.0, "keep": 0.0}, decision_threshold=0.0)
    source = Source(
        location="here", root=Path(), kind="folder", file_names=list("01234567"), references=[], given=GIVEN,
        class_names=["a", "b", "c"], numbered=False, trusted=None, errors={FAILED: "broken"},
        ignored_files=0, warnings=[],
    )  # fmt: skip
    trusted = replace(TrustedSet.empty(), rows=np.array([VERIFIED]), labels=np.array([TRUE]))
    evidence = {"last": torch.from_numpy(EVIDENCE)}
    return label_rows(source, {FAILED: "broken"}, evidence, fitted, trusted, 0.65, Run())


def test_figures_are_of_rows_that_can_be_used_and_counts_of_those_nobody_verified() -> None:
    found = labelled()
    # Labelled and readable: 0, 1, 2, 3, 6 (one-hot) and 7.
    doubts = [0.2, 0.2, 0.9, 0.2, 1.0, 0.8]
    rows = [0, 1, 2, 3, 6, 7]
    np.testing.assert_allclose(found.columns.noise_probability[rows], doubts, atol=1e-6)
    assert np.isnan(found.columns.noise_probability[5])
    assert found.noise_rate == pytest.approx(np.mean(doubts))
    assert found.summary.relabelled_rows == 2, "2 and 7"
    assert found.summary.actions == {"keep": 3, "fix": 0, "review": 3}, "0, 1, 3; 2, 5, 7"
    calibration = found.metadata.calibration
    assert calibration is not None
    assert calibration.selection is not None
    assert calibration.selection.rows == 2
    assert (found.metadata.noise.trusted_noise_rate, found.columns.action[VERIFIED]) == (1, "fix")
    joint = np.zeros((3, 3))
    for row in rows:
        joint[:, GIVEN[row]] += EVIDENCE[row] if row != VERIFIED else np.eye(3)[TRUE]
    expected = joint / joint.sum(axis=1, keepdims=True)
    assert found.noise_matrix is not None
    np.testing.assert_allclose(found.noise_matrix, expected, atol=1e-5)
    confusions = found.summary.largest_confusions
    assert {entry.true for entry in confusions} == {"a", "b"}, "no row that can be read turns out a c"


def test_a_part_of_the_soft_labels_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    soft_label = labelled().columns.soft_label
    assert isinstance(soft_label, SoftLabels)
    expected = EVIDENCE.copy()
    expected[VERIFIED] = np.eye(3)[TRUE]
    monkeypatch.setattr("relabel.sample_memory._BLOCK", 6)
    np.testing.assert_allclose(soft_label[:], expected, atol=1e-6)
    np.testing.assert_allclose(soft_label[3:8], expected[3:8], atol=1e-6)
