"""Every training number: how long, how fast and in what batches a run goes.

A corrector's recipe and a paper's own settings are a `Schedule` that leaves open what the data decide; flags
replace single values, and `resolved` fills in the rest. Correctors state theirs and the loop follows it, so
the module stands below both. What the choices rest on: examples/RESULTS.md, "Choices".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from relabel.errors import RelabelError

SAMPLES_SEEN = 1_500_000  # plain training memorises after half of it; a corrector goes on learning
EPOCH_LIMITS = (
    20,
    80,
)  # fewer leave a corrector too little to go by; more gain little for their time
# Nothing steers a transferred corrector: in a long run the wrong labels that it leaves are memorised.
TRANSFERRED_SAMPLES_SEEN = 1_000_000
TRANSFERRED_EPOCH_LIMITS = (20, 40)
LONGEST_WARMUP = 0.9  # of the epochs: some are left to the corrector however short the run
BATCH_SIZE, LARGE_BATCH_SIZE = 64, 256  # small data gain more from many steps than from quiet ones
LARGE_BATCHES_FROM = 40_000  # labelled rows
WEIGHT_DECAY, MOST_WEIGHT_DECAY = 5e-4, 3e-3  # the usual one, and what 2,500 rows did best with
LEAST_DECAY_FROM = 10_000  # labelled rows; below, more decay gained accuracy
_DECAY_EXPONENT = 1.25  # so that decay grows a little faster than the rows grow fewer
_PEAK_RATE, _PEAK_BATCH = 0.2, 256  # SGD's usual peak for one cycle over small images
_FIFTHS = 5  # the one cycle rises for the first of them
_MILESTONE_FACTOR = 0.1  # of the learning rate at each milestone, as in all four papers
HEAD_START = 300  # steps of a directly learned φ before its first soft label, or it would undo the warm-up


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs, steps and rates of one run.

    epochs, warmup_epochs, batch_size, learning_rate: 0 until `resolved` decides them from the data, as is the
    None of weight_decay; warmup: the warm-up's share of the epochs; least_warmup: epochs it has at least, as
    far as they are no more than `LONGEST_WARMUP` of the run.
    milestones: shares of the run after which the learning rate is divided by 10; None is one cycle.
    meta_optimizer: of φ, `adam` or `sgd`, plain gradient descent; meta_weight_decay: its own;
    virtual_learning_rate: of the look-ahead step, None for the backbone's current one; meta_every: batches
    from one meta step to the next; meta_phase_rate: what the meta phase multiplies the learning rate by;
    averaged_weights: the meta phase begins with the mean weights over this share of the warm-up, its last;
    averaged_model: `Training.averaged` has the mean weights over this share of the run, its last.
    """

    epochs: int = 0
    warmup_epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    weight_decay: float | None = None
    warmup: float = 0.4
    least_warmup: int = 0
    milestones: tuple[float, ...] | None = None
    meta_learning_rate: float = 1e-3
    meta_weight_decay: float = 0.0
    meta_optimizer: str = "adam"
    meta_batch_size: int = 64
    meta_every: int = 1
    meta_gradient: str = "last-layer"
    virtual_learning_rate: float | None = None
    meta_phase_rate: float = 1.0
    averaged_weights: float = 0.0
    averaged_model: float = 0.0

    def overridden(self, **values: float | str | None) -> Self:
        """This schedule with the values that are not None."""
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        return replace(self, **given)

    def resolved(self, rows: int, *, transferred: bool = False, from_scratch: bool = True) -> Self:
        """Decide what is still open, from the number of labelled rows.

        transferred: the corrector is used as it is; from_scratch: the backbone has no pretrained weights.
        Raises RelabelError when the requested warm-up would take all of the epochs.
        """
        epochs = self.epochs or default_epochs(rows, transferred)
        if self.warmup_epochs >= epochs:
            raise RelabelError(
                f"--warmup {self.warmup_epochs}: the run has {epochs} epochs in all.",
                "Lower it, or set --epochs.",
            )
        share = max(self.warmup, min(LONGEST_WARMUP, self.least_warmup / epochs))
        warmup = self.warmup_epochs or max(1, round(epochs * share))
        batch_size = self.batch_size or default_batch_size(rows)
        # More decay gained a transferred corrector nothing; pretrained weights it might make forget.
        decay = default_weight_decay(rows) if from_scratch and not transferred else WEIGHT_DECAY
        return replace(
            self,
            epochs=epochs,
            warmup_epochs=min(warmup, epochs - 1),
            batch_size=batch_size,
            learning_rate=self.learning_rate or default_learning_rate(batch_size),
            weight_decay=decay if self.weight_decay is None else self.weight_decay,
        )

    def learning_rate_at(self, position: float, step: float, corrected: bool) -> float:
        """The rate `position` epochs into the run, for a batch that is `step` of an epoch.

        corrected: whether it is one of the meta phase. One cycle goes up over the first fifth of the run,
        then down to zero, both linear (Smith 2018).
        """
        rising, falling = self.epochs / _FIFTHS, self.epochs * (_FIFTHS - 1) / _FIFTHS
        if self.milestones is not None:
            passed = sum(position >= milestone * self.epochs for milestone in self.milestones)
            share: float = _MILESTONE_FACTOR**passed
        elif position < rising:
            share = (position + step) / rising
        else:
            share = (self.epochs - position) / falling
        if corrected:
            share *= self.meta_phase_rate
        return self.learning_rate * min(1.0, share)


@dataclass(frozen=True)
class Settings:
    """A way to train a corrector: the schedule, and the options that are not the corrector's defaults."""

    schedule: Schedule
    options: Mapping[str, str] = field(default_factory=dict)


def default_epochs(rows: int, transferred: bool = False) -> int:
    """The epochs in which so many labelled rows make the default budget, within limits."""
    samples, (low, high) = SAMPLES_SEEN, EPOCH_LIMITS
    if transferred:
        samples, (low, high) = TRANSFERRED_SAMPLES_SEEN, TRANSFERRED_EPOCH_LIMITS
    return min(high, max(low, math.ceil(samples / rows)))


def default_batch_size(rows: int) -> int:
    """The batch size for so many labelled rows: on few, many steps matter more than low gradient noise."""
    return LARGE_BATCH_SIZE if rows >= LARGE_BATCHES_FROM else BATCH_SIZE


def default_learning_rate(batch_size: int) -> float:
    """The peak rate for a batch size: its square root keeps the noise of a step the same."""
    return _PEAK_RATE * math.sqrt(batch_size / _PEAK_BATCH)


def default_weight_decay(rows: int) -> float:
    """The weight decay for so many labelled rows: larger for few rows, which are seen often and memorised."""
    growth = math.pow(max(1.0, LEAST_DECAY_FROM / rows), _DECAY_EXPONENT)
    return min(MOST_WEIGHT_DECAY, WEIGHT_DECAY * growth)


def averaged_epochs(epochs: int) -> tuple[range, range]:
    """The early and the late window of the temporal ensemble: from a sixth to half of the run, and on.

    Of one epoch the early window is empty, and its average stays uniform.
    """
    half = epochs // 2
    return range(epochs // 6, half), range(half, epochs)
