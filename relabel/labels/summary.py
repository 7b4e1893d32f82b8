"""What a person reads about labels: counts, noise, the calibration's figures and what `fix` guarantees.

Everything here follows from a labels file, so labels read from one have the summary of those just made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relabel.calibration.selection import Selection
from relabel.labels.metadata import CalibrationReport, Confusion, Metadata, NoiseReport

if TYPE_CHECKING:
    from relabel.labels.parquet import Columns

ACTIONS = ("keep", "fix", "review")
_CONFUSIONS_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Summary:
    """The figures of a run; trusted rows are in none of the counts but their own.

    trusted_rows: of SOURCE; relabelled_rows: labelled rows whose corrected label differs; actions: rows by
    action; learned_transitions: of a corrector that learns p(given | true), None of any other;
    calibrated_before: whether the calibration is that of an earlier fit; selection: a sentence on `fix`.
    """

    rows: int
    unusable_rows: int
    ignored_files: int
    unlabelled_rows: int
    trusted_rows: int
    trusted_outside_source: int
    relabelled_rows: int
    actions: Mapping[str, int]
    noise: NoiseReport
    largest_confusions: Sequence[Confusion]
    learned_transitions: Sequence[Confusion] | None
    calibration: CalibrationReport | None
    calibrated_before: bool
    selection: str | None

    @classmethod
    def of(cls, columns: Columns, metadata: Metadata) -> Summary:
        """The summary of those columns."""
        usable, labelled = columns.usable, columns.given >= 0
        counted = usable & ~columns.trusted
        names, run, calibration = metadata.class_names, metadata.run, metadata.calibration
        # Of a class that no row is corrected to, the matrix has only chance values.
        known = np.bincount(columns.corrected[usable], minlength=len(names)) > 0
        matrix, learned = metadata.noise_matrix, metadata.transition_matrix
        before = run.model is not None
        trusted = int(columns.trusted.sum())
        changed = columns.corrected != columns.given
        return cls(
            rows=len(columns),
            unusable_rows=len(columns.errors),
            ignored_files=metadata.ignored_files,
            unlabelled_rows=int((usable & ~labelled).sum()),
            trusted_rows=trusted,
            trusted_outside_source=0 if before else max(0, (run.trusted_rows or 0) - trusted),
            relabelled_rows=int((counted & labelled & changed).sum()),
            actions={name: int((columns.action[counted] == name).sum()) for name in ACTIONS},
            noise=metadata.noise,
            largest_confusions=[] if matrix is None else matrix.confusions(names, _CONFUSIONS_SHOWN, known),
            learned_transitions=None if learned is None else learned.confusions(names, _CONFUSIONS_SHOWN),
            calibration=calibration,
            calibrated_before=before,
            selection=selection_sentence(calibration, None if before else run.trusted_rows or 0)
            if (usable & labelled).any()
            else "No row has a given label, so there is none to keep or to fix.",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        calibration, learned = self.calibration, self.learned_transitions
        noise = {**vars(self), **self.noise.to_dict()}
        del noise["noise"]
        return {
            **noise,
            "actions": dict(self.actions),
            "largest_confusions": [asdict(entry) for entry in self.largest_confusions],
            "learned_transitions": None if learned is None else [asdict(entry) for entry in learned],
            "calibration": None if calibration is None else calibration.figures(),
        }


def selection_sentence(calibration: CalibrationReport | None, trusted: int | None) -> str | None:
    """What `fix` guarantees, or why it guarantees nothing, in one sentence; None without a selection.

    trusted: how many trusted rows there are, None where the calibration is of an earlier fit.
    """
    if calibration is None or calibration.selection is None:
        return None
    selection = calibration.selection
    percent = f"{selection.precision * 100:g} %"
    if calibration.abstains:
        where = (
            "On the data the corrector learned from,"
            if calibration.transferred
            else "On the trusted rows of the calibration set,"
        )
        return f"{where} corrections did more harm than good, so every given label is kept."
    if selection.rows == 0 and (calibration.transferred or selection.calibration_rows >= selection.needed):
        return f"No row is marked fix: none was relabelled with a confidence of {percent}; lower --precision."
    if calibration.transferred:
        return _transferred_sentence(percent, selection)
    return _own_sentence(percent, selection, trusted)


def _own_sentence(percent: str, selection: Selection, trusted: int | None) -> str:
    rows = selection.calibration_rows
    judged = f"of {rows} trusted rows relabelled with such confidence, {selection.right} are right"
    more = "verify more rows" if trusted is not None else "fit with more trusted rows"
    if selection.threshold is not None:
        return f"At least {percent} of the fixes are expected to be right: {judged}."
    if rows < selection.needed:
        if trusted and rows:
            about = 10 * math.ceil(trusted * selection.needed / rows / 10)
            more += f", about {about:,} in all,"
        return (
            f"No row is marked fix: {percent} takes at least {selection.needed} trusted rows relabelled with "
            f"such confidence, and the calibration set has {rows}; {more} or lower --precision."
        )
    return f"No row is marked fix: {judged}, too few for {percent}; lower --precision or {more}."


def _transferred_sentence(percent: str, selection: Selection) -> str:
    judged = (
        f"of {selection.calibration_rows:,} rows relabelled with such confidence on the data the corrector "
        f"learned from, {selection.right:,} are right"
    )
    if selection.threshold is None:
        return (
            f"No row is marked fix: {judged}, and {percent} takes at least {selection.needed} rows, nearly "
            "all right; lower --precision, or name trusted rows with --trusted."
        )
    return (
        f"At least {percent} of the fixes are right if these rows are like the data the corrector learned "
        f"from: {judged}. To check it here, verify some rows and name them with --trusted."
    )
