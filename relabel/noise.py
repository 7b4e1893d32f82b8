"""Label noise for benchmarks: which given labels `relabel corrupt` makes wrong.

Labels are int64 [N], class ids 0..C-1; -1 marks an unlabelled row, which no model touches. Every model draws
exactly round(rate * rows) rows, uniformly and with the call's own generator.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relabel.errors import RelabelError

Labels = NDArray[np.int64]
NoiseModel = Callable[[Labels, int, float, np.random.Generator, Mapping[int, int] | None], Labels]


def symmetric(
    labels: Labels,
    num_classes: int,
    rate: float,
    rng: np.random.Generator,
    mapping: Mapping[int, int] | None = None,
) -> Labels:
    """Flip round(rate * n) of the n labelled rows, each to a uniformly drawn OTHER class.

    As TMLC-Net and MetaLabelNet do: the true class is excluded, so the actual rate is the rate.
    """
    noisy = labels.copy()
    rows = _draw(np.flatnonzero(labels >= 0), rate, rng)
    noisy[rows] = (labels[rows] + rng.integers(1, num_classes, len(rows))) % num_classes
    return noisy


def symmetric_inclusive(
    labels: Labels,
    num_classes: int,
    rate: float,
    rng: np.random.Generator,
    mapping: Mapping[int, int] | None = None,
) -> Labels:
    """Redraw round(rate * n) labels over ALL classes, as MSLC's released code does.

    Some redraws give back the true class, so the actual rate is about rate * (C - 1) / C.
    """
    noisy = labels.copy()
    rows = _draw(np.flatnonzero(labels >= 0), rate, rng)
    noisy[rows] = rng.integers(num_classes, size=len(rows))
    return noisy


def asymmetric(
    labels: Labels,
    num_classes: int,
    rate: float,
    rng: np.random.Generator,
    mapping: Mapping[int, int] | None,
) -> Labels:
    """Flip round(rate * n_c) of the n_c rows of every mapped class c to `mapping[c]`; other classes stay."""
    assert mapping is not None
    noisy = labels.copy()
    for source, target in sorted(mapping.items()):
        noisy[_draw(np.flatnonzero(labels == source), rate, rng)] = target
    return noisy


def flip_to_one(
    labels: Labels,
    num_classes: int,
    rate: float,
    rng: np.random.Generator,
    mapping: Mapping[int, int] | None = None,
) -> Labels:
    """Flip round(rate * n_c) of every class, all to one other class drawn for it (MLC's "flip")."""
    targets = (np.arange(num_classes) + rng.integers(1, num_classes, num_classes)) % num_classes
    return asymmetric(labels, num_classes, rate, rng, dict(enumerate(targets.tolist())))


NOISE_MODELS: dict[str, NoiseModel] = {
    "symmetric": symmetric,
    "symmetric-inclusive": symmetric_inclusive,
    "asymmetric": asymmetric,
    "flip-to-one": flip_to_one,
}
MAPPED = frozenset({"asymmetric"})  # the models that need a map of classes


@dataclass(frozen=True)
class CorruptedLabels:
    """`labels` int64 [N]; `wrong` bool [N], the changed rows; `actual_rate`, their share of the labelled."""

    labels: Labels
    wrong: NDArray[np.bool_]
    actual_rate: float


def corrupt(
    labels: Labels,
    class_names: Sequence[str],
    *,
    noise: str,
    rate: float,
    seed: int,
    mapping: Mapping[int, int] | None = None,
) -> CorruptedLabels:
    """Make a share `rate` (0..1) of the given labels wrong; the same seed gives the same labels.

    Raises `RelabelError` for an unknown noise, a rate outside 0..1, a map that is missing, not used or maps a
    class to itself, fewer than two classes or no labelled row.
    """
    if noise not in NOISE_MODELS:
        raise RelabelError(f"--noise {noise} is not known.", f"Choose from {', '.join(NOISE_MODELS)}.")
    if not 0 <= rate <= 1:  # also true of NaN
        raise RelabelError(f"--rate {rate} is not between 0 and 1.", "Give a share such as 0.4.")
    if noise in MAPPED and not mapping:
        raise RelabelError(f"--noise {noise} needs a map of classes.", "Give one with --map.")
    if noise not in MAPPED and mapping is not None:
        raise RelabelError(f"--noise {noise} does not use a map of classes.", "Leave out --map.")
    for source, target in (mapping or {}).items():
        if source == target:
            raise RelabelError(
                f"The map sends {class_names[source]!r} to itself.", "Name another class or leave it out."
            )
    if len(class_names) < 2:
        raise RelabelError("Label noise needs at least two classes.", f"The source has {len(class_names)}.")
    labelled = int(np.count_nonzero(labels >= 0))
    if labelled == 0:
        raise RelabelError("The source has no labelled row to corrupt.", "Give labels with --labels.")
    noisy = NOISE_MODELS[noise](labels, len(class_names), rate, np.random.default_rng(seed), mapping)
    wrong = noisy != labels
    return CorruptedLabels(noisy, wrong, np.count_nonzero(wrong) / labelled)


def read_mapping(path: Path, class_names: Sequence[str]) -> dict[int, int]:
    """Read which class is mistaken for which: CSV columns `from,to`, or JSON like {"truck": "automobile"}.

    Returns class id -> class id. Raises `RelabelError` naming the row for an unknown or repeated class.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RelabelError(
            f"The map {path} could not be read: {error.strerror}.", "Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise RelabelError(f"The map {path} is not UTF-8 text.", "Save it as UTF-8.") from error
    pairs = _json_pairs(path, text) if path.suffix.lower() == ".json" else _csv_pairs(path, text)
    if not pairs:
        raise RelabelError(f"The map {path} is empty.", "Give at least one pair of classes.")

    ids = {name: index for index, name in enumerate(class_names)}
    known = ", ".join(class_names[:10]) + (", …" if len(class_names) > 10 else "")
    mapping: dict[int, int] = {}
    for where, source, target in pairs:
        for name in (source, target):
            if name not in ids:
                raise RelabelError(f"{path}, {where}: {name!r} is not a class.", f"The classes are {known}.")
        if ids[source] in mapping:
            raise RelabelError(f"{path}, {where}: {source!r} is mapped twice.", "Keep one of the rows.")
        mapping[ids[source]] = ids[target]
    return mapping


def _draw(rows: NDArray[np.intp], rate: float, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(rows, size=round(rate * len(rows)), replace=False)


def _csv_pairs(path: Path, text: str) -> list[tuple[str, str, str]]:
    reader = csv.DictReader(text.splitlines())
    if not {"from", "to"} <= set(reader.fieldnames or ()):
        raise RelabelError(
            f"The map {path} has no header with the columns from and to.", "Begin it with from,to."
        )
    # A short row gives None, which the caller reports as an unknown class.
    return [(f"row {reader.line_num}", row["from"] or "", row["to"] or "") for row in reader]


def _json_pairs(path: Path, text: str) -> list[tuple[str, str, str]]:
    try:
        # As a list of pairs, because a dict would silently drop a repeated class.
        pairs = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise RelabelError(f"The map {path} is not JSON: {error}.", "Check its commas and quotes.") from error
    if not isinstance(pairs, list) or not all(_is_pair_of_names(pair) for pair in pairs):
        raise RelabelError(
            f"The map {path} is not an object of class names.", 'Write it like {"truck": "automobile"}.'
        )
    return [(f"entry {number}", source, target) for number, (source, target) in enumerate(pairs, start=1)]


def _is_pair_of_names(pair: object) -> bool:
    return isinstance(pair, tuple) and all(isinstance(name, str) for name in pair)
