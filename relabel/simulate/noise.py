"""Synthetic label noise: which labels `relabel corrupt` flips, by the models of the papers.

Labels are int64 [N], class ids 0..C-1; -1 marks an unlabelled row, which no model touches. Two models also
read the images (or vectors), through `Images`, and only when needed: everything here is numpy.

    symmetric, flip-random                           every other class alike
    symmetric-inclusive, uniform                     every class alike, the true one included
    asymmetric, superclass, flip-to-one              one other class for each class
    feature-dependent, instance-dependent            the image decides
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from relabel.errors import RelabelError

Labels = NDArray[np.int64]
RowIndex = NDArray[np.int64]

FEWEST_CLASSES = 2
"""One class has no other to be flipped to."""
_RATE_DEVIATION = 0.1
"""Standard deviation of a row's flip probability q_i (Xia et al. 2020, Algorithm 2)."""
_CHUNK = 1024
"""Images that are turned into float32 at a time."""


class Images(Protocol):
    """The images behind the labels, for the models that read them; decoded or learned on demand.

    Both methods give (rows [n], values by row of the source): `rows` have a label and an image (or vector)
    that can be used, and the values of all other rows mean nothing.
    """

    def values(self) -> tuple[RowIndex, NDArray[np.uint8] | NDArray[np.float32]]:
        """Small images [N, S, S, 3], or vectors [N, D] in units of their standard deviation."""

    def logits(self) -> tuple[RowIndex, NDArray[np.float32]]:
        """Logits [N, C] of a network trained on the labels, of those same rows."""


@dataclass(frozen=True)
class NoiseInputs:
    """Of a noise model; `mapping` is empty and `images` None for the models that use none."""

    labels: Labels
    num_classes: int
    rate: float
    rng: np.random.Generator
    mapping: Mapping[int, int]
    images: Images | None


NoiseModel = Callable[[NoiseInputs], Labels]


def symmetric(inputs: NoiseInputs) -> Labels:
    """Flip round(rate * n) of the n labelled rows, each to a uniformly drawn OTHER class.

    As TMLC-Net and MetaLabelNet ("uniform noise") do: the true class is excluded, so the actual rate is the
    rate.
    """
    noisy = inputs.labels.copy()
    rows = _draw(np.flatnonzero(noisy >= 0), inputs.rate, inputs.rng)
    noisy[rows] = _other_class(noisy[rows], inputs)
    return noisy


def symmetric_inclusive(inputs: NoiseInputs) -> Labels:
    """Redraw round(rate * n) labels over ALL classes, as MSLC's released code does.

    Some redraws give back the true class, so the actual rate is about rate * (C - 1) / C.
    """
    noisy = inputs.labels.copy()
    rows = _draw(np.flatnonzero(noisy >= 0), inputs.rate, inputs.rng)
    noisy[rows] = inputs.rng.integers(inputs.num_classes, size=len(rows))
    return noisy


def uniform(inputs: NoiseInputs) -> Labels:
    """Spread round(rate * n_c) rows of every class c over ALL classes in equal quotas (MLC's "Uniform").

    MLC's released code wants quotas without a remainder; ours goes to classes drawn for it, one row each.
    Every class gets back its own quota, so the actual rate is rate * (C - 1) / C, up to remainders.
    """
    noisy = inputs.labels.copy()
    for rows in _drawn_by_class(inputs):
        quotas = np.arange(len(rows)) % inputs.num_classes
        noisy[rows] = inputs.rng.permutation(inputs.num_classes)[quotas]
    return noisy


def flip_random(inputs: NoiseInputs) -> Labels:
    """Flip round(rate * n_c) rows of every class c, each to its own uniformly drawn OTHER class.

    MLC's "Flip-Random": `symmetric` with an exact count for each class.
    """
    noisy = inputs.labels.copy()
    for rows in _drawn_by_class(inputs):
        noisy[rows] = _other_class(noisy[rows], inputs)
    return noisy


def asymmetric(inputs: NoiseInputs) -> Labels:
    """Flip round(rate * n_c) of the n_c rows of every mapped class c to `mapping[c]`; other classes stay."""
    noisy = inputs.labels.copy()
    for source, target in sorted(inputs.mapping.items()):
        noisy[_draw(np.flatnonzero(inputs.labels == source), inputs.rate, inputs.rng)] = target
    return noisy


def flip_to_one(inputs: NoiseInputs) -> Labels:
    """Flip round(rate * n_c) of every class, all to one other class drawn for it (MLC's "Flip-To-One")."""
    noisy = inputs.labels.copy()
    targets = _other_class(np.arange(inputs.num_classes), inputs)
    for source, rows in enumerate(_drawn_by_class(inputs)):
        noisy[rows] = targets[source]
    return noisy


def feature_dependent(inputs: NoiseInputs) -> Labels:
    """Flip the rows nearest to a trained network's decision boundary to the class behind it (MetaLabelNet).

    The network has seen the very rows it judges, under these labels: the paper's released code takes the
    softmax of a trained network over its own training rows. See `from_margins` for which rows and where to.
    The only randomness is the network's.
    """
    assert inputs.images is not None
    noisy = inputs.labels.copy()
    if inputs.rate > 0:
        rows, logits = inputs.images.logits()
        noisy[rows] = from_margins(logits[rows], noisy[rows], inputs.rate)
    return noisy


