"""From calibrated evidence to everything the labels file says: one row for every row of the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel import __version__
from relabel.calibration.calibrate import Calibration
from relabel.calibration.selection import best
from relabel.data.sources import UNLABELLED, Source
from relabel.data.trusted import TrustedSet
from relabel.label_noise.transition_matrix import joint_counts
from relabel.labels.metadata import CalibrationReport, MatrixRecord, Metadata, NoiseReport, Run
from relabel.labels.parquet import Columns
from relabel.labels.table import Labels
from relabel.metrics import row_shares, wilson_interval
from relabel.progress import Watcher
from relabel.sample_memory import ProbabilityStore, blocks

Evidence = Mapping[str, Tensor | ProbabilityStore]
"""Predicted distributions [N, C] by name, for the calibration."""


class SoftLabels:
    """The soft labels [N, C] of the labels file, computed for the rows that are sliced.

    All of them at once may not fit in memory, and a part costs less than the prediction it comes from.
    """

    def __init__(
        self,
        evidence: Evidence,
        given: NDArray[np.int64],
        fitted: Calibration,
        trusted: TrustedSet,
        held_out: NDArray[np.bool_] | None = None,
    ) -> None:
        self.shape = (len(given), len(fitted.transition))
        self._evidence = evidence
        self._given = given
        self._fitted = fitted
        self._held_out = np.zeros(len(given), dtype=bool) if held_out is None else held_out
        self._true = np.full(len(given), UNLABELLED)
        self._true[trusted.rows] = trusted.labels

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """The rows [B, C]; trusted ones are one-hot."""
        given, true = self._given[rows], self._true[rows]
        soft = np.empty((len(given), self.shape[1]), dtype=np.float32)
        start = rows.indices(len(self))[0]
        # In parts, for the double precision on the way is ten times as large.
        for block in blocks(*soft.shape):
            part = slice(start + block.start, start + block.stop)
            evidence = {name: values[part].numpy() for name, values in self._evidence.items()}
            soft[block] = self._fitted.soft_labels(evidence, given[block], self._held_out[part])
        known = np.flatnonzero(true != UNLABELLED)
        soft[known] = 0
        soft[known, true[known]] = 1
        return soft


def noise_probabilities(soft_label: NDArray[np.float32], given: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 minus the given label's share [B] of soft labels [B, C]; NaN where there is none (−1)."""
    shares = soft_label[np.arange(len(given)), given]
    return np.where(given >= 0, 1 - shares, np.float32(np.nan))


def versions() -> dict[str, str]:
    """The versions that made a result."""
    return {
        "relabel": __version__,
        "torch": str(torch.__version__),  # of a class of its own, which no file should need
        "torchvision": version("torchvision"),
    }


def usable_rows(source: Source, errors: Mapping[int, str]) -> NDArray[np.bool_]:
    """[N] rows without an error."""
    usable = np.ones(len(source), dtype=bool)
    usable[list(errors)] = False
    return usable


def warn_of_errors(source: Source, errors: Mapping[int, str], watcher: Watcher) -> None:
    """One line for all rows that cannot be used, if there are any."""
    if errors:
        row = min(errors)
        watcher.warn(
            f"{len(errors)} of {len(source):,} {source.noun} cannot be used and become rows with an error; "
            f"first {source.file_names[row]!r}: {errors[row]}."
        )


@dataclass(frozen=True)
class _Found:
    """What one pass over the soft labels finds: corrected, confidence, noise_probability: [N]; joint: [C, C]
    expected rows by (true, given)."""

    corrected: NDArray[np.int64]
    confidence: NDArray[np.float32]
    noise_probability: NDArray[np.float32]
    joint: NDArray[np.float64]

    @classmethod
    def of(cls, soft_label: SoftLabels, given: NDArray[np.int64], usable: NDArray[np.bool_]) -> _Found:
        """Part by part: all soft labels at once may not fit in memory."""
        rows, classes = soft_label.shape
        corrected, confidence = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.float32)
        noise_probability, joint = np.empty(rows, dtype=np.float32), np.zeros((classes, classes))
        for block in blocks(rows, classes):
            soft = soft_label[block]
            corrected[block], confidence[block] = best(soft)
            noise_probability[block] = noise_probabilities(soft, given[block])
            joint += joint_counts(soft, np.where(usable[block], given[block], UNLABELLED))
        return cls(corrected, confidence, noise_probability, joint)


def label_rows(
    source: Source,
    errors: Mapping[int, str],
    evidence: Evidence,
    fitted: Calibration,
    trusted: TrustedSet,
    precision: float,
    run: Run,
    held_out: NDArray[np.bool_] | None = None,
) -> Labels:
    """Calibrate the evidence and decide every row's labels and action.

    trusted: rows whose soft label is their true class; precision: that `fix` is to have; held_out: [N], rows
    whose label training did not see. A `transition_matrix` [C, C] in `run.described` is one that the
    corrector learned.
    """
    given = source.given
    usable = usable_rows(source, errors)
    soft_label = SoftLabels(evidence, given, fitted, trusted, held_out)
    found = _Found.of(soft_label, given, usable)
    is_trusted = np.zeros(len(source), dtype=bool)
    is_trusted[trusted.rows] = True
    columns = Columns(
        class_names=source.class_names,
        file_names=source.file_names,
        given=given,
        soft_label=soft_label,
        corrected=found.corrected,
        noise_probability=found.noise_probability,
        action=np.full(len(source), "review"),
        trusted=is_trusted,
        errors=errors,
    )
    described = dict(run.described)
    learned = described.pop("transition_matrix", None)
    judged = usable & (given >= 0)
    # Of a class that no row is corrected to, the matrix has only chance values.
    known = np.bincount(found.corrected[usable], minlength=len(source.class_names)) > 0
    matrix = MatrixRecord.of(row_shares(found.joint), source.class_names, known)
    metadata = Metadata(
        class_names=source.class_names,
        numbered_labels=source.numbered,
        source=source.location,
        ignored_files=source.ignored_files,
        run=replace(run, described=described),
        versions=versions(),
        noise=_noise(found.noise_probability[judged], given[trusted.rows], trusted.labels),
        noise_matrix=matrix if judged.any() else None,
        transition_matrix=learned and MatrixRecord.of(np.array(learned), source.class_names),
        calibration=calibration_report(fitted),
    )
    return Labels(columns, metadata, confidence=found.confidence).decide(precision)


def _noise(
    noise_probability: NDArray[np.float32], given: NDArray[np.int64], true: NDArray[np.int64]
) -> NoiseReport:
    """noise_probability: of the labelled rows; given, true: of the trusted ones."""
    labelled = given >= 0
    rows, wrong = int(labelled.sum()), int((given != true)[labelled].sum())
    return NoiseReport(
        float(noise_probability.mean(dtype=np.float64)) if len(noise_probability) else None,
        wrong / rows if rows else None,
        wilson_interval(wrong, rows) if rows else None,
    )


def calibration_report(fitted: Calibration) -> CalibrationReport:
    """What the labels file says of a calibration, without the selection."""
    scores = fitted.confidence[fitted.relabelled]
    right = fitted.right[fitted.relabelled]
    return CalibrationReport(
        **fitted.to_dict(),
        transferred=fitted.transferred,
        right_scores=np.sort(scores[right]),
        wrong_scores=np.sort(scores[~right]),
    )
