"""Which corrections become a `fix`: conformal selection (Jin and Candès 2023).

A fix needs two things. Its own calibrated confidence reaches the wanted precision. And the calibration
set bears that out: the conformal p-value of a row is its rank among the calibration rows whose equally
confident correction is mislabelled, and Benjamini-Hochberg at level 1 − precision picks the threshold. As
long as rows and calibration rows are exchangeable, the expected share of wrong fixes is at most 1 −
precision, whatever the classifier and however few the calibration rows. (An exact binomial bound at 90 %
confidence would ask for more than twice as many of them, the confidence alone for none.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

ROUNDING = 1e-9
"""More than double precision loses here, less than one row in any data set: 1 − .95 is not .05 to the bit."""


@dataclass(frozen=True)
class Corrections:
    """Corrections of P calibration rows by a fit that left them out.

    relabelled: [P], whether the corrected label differs from the given one; right: [P], whether the corrected
    label is the true one; confidence: [P], the soft label's maximum.
    """

    relabelled: NDArray[np.bool_]
    right: NDArray[np.bool_]
    confidence: Floats

    @property
    def valid(self) -> bool:
        """Whether shapes, types and range are those of corrections."""
        return bool(
            self.relabelled.shape == self.right.shape == self.confidence.shape == (len(self.right),)
            and self.relabelled.dtype == self.right.dtype == np.bool_
            and (self.confidence >= -ROUNDING).all()
            and (self.confidence <= 1 + ROUNDING).all()
        )


@dataclass(frozen=True)
class Selection:
    """The rows marked `fix`: at least `precision` of them are right, in expectation.

    threshold: least confidence of a `fix` row, None when no row can be marked; calibration_rows, right:
    calibration rows relabelled with a confidence of at least `precision`, and how many of these are right;
    needed: the fewest such rows, all of them right, that allow any fix; rows: rows to select from that are
    relabelled with such a confidence.
    """

    precision: float
    threshold: float | None
    calibration_rows: int
    right: int
    needed: int
    rows: int


def select(
    calibration: Corrections, corrected: Labels, confidence: Floats, given: Labels, precision: float
) -> Selection:
    """Choose the threshold of `fix` for rows [N] with corrected labels, their confidence and given labels."""
    differs = changed(corrected, given)
    candidates = np.sort(confidence[differs & (confidence >= precision)])[::-1]
    judging = calibration.relabelled & (calibration.confidence >= precision)
    wrong = np.sort(calibration.confidence[judging & ~calibration.right])
    # For each candidate threshold: calibration rows wrong at or above it, and rows it would mark.
    wrong_above = len(wrong) - np.searchsorted(wrong, candidates, side="left")
    marked = np.searchsorted(-candidates, -candidates, side="right")
    expected_wrong = (1 + wrong_above) / (judging.sum() + 1) * len(candidates) / np.maximum(marked, 1)
    kept = candidates[expected_wrong <= 1 - precision + ROUNDING]
    return Selection(
        precision=precision,
        threshold=float(kept.min()) if len(kept) else None,
        calibration_rows=int(judging.sum()),
        right=int((judging & calibration.right).sum()),
        needed=math.ceil(1 / (1 - precision) - 1 - ROUNDING),
        rows=len(candidates),
    )


def actions(corrected: Labels, confidence: Floats, given: Labels, selection: Selection) -> NDArray[np.str_]:
    """`keep`, `fix` or `review` per row [N], from the `best` [N], [N] of soft labels and the given labels.

    A relabelled row is a `fix` from the selection's threshold on and a `review` below it. A row that keeps
    its label is a `review` when that label is more likely wrong than right. An unlabelled row is a `review`.
    """
    differs = changed(corrected, given)
    action = np.where((given < 0) | differs | (confidence <= 1 - confidence), "review", "keep")
    if selection.threshold is not None:
        action[differs & (confidence >= selection.threshold)] = "fix"
    return action


def best(soft_label: NDArray[np.floating]) -> tuple[Labels, Floats]:
    """The corrected label [N] and its probability [N], of soft labels [N, C]."""
    return soft_label.argmax(axis=1), soft_label.max(axis=1).astype(np.float64)


def changed(corrected: Labels, given: Labels) -> NDArray[np.bool_]:
    """[N] whether the corrected label differs from a given one."""
    differs: NDArray[np.bool_] = (corrected != given) & (given >= 0)
    return differs
