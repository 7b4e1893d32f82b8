import numpy as np
import pytest

from relabel.errors import RelabelError
from relabel.output.evaluation import evaluate_file
from relabel.output.parquet import write_labels

NAMES = ["a.png", "b.png", "c.png", "d.png", "e.png"]


@pytest.fixture
def labels(tmp_path):
    """Given x x y y ?; corrected x y y x x; the fourth verified, the fifth unlabelled."""
    soft = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [1, 0], [0.6, 0.4]], dtype=np.float32)
    write_labels(
        tmp_path / "labels.parquet",
        file_names=NAMES,
        given=np.array([0, 0, 1, 1, -1]),
        soft_label=soft,
        noise_probability=np.array([0.1, 0.8, 0.3, 1, np.nan], dtype=np.float32),
        action=np.array(["keep", "fix", "keep", "fix", "review"]),
        trusted=np.array([False, False, False, True, False]),
        errors={},
        class_names=["x", "y"],
        metadata={},
    )
    return tmp_path / "labels.parquet"


@pytest.fixture
def truth(tmp_path):
    def write(*rows, header="file_name,label"):
        (tmp_path / "truth.csv").write_text("\n".join([header, *rows]) + "\n")
        return tmp_path / "truth.csv"

    return write


def test_the_figures_are_those_of_a_count_by_hand(labels, truth):
    found = evaluate_file(labels, truth("a.png,x", "b.png,y", "c.png,x", "d.png,x", "e.png,x"))
    assert (found.rows, found.trusted_rows_excluded, found.unlabelled_rows) == (3, 1, 1)
    assert found.label_accuracy_before == pytest.approx(1 / 3)
    assert found.label_accuracy_after == pytest.approx(2 / 3)
    assert (found.fix_rows, found.fix_precision) == (1, 1)
    assert (found.keep_rows, found.keep_precision) == (2, 0.5)
    assert found.unlabelled_accuracy == 1
    assert found.noise_auroc == 1  # 0.8 and 0.3 are wrong, 0.1 is right


def test_clean_label_comes_before_label_and_empty_means_unknown(labels, truth):
    table = truth("a.png,y,x", "b.png,x,", "./c.png,x,y", header="file_name,label,clean_label")
    found = evaluate_file(labels, table)
    assert (found.rows, found.rows_without_truth, found.label_accuracy_before) == (2, 2, 1)


def test_a_true_class_the_labels_do_not_have_counts_as_wrong(labels, truth):
    assert evaluate_file(labels, truth("a.png,z", "b.png,y")).label_accuracy_after == 0.5


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["a.png,x", "q.png,x"], r"row 3 \('q.png'\)"),
        (["a.png,x", "./a.png,x"], r"listed twice: row 3"),
        (["a.png,", "a.png,x"], r"listed twice: row 3"),
        (["d.png,x"], "covers no row that can be compared"),
        (["a.png,"], "covers no row that can be compared"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(labels, truth, rows, told):
    with pytest.raises(RelabelError, match=told):
        evaluate_file(labels, truth(*rows))
