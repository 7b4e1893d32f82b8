"""Trusted rows by use: what teaches the corrector, what calibrates the labels, what calibrates the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relabel.correctors.base import Learning, Needs
from relabel.data.trusted import TrustedSet

CALIBRATION_SHARE = 2 / 3  # a corrector has few parameters; calibration and fixes live off every row
IN_TRAINING_SHARE = 1 / 2  # of the meta rows: φ is held against as many as it is learned from
UNSEEN_SHARE = 1 / 4  # for a model that is kept: few, for each is one that the backbone cannot learn from
_ROUNDING = 1e-9  # a share of n rows that is a whole number stays one


@dataclass(frozen=True)
class Part:
    """Trusted rows for one use: rows, true: [M] rows of `Inputs` and their true class ids."""

    rows: NDArray[np.int64]
    true: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def labelled(self, given: NDArray[np.int64]) -> Part:
        """Those with a given label; given: [N] of SOURCE, to which all rows of this part belong."""
        kept = given[self.rows] >= 0
        return Part(self.rows[kept], self.true[kept])


@dataclass(frozen=True)
class Split:
    """Trusted rows by use.

    meta: drive φ; in_training: pass through training, to show φ what it does to the rows that it corrects;
    calibration: calibrate the labels; unseen: the backbone never trains on them, for the calibration of the
    model that is kept. The meta rows that a look-ahead corrector never trained on are unseen ones too. Images
    outside SOURCE follow its rows in `Inputs`.
    """

    meta: Part
    in_training: Part
    calibration: Part
    unseen: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """All four."""
        return self.meta, self.in_training, self.calibration, self.unseen


def split_trusted(
    trusted: TrustedSet,
    given: NDArray[np.int64],
    unreadable: dict[int, str],
    needs: Needs,
    seed: int,
    keep_model: bool,
) -> Split:
    """Deal out the readable trusted rows class by class, with the seed.

    given: [N] of SOURCE; unreadable: rows of `Inputs`, and why. A corrector that learns nothing from trusted
    rows leaves them all to the calibration; one that trains on its meta rows uses those with a given label
    only. keep_model: whether some must stay unseen.
    """
    pool = _readable(trusted, len(given), unreadable)
    rows, true = pool.rows, pool.true
    learns = needs.learning is not Learning.NOT
    meta_is_unseen = needs.learning is Learning.LOOK_AHEAD
    external = np.flatnonzero(rows >= len(given))
    shuffled = np.random.default_rng(seed).permutation(len(rows) - len(external))
    inside = shuffled[np.argsort(true[shuffled], kind="stable")]
    kept_out = np.empty(0, dtype=np.int64)
    if keep_model and not meta_is_unseen:
        missing = max(0, round(len(rows) * UNSEEN_SHARE) - len(external))
        kept_out, inside = _deal(inside, missing / max(1, len(inside)))
    calibration, meta = _deal(inside, CALIBRATION_SHARE if learns else 1.0)
    in_training = np.empty(0, dtype=np.int64)
    if needs.in_training_rows:
        labelled = given[rows[meta]] >= 0
        in_training, rest = _deal(meta[labelled], IN_TRAINING_SHARE)
        meta = np.concatenate([rest, meta[~labelled]])
    meta = np.concatenate([meta, external]) if needs.looks_ahead else meta[given[rows[meta]] >= 0]
    unseen = meta if meta_is_unseen else np.concatenate([kept_out, external])
    parts = [np.sort(part) for part in (meta, in_training, calibration, unseen)]
    return Split(*(Part(rows[part], true[part]) for part in parts))


def _readable(trusted: TrustedSet, num_rows: int, unreadable: dict[int, str]) -> Part:
    """The trusted rows that can be read, images outside SOURCE last."""
    outside = num_rows + np.arange(len(trusted.external))
    rows = np.concatenate([trusted.rows, outside])
    readable = np.array([row not in unreadable for row in rows.tolist()], dtype=bool)
    return Part(rows[readable], np.concatenate([trusted.labels, trusted.external_labels])[readable])


def _deal(ordered: NDArray[np.int64], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A share of `ordered` and the rest, in order; every run of entries gives its share, to within one."""
    ticks = np.diff(np.floor(np.arange(len(ordered) + 1) * share + _ROUNDING)) > 0
    return ordered[ticks], ordered[~ticks]
