"""`relabel evaluate`: a labels file held against a table of true labels."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from relabel.data.sources import FileIndex
from relabel.data.tables import ROW_COLUMNS, first_few, read_table
from relabel.errors import RelabelError
from relabel.metrics import Evaluation, evaluate
from relabel.output.parquet import read_labels


def evaluate_file(labels: Path | BinaryIO, truth: Path) -> Evaluation:
    """Compare a labels file with the truth.

    `truth` has `file_name` and `clean_label` (as `relabel corrupt` writes it) or `label`; it may cover a part
    of the rows, and rows with an empty label are unknown. Raises RelabelError when a file in it is not in
    the labels file, or listed twice.
    """
    file = read_labels(labels)
    names = file.table["file_name"].to_pylist()
    class_ids = {name: position for position, name in enumerate(file.class_names)}
    table = read_table(truth, ROW_COLUMNS, label_columns=("clean_label", "label"))
    positions = FileIndex(Path(), names).find_all(table)
    true = np.full(len(names), -1, dtype=np.int64)
    unknown, twice = [], []
    seen: set[int] = set()
    for row, name, label, position in zip(table.rows, table.names, table.labels, positions, strict=True):
        if position is None:
            unknown.append(f"row {row} ({name!r})")
            continue
        if position in seen:
            twice.append(f"row {row} ({name!r})")
        seen.add(position)
        if label is not None:
            true[position] = class_ids.setdefault(label, len(class_ids))
    if unknown:
        raise RelabelError(
            f"--truth {truth}: not in the labels file: {first_few(unknown)}.", "Name files as SOURCE does."
        )
    if twice:
        raise RelabelError(
            f"--truth {truth}: listed twice: {first_few(twice)}.", "Keep one row for each file."
        )

    def ids(column: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(
            [class_ids.get(value, -1) for value in file.table[column].to_pylist()], dtype=np.int64
        )

    evaluation = evaluate(
        given=ids("original_label"),
        corrected=ids("corrected_label"),
        truth=true,
        noise_probability=file.table["noise_probability"].fill_null(0).to_numpy(),
        confidence=file.confidence,
        action=np.array([value or "" for value in file.table["action"].to_pylist()]),
        trusted=file.table["trusted"].to_numpy(),
        failed=file.table["error"].is_valid().to_numpy(),
    )
    if evaluation.rows + evaluation.unlabelled_rows == 0:
        raise RelabelError(
            f"--truth {truth} covers no row that can be compared: verified and unusable rows do not count.",
            "Give the true labels of other rows.",
        )
    return evaluation
