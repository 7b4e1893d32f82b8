"""Calibration learned on data sets whose truth is known, for those without a trusted row (`transfer`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relabel.calibration.calibrate import FOLDS, Evidence
from relabel.calibration.log_linear_pool import DesignMatrix, Floats, Labels, fit_weights
from relabel.calibration.prior import CalibrationPrior, prior_of
from relabel.calibration.selection import best, changed
from relabel.calibration.transfer import raked, transferred_calibration, with_decision_threshold
from relabel.data.sources import UNLABELLED
from relabel.label_noise.transition_matrix import joint_counts

_ROWS_LEARNED = 300
"""Of each data set, for the weights: a small number, so that a large one counts no more than others."""
_ROWS_JUDGED = 1_500
"""Of each data set, as calibration rows: more, for only those relabelled with confidence judge `fix`."""


@dataclass(frozen=True)
class LabelledRun:
    """The end of a run on a data set whose truth is known.

    evidence: distributions [N, C] by name; given, true: [N] class ids; held_out: [N], whose label training
    did not see; transition: [C, C], from its anchor points.
    """

    evidence: Evidence
    given: Labels
    true: Labels
    held_out: NDArray[np.bool_]
    transition: Floats

    def __getitem__(self, rows: NDArray[np.int64]) -> LabelledRun:
        evidence = {name: values[rows] for name, values in self.evidence.items()}
        return LabelledRun(evidence, self.given[rows], self.true[rows], self.held_out[rows], self.transition)


def soft_labels(calibration_prior: CalibrationPrior, run: LabelledRun) -> Floats:
    """The calibrated soft labels [N, C] of a run by all steps, made without its truth."""
    apart, trained = (run[np.flatnonzero(part)] for part in (run.held_out, ~run.held_out))
    fitted = transferred_calibration(calibration_prior, apart.evidence, apart.given, run.transition)
    seen = np.where(run.held_out, UNLABELLED, run.given)
    fitted = raked(fitted, joint_counts(fitted.soft_labels(run.evidence, seen), seen))
    own = fitted.soft_labels(trained.evidence, trained.given)
    fitted = with_decision_threshold(fitted, own, trained.given)
    return fitted.soft_labels(run.evidence, run.given, run.held_out)


def learn(runs: Sequence[LabelledRun], seed: int) -> CalibrationPrior:
    """The weights that suit all those data sets, each of which counts alike, whatever its size.

    The corrections of its rows are those of weights that were fitted on other data sets.
    """
    prior = prior_of(runs[0].evidence)
    rng = np.random.default_rng(seed)
    runs = [run[rng.permutation(len(run.true))] for run in runs]
    fold = rng.permutation(len(runs)) % FOLDS
    none = np.zeros(0)
    soft_label: dict[int, Floats] = {}
    for part in np.unique(fold):
        others = [run for run, other in zip(runs, fold, strict=True) if other != part]
        lesson = CalibrationPrior(_weights(others, prior), none > 0, none > 0, none)
        for place in np.flatnonzero(fold == part).tolist():
            soft_label[place] = soft_labels(lesson, runs[place])[:_ROWS_JUDGED]
    found = [best(soft_label[place]) for place in range(len(runs))]
    corrected, confidence = (np.concatenate(parts) for parts in zip(*found, strict=True))
    true, given = (
        np.concatenate([values[:_ROWS_JUDGED] for values in column])
        for column in zip(*((run.true, run.given) for run in runs), strict=True)
    )
    return CalibrationPrior(
        weights=_weights(runs, prior),
        relabelled=changed(corrected, given),
        right=corrected == true,
        confidence=confidence,
        abstains=int((corrected == true).sum()) < int((given == true).sum()),
    )


def _weights(runs: Sequence[LabelledRun], prior: Mapping[str, float]) -> dict[str, float]:
    """By name, fitted on rows of all those data sets whose label training saw."""
    groups = []
    for run in runs:
        seen = run[np.flatnonzero(~run.held_out)[:_ROWS_LEARNED]]
        likelihood = seen.transition[:, seen.given].T
        groups.append((DesignMatrix.of(seen.evidence, seen.given, likelihood), seen.true))
    weights = fit_weights(groups, np.array(list(prior.values())))
    return dict(zip(prior, map(float, weights), strict=True))
