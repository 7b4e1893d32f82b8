"""`Labels`: what every verb returns, and what a labels file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from html import escape
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from relabel.calibration.selection import Corrections, Selection, actions, select
from relabel.data.tables import printable
from relabel.errors import RelabelError
from relabel.labels.metadata import CalibrationReport, Metadata
from relabel.labels.parquet import Columns, described_schema, open_labels, write_labels
from relabel.labels.summary import Summary

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from relabel.metrics import Evaluation
    from relabel.progress import Watcher
    from relabel.types import LabelsLike, PathLike, Saved, Table

_ROWS_SHOWN = 10


class Labels:
    """Every row's labels, noise probability and action, with what made them.

    `columns` has the arrays. Soft labels are computed, or read from the file, when they are first used.
    warnings: what the command line would have warned of in making them.
    """

    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        columns: Columns,
        metadata: Metadata,
        *,
        confidence: NDArray[np.float32] | None = None,
        corrector: Saved | None = None,
        make_model: Callable[[], Saved] | None = None,
    ) -> None:
        self.columns = columns
        self.metadata = metadata
        if confidence is not None:
            self.confidence = confidence
        self._corrector = corrector
        self._make_model = make_model

    @classmethod
    def read(cls, source: Path | BinaryIO) -> Labels:
        """The labels in a file that relabel wrote, from a path or a binary stream.

        Raises RelabelError when it is missing, damaged or another kind of file.
        """
        return cls(*open_labels(source))

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def class_names(self) -> list[str]:
        """[C] in the order of the soft labels."""
        return list(self.columns.class_names)

    @property
    def noise_rate(self) -> float | None:
        """The mean noise probability of the labelled rows; None where no row has a given label."""
        return self.metadata.noise.estimated_noise_rate

    @cached_property
    def noise_matrix(self) -> NDArray[np.float64] | None:
        """p(given | true) [C, C] as the soft labels tell it; None where no row has a given label."""
        record = self.metadata.noise_matrix
        if record is None or record.whole is not None:
            return None if record is None else record.whole
        from relabel.label_noise.transition_matrix import joint_counts
        from relabel.metrics import row_shares
        from relabel.sample_memory import blocks

        columns = self.columns
        given = np.where(columns.usable, columns.given, -1)
        parts = blocks(*columns.soft_label.shape)
        joint = sum(joint_counts(columns.soft_label[rows], given[rows]) for rows in parts)
        return row_shares(np.asarray(joint))

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """[N] the soft labels' maxima."""
        soft_label = self.columns.soft_label
        rows, classes = soft_label.shape
        step = max(1, 2**21 // classes)
        parts = [soft_label[start : start + step].max(axis=1) for start in range(0, rows, step)]
        return np.concatenate([np.empty(0, dtype=np.float32), *parts])

    @cached_property
    def summary(self) -> Summary:
        """The figures that a person reads."""
        return Summary.of(self.columns, self.metadata)

    @property
    def table(self) -> pa.Table:
        """The file's columns and metadata, in memory as a whole; made anew each time."""
        described = described_schema(self.columns, self.metadata)
        return pa.concat_tables(self.columns.tables(described))

    def to_pandas(self) -> pd.DataFrame:
        """The table as a pandas data frame.

        What is null in the file is missing here, and `isna()` finds it: NaN in `noise_probability`, None or
        NaN in text, as the version of pandas has it. `soft_label` has an array [C] a row, and is missing
        where `error` is not: `np.stack(frame.soft_label.dropna())` is the matrix of the other rows.
        """
        try:
            return self.table.to_pandas()
        except ImportError as error:
            raise RelabelError("pandas is not installed.", "Install it, or use .table.") from error

    def save(self, destination: str | Path | BinaryIO, overwrite: bool = False) -> None:
        """Write the labels file to a path or a binary stream.

        Raises RelabelError where a file exists and is not to be overwritten, RunError when the disk refuses.
        """
        path = Path(destination) if isinstance(destination, str) else destination
        write_labels(path, self.columns, self.metadata, overwrite)

    def decide(self, precision: float) -> Labels:
        """With actions chosen anew, as the same run with that `precision` would have chosen them.

        Raises RelabelError for a precision that is no share, and for a file that lacks the scores it takes.
        """
        if not isinstance(precision, Real) or not 0 < precision < 1:
            raise RelabelError(f"--precision {precision}: must lie between 0 and 1.", "Use 0.95, say.")
        calibration = self.metadata.calibration
        if calibration is None or calibration.right_scores is None or calibration.wrong_scores is None:
            raise RelabelError(
                "These labels lack the scores of the calibration set, without which no action can be chosen.",
                "Run relabel fit, apply or predict again; earlier versions did not keep the scores.",
            )
        action, selection = _chosen(self.columns, self.confidence, calibration, float(precision))
        return self._with(replace(self.columns, action=action), self.metadata.decided(selection))

    def evaluate(
        self,
        truth: PathLike | Table | LabelsLike,
        label_column: str | None = None,
        watcher: Watcher | None = None,
    ) -> Evaluation:
        """Compare with the truth: a path, a data frame, or the true labels of all rows in order.

        It is what `relabel.evaluate` takes; trusted rows are left out of every figure. See
        `labels.evaluate.evaluate`.
        """
        from relabel.data.in_memory import path_or_frame
        from relabel.labels.evaluate import evaluate

        return evaluate(self, path_or_frame(truth, "truth"), label_column, watcher)

    def kept_with(self, corrector: Saved, make_model: Callable[[], Saved] | None) -> Labels:
        """With the corrector, and with what makes the model, if one is kept."""
        return Labels(
            self.columns,
            self.metadata,
            confidence=self.confidence,
            corrector=corrector,
            make_model=make_model,
        )

    def made_by(self, command: str) -> Labels:
        """With the command line that made them in the metadata."""
        return self._with(self.columns, replace(self.metadata, command=command))

    @property
    def corrector(self) -> Saved:
        """The trained corrector, which `apply` takes; RelabelError where none was trained."""
        if self._corrector is None:
            raise RelabelError(
                "These labels have no corrector with them: it is in those that fit has just returned.",
                "Save it from there, or with save_corrector=PATH.",
            )
        return self._corrector

    @cached_property
    def model(self) -> Saved:
        """The trained model, which `predict` takes; RelabelError where none was kept."""
        if self._make_model is None:
            raise RelabelError(
                "These labels have no model with them: fit keeps none by default.",
                "Fit with keep_model=True or save_model=PATH.",
            )
        return self._make_model()

    def _with(self, columns: Columns, metadata: Metadata) -> Labels:
        changed = Labels(
            columns,
            metadata,
            confidence=self.confidence,
            corrector=self._corrector,
            make_model=self._make_model and (lambda: self.model),
        )
        changed.warnings = self.warnings
        return changed

    def __repr__(self) -> str:
        noise = "" if self.noise_rate is None else f"; {self.noise_rate:.1%} of the given labels wrong"
        return f"<Labels: {self._counts()}{noise}>"

    def _repr_html_(self) -> str:
        """For notebooks: the counts, and the rows most worth a look."""
        head = "".join(f"<th>{name}</th>" for name in ("row", *_SHOWN))
        rows = "".join(f"<tr>{''.join(self._cells(row))}</tr>" for row in self._most_doubtful())
        noise = "" if self.noise_rate is None else f"<br>given labels estimated wrong: {self.noise_rate:.1%}"
        return f"<p>{escape(self._counts())}{noise}</p><table><tr>{head}</tr>{rows}</table>"

    def _counts(self) -> str:
        actions = ", ".join(f"{name} {count:,}" for name, count in self.summary.actions.items())
        return f"{len(self):,} rows, {len(self.class_names)} classes; {actions}"

    def _most_doubtful(self) -> list[int]:
        """Rows that a look is most worth at: to review before to fix, the likeliest wrong first."""
        columns = self.columns
        action = columns.action
        marked = np.flatnonzero(columns.usable & ~columns.trusted & (action != "keep"))
        doubt = np.nan_to_num(columns.noise_probability[marked], nan=-1.0)
        return [int(row) for row in marked[np.lexsort((-doubt, action[marked] != "review"))[:_ROWS_SHOWN]]]

    def _cells(self, row: int) -> list[str]:
        columns, names = self.columns, self.columns.class_names
        given, doubt = columns.given[row], columns.noise_probability[row]
        texts = (
            str(row),
            columns.file_names[row],
            names[given] if given >= 0 else "",
            names[columns.corrected[row]],
            "" if np.isnan(doubt) else f"{doubt:.2f}",
            str(columns.action[row]),
        )
        return [f"<td>{escape(printable(text))}</td>" for text in texts]


_SHOWN = ("file_name", "original_label", "corrected_label", "noise_probability", "action")


def _chosen(
    columns: Columns, confidence: NDArray[np.float32], calibration: CalibrationReport, precision: float
) -> tuple[NDArray[np.str_], Selection]:
    """Every row's action at that precision; of a trusted row whether its label had to be changed."""
    corrected, given, trusted = columns.corrected, columns.given, columns.trusted
    assert calibration.right_scores is not None
    assert calibration.wrong_scores is not None
    scores = np.concatenate([calibration.right_scores, calibration.wrong_scores])
    right = np.arange(len(scores)) < len(calibration.right_scores)
    corrections = Corrections(np.ones(len(scores), dtype=bool), right, scores)
    sure = confidence.astype(np.float64)
    counted = columns.usable & ~trusted
    selection = select(corrections, corrected[counted], sure[counted], given[counted], precision)
    action = actions(corrected, sure, given, selection)
    action[trusted] = np.where(corrected[trusted] != given[trusted], "fix", "keep")
    return action, selection
