"""What `relabel corrupt` writes, and what `inspect` reads of it: noisy labels beside the clean ones.

CSV or Parquet with `file_name`, `label` and `clean_label`, which `fit --labels` and `evaluate --truth` read
as they are. The Parquet file also holds, as JSON under the metadata key of the labels file, what made it.
"""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.data.draft_source import natural_key
from relabel.data.tables import first_few, read_table
from relabel.errors import RelabelError
from relabel.files import METADATA_KEY, atomic_path
from relabel.labels.metadata import matrix_metadata, metadata_json
from relabel.labels.parquet import COMPRESSION
from relabel.metrics import noise_matrix

KIND = "noisy labels"
COLUMNS = ("file_name", "label", "clean_label")
SUFFIXES = (".csv", ".parquet")

_CLASSES_SHOWN = 20
_CONFUSIONS_SHOWN = 5


@dataclass(frozen=True)
class NoisyLabels:
    """Labels [N] as given out and as they were, class ids or -1; `metadata` is empty for a CSV file."""

    file_names: list[str]
    noisy: NDArray[np.int64]
    clean: NDArray[np.int64]
    class_names: list[str]
    metadata: dict[str, Any]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows by [clean class, noisy class]."""
        return noise_matrix(self.noisy, self.clean, len(self.class_names))

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: what the metadata says, and what the two columns say by themselves."""
        counts = self.counts
        labelled, wrong = int(counts.sum()), int(counts.sum() - np.trace(counts))
        return {
            **self.metadata,
            "kind": KIND,
            "rows": len(self.file_names),
            "labelled_rows": labelled,
            "wrong_rows": wrong,
            "actual_rate": wrong / labelled if labelled else None,
            "class_names": self.class_names,
            **matrix_metadata("noise_matrix", shares(counts), self.class_names),
        }

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        figures, metadata = self.to_dict(), self.metadata
        unlabelled = figures["rows"] - figures["labelled_rows"]
        rate = figures["actual_rate"]
        lines = [
            ("Rows", f"{figures['rows']:,}" + (f" ({unlabelled:,} without a label)" if unlabelled else "")),
            ("Classes", f"{len(self.class_names)}: {', '.join(self.class_names)}"),
        ]
        if rate is not None:
            of = f"{figures['wrong_rows']:,} of {figures['labelled_rows']:,}"
            lines.append(("Wrong labels", f"{of}, actual rate {rate:.4f}"))
            lines.append(("Class to class", "\n".join(self._confusions())))
        if metadata:
            told = ("noise", "rate", "features", "seed", "command")
            lines += [(key.capitalize(), str(metadata[key])) for key in told if key in metadata]
            versions = metadata.get("versions", {})
            lines.append(("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
        return lines

    def _confusions(self) -> list[str]:
        """The noise matrix in words, one class a line: the share that is right, then where the rest went."""
        counts = self.counts
        matrix = shares(counts)
        wrong = counts.sum(axis=1) - np.diag(counts)
        shown = np.flatnonzero(counts.sum(axis=1))
        if len(shown) > _CLASSES_SHOWN:
            shown = np.sort(shown[np.argsort(-wrong[shown], kind="stable")[:_CLASSES_SHOWN]])
        lines = []
        for true in shown:
            order = np.argsort(-matrix[true], kind="stable")
            others = [
                f"{self.class_names[given]} {matrix[true, given] * 100:.1f} %"
                for given in order
                if given != true and matrix[true, given] > 0
            ]
            moved = f"; {first_few(others, _CONFUSIONS_SHOWN)}" if others else ""
            lines.append(f"{self.class_names[true]} {matrix[true, true] * 100:.1f} % right{moved}")
        hidden = np.count_nonzero(counts.sum(axis=1)) - len(shown)
        return lines + ([f"and {hidden} classes with fewer wrong labels; --json has more"] if hidden else [])


def shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts by [true, given] as p(given | true); a class without rows has zeros."""
    share: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return share


def check_suffix(path: Path) -> None:
    """Refuse an output name that `fit --labels` would not read back."""
    if path.suffix.lower() not in SUFFIXES:
        raise RelabelError(
            f"--output {path}: noisy labels are CSV or Parquet.", f"End the name in {' or '.join(SUFFIXES)}."
        )


def to_csv(
    file_names: Sequence[str],
    noisy: NDArray[np.int64],
    clean: NDArray[np.int64],
    class_names: Sequence[str],
) -> str:
    """The CSV text; equal input gives equal text. An unlabelled row (-1) has empty labels."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(COLUMNS)
    names = [*class_names, ""]  # −1 picks the empty last one
    for name, label, clean_label in zip(file_names, noisy, clean, strict=True):
        row = [name, names[label], names[clean_label]]
        # A return would go unquoted, because it ends no line here, and end one for who reads it.
        (quoting if any("\r" in cell for cell in row) else plain).writerow(row)
    return text.getvalue()


def write(
    destination: Path,
    file_names: Sequence[str],
    noisy: NDArray[np.int64],
    clean: NDArray[np.int64],
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write CSV or, by the name's ending, Parquet with `metadata` (JSON data) in its schema.

    Raises `RunError` when the disk refuses.
    """
    with atomic_path(destination) as temporary:
        if destination.suffix.lower() != ".parquet":
            temporary.write_text(to_csv(file_names, noisy, clean, class_names), encoding="utf-8")
            return
        names = pa.array(class_names, pa.string())
        columns = [
            pa.array(file_names, pa.string()),
            *(names.take(pa.array(ids, pa.int64(), mask=ids < 0)) for ids in (noisy, clean)),
        ]
        described = metadata_json({**metadata, "kind": KIND, "class_names": list(class_names)})
        schema = pa.schema([(name, pa.string()) for name in COLUMNS], {METADATA_KEY: described})
        with temporary.open("wb") as stream:  # the name itself might not be UTF-8
            pq.write_table(pa.Table.from_arrays(columns, schema=schema), stream, compression=COMPRESSION)


def is_noisy_labels(path: Path) -> bool:
    """Whether a file is what `write` wrote: such CSV columns, or such Parquet metadata."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return set(COLUMNS) <= set(next(csv.reader(file), []))
        return path.is_file() and _metadata(path).get("kind") == KIND
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return False


def read(path: Path) -> NoisyLabels:
    """Read noisy labels; classes without a row are known from the Parquet metadata only.

    Raises `RelabelError`, naming the row, for a table that cannot be read.
    """
    noisy, clean = read_table(path), read_table(path, label_columns=("clean_label",))
    metadata = {} if path.suffix.lower() == ".csv" else _metadata(path)
    found = {label for table in (noisy, clean) for label in table.labels if label is not None}
    known = list(metadata.get("class_names", []))
    class_names = known + sorted(found.difference(known), key=natural_key)
    ids: dict[str | None, int] = {name: position for position, name in enumerate(class_names)} | {None: -1}

    def column(labels: Sequence[str | None]) -> NDArray[np.int64]:
        return np.array([ids[label] for label in labels], dtype=np.int64)

    return NoisyLabels(noisy.names, column(noisy.labels), column(clean.labels), class_names, metadata)


def _metadata(path: Path) -> dict[str, Any]:
    with pa.OSFile(os.fsencode(path), "r") as file:
        text = (pq.read_schema(file).metadata or {}).get(METADATA_KEY, b"{}")
    metadata = json.loads(text)
    return metadata if isinstance(metadata, dict) else {}
