"""MLC (Wang, Hu, Hu: Training Noise-Robust Deep Neural Networks via Meta-Learning, 2020).

The backbone predicts the true class; a transition matrix T_ij = p(given j | true i) carries its prediction
over to the given label, and T is learned from the trusted rows:

    loss = −log (p·T)_y        soft label q_c ∝ p_c·T_{c,y}

Where we leave the print: eq. 2's T·f and eq. 10's normalisation of columns contradict the definition of T,
so its rows, the true classes, sum to 1. Where we leave the released code: it multiplies logits and starts T
anew in every iteration; here T acts on probabilities and stays. The paper only trains; the soft label is
the Bayes posterior that belongs to its model.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import Corrector, Memory, WarmUp
from relabel.schedule import Schedule, Settings

_TINY = 1e-8  # below what any noise rate means; keeps the logarithm finite and a zero entry learnable
_LEAST_SHARE = 0.01  # of a row, spread over its entries, with which T begins at any number of classes


class MLC(Corrector):
    """Forward correction with a persistent, learned transition matrix.

    transition: `softmax` reparametrises each row; `projection` steps on T itself and projects (eqs. 9, 10).
    start: `trusted` begins at the meta rows' noise matrix, with anchor points for where wrong labels go;
    `identity` at no noise, the loss of plain cross-entropy; with `softmax` at 1 % of it, for the identity has
    no finite scores, and a confident prediction of another class than the given one costs less.
    """

    recipe = Schedule(averaged_model=0.5)
    # Section 4.1 (CIFAR): plain gradient descent moves T (eq. 7) at the rate beta, after a virtual step at
    # the rate alpha. The length of training is not printed.
    paper = Schedule(
        epochs=120, batch_size=64, learning_rate=1e-4, weight_decay=5e-4, milestones=(),
        meta_learning_rate=1e-2, meta_optimizer="sgd", virtual_learning_rate=1e-3,
    )  # fmt: skip
    presets = MappingProxyType(
        {"mlc-paper": Settings(paper, {"start": "identity", "transition": "projection"})}
    )

    def __init__(
        self, num_classes: int, num_features: int, transition: str = "softmax", start: str = "trusted"
    ) -> None:
        super().__init__()
        self.parametrization = transition
        self.start = start
        self.scores = nn.Parameter(torch.empty(num_classes, num_classes))
        self._set(torch.eye(num_classes))

    @property
    def transition(self) -> Tensor:
        """T [C, C], row = true class; rows sum to 1."""
        return torch.softmax(self.scores, dim=1) if self.parametrization == "softmax" else self.scores

    def initialise(self, warm_up: WarmUp) -> None:
        """Start T, by default from how the meta rows were labelled, and the anchor points of the others."""
        transition = warm_up.transition if self.start == "trusted" else None
        if transition is not None:
            self._set(torch.from_numpy(transition.matrix))

    def loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """−log (p·T)_y, in logarithms throughout: a confident p would lose its small entries otherwise."""
        return -torch.logsumexp(self._joint(logits, given), dim=1)

    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """The posterior p(true | x, given) ∝ p_c·T_{c,y} [B, C]."""
        return torch.softmax(self._joint(logits.detach(), given), dim=1)

    def project(self) -> None:
        """Eqs. 9 and 10: negative entries to 0, rows to sum 1; a row of zeros becomes the identity's."""
        if self.parametrization == "projection":
            with torch.no_grad():
                self.scores.copy_(projected(self.scores))

    def describe(self) -> dict[str, object]:
        """The learned matrix."""
        return {"transition_matrix": [[round(t, 6) for t in row] for row in self.transition.tolist()]}

    def _joint(self, logits: Tensor, given: Tensor) -> Tensor:
        """log p_c + log T_{c,y} [B, C]."""
        return F.log_softmax(logits, dim=1) + (self.transition + _TINY).log().T[given]

    def _set(self, transition: Tensor) -> None:
        with torch.no_grad():
            if self.parametrization == "softmax":
                transition = transition.clamp(min=_LEAST_SHARE / len(transition)).log()
            self.scores.copy_(transition)


def projected(matrix: Tensor) -> Tensor:
    """The row-stochastic matrix [C, C] of eqs. 9 and 10; idempotent."""
    positive = matrix.clamp(min=0)
    sums = positive.sum(dim=1, keepdim=True)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.where(sums > 0, positive / sums.clamp(min=torch.finfo(matrix.dtype).tiny), identity)
