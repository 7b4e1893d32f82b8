"""From calibrated evidence to everything the labels file says: one row for every row of the source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel import __version__
from relabel.calibration.calibrate import Calibration
from relabel.calibration.selection import Selection, actions, best
from relabel.data.sources import UNLABELLED, Source
from relabel.data.trusted import TrustedSet
from relabel.label_noise.transition_matrix import expected_noise_matrix, joint_counts
from relabel.labels.parquet import largest_confusions, matrix_metadata
from relabel.metrics import noise_matrix, wilson_interval
from relabel.progress import Watcher
from relabel.sample_memory import ProbabilityStore, blocks

Evidence = Mapping[str, Tensor | ProbabilityStore]
"""Distributions [N, C] by name, for the calibration."""

_CONFUSIONS_TOLD = 5


class SoftLabels:
    """The soft labels [N, C] of the labels file, calibrated when a part of them is asked for.

    All of them at once may not fit in memory, and a part costs less than the prediction it comes from.
    """

    def __init__(
        self,
        evidence: Evidence,
        given: NDArray[np.int64],
        fitted: Calibration,
        trusted: TrustedSet,
        held_out: NDArray[np.bool_] | None = None,
    ) -> None:
        self.shape = (len(given), len(fitted.transition))
        self._evidence = evidence
        self._given = given
        self._fitted = fitted
        self._held_out = np.zeros(len(given), dtype=bool) if held_out is None else held_out
        self._verified = np.full(len(given), UNLABELLED)
        self._verified[trusted.rows] = trusted.labels

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """The rows [B, C]; those verified are one-hot."""
        given, verified = self._given[rows], self._verified[rows]
        soft = np.empty((len(given), self.shape[1]), dtype=np.float32)
        start = rows.indices(len(self))[0]
        # In parts, for the double precision on the way is ten times as large.
        for block in blocks(*soft.shape):
            part = slice(start + block.start, start + block.stop)
            evidence = {name: values[part].numpy() for name, values in self._evidence.items()}
            soft[block] = self._fitted.soft_labels(evidence, given[block], self._held_out[part])
        known = np.flatnonzero(verified != UNLABELLED)
        soft[known] = 0
        soft[known, verified[known]] = 1
        return soft


def noise_probabilities(soft_label: NDArray[np.float32], given: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 minus the given label's share [B] of soft labels [B, C]; NaN where there is none (−1)."""
    shares = soft_label[np.arange(len(given)), given]
    return np.where(given >= 0, 1 - shares, np.float32(np.nan))


@dataclass(frozen=True)
class Labelling:
    """The labels file's columns, one entry per row of the source unless said.

    soft_label: [N, C]; noise_probability: [N], NaN where undefined; action: [N]; trusted: [N];
    errors: row to reason; metadata: the Parquet's JSON; summary: figures for a reader.
    """

    source: Source
    soft_label: SoftLabels
    noise_probability: NDArray[np.float32]
    action: NDArray[np.str_]
    trusted: NDArray[np.bool_]
    errors: dict[int, str]
    metadata: dict[str, Any]
    summary: dict[str, Any]


def versions() -> dict[str, str]:
    """The versions that made a result."""
    return {
        "relabel": __version__,
        "torch": str(torch.__version__),  # of a class of its own, which no file should need
        "torchvision": version("torchvision"),
    }


def usable_rows(source: Source, errors: Mapping[int, str]) -> NDArray[np.bool_]:
    """[N] rows without an error."""
    usable = np.ones(len(source), dtype=bool)
    usable[list(errors)] = False
    return usable


def warn_of_errors(source: Source, errors: Mapping[int, str], watcher: Watcher) -> None:
    """One line for all rows that cannot be used, if there are any."""
    if errors:
        row = min(errors)
        watcher.warn(
            f"{len(errors)} of {len(source):,} {source.noun} cannot be used and become rows with an error; "
            f"first {source.file_names[row]!r}: {errors[row]}."
        )


