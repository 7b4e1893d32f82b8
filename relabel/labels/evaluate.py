"""`relabel evaluate`: a labels file held against a table of true labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from relabel.config import SourceOptions
from relabel.data.draft_source import DraftSource, Request, class_ids, suggestion
from relabel.data.file_index import FileIndex
from relabel.data.label_columns import in_order
from relabel.data.label_columns import read_labels as read_vector_labels
from relabel.data.parquet_images import image_columns, open_tables
from relabel.data.sources import parquet_files
from relabel.data.tables import Table, first_few
from relabel.data.vectors import holds_vectors, names_of
from relabel.errors import RelabelError
from relabel.labels.parquet import read_labels
from relabel.metrics import Evaluation, evaluate
from relabel.progress import Silent, Watcher


def evaluate_file(
    labels: Path | BinaryIO, truth: Path, label_column: str | None = None, watcher: Watcher | None = None
) -> Evaluation:
    """Compare a labels file with the truth.

    `truth` has `file_name` and, unless `label_column` names another, `clean_label` (as `relabel corrupt`
    writes it) or `label`; it may cover a part of the rows, and rows with an empty label are unknown. It may
    also be a table of images, in one file or in several, of which no image is read. watcher: warned of labels
    that are no class, with which nothing agrees. Raises RelabelError when a file in it is not in the labels
    file or listed twice, or when its labels are none of the classes.
    """
    file = read_labels(labels)
    names = file.table["file_name"].to_pylist()
    ids = class_ids(file.class_names, numbered=file.metadata.get("numbered_labels", False))
    columns = (label_column,) if label_column else ("clean_label", "label")
    index = FileIndex(Path(), names)
    table = _source_table(truth, columns, names, file.metadata.get("features"))
    if table is None:
        table, positions = index.read(truth, columns)
    else:
        positions = index.find_all(table)
    strange = [label for label in table.labels if label and label not in ids]
    strangers = list(dict.fromkeys(strange))
    named = first_few(list(map(repr, strangers)))
    if any(table.labels) and ids.keys().isdisjoint(table.labels):
        raise RelabelError(
            f"--truth {truth}: none of its labels ({named}) is a class of the labels file.",
            f"They are {first_few(list(map(repr, file.class_names)), 10)}; --label-column names the column.",
        )
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
            true[position] = ids.setdefault(label, len(ids))
    if unknown:
        raise RelabelError(
            f"--truth {truth}: not in the labels file: {first_few(unknown)}.", "Name files as SOURCE does."
        )
    if twice:
        raise RelabelError(
            f"--truth {truth}: listed twice: {first_few(twice)}.", "Keep one row for each file."
        )
    if strangers:
        (watcher or Silent()).warn(
            f"--truth {truth}: {len(strange):,} row(s) have a label that is no class of the labels file, "
            f"with which nothing can agree: {named}. {suggestion(strangers[0], file.class_names)}"
        )

    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array([ids.get(value, -1) for value in file.table[name].to_pylist()], dtype=np.int64)

    evaluation = evaluate(
        given=column("original_label"),
        corrected=column("corrected_label"),
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


def _source_table(
    truth: Path, columns: Sequence[str], names: Sequence[str], features: str | None
) -> Table | None:
    """The truth in Parquet files that hold images or vectors, its rows named as those of a SOURCE; None where
    it is not.

    names: of the rows of the labels file; features: what named the vectors of its SOURCE, None for images.
    """
    paths = parquet_files(str(truth))
    try:
        schema = pq.read_schema(paths[0]) if paths else pa.schema([])
    except (OSError, pa.ArrowException):
        return None  # read_table() says what is wrong
    images = image_columns(schema)
    vectors = features is not None and holds_vectors(schema, features)
    if not images and not vectors:
        return None
    options = SourceOptions(
        image_column=images[0] if len(images) == 1 else None,
        label_column=next((column for column in columns if column in schema.names), columns[-1]),
    )
    request = Request(str(truth), options, Silent(), expect_labels=True, largest=None)
    if vectors:
        rows = DraftSource(truth, "vectors", names_of(paths)[0])
        read_vector_labels(paths, rows, request)
    else:
        rows = open_tables(paths, request)
    numbers = list(map(str, range(len(names))))
    bare = rows.names == list(map(str, range(len(rows.names))))
    if vectors and bare and "index" in schema.names and (names != numbers or len(rows.names) != len(names)):
        return None  # a part of SOURCE, or another order of it
    if names != numbers:
        return Table("file_name", rows.names, rows.labels, range(1, len(rows.names) + 1), None)
    if len(rows.names) != len(names):
        raise RelabelError(
            f"--truth {truth} has {len(rows.names)} rows and the labels file, which has no other names for "
            f"its rows than their numbers, {len(names)}.",
            "Name the table that was SOURCE, or one with the columns index and label.",
        )
    if not in_order(paths):
        raise RelabelError(
            f"--truth {truth}: its column index numbers the rows otherwise than they stand, and the labels "
            "file has no other names for its rows than their numbers.",
            "Drop that column if the table was SOURCE, else write index and label alone to another.",
        )
    return Table("index", numbers, rows.labels, range(1, len(names) + 1), None)
