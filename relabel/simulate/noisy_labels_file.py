"""Noisy labels beside the clean ones: what `relabel corrupt` returns and writes, and `inspect` reads.

CSV or Parquet with `file_name`, `label` and `clean_label`, which `fit --labels` and `evaluate --truth` read
as they are. The Parquet file also holds, as JSON under the metadata key of the labels file, what made it.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.data.draft_source import natural_key
from relabel.data.tables import first_few, read_table
from relabel.errors import RelabelError
from relabel.files import METADATA_KEY, atomic_path, check_output
from relabel.labels.metadata import matrix_metadata, metadata_json
from relabel.labels.parquet import COMPRESSION
from relabel.metrics import noise_matrix, row_shares

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

KIND = "noisy labels"
COLUMNS = ("file_name", "label", "clean_label")
SUFFIXES = (".csv", ".parquet")

_CLASSES_SHOWN = 20  # a screen of lines
_CONFUSIONS_SHOWN = 5  # a line of classes


@dataclass(frozen=True)
class NoisyLabels:
    """Labels [N] with synthetic noise and without, class ids or -1, as `relabel.corrupt` returns them.

    metadata: what made them, JSON data; empty when read from a CSV file.
    """

    file_names: list[str]
    noisy: NDArray[np.int64]
    clean: NDArray[np.int64]
    class_names: list[str]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.file_names)

    def __repr__(self) -> str:
        rate = "no label" if self.actual_rate is None else f"{self.actual_rate:.1%} of the labels wrong"
        return f"<NoisyLabels: {len(self):,} rows, {len(self.class_names)} classes, {rate}>"

    @property
    def table(self) -> pa.Table:
        """`file_name`, `label` (noisy) and `clean_label`, null without a label; metadata in the schema."""
        names = pa.array(self.class_names, pa.string())
        columns = [
            pa.array(self.file_names, pa.string()),
            *(names.take(pa.array(ids, pa.int64(), mask=ids < 0)) for ids in (self.noisy, self.clean)),
        ]
        described = metadata_json({**self.metadata, "kind": KIND, "class_names": list(self.class_names)})
        schema = pa.schema([(name, pa.string()) for name in COLUMNS], {METADATA_KEY: described})
        return pa.Table.from_arrays(columns, schema=schema)

    def to_pandas(self) -> pandas.DataFrame:
        """The `table` as a pandas data frame."""
        return self.table.to_pandas()

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write CSV or, by the name's ending, Parquet with the metadata.

        Raises RelabelError for another ending and for a file that exists, RunError when the disk refuses.
        """
        destination = Path(path)
        check_suffix(destination)
        check_output(destination, overwrite)
        with atomic_path(destination) as temporary:
            if destination.suffix.lower() == ".parquet":
                with temporary.open("wb") as stream:  # the name itself might not be UTF-8
                    pq.write_table(self.table, stream, compression=COMPRESSION)
            else:
                temporary.write_text(self.to_csv(), encoding="utf-8")

    def to_csv(self) -> str:
        """The CSV text; equal input gives equal text. An unlabelled row (-1) has empty labels."""
        text = io.StringIO()
        plain = csv.writer(text, lineterminator="\n")
        quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writerow(COLUMNS)
        names = [*self.class_names, ""]  # −1 picks the empty last one
        for name, label, clean_label in zip(self.file_names, self.noisy, self.clean, strict=True):
            row = [name, names[label], names[clean_label]]
            # A return would go unquoted, because it ends no line here, and end one for who reads it.
            (quoting if any("\r" in cell for cell in row) else plain).writerow(row)
        return text.getvalue()

    @property
    def labelled_rows(self) -> int:
        """Rows with a label."""
        return int(self.counts.sum())

    @property
    def wrong_rows(self) -> int:
        """Rows whose label is flipped."""
        return int(self.counts.sum() - np.trace(self.counts))

    @property
    def actual_rate(self) -> float | None:
        """Share of the labelled rows whose label is flipped; None without any."""
        return self.wrong_rows / self.labelled_rows if self.labelled_rows else None

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Rows by [clean class, noisy class]."""
        return noise_matrix(self.noisy, self.clean, len(self.class_names))

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: what the metadata says, and what the two columns say by themselves."""
        return {
            **self.metadata,
            "kind": KIND,
            "rows": len(self.file_names),
            "labelled_rows": self.labelled_rows,
            "wrong_rows": self.wrong_rows,
            "actual_rate": self.actual_rate,
            "class_names": self.class_names,
            **matrix_metadata("noise_matrix", row_shares(self.counts), self.class_names),
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
            shown = ("noise", "rate", "features", "seed", "command")
            lines += [(key.capitalize(), str(metadata[key])) for key in shown if key in metadata]
            versions = metadata.get("versions", {})
            lines.append(("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
        return lines

    def _confusions(self) -> list[str]:
        """The noise matrix in words, one class a line: the share that is right, then where the rest went."""
        counts = self.counts
        matrix = row_shares(counts)
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


def check_suffix(path: Path) -> None:
    """Refuse an output name that `fit --labels` would not read back."""
    if path.suffix.lower() not in SUFFIXES:
        raise RelabelError(
            f"--output {path}: noisy labels are CSV or Parquet.", f"End the name in {' or '.join(SUFFIXES)}."
        )


def is_noisy_labels(path: Path) -> bool:
    """Whether a file is what `save` wrote: such CSV columns, or such Parquet metadata."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return set(COLUMNS) <= set(next(csv.reader(file), []))
        return path.is_file() and _metadata(path).get("kind") == KIND
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return False


def read(path: Path) -> NoisyLabels:
    """Read noisy labels; classes without a row are known from Parquet metadata alone.

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
