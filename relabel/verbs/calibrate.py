"""For people with a network of their own: out-of-fold probabilities in, `Labels` out. Nothing is trained.

The calibration is that of `relabel fit`, with the trusted rows that have a given label as calibration set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray

from relabel.calibration import calibrate as calibration
from relabel.calibration.prior import PRIOR_WEIGHTS
from relabel.data.draft_source import class_ids, suggestion
from relabel.data.file_index import FileIndex
from relabel.data.in_memory import Frame, labels_frame, trusted_frame
from relabel.data.sources import UNLABELLED, Source
from relabel.data.tables import first_few
from relabel.data.trusted import TrustedSet, read_trusted
from relabel.errors import RelabelError
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.assemble import Evidence, label_rows
from relabel.labels.metadata import Run
from relabel.labels.table import Labels
from relabel.metrics import noise_matrix
from relabel.saved.model_file import EVIDENCE
from relabel.types import LabelsLike, TrustedLike

_ROUNDING = 1e-3
"""By which a row may miss a sum of 1: what float16 and a printed table lose; more means no probabilities."""


def calibrate(
    pred_probs: ArrayLike | Mapping[str, ArrayLike],
    labels: LabelsLike,
    trusted: TrustedLike,
    class_names: Sequence[str] | None = None,
    precision: float = 0.95,
    seed: int = 0,
) -> Labels:
    """Labels from predicted probabilities [N, C] that were made out of fold, or from several such by name.

    labels: [N], ids of columns or class names, None, NaN, '' and -1 for rows without one; trusted: (rows,
    true labels) of rows whose label a person verified; class_names: [C], by default the columns' numbers, or,
    where labels are names, these in order; precision: that `fix` is to have; seed: of the cross-validation.

    Probabilities of rows that the network was trained on would be too sure of their given labels. Raises
    RelabelError for what cannot be labels or probabilities.
    """
    evidence = _evidence(pred_probs)
    num_classes = next(iter(evidence.values())).shape[1]
    names = _class_names(class_names, labels, trusted, num_classes)
    source = _source(names, labels, len(next(iter(evidence.values()))))
    rows = trusted_frame(trusted)
    trusted_set = read_trusted(_by_name(rows, names, "trusted"), source)
    transition = _transition(evidence, source.given, trusted_set)
    judges = trusted_set.rows[source.given[trusted_set.rows] >= 0]
    true = trusted_set.labels[source.given[trusted_set.rows] >= 0]
    fitted = calibration.fit(
        {name: values[torch.from_numpy(judges)].numpy() for name, values in evidence.items()},
        source.given[judges],
        true,
        transition,
        seed,
        _prior(evidence),
    )
    run = Run(seed=seed, trusted_rows=len(trusted_set.rows))
    return label_rows(source, {}, evidence, fitted, trusted_set, precision, run)


def _evidence(pred_probs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, torch.Tensor]:
    """By name, all of one shape, rows summing to 1."""
    matrices = pred_probs if isinstance(pred_probs, Mapping) else {EVIDENCE: pred_probs}
    if not matrices:
        raise RelabelError("pred_probs is empty.", "Give one matrix [rows, classes] or several by name.")
    evidence = {}
    for name, matrix in matrices.items():
        called = f"pred_probs[{name!r}]" if isinstance(pred_probs, Mapping) else "pred_probs"
        evidence[str(name)] = torch.from_numpy(_probabilities(matrix, called))
    shapes = {name: list(values.shape) for name, values in evidence.items()}
    if len({*map(tuple, shapes.values())}) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise RelabelError(f"pred_probs: the matrices differ in shape: {found}.", "All are [rows, classes].")
    return evidence


def _probabilities(matrix: ArrayLike, called: str) -> NDArray[np.float32]:
    """[N, C], rows summing to 1; RelabelError for what is no matrix of probabilities."""
    try:
        values = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RelabelError(f"{called} holds something other than numbers.", "Give an array.") from error
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] < 2:
        raise RelabelError(
            f"{called} has the shape {list(values.shape)}, not [rows, classes].",
            "Give a probability for every row and each of at least two classes.",
        )
    for wrong, what in (
        (~np.isfinite(values).all(axis=1), "is not finite"),
        ((values < -_ROUNDING).any(axis=1), "has a negative value"),
        (np.abs(values.sum(axis=1) - 1) > _ROUNDING, "does not sum to 1"),
    ):
        if wrong.any():
            rows = first_few([str(row) for row in np.flatnonzero(wrong)])
            raise RelabelError(
                f"{called}: {wrong.sum()} row(s) {what}: {rows}.",
                "Give probabilities: the softmax of scores.",
            )
    values = values.clip(0)
    found: NDArray[np.float32] = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def _class_names(
    class_names: Sequence[str] | None, labels: object, trusted: tuple[object, object], num_classes: int
) -> list[str]:
    """[C]: as given, else the labels themselves where these are names, else the columns' numbers."""
    if class_names is not None:
        names = [str(name) for name in class_names]
    else:
        columns = [labels_frame(labels).table["label"], trusted_frame(trusted).table["label"]]
        texts = [column for column in columns if pa.types.is_string(column.type)]
        found = {text.strip() for column in texts for text in column.to_pylist() if text and text.strip()}
        names = sorted(found) if found else [str(number) for number in range(num_classes)]
    if len(names) != num_classes:
        raise RelabelError(
            f"pred_probs has {num_classes} columns, and there are {len(names)} classes: "
            f"{first_few([repr(name) for name in names], 10)}.",
            "Name the columns' classes in their order with class_names.",
        )
    if len(set(names)) < num_classes:
        raise RelabelError("class_names: a name stands twice.", "Give every column a name of its own.")
    return names


