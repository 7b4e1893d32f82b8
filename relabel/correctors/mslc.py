"""MSLC: Meta Soft Label Corrector (Wu, Shu, Xie, Zhao, Meng: Learning to Purify Noisy Labels, 2020).

The soft label is a convex mix of the given label, the label kept from the epoch before and the current
prediction (eq. 6), with the two coefficients computed from losses by two small networks:

    q = a·y + (1 − a)·(b·q_prev + (1 − b)·p),   a = α-net(CE(p, y)),  b = β-net(CE(p, argmax q_prev))

Where we leave the released code: the backbone is trained on the soft mix of eq. 6 itself (the code trains
on the argmax of each of its three terms, option `targets=hard`), the look-ahead step takes the current
learning rate (the code takes ten times it), and the α-net starts from the trusted rows instead of at random.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import Corrector, Memory, WarmUp, soft_cross_entropy


def _coefficient_net(hidden: int = 100) -> nn.Sequential:
    """The paper's meta-learner: one loss value in, one coefficient in (0, 1) out, 100 hidden nodes."""
    return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())


class MSLC(Corrector):
    """Eq. 6 with per-sample memory `soft_label` [N, C], started as the average warm-up softmax.

    targets: `soft` or `hard`; start: `trusted` fits the α-net to the meta rows, `random` is the paper's.
    """

    def __init__(
        self, num_classes: int, num_features: int, targets: str = "soft", start: str = "trusted"
    ) -> None:
        super().__init__()
        self.targets = targets
        self.start = start
        self.alpha_net = _coefficient_net()
        self.beta_net = _coefficient_net()

    def begin(self, warm_up: WarmUp) -> Memory:
        """Start the memory at the average warm-up softmax, and the α-net from the meta rows.

        Learning φ from a random start by look-ahead gradients alone takes more steps than a small budget has.
        """
        labelled = warm_up.meta_given >= 0
        if self.start == "trusted" and bool(labelled.any()):
            self._fit_alpha_net(
                warm_up.meta_logits[labelled], warm_up.meta_given[labelled], warm_up.meta_true[labelled]
            )
        return {"soft_label": warm_up.mean_probability.clone()}

    def _fit_alpha_net(self, logits: Tensor, given: Tensor, true: Tensor) -> None:
        """Fit the α-net by maximum likelihood of the verified labels under a·y + (1 − a)·p.

        Its optimum is q_y = P(given label is right | its loss): p already holds a part of that for y.
        """
        loss_given = F.cross_entropy(logits, given, reduction="none")
        one_hot, prediction = F.one_hot(given, logits.shape[1]).to(logits.dtype), torch.softmax(logits, dim=1)
        optimizer = torch.optim.Adam(self.alpha_net.parameters(), lr=1e-2)
        for _ in range(300):
            a = self.alpha_net(loss_given[:, None])
            mixed = a * one_hot + (1 - a) * prediction
            optimizer.zero_grad()
            F.nll_loss(mixed.clamp(min=1e-6).log(), true).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def coefficients(self, logits: Tensor, given: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """a, b [B, 1] of eq. 6 from raw, detached losses; `previous` is q_prev [B, C]."""
        logits = logits.detach()
        loss_given = F.cross_entropy(logits, given, reduction="none")
        loss_previous = F.cross_entropy(logits, previous.argmax(dim=1), reduction="none")
        return self.alpha_net(loss_given[:, None]), self.beta_net(loss_previous[:, None])

    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """Eq. 6 [B, C]."""
        previous, prediction = memory["soft_label"], torch.softmax(logits.detach(), dim=1)
        return self._mix(logits, given, memory, previous, prediction)

    def loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """Cross-entropy [B] against eq. 6, or against its terms' classes with `targets=hard`."""
        if self.targets == "soft":
            return super().loss(logits, given, memory)
        previous, prediction = (
            F.one_hot(p.argmax(dim=1), p.shape[1]).to(p.dtype)
            for p in (memory["soft_label"], logits.detach())
        )
        return soft_cross_entropy(logits, self._mix(logits, given, memory, previous, prediction))

    def _mix(
        self, logits: Tensor, given: Tensor, memory: Memory, previous: Tensor, prediction: Tensor
    ) -> Tensor:
        a, b = self.coefficients(logits, given, memory["soft_label"])
        one_hot = F.one_hot(given, logits.shape[1]).to(logits.dtype)
        return a * one_hot + (1 - a) * (b * previous + (1 - b) * prediction)

    def remember(self, logits: Tensor, given: Tensor, memory: Memory) -> Memory:
        """q becomes the q_prev of the next epoch."""
        return {"soft_label": self.soft_label(logits, given, memory)}
