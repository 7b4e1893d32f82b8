"""The contract every label corrector meets.

A corrector sees tensors only: no files, no flags, no progress bar. The training loop calls, per batch,

    memory = ledger.read(index)                         what the corrector keeps per sample
    loss   = corrector.loss(logits, given, memory)      once with a graph to its parameters (meta step),
                                                        once for the backbone's step
    ledger.write(index, corrector.remember(...))        after the backbone's step

and, when the warm-up ends, once `begin` and `warm_start`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

Memory = dict[str, Tensor]


class Corrector(nn.Module, ABC):
    """Turns logits, given labels and a per-sample memory into soft labels, with learnable parameters φ."""

    uses_trusted_rows = True
    """Whether φ is learned from trusted rows; if not, every trusted row serves the calibration."""

    def begin(self, mean_probability: Tensor) -> Memory:
        """The per-sample memory when the warm-up ends.

        mean_probability: [N, C], the rows' average softmax so far. Returns named tensors [N, ...].
        """
        return {}

    def warm_start(self, logits: Tensor, given: Tensor, true: Tensor) -> None:
        """Start φ from trusted rows that also have a given label; called once, when the warm-up ends.

        logits: [M, C] of rows the backbone was not trained on; given, true: [M] class ids. Learning φ from a
        random start by meta-gradients alone takes more steps than a small budget has.
        """

    @abstractmethod
    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """Corrected distributions q [B, C], rows summing to 1, differentiable in φ.

        logits: [B, C], detached; given: [B] class ids; memory: this batch's rows of the ledger.
        """

    def loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """The backbone's loss per sample [B], differentiable in `logits` and in φ."""
        return soft_cross_entropy(logits, self.soft_label(logits.detach(), given, memory))

    def remember(self, logits: Tensor, given: Tensor, memory: Memory) -> Memory:
        """This batch's rows of the memory for the next epoch."""
        return {}


def soft_cross_entropy(logits: Tensor, soft_label: Tensor) -> Tensor:
    """−Σ_c q_c log softmax(z)_c per sample [B], of logits [B, C] and distributions q [B, C]."""
    return -(soft_label * F.log_softmax(logits, dim=1)).sum(dim=1)
