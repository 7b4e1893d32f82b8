"""MSLC: Meta Soft Label Corrector (Wu, Shu, Xie, Zhao, Meng: Learning to Purify Noisy Labels, 2020).

The soft label is a convex mix of the given label, the label kept from the epoch before and the current
prediction (eq. 6), with the two coefficients computed from losses by two small networks:

    q = a·y + (1 − a)·(b·q_prev + (1 − b)·p),   a = α-net(CE(p, y)),  b = β-net(CE(p, argmax q_prev))

Where we leave the released code: the backbone is trained on the soft mix of eq. 6 itself (the code trains
on hard targets), the look-ahead step takes the current learning rate (the code takes ten times it), and
the α-net starts from the trusted rows instead of at random.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import Corrector, Memory


def _coefficient_net(hidden: int = 100) -> nn.Sequential:
    """The paper's meta-learner: one loss value in, one coefficient in (0, 1) out, 100 hidden nodes."""
    return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())


class MSLC(Corrector):
    """Eq. 6 with per-sample memory `soft_label` [N, C], started as the average warm-up softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha_net = _coefficient_net()
        self.beta_net = _coefficient_net()

    def begin(self, mean_probability: Tensor) -> Memory:
        """Start the memory at the average softmax over the warm-up epochs."""
        return {"soft_label": mean_probability.clone()}

    def warm_start(self, logits: Tensor, given: Tensor, true: Tensor) -> None:
        """Fit the α-net to P(given label is right | its loss) by logistic regression on the trusted rows."""
        loss_given = F.cross_entropy(logits, given, reduction="none")[:, None]
        right = (given == true).to(logits.dtype)[:, None]
        optimizer = torch.optim.Adam(self.alpha_net.parameters(), lr=1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            F.binary_cross_entropy(self.alpha_net(loss_given), right).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def coefficients(self, logits: Tensor, given: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """a, b [B, 1] of eq. 6 from raw, detached losses; `previous` is q_prev [B, C]."""
        logits = logits.detach()
        loss_given = F.cross_entropy(logits, given, reduction="none")
        loss_previous = F.cross_entropy(logits, previous.argmax(dim=1), reduction="none")
        return self.alpha_net(loss_given[:, None]), self.beta_net(loss_previous[:, None])

    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """Eq. 6 [B, C]."""
        previous = memory["soft_label"]
        a, b = self.coefficients(logits, given, previous)
        prediction = torch.softmax(logits.detach(), dim=1)
        one_hot = F.one_hot(given, logits.shape[1]).to(logits.dtype)
        return a * one_hot + (1 - a) * (b * previous + (1 - b) * prediction)

    def remember(self, logits: Tensor, given: Tensor, memory: Memory) -> Memory:
        """q becomes the q_prev of the next epoch."""
        return {"soft_label": self.soft_label(logits, given, memory)}