def label_rows(
    source: Source,
    errors: dict[int, str],
    evidence: Evidence,
    fitted: Calibration,
    trusted: TrustedSet,
    precision: float,
    run: Mapping[str, Any],
    held_out: NDArray[np.bool_] | None = None,
    *,
    fitted_before: bool = False,
) -> Labelling:
    """Calibrate the evidence and decide every row's labels and action.

    trusted: rows that come out as verified; precision: of the promise behind `fix`; run: plain JSON data on
    the run for the metadata, in which `transition_matrix` is what the corrector learned, [C, C];
    held_out: [N], rows whose label training did not see; fitted_before: whether the calibration is of an
    earlier run, on other rows.
    """
    num_classes = len(source.class_names)
    given = source.given
    counts = noise_matrix(given[trusted.rows], trusted.labels, num_classes)
    usable = usable_rows(source, errors)
    labelled = given >= 0
    soft_label = SoftLabels(evidence, given, fitted, trusted, held_out)
    corrected, confidence = np.empty(len(source), dtype=np.int64), np.empty(len(source))
    noise_probability = np.empty(len(source), dtype=np.float32)
    joint = np.zeros((num_classes, num_classes))
    for block in blocks(len(source), num_classes):
        soft = soft_label[block]
        corrected[block], confidence[block] = best(soft)
        noise_probability[block] = noise_probabilities(soft, given[block])
        joint += joint_counts(soft, np.where(usable[block], given[block], UNLABELLED))

    is_trusted = np.zeros(len(source), dtype=bool)
    is_trusted[trusted.rows] = True
    unverified = usable & ~is_trusted
    selection = fitted.selection(corrected[unverified], confidence[unverified], given[unverified], precision)
    action = actions(corrected, confidence, given, selection)
    changed = trusted.labels != given[trusted.rows]
    action[trusted.rows] = np.where(changed, "fix", "keep")

    matrix = expected_noise_matrix(joint)
    # Of a class that no row turns out to be of, the matrix tells nothing but chance.
    known = np.bincount(corrected[usable], minlength=num_classes) > 0
    judged = noise_probability[usable & labelled]
    wrong, verified = int(counts.sum() - np.trace(counts)), int(counts.sum())
    noise = {
        "estimated_noise_rate": float(judged.mean(dtype=np.float64)) if len(judged) else None,
        "verified_noise_rate": wrong / verified if verified else None,
        "verified_noise_rate_interval": list(wilson_interval(wrong, verified)) if verified else None,
    }
    names, run = source.class_names, dict(run)
    learned = np.array(run.pop("transition_matrix")) if "transition_matrix" in run else None
    sentence = selection_sentence(
        fitted, selection, None if fitted_before else len(trusted.rows) + len(trusted.external)
    )
    if len(judged) == 0:
        sentence = "No row has a given label, so there is none to keep or to fix."
    return Labelling(
        source=source,
        soft_label=soft_label,
        noise_probability=noise_probability,
        action=action,
        trusted=is_trusted,
        errors=errors,
        metadata={
            **run,
            "class_names": names,
            "numbered_labels": source.numbered,
            "versions": versions(),
            **noise,
            **(
                matrix_metadata("noise_matrix", matrix, names, known)
                if len(judged)
                else {"noise_matrix": None}
            ),
            **({} if learned is None else matrix_metadata("transition_matrix", learned, names)),
            "calibration": {**fitted.to_dict(), "selection": asdict(selection)},
        },
        summary={
            "rows": len(source),
            "unusable_rows": len(errors),
            "ignored_files": source.ignored_files,
            "unlabelled_rows": int((usable & ~labelled).sum()),
            "trusted_rows": int(is_trusted.sum()),
            "trusted_outside_source": len(trusted.external),
            "relabelled_rows": int((unverified & labelled & (corrected != given)).sum()),
            "actions": {name: int((action[unverified] == name).sum()) for name in ("keep", "fix", "review")},
            **noise,
            "largest_confusions": largest_confusions(matrix * known[:, None], names, _CONFUSIONS_TOLD),
            "learned_transitions": None
            if learned is None
            else largest_confusions(learned, names, _CONFUSIONS_TOLD),
            "calibration": fitted.to_dict(),
            "calibrated_before": fitted_before,
            "selection": sentence,
        },
    )


def selection_sentence(fitted: Calibration, selection: Selection, verified: int | None) -> str:
    """What `fix` promises, or why it cannot, in one sentence.

    verified: how many rows are, in all; None where the calibration is of an earlier run.
    """
    percent = f"{selection.precision * 100:g} %"
    if fitted.abstains:
        judges = "data the corrector learned from" if fitted.transferred else "verified rows that judge them,"
        return f"On the {judges} corrections did more harm than good, so every given label is kept."
    if fitted.transferred:
        return _borrowed_sentence(percent, selection)
    rows = selection.calibration_rows
    judged = f"{selection.right} of the {rows} verified rows relabelled with such confidence are right"
    more = "verify more rows" if verified is not None else "fit with more verified rows"
    if selection.threshold is not None:
        return f"At least {percent} of the fixes are expected to be right; {judged}."
    if selection.calibration_rows < selection.needed:
        if verified and selection.calibration_rows:
            about = 10 * math.ceil(verified * selection.needed / selection.calibration_rows / 10)
            more += f", about {about:,} in all,"
        return (
            f"Too few verified rows to promise {percent}: {selection.calibration_rows} of those that judge "
            f"the result were relabelled with such confidence and it takes {selection.needed} at the least, "
            f"so no row is marked fix; {more} or lower --precision."
        )
    if selection.rows == 0:
        return _nothing_sure(percent)
    return (
        f"The verified rows do not support {percent}: {judged}, so no row is marked fix; lower --precision "
        f"or {more}."
    )


def _nothing_sure(percent: str) -> str:
    return f"No row was relabelled with a confidence of {percent}, so none is marked fix."


def _borrowed_sentence(percent: str, selection: Selection) -> str:
    judged = (
        f"of {selection.calibration_rows:,} rows relabelled with such confidence on the data the corrector "
        f"learned from, {selection.right:,} are right"
    )
    if selection.rows == 0:
        return _nothing_sure(percent)
    if selection.threshold is None:
        return f"No row is marked fix at {percent}: {judged}. Verified rows (--trusted) can support more."
    return (
        f"If these rows are like the data the corrector learned from, at least {percent} of the fixes are "
        f"right: {judged}. Verified rows (--trusted) would tell."
    )
