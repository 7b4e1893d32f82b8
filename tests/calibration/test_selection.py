"""Conformal selection of `fix` rows on simulated corrections."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from relabel.calibration.selection import Corrections, Floats, Labels, Selection, actions, best, select


def corrections(confidence: Floats, right: NDArray[np.bool_]) -> Corrections:
    """Of calibration rows that are all relabelled."""
    return Corrections(np.ones(len(right), dtype=bool), right, confidence)


def relabelled_rows(confidence: Floats) -> tuple[Labels, Floats, Labels]:
    """Rows given 0 and corrected to 1 with such a confidence."""
    given = np.zeros(len(confidence), dtype=np.int64)
    return given + 1, confidence, given


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_as_many_right_corrections_as_needed_allow_a_fix_and_one_fewer_does_not(
    precision: float,
) -> None:
    rows = relabelled_rows(np.full(10, 0.999))

    def selection(calibration_rows: int) -> Selection:
        made = corrections(np.full(calibration_rows, 0.995), np.ones(calibration_rows, dtype=bool))
        return select(made, *rows, precision)

    needed = selection(0).needed
    assert selection(needed - 1).threshold is None
    assert selection(needed) == Selection(
        precision=precision, threshold=0.999, calibration_rows=needed, right=needed, needed=needed, rows=10
    )


def test_calibration_rows_that_kept_their_label_or_are_unsure_allow_no_fix() -> None:
    rows = relabelled_rows(np.full(10, 0.99))
    right = np.ones(100, dtype=bool)
    made = corrections(np.full(100, 0.99), right)
    assert select(made, *rows, 0.95).threshold is not None
    assert select(replace(made, relabelled=~right), *rows, 0.95).threshold is None
    assert select(corrections(np.full(100, 0.94), right), *rows, 0.95).threshold is None


def test_a_fix_is_never_less_confident_than_the_precision_asked_for() -> None:
    made = corrections(np.linspace(0.5, 1, 400), np.ones(400, dtype=bool))
    threshold = select(made, *relabelled_rows(np.linspace(0.5, 1, 101)), 0.9).threshold
    assert threshold == pytest.approx(0.9)


def test_wrong_corrections_raise_the_threshold_above_them() -> None:
    confidence = np.linspace(0.9, 1, 400)
    rows = relabelled_rows(confidence)
    threshold = select(corrections(confidence, confidence > 0.97), *rows, 0.95).threshold
    assert threshold is not None
    assert 0.96 < threshold < 0.972
    nothing = select(corrections(confidence, confidence < 0.97), *rows, 0.95)
    assert nothing.threshold is None
    assert (nothing.right, nothing.calibration_rows) == (80, 200)


def test_a_wrong_correction_as_confident_as_a_row_counts_against_it() -> None:
    """Saturated confidences tie."""
    confidence = np.full(100, 0.99)
    rows = relabelled_rows(confidence)
    assert select(corrections(confidence, np.arange(100) >= 20), *rows, 0.9).threshold is None
    assert select(corrections(confidence, np.arange(100) >= 5), *rows, 0.9).threshold == 0.99


@pytest.mark.parametrize("calibration_rows", [30, 150])
def test_precision_is_kept_in_expectation(calibration_rows: int) -> None:
    """Confidences too high: of rows at u, 1 - 2.5 (1 - u) are right; the most sure of 0.9 hold only 0.875."""
    precision = 0.9
    rng = np.random.default_rng(calibration_rows)
    wrong_shares, fixes, naive = [], [], []
    for _ in range(400):
        confidence = rng.uniform(0.8, 1, calibration_rows + 500)
        right = rng.random(calibration_rows + 500) < 1 - 2.5 * (1 - confidence)
        rows = relabelled_rows(confidence[calibration_rows:])
        calibration = corrections(confidence[:calibration_rows], right[:calibration_rows])
        selection = select(calibration, *rows, precision)
        fixed = actions(*rows, selection) == "fix"
        wrong_shares.append(float((fixed & ~right[calibration_rows:]).sum() / max(1, fixed.sum())))
        fixes.append(fixed.any())
        naive.append(float(1 - right[calibration_rows:][confidence[calibration_rows:] >= precision].mean()))
    assert np.mean(wrong_shares) <= 1 - precision + 0.004
    assert np.mean(naive) > 1 - precision + 0.02, "confidence alone would not keep it"
    assert np.mean(fixes) > (0.3 if calibration_rows == 30 else 0.8), "no fix at all would keep it too"


def test_actions_by_hand() -> None:
    soft_label = np.array([[0.9, 0.1, 0], [0.5, 0.3, 0.2], [0.1, 0.9, 0], [0.11, 0.89, 0], [1, 0, 0]])
    given = np.array([0, 0, 0, 0, -1])
    selection = Selection(precision=0.9, threshold=0.9, calibration_rows=50, right=50, needed=9, rows=5)
    assert actions(*best(soft_label), given, selection).tolist() == [
        "keep",
        "review",
        "fix",
        "review",
        "review",
    ]
    none = actions(*best(soft_label), given, replace(selection, threshold=None))
    assert none.tolist() == ["keep", "review", "review", "review", "review"]


def test_rows_and_calibration_rows_may_change_places() -> None:
    """Exchangeable: whichever rows of one sample calibrate, the mean share of wrong fixes is the same."""
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.85, 1, 400)
    right = rng.random(400) < 1 - 1.5 * (1 - confidence)

    def wrong_share(order: NDArray[np.int64]) -> float:
        calibration, rest = order[:200], order[200:]
        rows = relabelled_rows(confidence[rest])
        selection = select(corrections(confidence[calibration], right[calibration]), *rows, 0.9)
        fixed = actions(*rows, selection) == "fix"
        return float((fixed & ~right[rest]).sum() / max(1, fixed.sum()))

    orders = [rng.permutation(400) for _ in range(200)]
    forward = np.mean([wrong_share(order) for order in orders])
    backward = np.mean([wrong_share(order[::-1]) for order in orders])
    assert forward == pytest.approx(backward, abs=0.01)
    assert max(forward, backward) <= 0.1


def test_the_order_of_rows_and_of_calibration_rows_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    confidence, right = rng.uniform(0.8, 1, 150), rng.random(150) < 0.97
    rows = relabelled_rows(rng.uniform(0.8, 1, 90))
    order, other = rng.permutation(150), rng.permutation(90)
    shuffled = tuple(column[other] for column in rows)
    found = select(corrections(confidence[order], right[order]), *shuffled, 0.9)
    assert found == select(corrections(confidence, right), *rows, 0.9)


@pytest.mark.parametrize("precision", [0.8, 0.95])
def test_a_higher_precision_marks_no_more_rows(precision: float) -> None:
    rng = np.random.default_rng(6)
    confidence = rng.uniform(0.7, 1, 600)
    made, rows = corrections(confidence, rng.random(600) < confidence), relabelled_rows(confidence)
    lower, higher = (
        (actions(*rows, select(made, *rows, wanted)) == "fix").sum()
        for wanted in (precision, precision + 0.03)
    )
    assert higher <= lower


def test_corrections_that_are_none_are_found_out() -> None:
    made = corrections(np.array([0.5, 1.0]), np.array([True, False]))
    assert made.valid
    assert not replace(made, confidence=np.array([0.5, 1.1])).valid
    assert not replace(made, right=np.ones(2)).valid
    assert not replace(made, relabelled=np.ones(3) > 0).valid