def from_margins(logits: NDArray[np.floating], labels: Labels, rate: float) -> Labels:
    """Flip the round(rate * n) of n labels [n] with the smallest margins to the best other class.

    The margin of logits [n, C] is that of the labelled class over the best other one, the log-odds between
    the two. Rows the network gets wrong have negative margins and come first, those it is surest of leading,
    as in MetaLabelNet's released code; that code then uses the second probability alone, which with many
    classes is not the distance to the boundary. Ties go to the earlier row and the lower class id.
    """
    rows = np.arange(len(labels))
    others = np.array(logits, dtype=np.float64)
    others[rows, labels] = -np.inf
    best_other = others.argmax(axis=1)
    margin = logits[rows, labels] - others[rows, best_other]
    nearest = np.argsort(margin, kind="stable")[: round(rate * len(labels))]
    noisy = labels.copy()
    noisy[nearest] = best_other[nearest]
    return noisy


def instance_dependent(inputs: NoiseInputs) -> Labels:
    """Flip by the image's own pixels (Xia et al. 2020, "Part-dependent Label Noise", Algorithm 2).

    Row i flips with probability q_i ~ TruncNormal(rate, 0.1²; 0, 1), to a class drawn from
    softmax(x_i · W[y_i]) with y_i itself left out; W is [C, D, C], standard normal, and drawn class by class,
    so that D x C of it are held at a time. The truncation lifts the actual rate a little where the rate is
    near 0 and lowers it near 1.

    x_i is the flattened image, in 0..255 and not centred, as in the released code. The softmax is then
    all but one-hot: equal images of a class flip to the same class, and as bright pixels weigh most, one
    target takes up most of a class's flips (examples/RESULTS.md, "Choices"). A vector is standardised, for
    its dimensions may have any unit.
    """
    assert inputs.images is not None
    noisy = inputs.labels.copy()
    if inputs.rate == 0:
        return noisy
    rows, values = inputs.images.values()
    rng = inputs.rng
    flipped = rows[rng.random(len(rows)) < _truncated_normal(inputs.rate, len(rows), rng)]
    dimension = int(np.prod(values.shape[1:]))
    for own in np.unique(inputs.labels[flipped]):
        weights = rng.standard_normal((dimension, inputs.num_classes), dtype=np.float32)
        of_class = flipped[inputs.labels[flipped] == own]
        for start in range(0, len(of_class), _CHUNK):
            part = of_class[start : start + _CHUNK]
            logits = values[part].reshape(len(part), dimension).astype(np.float32) @ weights
            logits[:, own] = -np.inf
            # The maximum after adding Gumbel noise is a draw from the softmax.
            noisy[part] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return noisy


NOISE_MODELS: dict[str, NoiseModel] = {
    "symmetric": symmetric,
    "symmetric-inclusive": symmetric_inclusive,
    "uniform": uniform,
    "flip-random": flip_random,
    "flip-to-one": flip_to_one,
    "asymmetric": asymmetric,
    "superclass": asymmetric,
    "feature-dependent": feature_dependent,
    "instance-dependent": instance_dependent,
}
MAPPED = frozenset({"asymmetric", "superclass"})  # the models that need a map of classes
FROM_IMAGES = frozenset({"feature-dependent", "instance-dependent"})  # those that need the images


@dataclass(frozen=True)
class CorruptedLabels:
    """`labels` int64 [N]; `wrong` bool [N], the flipped rows; `actual_rate`, their share of the labelled."""

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
    images: Images | None = None,
) -> CorruptedLabels:
    """Flip a share `rate` (0..1) of the labels; the same seed gives the same labels.

    `mapping` is needed by the models in MAPPED, `images` by those in FROM_IMAGES, which ask for them after
    everything else was checked. Raises `RelabelError` for an unknown noise, a rate outside 0..1, a map that
    is missing, not used or maps a class to itself, fewer than two classes or no labelled row.
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
    if len(class_names) < FEWEST_CLASSES:
        raise RelabelError("Label noise needs at least two classes.", f"The source has {len(class_names)}.")
    labelled = int(np.count_nonzero(labels >= 0))
    if labelled == 0:
        raise RelabelError("The source has no labelled row to corrupt.", "Give labels with --labels.")
    assert images is not None or noise not in FROM_IMAGES
    rng = np.random.default_rng(seed)
    noisy = NOISE_MODELS[noise](NoiseInputs(labels, len(class_names), rate, rng, mapping or {}, images))
    wrong = noisy != labels
    return CorruptedLabels(noisy, wrong, np.count_nonzero(wrong) / labelled)


def _draw(rows: NDArray[np.intp], rate: float, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(rows, size=round(rate * len(rows)), replace=False)


def _drawn_by_class(inputs: NoiseInputs) -> list[NDArray[np.intp]]:
    """For every class, round(rate * n_c) of its n_c rows, in random order."""
    return [
        _draw(np.flatnonzero(inputs.labels == source), inputs.rate, inputs.rng)
        for source in range(inputs.num_classes)
    ]


def _other_class(labels: Labels, inputs: NoiseInputs) -> Labels:
    return (labels + inputs.rng.integers(1, inputs.num_classes, len(labels))) % inputs.num_classes


def _truncated_normal(mean: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw `count` values from a normal around `mean` in 0..1, given that they lie in 0..1."""
    values = rng.normal(mean, _RATE_DEVIATION, count)
    while (outside := np.flatnonzero((values < 0) | (values > 1))).size:
        values[outside] = rng.normal(mean, _RATE_DEVIATION, len(outside))
    return values
