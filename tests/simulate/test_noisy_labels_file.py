"""What `inspect` shows of noisy labels."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relabel.simulate.noisy_labels_file import NoisyLabels


def reported(
    counts: NDArray[np.int64], unlabelled: int = 0, empty: int = 0
) -> tuple[dict[str, Any], dict[str, str]]:
    """Of so many rows by [clean, noisy] class, rows without a label, and classes without a row."""
    clean, noisy = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
    no_rows = np.full(unlabelled, -1)
    names = [f"c{number}" for number in range(len(counts) + empty)]
    rows = [f"{row}.png" for row in range(len(clean) + unlabelled)]
    made = NoisyLabels(rows, np.append(noisy, no_rows), np.append(clean, no_rows), names, {})
    return made.to_dict(), dict(made.lines())


def test_a_class_s_mistakes_come_in_the_order_of_their_size() -> None:
    figures, lines = reported(np.array([[5, 1, 4], [0, 3, 0], [2, 2, 6]]), unlabelled=7, empty=1)
    assert lines["Rows"] == "30 (7 without a label)"
    assert lines["Class to class"].splitlines() == [
        "c0 50.0 % right; c2 40.0 %, c1 10.0 %",
        "c1 100.0 % right",
        "c2 60.0 % right; c0 20.0 %, c1 20.0 %",
    ]
    assert (figures["rows"], figures["labelled_rows"], figures["wrong_rows"]) == (30, 23, 9)
    assert figures["actual_rate"] == pytest.approx(9 / 23), "of those with a label"
    assert figures["noise_matrix"][3] == [0, 0, 0, 0]


def test_of_many_classes_those_with_most_wrong_labels_are_shown_in_their_own_order() -> None:
    counts = np.diag(np.full(25, 30))
    counts[np.arange(25), (np.arange(25) + 1) % 25] = np.where(np.arange(25) % 5 == 0, 1, 9)
    shown = reported(counts, empty=3)[1]["Class to class"].splitlines()
    assert [line.split()[0] for line in shown[:-1]] == [f"c{k}" for k in range(25) if k % 5]
    assert shown[-1] == "and 5 classes with fewer wrong labels; --json has more"
