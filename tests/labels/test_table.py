"""`Labels`: made by `label_rows` from evidence of 400 rows, saved, read back, decided anew."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from relabel.calibration import calibrate
from relabel.data.sources import Source
from relabel.data.trusted import TrustedSet
from relabel.errors import RelabelError
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels import parquet
from relabel.labels.assemble import label_rows
from relabel.labels.metadata import Metadata, Run
from relabel.labels.parquet import write_labels
from relabel.labels.table import Labels
from relabel.metrics import noise_matrix

CLASSES = ["<b>bold</b>", "b", "c"]
ROWS, FAILED = 400, 7
PRECISIONS = (0.05, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def labelled(precision: float, model: bool = False) -> Labels:
    """A third of the labels wrong, a third of the rows trusted, every tenth unlabelled, one unreadable."""
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=ROWS)
    given = np.where(rng.random(ROWS) < 0.3, rng.integers(3, size=ROWS), true)
    given[::10] = -1
    scores = rng.normal(size=(ROWS, 3)) + 2.5 * np.eye(3)[true]
    evidence = torch.from_numpy(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).float()
    judges = np.flatnonzero(given >= 0)[:150]
    transition = TransitionEstimate.of(noise_matrix(given[judges], true[judges], 3))
    evidence_there = {"late": evidence[judges].numpy()}
    fitted = calibrate.fit(evidence_there, given[judges], true[judges], transition, seed=0)
    source = Source(
        location="here", root=Path(), kind="folder", file_names=[f"{row}.png" for row in range(ROWS)],
        references=[], given=given, class_names=CLASSES, numbered=False, trusted=None,
        errors={FAILED: "broken"}, ignored_files=3, warnings=[],
    )  # fmt: skip
    nothing = np.zeros(0, dtype=np.int64)
    trusted = TrustedSet(judges[judges != FAILED], true[judges[judges != FAILED]], [], nothing, [])
    run = Run(corrector="tmlc", trusted_rows=len(trusted.rows) + 2, model={"file": "m.pt"} if model else None)
    return label_rows(source, source.errors, {"late": evidence}, fitted, trusted, precision, run)


def content(labels: Labels) -> bytes:
    stream = io.BytesIO()
    labels.save(stream)
    return stream.getvalue()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", [False, True])
def test_deciding_anew_gives_the_bytes_of_a_run_with_that_precision(precision: float, model: bool) -> None:
    made = labelled(0.6, model)
    expected = labelled(precision, model)
    read = Labels.read(io.BytesIO(content(made)))
    assert content(made.decide(precision)) == content(expected)
    assert content(read.decide(precision)) == content(expected)
    assert content(read.decide(0.3).decide(precision)) == content(expected)
    assert read.decide(precision).summary.to_dict() == expected.summary.to_dict()


def test_other_precisions_choose_other_fixes() -> None:
    made = labelled(0.5)
    fixes = [made.decide(precision).summary.actions["fix"] for precision in PRECISIONS]
    assert fixes == sorted(fixes, reverse=True)
    assert fixes[0] > fixes[-1]
    assert (made.decide(0.99).columns.action == "fix")[made.columns.trusted].any(), "trusted rows stay fixed"


def test_labels_read_back_are_those_that_were_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROWS_PER_GROUP", 64)
    made = labelled(0.9)
    path = tmp_path / "labels.parquet"
    made.save(str(path))
    read = Labels.read(path)
    assert len(read) == ROWS
    assert content(read) == path.read_bytes()
    assert read.table.equals(pq.read_table(path))
    assert read.table.equals(made.table)
    assert read.table.schema.metadata == made.table.schema.metadata
    assert read.summary.to_dict() == made.summary.to_dict()
    assert read.class_names == CLASSES
    assert read.noise_rate == made.noise_rate
    assert read.noise_matrix is not None
    np.testing.assert_array_equal(read.noise_matrix, made.noise_matrix)
    assert (read.metadata.source, read.metadata.run.corrector) == ("here", "tmlc")
    usable = read.columns.usable
    np.testing.assert_array_equal(read.confidence[usable], made.confidence[usable])
    with pytest.raises(RelabelError, match="--overwrite"):
        read.save(path)
    decided = read.decide(0.5)
    decided.save(path, overwrite=True)
    assert content(Labels.read(path)) == content(decided)


def test_a_noise_matrix_too_large_for_the_file_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = labelled(0.9).noise_matrix
    monkeypatch.setattr("relabel.labels.metadata._WHOLE_MATRIX_CLASSES", 2)
    made = labelled(0.9)
    read = Labels.read(io.BytesIO(content(made)))
    for labels in (made, read):
        assert labels.noise_matrix is not None
        np.testing.assert_allclose(labels.noise_matrix, whole, atol=1e-6)
    assert read.summary.to_dict() == made.summary.to_dict()


def test_a_data_frame_has_the_columns_of_the_file() -> None:
    pytest.importorskip("pandas")
    frame = labelled(0.9).to_pandas()
    assert list(frame.columns) == parquet.schema(3).names
    assert frame["error"][FAILED] == "broken"


def test_the_command_is_in_the_metadata_and_changes_nothing_else() -> None:
    made = labelled(0.9)
    written = made.made_by("relabel fit here").metadata.to_dict()
    assert written.pop("command") == "relabel fit here"
    assert written == made.metadata.to_dict()


def test_labels_without_scores_cannot_be_decided(tmp_path: Path) -> None:
    made = labelled(0.9)
    write_labels(tmp_path / "old.parquet", made.columns, Metadata(CLASSES))
    read = Labels.read(tmp_path / "old.parquet")
    with pytest.raises(RelabelError, match="lack the scores of the calibration set"):
        read.decide(0.9)
    assert read.summary.selection is None
    assert read.noise_rate is None
    for precision in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(RelabelError, match="must lie between 0 and 1"):
            made.decide(precision)


def test_what_was_not_kept_is_asked_for_by_the_keyword_that_keeps_it() -> None:
    made = labelled(0.9)
    with pytest.raises(RelabelError, match="no model") as refusal:
        _ = made.model
    assert "keep_model=True" in refusal.value.hint
    with pytest.raises(RelabelError, match="no corrector"):
        _ = made.corrector


def test_in_a_notebook_the_rows_most_worth_a_look_are_shown_and_names_are_text() -> None:
    made = labelled(0.9)
    shown = made._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    assert shown.count("<tr>") == 11
    first = made._most_doubtful()[0]
    columns = made.columns
    review = columns.usable & ~columns.trusted & (columns.action == "review")
    assert columns.noise_probability[first] == np.nanmax(columns.noise_probability[review])
    assert f"<td>{first}</td>" in shown


def test_in_a_shell_one_line_says_what_they_are() -> None:
    made = labelled(0.9)
    counts = made.summary.actions
    assert repr(made).startswith(
        f"<Labels: 400 rows, 3 classes; keep {counts['keep']}, fix {counts['fix']}, "
    )
    assert made.noise_rate is not None
    assert f"{made.noise_rate:.1%} of the given labels wrong" in repr(made)
