"""The decision threshold and the bias on the given label, on counts and on simulated soft labels."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from relabel.calibration.decision_threshold import (
    GOOD_LEVEL,
    HARM_LEVEL,
    MAX_GIVEN_LABEL_BIAS,
    UNPROVEN_THRESHOLD,
    by_sign_test,
    given_label_bias,
    keep_given,
)

C = 4
THRESHOLDS = [0.0, UNPROVEN_THRESHOLD, 2.0, math.inf]
RNG = np.random.default_rng(0)
SOFT_LABEL = RNG.dirichlet(np.ones(C), size=300)
GIVEN = RNG.integers(-1, C, size=300)
LABELLED = GIVEN >= 0


@pytest.mark.parametrize("broken", range(9))
@pytest.mark.parametrize("corrected", range(9))
def test_harm_and_good_are_shown_by_an_exact_sign_test(broken: int, corrected: int) -> None:
    def shown(count: int, level: float) -> bool:
        changed = broken + corrected
        return changed > 0 and binomtest(count, changed, alternative="greater").pvalue <= level

    found = by_sign_test(broken, corrected)
    assert (found == math.inf) == shown(broken, HARM_LEVEL)
    assert (found == 0) == shown(corrected, GOOD_LEVEL)


def test_more_harm_never_lowers_the_threshold_and_more_good_never_raises_it() -> None:
    found = np.array([[by_sign_test(broken, corrected) for corrected in range(40)] for broken in range(40)])
    assert (found[:, :-1] >= found[:, 1:]).all()
    assert (found[:-1] <= found[1:]).all()


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_label_changes_exactly_where_the_odds_reach_the_threshold(threshold: float) -> None:
    found = keep_given(SOFT_LABEL, GIVEN, threshold)
    assert found.sum(axis=1) == pytest.approx(1)
    others = SOFT_LABEL[LABELLED].copy()
    own = others[np.arange(len(others)), GIVEN[LABELLED]]
    others[np.arange(len(others)), GIVEN[LABELLED]] = 0
    changed = found.argmax(axis=1)[LABELLED] != GIVEN[LABELLED]
    np.testing.assert_array_equal(changed, np.log(others.max(axis=1) / own) > threshold)
    np.testing.assert_allclose(found[~LABELLED], SOFT_LABEL[~LABELLED])
    kept_as_it_is = changed | (others.max(axis=1) < own)
    np.testing.assert_allclose(found[LABELLED][kept_as_it_is], SOFT_LABEL[LABELLED][kept_as_it_is])


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_renaming_the_classes_renames_what_is_kept(threshold: float) -> None:
    order = np.array([2, 0, 3, 1])
    renamed = np.where(LABELLED, np.argsort(order)[GIVEN], -1)
    found = keep_given(SOFT_LABEL[:, order], renamed, threshold, 0.3)
    np.testing.assert_allclose(found, keep_given(SOFT_LABEL, GIVEN, threshold, 0.3)[:, order])


@pytest.mark.parametrize("threshold", [UNPROVEN_THRESHOLD, math.inf])
def test_a_tie_keeps_the_given_label(threshold: float) -> None:
    soft_label, given = np.full((2, 2), 0.5), np.array([0, 1])
    assert keep_given(soft_label, given, threshold).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.99])
def test_the_bias_gives_the_labels_the_mean_probability_they_should_have(accuracy: float) -> None:
    soft_label, given = SOFT_LABEL[LABELLED], GIVEN[LABELLED]
    bias = given_label_bias(soft_label, given, accuracy)
    kept = keep_given(soft_label, given, math.inf, bias)[np.arange(len(given)), given]
    unbiased = keep_given(soft_label, given, math.inf)[np.arange(len(given)), given]
    assert kept.mean() == pytest.approx(max(accuracy, unbiased.mean()), abs=1e-9)
    own = soft_label[np.arange(len(given)), given]
    likelier = np.exp(bias) * own > soft_label.max(axis=1)
    assert (np.argsort(kept[likelier]) == np.argsort(own[likelier])).all(), "they rank as before"


def test_a_bias_has_its_limits() -> None:
    """None where the labels are doubted no more than they should be, and not without end."""
    assert given_label_bias(np.array([[0.9, 0.1]]), np.array([0]), 0.8) == 0
    assert given_label_bias(np.array([[1e-12, 1.0]]), np.array([0]), 0.9999) == MAX_GIVEN_LABEL_BIAS
