"""For people with a network of their own: out-of-fold probabilities in, `Labels` out. Nothing is trained.

The calibration is that of `relabel fit`, with the trusted rows that have a given label as calibration set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray

from relabel.calibration import calibrate as calibration
from relabel.calibration.prior import PRIOR_WEIGHTS
from relabel.data.draft_source import class_ids, natural_key, suggestion
from relabel.data.file_index import FileIndex
from relabel.data.in_memory import Frame, as_numpy, check_indexes, labels_frame, trusted_frame
from relabel.data.label_columns import is_text
from relabel.data.sources import UNLABELLED, Source
from relabel.data.tables import cell_text, first_few, label_of
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

_TERMS = ("transition", "keep")  # which the calibration weighs beside predictions
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
    true labels) of rows whose label a person verified; class_names: [C], by default the columns' numbers,
    the names of a data frame's columns or, where labels are names, these in order; precision: that `fix` is
    to have; seed: of the cross-validation.

    Probabilities of rows that the network was trained on would be too sure of their given labels. Raises
    RelabelError for what cannot be labels or probabilities.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise RelabelError(f"seed {seed}: must be a whole number from 0.")
    matrices = _matrices(pred_probs)
    check_indexes({_called(name): each for name, each in matrices.items()} | {"labels": labels}, trusted)
    own = _own_names(matrices)
    evidence = _evidence(matrices, class_names if class_names is not None else own)
    num_classes = next(iter(evidence.values())).shape[1]
    classes = class_names if class_names is not None else own
    names = _class_names(classes, labels, trusted, num_classes)
    ids = _ids(classes, names)
    source = _source(names, ids, labels, len(next(iter(evidence.values()))))
    trusted_set = read_trusted(_by_name(trusted_frame(trusted), ids, "trusted"), source)
    transition = _transition(evidence, source.given, trusted_set)
    judges = trusted_set.rows[source.given[trusted_set.rows] >= 0]
    true = trusted_set.labels[source.given[trusted_set.rows] >= 0]
    fitted = calibration.fit(
        {name: values[torch.from_numpy(judges)].numpy() for name, values in evidence.items()},
        source.given[judges],
        true,
        transition,
        int(seed),
        _prior(evidence),
    )
    run = Run(seed=int(seed), trusted_rows=len(trusted_set.rows))
    return label_rows(source, {}, evidence, fitted, trusted_set, precision, run)


def _matrices(pred_probs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """By name. Raises RelabelError for none, and for names that cannot be kept apart."""
    if not isinstance(pred_probs, Mapping):
        return {EVIDENCE: pred_probs}
    if not pred_probs:
        raise RelabelError("pred_probs is empty.", "Give one matrix [rows, classes] or several by name.")
    names = [str(name) for name in pred_probs]
    for name in names:
        if name in _TERMS or names.count(name) > 1:
            why = "stands for another term" if name in _TERMS else "comes twice"
            raise RelabelError(f"{_called(name)}: the name {why}.", "Name the matrix otherwise.")
    return dict(zip(names, pred_probs.values(), strict=True))


def _called(name: str) -> str:
    """What a message calls a matrix."""
    return "pred_probs" if name == EVIDENCE else f"pred_probs[{name!r}]"


def _columns(matrix: object) -> list[Any] | None:
    """The classes that the columns of a data frame name, None where they only count."""
    names = getattr(matrix, "column_names", None) or getattr(matrix, "columns", None)
    if not hasattr(matrix, "columns") or names is None:
        return None
    names = [name.item() if hasattr(name, "item") else name for name in names]
    counted = (list(range(len(names))), [f"column_{place}" for place in range(len(names))])
    return None if names in counted else names


def _own_names(matrices: Mapping[str, ArrayLike]) -> list[Any] | None:
    """The classes in the order of the first data frame that names them."""
    return next((names for matrix in matrices.values() if (names := _columns(matrix)) is not None), None)


def _evidence(matrices: Mapping[str, ArrayLike], classes: Sequence[Any] | None) -> dict[str, torch.Tensor]:
    """By name, all of one shape, rows summing to 1, a data frame's columns in the order of `classes`."""
    evidence = {}
    for name, matrix in matrices.items():
        values = _probabilities(matrix, _called(name))
        columns = None if classes is None else _columns(matrix)
        if columns is not None and classes is not None:
            values = values[:, _order([*map(str, columns)], [*map(str, classes)], _called(name))]
        evidence[name] = torch.from_numpy(values)
    shapes = {name: list(values.shape) for name, values in evidence.items()}
    if len({*map(tuple, shapes.values())}) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise RelabelError(f"pred_probs: the matrices differ in shape: {found}.", "All are [rows, classes].")
    return evidence


