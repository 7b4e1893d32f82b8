"""Calibration of a data set without a trusted row.

The weights are those that suited other data sets (a `CalibrationPrior`, learned by `labelled_runs`), and T =
p(given | true) is estimated from anchor points alone. A tenth of the given labels is *held out*: kept from
training, so that they test both. The steps, each on what the ones before it left:

    estimates                              from                     by
    1  sharpness and shift: how sharp the  held-out labels          MAP, the forward correction of Patrini et
       predictions are, how noisy T is                              al. 2017 with two parameters (`_fitted`)
    2  raking factors                      given labels that        one step of iterative proportional
                                           training saw, and T      fitting (`raked`)
    3  the decision threshold              soft labels of such      the share of expected mislabelled rows
                                           rows                     that get corrected
                                                                    (`with_decision_threshold`)

What each step was worth is in examples/RESULTS.md, "Choices".
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relabel.calibration.calibrate import FIGURES, Calibration, Evidence
from relabel.calibration.log_linear_pool import FLOOR, DesignMatrix, Floats, Labels, softmax
from relabel.calibration.prior import CalibrationPrior
from relabel.data.sources import UNLABELLED
from relabel.label_noise import anchor_points

_HELD_OUT_SHARE = 0.1
"""Training misses a tenth of its labels at the most."""
_MAX_HELD_OUT = 500
"""Two parameters are all that is estimated from these labels."""
_MAX_EFFECTIVE_LABELS = 200
"""More held-out labels count as so many: a model of two parameters is too simple to be so certain."""
_BOUND = 4.0
"""Of log sharpness and shift: a factor of 55, beyond which a network or T says nothing anyway."""
_SHIFT_MODE, _SHIFT_SCALE = 0.3, 0.2
"""Prior of the shift, chosen on recorded runs (examples/RESULTS.md, "Choices")."""
_STARTS = tuple(
    itertools.product((0.1, 1.0), (_SHIFT_MODE - 1, _SHIFT_MODE, _SHIFT_MODE + 1, _SHIFT_MODE + 2))
)
"""Of the optimiser, in log sharpness and shift: the posterior may have several modes."""
_MIN_PROBABILITY = 1e-6
"""Of agreement, and of disagreement: keeps logarithms finite where the network is certain."""
_EXPECTED_SHARE = 0.6
"""Of mislabelled rows corrected by a network that knows its images (examples/RESULTS.md, "Choices")."""
_LEAST_SHARE = 0.1
"""A smaller share counts as this one: beyond odds of 216 to one hardly any label would change."""
_STEEPNESS = 3.0
"""The odds that a correction needs grow with the cube of the missing share (RESULTS.md, "Choices")."""


def held_out(given: Labels, seed: int) -> NDArray[np.bool_]:
    """[N] whether a row's given label is kept from training: a tenth of them, drawn at random, 500 at most.

    given: [N], −1 for rows without a usable label. One row of each class is never held out.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(given >= 0))
    _, first = np.unique(given[rows], return_index=True)
    count = min(round(_HELD_OUT_SHARE * len(rows)), _MAX_HELD_OUT)
    chosen = np.zeros(len(given), dtype=bool)
    chosen[np.delete(rows, first)[:count]] = True
    return chosen


def transferred_calibration(
    calibration_prior: CalibrationPrior, evidence: Evidence, given: Labels, transition: Floats
) -> Calibration:
    """Step 1: other data sets' weights and corrections; sharpness and noise level by the held-out labels.

    evidence: distributions [H, C] by name, and given: [H], labels, of the held-out rows; transition: [C, C],
    from this data set's anchor points.
    """
    log_sharpness, shift = 0.0, 0.0
    if len(given):
        unlabelled = np.full(len(given), UNLABELLED)
        design = DesignMatrix.of(evidence, unlabelled, np.ones((len(given), len(transition))))
        scores = design.scores(np.array(list(calibration_prior.weights.values())))
        log_sharpness, shift = _fitted(scores, given, transition)
    sharpness = float(np.exp(log_sharpness))
    return Calibration(
        weights={
            name: weight * (sharpness if name in calibration_prior.evidence else 1.0)
            for name, weight in calibration_prior.weights.items()
        },
        transition=_shifted(transition, shift),
        decision_threshold=math.inf if calibration_prior.abstains else 0.0,
        relabelled=calibration_prior.relabelled,
        right=calibration_prior.right,
        confidence=calibration_prior.confidence,
        cross_validated=dict.fromkeys(FIGURES),
        transferred=True,
    )


