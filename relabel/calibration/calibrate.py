"""From the evidence of a training run to calibrated soft labels, fitted on the calibration set.

Calibration rows are trusted rows that went through training as ordinary rows under their given label, so
they are exchangeable with the rows to correct. `fit` goes through these steps, each on what the ones before
it left:

    estimates                             from                       by
    1  T_cy = p(given y | true c)         all trusted rows, anchors  empirical Bayes (`transition_matrix`)
    2  the weights of a log-linear pool   calibration rows, each     MAP, convex (`log_linear_pool`)
       of predictions, T and given label  without its own pair in T
    3  how good its corrections are       calibration rows           10-fold cross-validation of step 2
    4  the decision threshold             the corrections of step 3  sign tests (`decision_threshold`)
    5  the bias on the given label        the soft labels of step 3  their mean, where step 4 abstains

The corrections of step 3, under the threshold of step 4, are the calibration rows of conformal selection
(`selection`). A data set without a trusted row has a transferred calibration instead (`transfer`), which
`refit` improves on the trusted rows it may have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relabel.calibration.decision_threshold import (
    MAX_GIVEN_LABEL_BIAS,
    by_sign_test,
    given_label_bias,
    keep_given,
)
from relabel.calibration.log_linear_pool import DesignMatrix, Floats, Labels, fit_weights, softmax
from relabel.calibration.prior import CalibrationPrior, prior_of
from relabel.calibration.selection import Corrections, best, changed
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.metrics import expected_calibration_error

Evidence = Mapping[str, NDArray[np.floating]]
"""Predicted distributions [n, C] by name."""

FOLDS = 10
"""Of the cross-validation: weights fitted on nine tenths of the rows are nearly those fitted on all."""
FIGURES = ("accuracy_before", "accuracy_after", "calibration_error")


@dataclass(frozen=True)
class Calibration:
    """The fitted map from evidence to soft labels, and what the calibration set says of it.

    weights: by evidence name; transition: [C, C] rows = true class, positive, rows sum to 1; figures under
    `cross_validated` come from calibration rows left out of the fit (None where no row defines them).
    """

    weights: dict[str, float]
    transition: Floats
    decision_threshold: float
    """The log odds over the given label that a correction needs; infinite: abstain from all corrections."""
    relabelled: NDArray[np.bool_]
    """[P] calibration rows whose cross-validated corrected label differs from the given one."""
    right: NDArray[np.bool_]
    """[P] calibration rows whose cross-validated corrected label is right."""
    confidence: Floats
    """[P] cross-validated soft-label maximum."""
    cross_validated: dict[str, float | None]
    transferred: bool = False
    """Whether weights and calibration rows are those of other data sets."""
    raking_factors: Floats | None = None
    """[C, C] by class and given label, with which `transfer.raked` multiplies the soft labels."""
    given_label_bias: float = 0.0
    """The log odds that given labels gain where the calibration abstains."""

    @property
    def abstains(self) -> bool:
        """Whether every given label is kept."""
        return self.decision_threshold == math.inf

    @property
    def corrections(self) -> Corrections:
        """Those of the calibration rows."""
        return Corrections(self.relabelled, self.right, self.confidence)

    @property
    def calibration_prior(self) -> CalibrationPrior:
        """What is of use to other data sets."""
        return CalibrationPrior(self.weights, self.relabelled, self.right, self.confidence, self.abstains)

    def soft_labels(
        self, evidence: Evidence, given: Labels, held_out: NDArray[np.bool_] | None = None
    ) -> Floats:
        """Calibrated [N, C] from distributions [N, C] by name and given labels [N] (−1: none).

        held_out: [N], rows whose given label training did not see; default: none.
        """
        design = DesignMatrix.of(evidence, given, self.transition[:, given].T, held_out, self.raking_factors)
        soft_label = softmax(design.scores(np.array(list(self.weights.values()))))
        if self.decision_threshold:
            soft_label = keep_given(soft_label, given, self.decision_threshold, self.given_label_bias)
        return soft_label

    @classmethod
    def restored(cls, values: Mapping[str, Any], evidence: Sequence[str], num_classes: int) -> Calibration:
        """The calibration whose `dataclasses.asdict` is `values`, fitted on that evidence.

        Raises ValueError, TypeError or KeyError when they are not those of such a calibration.
        """
        made = cls(**values)
        transition = np.asarray(made.transition)
        numbers = [*made.weights.values(), *(v for v in made.cross_validated.values() if v is not None)]
        if not (
            list(made.weights) == [*evidence, "transition", "keep"]
            and tuple(made.cross_validated) == FIGURES
            and all(isinstance(number, float) and math.isfinite(number) for number in numbers)
            and isinstance(made.decision_threshold, float)
            and made.decision_threshold >= 0
            and transition.shape == (num_classes, num_classes)
            and (transition > 0).all()
            and np.allclose(transition.sum(axis=1), 1)
            and made.corrections.valid
            and isinstance(made.transferred, bool)
            and made.raking_factors is None  # they belong to the rows they were raked on, and to no others
            and isinstance(made.given_label_bias, float)
            and 0 <= made.given_label_bias <= MAX_GIVEN_LABEL_BIAS
        ):
            raise ValueError("these are not the values of a calibration")
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the Parquet metadata."""
        return {
            "calibration_rows": 0 if self.transferred else len(self.right),
            "weights": self.weights,
            "abstains": self.abstains,
            "decision_threshold": None if self.abstains else self.decision_threshold,
            **self.cross_validated,
        }


