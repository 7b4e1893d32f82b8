"""`relabel evaluate`: labels held against the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel import metrics
from relabel.config import SourceOptions
from relabel.data.draft_source import DraftSource, Request, class_ids, suggestion
from relabel.data.file_index import FileIndex
from relabel.data.in_memory import Frame
from relabel.data.label_columns import in_order
from relabel.data.label_columns import read_labels as read_vector_labels
from relabel.data.parquet_images import image_columns, open_tables
from relabel.data.sources import parquet_files
from relabel.data.tables import Table, first_few, named
from relabel.data.vectors import holds_vectors, names_of
from relabel.errors import RelabelError
from relabel.labels.table import Labels
from relabel.metrics import Evaluation
from relabel.progress import Silent, Watcher


def evaluate(
    labels: Labels, truth: Path | Frame, label_column: str | None = None, watcher: Watcher | None = None
) -> Evaluation:
    """Compare labels with the truth, a file or a table in memory.

    It has `file_name` and, unless `label_column` names another, `clean_label` (as `relabel corrupt` writes
    it) or `label`; it may cover a part of the rows, and rows with an empty label are unknown. It may also be
    a table of images, in one file or in several, of which no image is read. watcher: warned of labels that
    are no class, with which nothing agrees. Raises RelabelError when a row in it is not among the labels or
    listed twice, when its labels are none of the classes, and when it covers no row that counts.
    """
    columns = labels.columns
    evaluation = metrics.evaluate(
        given=columns.given,
        corrected=columns.corrected,
        truth=_true_labels(labels, truth, label_column, watcher or Silent()),
        noise_probability=columns.noise_probability,
        confidence=labels.confidence,
        action=columns.action,
        trusted=columns.trusted,
        failed=~columns.usable,
    )
    if evaluation.rows + evaluation.unlabelled_rows == 0:
        raise RelabelError(
            f"{named('--truth', truth)} covers no row that can be compared: trusted and unusable rows do not "
            "count.",
            "Give the true labels of other rows.",
        )
    return evaluation


def _true_labels(
    labels: Labels, truth: Path | Frame, label_column: str | None, watcher: Watcher
) -> NDArray[np.int64]:
    """[N] true class ids, −1 where unknown, from C on where the labels have no such class."""
    flag = named("--truth", truth)
    ids = class_ids(labels.class_names, numbered=labels.metadata.numbered_labels)
    table, positions = _entries(labels, truth, (label_column,) if label_column else ("clean_label", "label"))
    strange = [label for label in table.labels if label and label not in ids]
    strangers = list(dict.fromkeys(strange))
    shown = first_few(list(map(repr, strangers)))
    if any(table.labels) and ids.keys().isdisjoint(table.labels):
        raise RelabelError(
            f"{flag}: none of its labels ({shown}) is a class of the labels file.",
            f"They are {first_few(list(map(repr, labels.class_names)), 10)}; --label-column names another.",
        )
    where = [f"row {row} ({name!r})" for row, name in zip(table.rows, table.names, strict=True)]
    unknown = [at for at, position in zip(where, positions, strict=True) if position is None]
    if unknown:
        raise RelabelError(
            f"{flag}: not in the labels file: {first_few(unknown)}.", "Name files as SOURCE does."
        )
    first = {place: at for at, place in zip(where[::-1], positions[::-1], strict=True)}
    twice = [at for at, place in zip(where, positions, strict=True) if first[place] != at]
    if twice:
        raise RelabelError(f"{flag}: listed twice: {first_few(twice)}.", "Keep one row for each file.")
    if strangers:
        watcher.warn(
            f"{flag}: {len(strange):,} row(s) have a label that is no class of the labels file, with which "
            f"nothing can agree: {shown}. {suggestion(strangers[0], labels.class_names)}"
        )
    true = np.full(len(labels), -1, dtype=np.int64)
    for label, position in zip(table.labels, positions, strict=True):
        if label is not None:
            true[position] = ids.setdefault(label, len(ids))
    return true


def _entries(
    labels: Labels, truth: Path | Frame, label_columns: Sequence[str]
) -> tuple[Table, list[int | None]]:
    """The entries of the truth, and the row that each one names, None where there is no such row."""
    names = labels.columns.file_names
    index = FileIndex(Path(), names)
    if isinstance(truth, Path):
        table = _source_table(truth, label_columns, names, labels.metadata.run.features)
        if table is not None:
            return table, index.find_all(table)
    return index.read(truth, label_columns)


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