def _fitted(scores: Floats, given: Labels, transition: Floats) -> tuple[float, float]:
    """The log sharpness and the shift of largest posterior, by scores [H, C] and held-out labels [H].

    Sharpness k multiplies the scores, q = softmax(k · scores), as an inverse temperature (Guo et al. 2017).
    The shift moves the log odds of T's noise (`_shifted`). Their likelihood is that of whether a held-out
    label y equals the predicted class m: p(y = m) = Σ_c q_c T_cm, the forward correction (Patrini et al.
    2017). Which label it is when it differs is left out: noise goes where the network hesitates and would
    pass for hesitation.

    Priors: log k is standard normal, and k ≥ 1, for labels cannot tell a network that is too sure from noise.
    The shift has its mode above 0, for a network has begun to memorise the labels of its anchor points; below
    the mode it is normal, above it Cauchy, which gives way where the labels are memorised altogether.
    """
    from scipy.optimize import minimize

    predicted = scores.argmax(axis=1)
    agree = predicted == given
    rows = np.arange(len(given))
    weight = min(1.0, _MAX_EFFECTIVE_LABELS / len(given))

    def loss(parameters: Floats) -> float:
        log_sharpness, shift = parameters
        probability = softmax(np.exp(log_sharpness) * scores)
        odds = np.exp(shift)
        # The columns of `_shifted` for the predicted classes: with many classes all of them are costly.
        row_sums = np.diag(transition) + (1 - np.diag(transition)) * odds
        column = transition[:, predicted].T * odds / row_sums
        column[rows, predicted] /= odds
        agreeing = (probability * column).sum(axis=1).clip(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
        likelihood = np.log(np.where(agree, agreeing, 1 - agreeing)).sum()
        distance = (shift - _SHIFT_MODE) / _SHIFT_SCALE
        penalty = np.log1p(distance**2) if distance > 0 else distance**2 / 2
        return float(log_sharpness**2 / 2 + penalty - weight * likelihood)

    bounds = [(0.0, _BOUND), (-_BOUND, _BOUND)]
    found = [minimize(loss, np.array(start), method="L-BFGS-B", bounds=bounds) for start in _STARTS]
    log_sharpness, shift = min(found, key=lambda one: one.fun).x
    return float(log_sharpness), float(shift)


def _shifted(transition: Floats, shift: float) -> Floats:
    """The transition matrix with the odds of every class's noise multiplied by e^shift."""
    correct = np.diag(transition)
    shifted = transition * np.exp(shift)
    np.fill_diagonal(shifted, correct)
    moved: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return moved


def raked(fitted: Calibration, joint: Floats) -> Calibration:
    """Step 2: `fitted` with factors that rake its soft labels towards p(true | given) under its T.

    joint: [C, C], expected rows by (true, given) by the soft labels of all rows whose label training saw
    (`transition_matrix.joint_counts`). One step of iterative proportional fitting (Deming and Stephan 1940):
    for each given label, the soft labels' mean is scaled to that marginal, and each row is normalised anew.
    """
    if fitted.abstains or not joint.any():
        return fitted
    rows = joint.sum(axis=0)
    mean = joint / np.where(rows > 0, rows, 1)
    factors: Floats = anchor_points.posterior(fitted.transition, rows) / np.maximum(mean, FLOOR)
    return replace(fitted, raking_factors=np.where(rows > 0, factors, 1.0))


def with_decision_threshold(
    fitted: Calibration, soft_label: NDArray[np.floating], given: Labels
) -> Calibration:
    """Step 3: `fitted` with a decision threshold, by soft labels [n, C] of rows trained on, given [n].

    The soft labels expect Σ (1 − q_y) mislabelled rows and correct a share s of them. Where s is below .6 the
    network knows little of the images, maybe less than their labels do, and errs on single labels under
    asymmetric noise. A correction then needs odds of (.6 / s)³ to one.
    """
    rows = np.arange(len(given))
    mislabelled = float((1 - soft_label[rows, given]).sum())
    if fitted.abstains or mislabelled == 0:
        return fitted
    share = float((soft_label.argmax(axis=1) != given).sum()) / mislabelled
    if share >= _EXPECTED_SHARE:
        return fitted
    threshold = _STEEPNESS * math.log(_EXPECTED_SHARE / max(share, _LEAST_SHARE))
    return replace(fitted, decision_threshold=threshold)
