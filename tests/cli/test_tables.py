import io
import math
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from relabel.cli import tables
from relabel.labels.metadata import CalibrationReport, Confusion, NoiseReport
from relabel.labels.summary import Summary

CALIBRATION = CalibrationReport(
    calibration_rows=75,
    weights={},
    abstains=False,
    decision_threshold=0.0,
    accuracy_before=0.7,
    accuracy_after=0.95,
    calibration_error=0.01,
)
FIT = Summary(
    rows=1797,
    unusable_rows=2,
    ignored_files=3,
    unlabelled_rows=4,
    trusted_rows=150,
    trusted_outside_source=5,
    relabelled_rows=500,
    actions={"keep": 1200, "fix": 400, "review": 41},
    noise=NoiseReport(0.3, 0.28, (0.21, 0.36)),
    largest_confusions=[
        Confusion("蒸気機関車と長い名前の付いた分類", "[bold]\x1bdog", 0.31),
        Confusion("cat", "cat", 0.2),
        Confusion("dog", "cat", 0.0),
    ],
    learned_transitions=None,
    calibration=CALIBRATION,
    calibrated_before=False,
    selection="At least 95 % of the fixes are right (with 90% confidence), judged by 75 trusted rows.",
)


def shown(width, terminal, content=FIT):
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    tables.show_result(console, content, "labels.parquet")
    return stream.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_every_width_holds_the_whole_text(width):
    text = shown(width, terminal=True).replace("\x1b[1m", "").replace("\x1b[0m", "")
    dense = "".join(text.split())
    for whole in (
        "150trusted,4withoutalabel,2unusable",
        "1,200/400/41",
        "75trustedrows.",
        "28.0%(95%interval21.0%to36.0%)",
    ):
        assert whole in dense
    assert "31.0%of蒸気機関車と長い名前の付いた分類islabelled[bold]\\x1bdog" in dense
    names = {line for line in text.splitlines() if not line.startswith(" ")}
    assert all(cell_len(line) <= width for line in text.splitlines() if line not in names or width >= 80)


def test_a_pipe_gets_one_line_a_value_without_padding():
    lines = shown(40, terminal=False).splitlines()
    assert lines[-2].startswith("Fixes")
    assert lines[-2].endswith("75 trusted rows.")
    assert all(line == line.rstrip() for line in lines)


def test_a_class_is_no_confusion_with_itself_and_a_rounded_zero_is_none():
    text = shown(80, terminal=False)
    assert "of cat is labelled cat" not in text
    assert "0.0 % of" not in text
    assert "Largest confusions" not in shown(80, False, replace(FIT, largest_confusions=[]))


def test_trusted_rows_are_counted_apart():
    text = shown(100, terminal=False)
    assert "1,797 (150 trusted, 4 without a label, 2 unusable)" in text
    assert "1,200 / 400 / 41 (trusted rows not counted)" in text


@pytest.mark.parametrize(
    ("decision_threshold", "calibration_rows", "sentence"),
    [
        (math.log(2), 75, "2 times as likely: the trusted rows do not show"),
        (math.log(3.375), 0, "3.4 times as likely: few of the doubtful labels"),
        (math.log(216), 0, "216 times as likely"),
        (0.0, 75, None),
        (None, 75, None),
    ],
)
def test_corrections_that_need_a_margin_say_so_and_why(decision_threshold, calibration_rows, sentence):
    calibration = replace(
        CALIBRATION,
        decision_threshold=decision_threshold,
        calibration_rows=calibration_rows,
        abstains=decision_threshold is None,
    )
    text = shown(200, False, replace(FIT, calibration=calibration))
    assert "times as likely" in text if sentence else "times as likely" not in text
    assert sentence is None or f"only where another class is {sentence}" in text


def test_what_mlc_learned_is_shown_beside_what_was_found():
    learned = [Confusion("cat", "dog", 0.3), Confusion("dog", "cat", 0.0)]
    text = shown(80, False, replace(FIT, learned_transitions=learned))
    assert "Learned by MLC" in text
    assert "30.0 % of cat is labelled dog" in text
    assert "Learned by MLC" not in shown(80, False)
