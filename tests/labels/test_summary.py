"""The sentence on `fix`, and what a summary says of a file that says little."""

from dataclasses import replace

import pytest

from relabel.calibration.selection import Selection
from relabel.labels.metadata import CalibrationReport
from relabel.labels.summary import selection_sentence

SELECTION = Selection(0.95, threshold=0.97, calibration_rows=30, right=30, needed=19, rows=40)
OWN = CalibrationReport(
    calibration_rows=100, weights={}, abstains=False, decision_threshold=0.0, accuracy_before=0.7,
    accuracy_after=0.9, calibration_error=0.02, selection=SELECTION,
)  # fmt: skip
TRANSFERRED = replace(OWN, calibration_rows=0, transferred=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "At least 95 % of the fixes are expected to be right: of 30 trusted rows relabelled with such"),
        (
            {"threshold": None, "calibration_rows": 12, "rows": 0},
            "No row is marked fix: 95 % takes at least 19",
        ),
        ({"threshold": None, "right": 25}, "No row is marked fix: of 30 trusted rows relabelled with such"),
        (
            {"threshold": None, "rows": 0},
            "No row is marked fix: none was relabelled with a confidence of 95 %",
        ),
    ],
)
def test_the_sentence_says_what_fix_promises_or_why_it_cannot_and_what_to_do(changes, words) -> None:
    report = replace(OWN, selection=replace(SELECTION, **changes))
    sentence = selection_sentence(report, 150)
    assert sentence is not None
    assert sentence.startswith(words)
    assert ("lower --precision" in sentence) is bool(changes), "where nothing is promised, what to do"
    assert ("verify more rows, about 240 in all, or lower" in sentence) is (12 in changes.values())
    earlier = selection_sentence(report, None)
    assert earlier is not None
    assert ("fit with more trusted rows" in earlier) is ("verify more rows" in sentence)


def test_without_any_relabelled_trusted_row_no_number_of_rows_is_named() -> None:
    none = replace(SELECTION, threshold=None, calibration_rows=0, right=0)
    sentence = selection_sentence(replace(OWN, selection=none), 150)
    assert sentence is not None
    assert sentence.endswith("the calibration set has 0; verify more rows or lower --precision.")


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        (0.97, "At least 95 % of the fixes are right if these rows are like the data the corrector learned"),
        (None, "No row is marked fix: of 1,300 rows relabelled with such confidence on the data"),
    ],
)
def test_a_transferred_promise_names_its_condition(threshold: float | None, words: str) -> None:
    selection = replace(SELECTION, threshold=threshold, calibration_rows=1300, right=1282)
    sentence = selection_sentence(replace(TRANSFERRED, selection=selection), 0)
    assert sentence is not None
    assert sentence.startswith(words)
    assert "1,282 are right" in sentence
    assert "--trusted" in sentence, "what would tell more"


@pytest.mark.parametrize("report", [OWN, TRANSFERRED])
def test_where_every_given_label_is_kept_the_sentence_says_so(report: CalibrationReport) -> None:
    abstains = replace(report, abstains=True, decision_threshold=None)
    sentence = selection_sentence(abstains, 150)
    assert sentence is not None
    assert sentence.endswith("corrections did more harm than good, so every given label is kept.")
    assert ("learned from" in sentence) is report.transferred
    assert selection_sentence(replace(report, selection=None), 150) is selection_sentence(None, 0) is None
