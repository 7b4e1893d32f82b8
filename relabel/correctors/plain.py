"""No corrector: plain cross-entropy on the given labels, the baseline every corrector has to beat."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from relabel.correctors.base import Corrector, Learning, Memory, Needs
from relabel.schedule import Schedule


class Plain(Corrector):
    """Trains on the given labels; only the calibration corrects."""

    recipe = Schedule(averaged_model=0.5)
    needs = Needs(Learning.NOT, corrects=False)

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()

    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """One-hot given labels [B, C]."""
        return F.one_hot(given, logits.shape[1]).to(logits.dtype)
