import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from relabel.metrics import evaluate, expected_calibration_error, noise_matrix, wilson_interval


def columns(**changes: Any) -> dict[str, Any]:
    """Ten rows: six labelled and plain, then one each unlabelled, trusted, failed and without truth."""
    rows: dict[str, Any] = {
        "given": [0, 1, 2, 0, 1, 2, -1, 0, 0, 0],
        "truth": [0, 1, 2, 1, 2, 0, 1, 1, 1, -1],
        "corrected": [0, 1, 0, 1, 2, 2, 1, 1, 0, 0],
        "noise_probability": [0.1, 0.2, 0.8, 0.9, 0.8, 0.05, np.nan, 1.0, np.nan, 0.5],
        "confidence": [0.9, 0.8, 0.8, 0.9, 0.8, 0.95, 0.6, 1.0, np.nan, 0.5],
        "action": ["keep", "keep", "review", "fix", "keep", "fix", "review", "fix", "", "keep"],
        "trusted": [False] * 7 + [True, False, False],
        "failed": [False] * 8 + [True, False],
    }
    return {name: np.asarray(values) for name, values in (rows | changes).items()}


def test_evaluate_by_hand() -> None:
    result = evaluate(**columns()).to_dict()
    interval = result.pop("fix_precision_interval")
    assert interval == pytest.approx(wilson_interval(1, 2))
    assert result == pytest.approx(
        {
            "rows": 6,
            "unlabelled_rows": 1,
            "trusted_rows_excluded": 1,
            "error_rows_excluded": 1,
            "rows_without_truth": 1,
            "noise_rate": 3 / 6,
            "label_accuracy_before": 3 / 6,
            "label_accuracy_after": 4 / 6,
            "accuracy_on_wrong_rows": 2 / 3,
            "accuracy_on_right_rows": 2 / 3,
            "unlabelled_accuracy": 1.0,
            # Pairs (wrong, right): .9 beats all 3, .8 beats 2 and ties 1, .05 beats none.
            "noise_auroc": 5.5 / 9,
            # Down the ranking: .9 (1/1), .8 twice (2/3), .05 (3/6).
            "noise_average_precision": (1 / 1 + 2 / 3 + 3 / 6) / 3,
            # Bins of 1/15: {.1}, {.2}, {.8, .8}, {.9}, {.05}.
            "calibration_error": (0.1 + 0.2 + 0.6 + 0.1 + 0.95) / 6,
            # {.9, .9} both right, {.8, .8, .8} two right, {.95} wrong.
            "confidence_calibration_error": (0.2 + 0.4 + 0.95) / 6,
            "keep_rows": 3,
            "keep_precision": 2 / 3,
            "fix_rows": 2,
            "fix_precision": 1 / 2,
            "fix_coverage": 1 / 3,
            "review_rows": 1,
            "review_precision": 0.0,
        }
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    n = 300
    given, truth = rng.integers(3, size=(2, n))
    probability = np.round(
        np.clip(0.4 + 0.2 * (given != truth) + 0.2 * rng.normal(size=n), 0, 1), 1
    )  # has ties
    result = evaluate(
        given=given,
        truth=truth,
        corrected=truth,
        noise_probability=probability,
        confidence=np.ones(n),
        action=np.full(n, "fix"),
        trusted=np.zeros(n, dtype=bool),
        failed=np.zeros(n, dtype=bool),
    )
    gaps = probability[given != truth][:, None] - probability[given == truth][None, :]
    assert result.noise_auroc == pytest.approx(np.mean((gaps > 0) + 0.5 * (gaps == 0)))
    assert 0.6 < np.mean(gaps > 0) < 0.9


def test_figures_without_rows_are_none() -> None:
    clean = evaluate(**columns(given=[0, 1, 2, 1, 2, 0, -1, 0, 0, 0], action=["keep"] * 10))
    assert clean.noise_rate == 0
    undefined = (
        clean.noise_auroc,
        clean.noise_average_precision,
        clean.accuracy_on_wrong_rows,
        clean.fix_coverage,
    )
    assert undefined == (None,) * 4
    assert (clean.fix_rows, clean.fix_precision, clean.fix_precision_interval) == (0, None, None)
    assert clean.review_precision is None

    all_wrong = evaluate(**columns(given=[1, 2, 0, 0, 1, 2, -1, 0, 0, 0]))
    assert (all_wrong.noise_rate, all_wrong.noise_auroc, all_wrong.accuracy_on_right_rows) == (1, None, None)

    empty = evaluate(**columns(failed=[True] * 10)).to_dict()
    counts = {name: value for name, value in empty.items() if value is not None}
    assert counts.pop("error_rows_excluded") == 10
    assert set(counts.values()) == {0}


def test_expected_calibration_error() -> None:
    assert expected_calibration_error([], []) is None
    # Two bins: {0, .2} holds one outcome of two, {.5, 1} two of two.
    assert expected_calibration_error([0, 0.2, 0.5, 1], [False, True, True, True], bins=2) == pytest.approx(
        (abs(0.1 - 0.5) + abs(0.75 - 1)) / 2
    )
    assert expected_calibration_error([0.95, 1], [True, False]) == pytest.approx(
        0.475
    )  # 1 is in the last bin
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0
    assert expected_calibration_error([0.0, 1.0], [True, False]) == 1
    with pytest.raises(AssertionError):
        expected_calibration_error([np.nan], [True])


def test_wilson_interval() -> None:
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson_interval(0, 0) == (0, 1)
    assert wilson_interval(20, 20)[1] == 1


def test_noise_matrix() -> None:
    given = np.array([0, 1, 1, 2, -1, 0])
    true = np.array([0, 0, 0, 2, 1, -1])
    assert noise_matrix(given, true, 3).tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_an_evaluation_prints_its_main_figures_and_keeps_them_all() -> None:
    found = evaluate(**columns())
    assert repr(found) == (
        "<Evaluation: 6 rows; accuracy 50.0% → 66.7%; AUROC 0.611; calibration error 0.325; "
        "fixes 2, 50.0% right>"
    )
    assert len(found.to_dict()) == len(fields(found))
    nothing = replace(found, label_accuracy_before=None, noise_auroc=None, fix_precision=None, fix_rows=0)
    assert repr(nothing) == (
        "<Evaluation: 6 rows; accuracy undefined → 66.7%; AUROC undefined; calibration error 0.325; fixes 0>"
    )
