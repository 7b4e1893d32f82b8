"""When to abstain from a correction: a reject rule (Chow 1970).

A label is corrected only where the log odds of another class over the given one reach a *decision threshold*:
0 where the calibration set shows that corrections do good, log 2 where it shows nothing, infinity where it
shows harm. With few mislabelled rows few calibration rows are relabelled, and weights fitted on these few are
too sure of themselves (examples/RESULTS.md, "Few wrong labels").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

HARM_LEVEL = 0.1
"""Level of the test for harm: a false alarm costs all corrections of a run, hence one in ten."""
GOOD_LEVEL = 0.25
"""Level of the test for good: a false alarm costs the threshold of 2 to 1 alone, hence one in four."""
UNPROVEN_THRESHOLD = math.log(2)
"""When neither is shown; odds of e to one break fewer labels and cost more with structured noise."""
MAX_GIVEN_LABEL_BIAS = 20.0
"""e^20 to one: no calibration set is large enough to tell a bias beyond it."""
_TIE = 1.001
"""A kept label gets a little more than the likeliest other class: no tie may decide the argmax."""


def by_sign_test(broken: int, corrected: int) -> float:
    """The threshold, by one-sided sign tests on calibration rows.

    broken: correctly labelled rows whose corrected label is wrong; corrected: mislabelled rows whose
    corrected label is right. Under the null hypothesis a changed row is either with probability 1/2.
    """
    from scipy.special import bdtrc

    def p_value(count: int) -> float:
        return float(bdtrc(count - 1, broken + corrected, 0.5)) if count else 1.0

    if p_value(broken) <= HARM_LEVEL:
        return math.inf
    return 0.0 if p_value(corrected) <= GOOD_LEVEL else UNPROVEN_THRESHOLD


def keep_given(
    soft_label: Floats, given: Labels, decision_threshold: float, given_label_bias: float = 0.0
) -> Floats:
    """Soft labels [N, C] whose argmax is the given label [N] unless another class reaches the threshold.

    They still rank the doubtful labels: a given label's odds are multiplied by e^given_label_bias, and where
    another class remains likelier without reaching the threshold, it takes a hair more than that one's share.
    Unlabelled rows (−1) stay as they are.
    """
    kept = soft_label.copy()
    rows = np.flatnonzero(given >= 0)
    own = kept[rows, given[rows]] * math.exp(given_label_bias)
    kept[rows, given[rows]] = 0
    other = kept[rows].max(axis=1)
    near = own <= other
    if decision_threshold < math.inf:
        near &= other <= own * math.exp(decision_threshold)
    kept[rows, given[rows]] = np.where(near, _TIE * other, own)
    kept /= kept.sum(axis=1, keepdims=True)
    return kept


def given_label_bias(soft_label: Floats, given: Labels, accuracy: float) -> float:
    """The bias at which given labels [n] have the mean probability `accuracy` under `keep_given` of [n, C].

    Where every label is kept, noise probabilities then still have the right mean; from 0 to
    MAX_GIVEN_LABEL_BIAS.
    """
    from scipy.optimize import brentq

    def excess(bias: float) -> float:
        kept = keep_given(soft_label, given, math.inf, bias)
        return float(kept[np.arange(len(given)), given].mean()) - accuracy

    if excess(0.0) >= 0:
        return 0.0
    if excess(MAX_GIVEN_LABEL_BIAS) <= 0:
        return MAX_GIVEN_LABEL_BIAS
    return float(brentq(excess, 0.0, MAX_GIVEN_LABEL_BIAS))