def fit(
    evidence: Evidence,
    given: Labels,
    true: Labels,
    transition: TransitionEstimate,
    seed: int,
    prior: Mapping[str, float] | None = None,
) -> Calibration:
    """Fit the calibration on P calibration rows (none at all leave the prior weights, and no row to fix).

    evidence: distributions [P, C] by name; given, true: [P] class ids, given −1 where there is no label: such
    a row bears on the distributions alone; transition: from all trusted rows of the source, these included;
    seed: of the cross-validation folds; prior: mean of the weights by name, default `prior_of` the evidence.
    """
    labelled = given >= 0
    likelihood = np.ones((len(true), len(transition.matrix)))
    likelihood[labelled] = transition.leave_one_out(true[labelled], given[labelled])
    design = DesignMatrix.of(evidence, given, likelihood)
    found = _Fit.of(design, given, true, prior or prior_of(evidence), seed)
    return found.calibration(transition.matrix, found.decision_threshold)


def refit(
    transferred: Calibration,
    evidence: Evidence,
    given: Labels,
    true: Labels,
    held_out: NDArray[np.bool_],
    seed: int,
) -> Calibration:
    """Improve a transferred calibration on P calibration rows, its weights being their prior.

    Its transition matrix and raking factors stay, and, unless the rows show that corrections do good, they
    need no less than its decision threshold. held_out: [P], rows whose given label training did not see; the
    others as in `fit`.
    """
    likelihood = transferred.transition[:, given].T
    design = DesignMatrix.of(evidence, given, likelihood, held_out, transferred.raking_factors)
    found = _Fit.of(design, given, true, transferred.weights, seed)
    threshold = found.decision_threshold
    if 0 < threshold < math.inf:
        threshold = max(threshold, transferred.decision_threshold)
    return found.calibration(transferred.transition, threshold, transferred.raking_factors)


@dataclass(frozen=True)
class _Fit:
    """Weights fitted on all calibration rows, and soft labels [P, C] of each by weights fitted without it."""

    weights: dict[str, float]
    soft_label: Floats
    given: Labels
    true: Labels

    @classmethod
    def of(
        cls, design: DesignMatrix, given: Labels, true: Labels, prior: Mapping[str, float], seed: int
    ) -> _Fit:
        """By a Gaussian prior with mean `prior`; the folds are dealt by the seed."""
        start = np.array(list(prior.values()))
        weights = fit_weights([(design, true)], start)
        validated = np.zeros(design.fixed.shape)
        fold = np.random.default_rng(seed).permutation(len(true)) % FOLDS
        for part in range(min(FOLDS, len(true))):
            rest = fold != part
            fitted = fit_weights([(design[rest], true[rest])], start)
            validated[~rest] = softmax(design[~rest].scores(fitted))
        return cls(dict(zip(prior, map(float, weights), strict=True)), validated, given, true)

    @property
    def decision_threshold(self) -> float:
        """What the rows say on their own."""
        was_right, is_right = self.given == self.true, self.soft_label.argmax(axis=1) == self.true
        broken, corrected = was_right & ~is_right, (self.given >= 0) & ~was_right & is_right
        return by_sign_test(int(broken.sum()), int(corrected.sum()))

    def calibration(
        self, transition: Floats, decision_threshold: float, raking_factors: Floats | None = None
    ) -> Calibration:
        """With that threshold, under which the cross-validated soft labels are judged too."""
        soft_label, given, true = self.soft_label, self.given, self.true
        labelled, bias = given >= 0, 0.0
        if decision_threshold == math.inf:
            # Laplace's rule: calibration rows that are all right do not prove every label right.
            accuracy = ((given == true).sum() + 1) / (labelled.sum() + 2)
            bias = given_label_bias(soft_label[labelled], given[labelled], accuracy)
        if decision_threshold:
            soft_label = keep_given(soft_label, given, decision_threshold, bias)
        corrected, confidence = best(soft_label)
        return Calibration(
            weights=self.weights,
            transition=transition,
            decision_threshold=decision_threshold,
            relabelled=changed(corrected, given),
            right=corrected == true,
            confidence=confidence,
            cross_validated=_figures(soft_label[labelled], given[labelled], true[labelled]),
            raking_factors=raking_factors,
            given_label_bias=bias,
        )


def _figures(soft_label: Floats, given: Labels, true: Labels) -> dict[str, float | None]:
    if len(true) == 0:
        return dict.fromkeys(FIGURES)
    noise_probability = 1 - soft_label[np.arange(len(true)), given]
    figures = (
        float((given == true).mean()),
        float((soft_label.argmax(axis=1) == true).mean()),
        expected_calibration_error(noise_probability, given != true),
    )
    return dict(zip(FIGURES, figures, strict=True))