def _source(class_names: list[str], labels: object, num_rows: int) -> Source:
    """The rows by their numbers, with their given labels."""
    names = list(map(str, range(num_rows)))
    frame = labels_frame(labels)
    table, _ = FileIndex(Path(), names).read(_by_name(frame, class_names, "labels"))
    ids = class_ids(class_names, numbered=False)
    strange = [(row, label) for row, label in enumerate(table.labels) if label and label not in ids]
    if strange:
        found = first_few([f"row {row} ({label!r})" for row, label in strange])
        raise RelabelError(f"labels: no such class: {found}.", suggestion(strange[0][1], class_names))
    given = [UNLABELLED if label is None else ids[label] for label in table.labels]
    return Source(
        location="labels",
        root=Path(),
        kind="vectors",
        file_names=names,
        references=[],
        given=np.array(given, dtype=np.int64),
        class_names=class_names,
        numbered=True,
        trusted=None,
        errors={},
        ignored_files=0,
        warnings=[],
        vectors=np.empty((num_rows, 0), dtype=np.float32),
        frame=frame,
    )


def _by_name(frame: Frame, class_names: Sequence[str], called: str) -> Frame:
    """The frame with class names in place of ids: a number is the id of a column, whatever its name."""
    column = frame.table["label"]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return frame
    numbers = column.to_pylist()
    strange = [
        f"row {row} ({number})"
        for row, number in enumerate(numbers)
        if number is not None and number not in range(-1, len(class_names))
    ]
    if strange:
        raise RelabelError(
            f"{called}: no such class: {first_few(strange)}.",
            f"Ids are those of the columns of pred_probs, 0 to {len(class_names) - 1}.",
        )
    names = [None if number in (None, -1) else class_names[int(number)] for number in numbers]
    place = frame.table.schema.get_field_index("label")
    table = frame.table.set_column(place, "label", pa.array(names, pa.string()))
    return replace(frame, table=table)


def _transition(evidence: Evidence, given: NDArray[np.int64], trusted: TrustedSet) -> TransitionEstimate:
    """p(given | true) by the trusted rows, and the anchor points of the mean prediction among the others."""
    mean = torch.stack([values[:] for values in evidence.values()]).mean(dim=0)
    others = given.copy()
    others[trusted.rows] = UNLABELLED
    counts = noise_matrix(given[trusted.rows], trusted.labels, mean.shape[1])
    return TransitionEstimate.of(counts, anchor_points.count(mean, others))


def _prior(evidence: Evidence) -> dict[str, float]:
    """The prior mean of the weights: K predictions of the same rows repeat each other, and weigh 1 in all."""
    shares = dict.fromkeys(evidence, 1 / len(evidence))
    return shares | {name: PRIOR_WEIGHTS[name] for name in ("transition", "keep")}