def _order(columns: Sequence[str], classes: Sequence[str], called: str) -> list[int]:
    """Where each class stands among the columns that name it."""
    if sorted(columns) != sorted(classes):
        raise RelabelError(
            f"{called} has the columns {first_few(list(map(repr, columns)), 10)}, and the classes are "
            f"{first_few(list(map(repr, classes)), 10)}.",
            "Name the columns after the classes, or give pred_probs.to_numpy() and class_names.",
        )
    return [columns.index(name) for name in classes]


def _probabilities(matrix: ArrayLike, called: str) -> NDArray[np.float32]:
    """[N, C], rows summing to 1; RelabelError for what is no matrix of probabilities."""
    try:
        values = as_numpy(matrix).astype(np.float64)
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
    class_names: Sequence[Any] | None, labels: object, trusted: tuple[object, object], num_classes: int
) -> list[str]:
    """[C]: as given, else the labels themselves where these are names, else the columns' numbers."""
    if isinstance(class_names, str):
        raise RelabelError("class_names is a text, not a list of names.", "Give one name a column.")
    if class_names is not None:
        names = [str(name) for name in class_names]
    else:
        columns = [labels_frame(labels).table["label"], trusted_frame(trusted).table["label"]]
        cells = [cell for column in columns if _holds_names(column.type) for cell in column.to_pylist()]
        found = {label for cell in cells if (label := label_of(cell_text(cell, "labels", 0, "label")))}
        names = sorted(found) if found else [str(number) for number in range(num_classes)]
    if len(names) != num_classes:
        raise RelabelError(
            f"pred_probs has {num_classes} columns, and there are {len(names)} classes: "
            f"{first_few([repr(name) for name in names], 10)}.",
            "Name the columns' classes in their order with class_names.",
        )
    if len(set(names)) < num_classes:
        raise RelabelError("class_names: a name stands twice.", "Give every column a name of its own.")
    if class_names is None:
        _check_one_order(names, labels)
    return names


def _holds_names(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_boolean(kind))


def _check_one_order(names: list[str], labels: object) -> None:
    """Refuse to guess the columns' order where text, numbers or categories say different ones."""
    categories = getattr(getattr(labels, "dtype", None), "categories", None)
    listed = [] if categories is None else [name for name in map(str, categories) if name in names]
    for order, what in ((sorted(names, key=natural_key), "by their numbers"), (listed, "as categories")):
        if order and order != names:
            raise RelabelError(
                f"The classes have one order as text ({first_few(names)}) and another {what} "
                f"({first_few(order)}), and nothing says which one the columns of pred_probs have.",
                "Name the columns' classes in their order with class_names.",
            )


def _ids(classes: Sequence[Any] | None, names: Sequence[str]) -> dict[int, str]:
    """The class that a number among the labels stands for: a column's place, or a name that is a number."""
    if classes is not None and all(isinstance(name, Integral) for name in classes):
        return {int(number): name for number, name in zip(classes, names, strict=True)}
    return dict(enumerate(names))


def _source(class_names: list[str], numbers: Mapping[int, str], labels: object, num_rows: int) -> Source:
    """The rows by their numbers, with their given labels."""
    names = list(map(str, range(num_rows)))
    frame = labels_frame(labels)
    table, _ = FileIndex(Path(), names).read(_by_name(frame, numbers, "labels"))
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


def _by_name(frame: Frame, classes: Mapping[int, str], called: str) -> Frame:
    """The frame with class names in place of ids, which `classes` has the names of."""
    column = frame.table["label"]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return frame
    numbers = column.to_pylist()
    strange = [
        f"row {row} ({number})"
        for row, number in enumerate(numbers)
        if number is not None and number not in classes
    ]
    if strange:
        raise RelabelError(
            f"{called}: no such class: {first_few(strange)}.",
            f"Ids are those of the columns of pred_probs, {min(classes)} to {max(classes)}.",
        )
    names = [None if number is None else classes[int(number)] for number in numbers]
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
