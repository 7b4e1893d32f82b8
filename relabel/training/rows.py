"""Which rows play which part in a training."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from relabel.correctors.base import Learning, Needs, TrustedRows, no_rows
from relabel.data.sources import UNLABELLED


@dataclass(frozen=True)
class Rows:
    """Which rows play which part; all row indices into `Inputs`.

    train: [n] labelled rows to train on, calibration rows among them: under their given label at first, under
    the corrector's in the meta phase;
    given: [N] class ids, −1 unlabelled or held out; unlabelled: [u] rows that are predicted, and trained on
    only by a corrector that reads no given labels; meta: trusted rows that drive φ, among `train` only with
    `Learning.DIRECT`, and trained on before the meta phase with `Learning.LOOK_AHEAD_AFTER_WARM_UP`;
    in_training: trusted rows among `train`, for a corrector that needs some.
    """

    train: Tensor
    given: Tensor
    unlabelled: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    meta: TrustedRows = field(default_factory=no_rows)
    in_training: TrustedRows = field(default_factory=no_rows)

    def trained(self, needs: Needs, corrects: bool) -> Tensor:
        """The rows of an epoch, of the meta phase if it `corrects`."""
        if corrects and not needs.given_labels:
            return torch.cat([self.train, self.unlabelled])
        if not corrects and needs.learning is Learning.LOOK_AHEAD_AFTER_WARM_UP:
            return torch.cat([self.train, self.meta.rows[self.meta.given != UNLABELLED]])
        return self.train
