"""MSLC: Meta Soft Label Corrector (Wu, Shu, Xie, Zhao, Meng: Learning to Purify Noisy Labels, 2020).

The soft label is a convex mix of the given label, the label kept from the epoch before and the current
prediction (eq. 6), with the two coefficients computed from losses by two small networks:

    q = a·y + (1 − a)·(b·q_prev + (1 − b)·p),   a = α-net(CE(p, y)),  b = β-net(CE(p, argmax q_prev))

Where we leave the released code: the backbone is trained on the soft mix of eq. 6 itself (the code trains
on the argmax of each of its three terms, option `targets=hard`), the look-ahead step takes the current
learning rate (the code takes ten times it), and β's loss is that of the likeliest class of q_prev, as in the
code (the paper's is of q_prev itself).

Learned from a random start by look-ahead gradients alone (option `start=random`), φ stays behind a small
budget, and in a long one it ends at a = 1: the backbone memorises the given labels, their loss falls, and
the meta rows, which are never trained on, cannot show that it means nothing any more. Nor do they see that
q_prev holds a share of y already, which a adds to in every epoch. So both nets are also fitted by maximum
likelihood, at the start and after every epoch, on trusted rows that pass through training like any other row
(*in-training rows*): the log-probability that q gives to their true labels.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import (
    Corrector,
    Epoch,
    Memory,
    Needs,
    Store,
    WarmUp,
    soft_cross_entropy,
)
from relabel.sample_memory import PerSample
from relabel.schedule import Schedule, Settings

_FLOOR = 1e-4  # of a probability: what bf16 logits resolve
_FIT_STEPS = 300  # from a random start; more changed nothing
_REFIT_SHARE = 6  # of the steps after an epoch, when little has changed
_PSEUDO_ROWS = 10  # that say a = b = 1/2, so that a few rows move little


def _coefficient_net(hidden: int = 100) -> nn.Sequential:
    """The paper's meta-learner: one loss value in, one coefficient in (0, 1) out, 100 hidden nodes."""
    return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())


class MSLC(Corrector):
    """Eq. 6 with per-sample memory `soft_label` [N, C], started as the average warm-up softmax.

    targets: `soft` or `hard`; start: `trusted` fits both nets to the in-training rows, `random` is the
    paper's.
    """

    recipe = Schedule(meta_learning_rate=1e-4, averaged_model=0.5)
    # Section 4; the rates are those of the released code.
    paper = Schedule(
        epochs=120, warmup=80 / 120, batch_size=100, learning_rate=0.1, weight_decay=5e-4,
        milestones=(80 / 120, 100 / 120), meta_batch_size=100,
    )  # fmt: skip
    presets = MappingProxyType({"mslc-paper": Settings(paper, {"start": "random"})})

    def __init__(
        self, num_classes: int, num_features: int, targets: str = "soft", start: str = "trusted"
    ) -> None:
        super().__init__()
        self.targets = targets
        self.start = start
        self.needs = Needs(in_training_rows=start == "trusted")
        self.alpha_net = _coefficient_net()
        self.beta_net = _coefficient_net()

    def initialise(self, warm_up: WarmUp) -> None:
        """Fit φ to the in-training trusted rows as the warm-up left them."""
        self._fit(warm_up, warm_up.mean_probability, _FIT_STEPS)

    def begin(self, warm_up: WarmUp) -> Store:
        """Start the memory at the average warm-up softmax."""
        return {"soft_label": warm_up.mean_probability.clone()}

    def observe(self, epoch: Epoch) -> Store:
        """Hold φ against the in-training trusted rows as the epoch left them."""
        if "soft_label" in epoch.memory:
            self._fit(epoch, epoch.memory["soft_label"], _FIT_STEPS // _REFIT_SHARE)
        return {}

    def _fit(self, seen: WarmUp | Epoch, soft_label: PerSample, steps: int) -> None:
        """Fit both nets by maximum likelihood of the in-training rows' true labels under eq. 6.

        A few rows say little, so ten more say a = b = 1/2.
        """
        if not self.needs.in_training_rows or len(seen.in_training) == 0:
            return
        parameter = next(self.parameters())
        given, true = seen.in_training.given.to(parameter.device), seen.in_training.true.to(parameter.device)
        logits = seen.probability[seen.in_training.rows].to(parameter).clamp(min=_FLOOR).log()
        previous = {"soft_label": soft_label[seen.in_training.rows].to(parameter)}
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        for _ in range(steps):
            a, b = self.coefficients(logits, given, previous["soft_label"])
            likelihood = self.soft_label(logits, given, previous).gather(1, true[:, None]).clamp(min=_FLOOR)
            halves = -(a * (1 - a) * b * (1 - b)).clamp(min=_FLOOR**4).log() / 2
            loss = (-likelihood.log().sum() + _PSEUDO_ROWS * halves.mean()) / (len(true) + _PSEUDO_ROWS)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
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
