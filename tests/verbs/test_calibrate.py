"""`calibrate` on simulated predictions, of which the truth is known."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from relabel.calibration import calibrate as calibration
from relabel.errors import RelabelError
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.table import Labels
from relabel.metrics import noise_matrix
from relabel.verbs.calibrate import calibrate

ROWS, CLASSES, TRUSTED_ROWS = 3_000, 4, 300
NAMES = ["ant", "bee", "cat", "dog"]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def simulated(seed: int = 0, sharpness: float = 3.0) -> Arrays:
    """Predictions [N, C] that know the truth well and are too sure of it, given labels, and the truth [N].

    Three in ten labels are wrong, and most wrong ones are those of the next class.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(CLASSES, size=ROWS)
    other = np.where(rng.random(ROWS) < 0.8, 1, rng.integers(1, CLASSES, size=ROWS))
    given = np.where(rng.random(ROWS) < 0.3, (true + other) % CLASSES, true)
    scores = sharpness * (rng.normal(size=(ROWS, CLASSES)) + 2 * np.eye(CLASSES)[true])
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True), given, true


def trusted_pair(true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(1).permutation(ROWS)[:TRUSTED_ROWS]
    return rows, true[rows]


def test_labels_become_better_and_the_probabilities_honest() -> None:
    pred_probs, given, true = simulated()
    labels = calibrate(pred_probs, given, trusted_pair(true))
    figures = labels.evaluate(true)
    assert figures.label_accuracy_before == pytest.approx(0.7, abs=0.02)
    assert figures.label_accuracy_after is not None
    assert figures.label_accuracy_after > (pred_probs.argmax(axis=1) == true).mean(), "better than either"
    assert figures.label_accuracy_after > 0.9
    assert figures.calibration_error is not None
    assert figures.calibration_error < 0.03
    assert labels.noise_rate == pytest.approx(0.3, abs=0.03)
    assert figures.fix_precision is not None
    assert figures.fix_precision > 0.93
    assert labels.noise_matrix is not None
    exact = noise_matrix(given, true, CLASSES)
    np.testing.assert_allclose(labels.noise_matrix, exact / exact.sum(axis=1, keepdims=True), atol=0.05)
    assert labels.columns.file_names[:3] == ["0", "1", "2"]
    assert labels.class_names == ["0", "1", "2", "3"]


def test_it_is_the_calibration_of_fit_on_the_same_evidence() -> None:
    pred_probs, given, true = simulated()
    rows, labels_of_rows = trusted_pair(true)
    labels = calibrate(pred_probs, given, (rows, labels_of_rows))
    others = given.copy()
    others[rows] = -1
    anchors = anchor_points.count(torch.from_numpy(pred_probs).float(), others)
    transition = TransitionEstimate.of(noise_matrix(given[rows], true[rows], CLASSES), anchors)
    judges = {"prediction": pred_probs[rows].astype(np.float32)}
    expected = calibration.fit(judges, given[rows], true[rows], transition, seed=0)
    report = labels.metadata.calibration
    assert report is not None
    assert report.weights == pytest.approx(expected.weights)
    every = expected.soft_labels({"prediction": pred_probs.astype(np.float32)}, given)
    every[rows] = np.eye(CLASSES)[true[rows]]
    np.testing.assert_allclose(labels.columns.soft_label[:], every, atol=1e-5)


def test_permuting_the_classes_permutes_the_labels() -> None:
    pred_probs, given, true = simulated()
    rows, _ = trusted_pair(true)
    order = np.array([2, 0, 3, 1])
    place = np.argsort(order)
    plain = calibrate(pred_probs, given, (rows, true[rows]))
    permuted = calibrate(pred_probs[:, order], place[given], (rows, place[true[rows]]))
    np.testing.assert_allclose(
        permuted.columns.soft_label[:], plain.columns.soft_label[:][:, order], atol=1e-4
    )
    assert plain.noise_rate == pytest.approx(permuted.noise_rate, abs=1e-4)


def test_ids_and_names_say_the_same() -> None:
    pred_probs, given, true = simulated()
    rows, labels_of_rows = trusted_pair(true)
    plain = calibrate(pred_probs, given, (rows, labels_of_rows), class_names=NAMES)
    named = np.array(NAMES, dtype=object)
    ways: list[dict[str, Any]] = [
        {"labels": named[given], "class_names": NAMES},
        {"labels": named[given]},
        {"labels": list(given), "class_names": NAMES, "trusted": (rows, named[labels_of_rows])},
        {"labels": given.astype(float), "class_names": NAMES},
        {"labels": named[given], "trusted": (np.isin(np.arange(ROWS), rows), named[true])},
    ]
    for way in ways:
        trusted = (rows, named[labels_of_rows] if isinstance(way["labels"][0], str) else labels_of_rows)
        found = calibrate(pred_probs, **{"trusted": trusted, **way})
        np.testing.assert_array_equal(found.columns.soft_label[:].argmax(1), plain.columns.corrected)
        assert found.class_names == NAMES


def test_an_id_is_that_of_a_column_even_where_names_are_numbers() -> None:
    pred_probs, given, true = simulated()
    rows, labels_of_rows = trusted_pair(true)
    found = calibrate(pred_probs, given, (rows, labels_of_rows), class_names=["3", "2", "1", "0"])
    np.testing.assert_array_equal(found.columns.given, given)
    assert found.table["original_label"][0].as_py() == str(3 - given[0])


@pytest.mark.parametrize("nothing", [-1, None, float("nan")])
def test_rows_without_a_label_are_labelled_and_judge_nothing(nothing: object) -> None:
    pred_probs, given, true = simulated()
    rows, labels_of_rows = trusted_pair(true)
    partly = np.array(given, dtype=object)
    partly[::3] = nothing
    labels = calibrate(pred_probs, partly, (rows, labels_of_rows))
    assert (labels.columns.given == -1).sum() == ROWS / 3
    assert set(labels.columns.action[::3][~labels.columns.trusted[::3]]) == {"review"}
    assert labels.metadata.calibration is not None
    assert labels.metadata.calibration.calibration_rows == np.count_nonzero(rows % 3)
    unlabelled = labels.evaluate(true).unlabelled_accuracy
    assert unlabelled is not None
    assert unlabelled > 0.8


def test_several_predictions_are_weighed_and_the_better_one_weighs_more() -> None:
    good, given, true = simulated(sharpness=1.0)
    noise = np.random.default_rng(5).dirichlet(np.ones(CLASSES), size=ROWS)
    labels = calibrate({"good": good, "noise": noise}, given, trusted_pair(true))
    report = labels.metadata.calibration
    assert report is not None
    assert list(report.weights) == ["good", "noise", "transition", "keep"]
    assert report.weights["good"] > 0.5 > abs(report.weights["noise"])
    alone = calibrate(good, given, trusted_pair(true)).evaluate(true).label_accuracy_after
    both = labels.evaluate(true).label_accuracy_after
    assert both is not None
    assert both == pytest.approx(alone, abs=0.01), "one that knows nothing does no harm"


def test_the_same_prediction_twice_is_worth_no_more_than_once() -> None:
    """But for a prior that two weights are freer to leave than one."""
    pred_probs, given, true = simulated()
    few = (np.arange(30), true[:30])
    once = calibrate(pred_probs, given, few)
    twice = calibrate({"a": pred_probs, "b": pred_probs}, given, few)
    assert (once.columns.corrected == twice.columns.corrected).mean() > 0.99
    np.testing.assert_allclose(once.confidence, twice.confidence, atol=0.1)


def test_the_precision_chooses_the_fixes_and_can_be_chosen_anew() -> None:
    pred_probs, given, true = simulated()
    lax = calibrate(pred_probs, given, trusted_pair(true), precision=0.8)
    strict = calibrate(pred_probs, given, trusted_pair(true), precision=0.95)
    assert isinstance(lax, Labels)
    assert lax.decide(0.95).table.equals(strict.table)
    assert lax.summary.actions["fix"] > strict.summary.actions["fix"] > 0


PRED_PROBS = np.full((6, 2), 0.5)
GIVEN = [0, 1, 0, 1, 0, 1]
FINE = ([0, 1, 2], [0, 1, 1])


def spoilt(row: int, values: list[float]) -> np.ndarray:
    matrix = PRED_PROBS.copy()
    matrix[row] = values
    return matrix


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pred_probs": PRED_PROBS[0]}, r"pred_probs has the shape \[2\], not \[rows, classes\]"),
        ({"pred_probs": PRED_PROBS[:, :1]}, r"pred_probs has the shape \[6, 1\]"),
        ({"pred_probs": np.zeros((0, 2))}, r"pred_probs has the shape \[0, 2\]"),
        ({"pred_probs": [["a", "b"]]}, "pred_probs holds something other than numbers"),
        ({"pred_probs": {}}, "pred_probs is empty"),
        ({"pred_probs": spoilt(3, [0.5, 0.6])}, r"pred_probs: 1 row\(s\) does not sum to 1: 3"),
        ({"pred_probs": spoilt(3, [-0.5, 1.5])}, r"pred_probs: 1 row\(s\) has a negative value: 3"),
        ({"pred_probs": spoilt(3, [np.nan, 1])}, r"pred_probs: 1 row\(s\) is not finite: 3"),
        ({"pred_probs": {"a": PRED_PROBS, "b": PRED_PROBS[:5]}}, "the matrices differ in shape: a .* b"),
        ({"pred_probs": {"a": PRED_PROBS, "b": spoilt(1, [1, 1])}}, r"pred_probs\['b'\]: 1 row"),
        ({"labels": GIVEN[:5]}, "labels has an entry for each of 5 rows, and there are 6"),
        ({"labels": [0, 1, 2, 1, 0, 1]}, r"labels: no such class: row 2 \(2\)"),
        ({"labels": [0, 1, 0.5, 1, 0, 1]}, r"labels: no such class: row 2 \(0.5\)"),
        ({"labels": list("ababab"), "class_names": ["a", "c"]}, r"labels: no such class: row 1 \('b'\)"),
        ({"labels": list("abcabc")}, "pred_probs has 2 columns, and there are 3 classes: 'a', 'b', 'c'"),
        ({"class_names": ["a", "a"]}, "a name stands twice"),
        ({"class_names": ["a"]}, "pred_probs has 2 columns, and there are 1 classes: 'a'"),
        ({"trusted": ([0, 9], [0, 1])}, r"trusted: not in SOURCE: row 2 \('9'\)"),
        ({"trusted": ([0, 0], [0, 1])}, "trusted: vectors are listed twice: row 2"),
        ({"trusted": ([0, 1], [0, 2])}, r"trusted: no such class: row 1 \(2\)"),
        ({"trusted": ([0, 1], [0, None])}, "trusted: the label is empty: row 2"),
        ({"trusted": ([], [])}, "trusted holds no usable row|trusted"),
        ({"trusted": ([0, 1], [0])}, "trusted, rows has 2 entries and its labels 1"),
        ({"precision": 1.5}, "precision 1.5: must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RelabelError, match=message):
        calibrate(**{"pred_probs": PRED_PROBS, "labels": GIVEN, "trusted": FINE, **changes})


def test_what_rounding_loses_is_made_up_for() -> None:
    pred_probs, given, true = simulated()
    rounded = calibrate(pred_probs.round(4), given, trusted_pair(true))
    exact = calibrate(pred_probs, given, trusted_pair(true))
    np.testing.assert_allclose(rounded.columns.soft_label[:], exact.columns.soft_label[:], atol=0.05)
    np.testing.assert_allclose(rounded.columns.soft_label[:].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_data_frame_names_the_classes_of_its_columns(frame: Any, order: list[int]) -> None:
    pred_probs, given, true = simulated()
    rows, _ = trusted_pair(true)
    named = np.array(NAMES)
    plain = calibrate(pred_probs, named[given], (rows, named[true[rows]]))
    columns = frame({NAMES[place]: pred_probs[:, place] for place in order})
    found = calibrate(columns, named[given], (rows, named[true[rows]]))
    assert found.class_names == [NAMES[place] for place in order]
    np.testing.assert_allclose(found.columns.soft_label[:], plain.columns.soft_label[:][:, order], atol=1e-4)
    chosen = calibrate(columns, named[given], (rows, named[true[rows]]), class_names=NAMES)
    np.testing.assert_array_equal(chosen.columns.soft_label[:], plain.columns.soft_label[:])


@pytest.mark.parametrize("way", ["columns", "class_names"])
def test_numbers_as_names_of_columns_are_what_number_labels_mean(way: str) -> None:
    pred_probs, given, true = simulated()
    rows, _ = trusted_pair(true)
    order = [2, 0, 3, 1]
    plain = calibrate(pred_probs, given, (rows, true[rows]))
    moved = pred_probs[:, order]
    if way == "columns":
        found = calibrate(pd.DataFrame(moved, columns=order), given, (rows, true[rows]))
    else:
        found = calibrate(moved, given, (rows, true[rows]), class_names=order)
    np.testing.assert_allclose(found.columns.soft_label[:], plain.columns.soft_label[:][:, order], atol=1e-4)


def test_an_order_of_columns_is_not_guessed() -> None:
    rng = np.random.default_rng(0)
    true = np.arange(240) % 12
    pred_probs = rng.dirichlet(np.ones(12), 240)
    trusted = (np.arange(24), true[:24].astype(str))
    with pytest.raises(RelabelError, match="and another by their numbers"):
        calibrate(pred_probs, true.astype(str), trusted)
    names = [str(number) for number in range(12)]
    assert calibrate(pred_probs, true.astype(str), trusted, class_names=names).class_names == names
    few = np.array(["a", "b", "c"])[true % 3]
    categories = pd.Categorical(few, categories=["c", "a", "b"])
    with pytest.raises(RelabelError, match="another as categories"):
        calibrate(rng.dirichlet(np.ones(3), 240), categories, (np.arange(24), few[:24]))


@pytest.mark.parametrize("kind", [pl.Series, pd.Series, lambda names: pd.Series(names, dtype="string")])
def test_names_may_be_text_of_any_library(kind: Any) -> None:
    pred_probs, given, true = simulated()
    rows, _ = trusted_pair(true)
    named = np.array(NAMES)
    assert calibrate(pred_probs, kind(named[given]), (rows, kind(named[true[rows]]))).class_names == NAMES


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pred_probs": {"keep": np.full((4, 2), 0.5)}}, "the name stands for another term"),
        ({"pred_probs": {1: np.full((4, 2), 0.5), "1": np.full((4, 2), 0.5)}}, "the name comes twice"),
        ({"labels": pd.DataFrame({"label": [0, 1, 0, 1]})}, "it is a table"),
        ({"precision": "0.9"}, "must lie between 0 and 1"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"class_names": "ab"}, "class_names is a text"),
        (
            {"pred_probs": pd.DataFrame({"x": [0.5] * 4, "y": [0.5] * 4}), "class_names": ["a", "b"]},
            "has the columns 'x', 'y', and the classes are 'a', 'b'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {
        "pred_probs": np.full((4, 2), 0.5),
        "labels": [0, 1, 0, 1],
        "trusted": ([0], [0]),
    }
    with pytest.raises(RelabelError, match=told):
        calibrate(**given | change)
