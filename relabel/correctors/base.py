"""The contract every label corrector meets.

A corrector sees tensors only: no files, no flags, no progress bar. What it asks of a run is one declared
value, `Needs`. The training loop calls

    corrector.initialise(warm_up)                         once, when the warm-up ends, if φ is learned
    memory |= corrector.begin(warm_up)                    once, right after, for every corrector that corrects
    soft label, loss of memory = sample_memory.read(index)        per batch of the meta phase
    sample_memory.write(index, corrector.remember(...))   after the backbone's step
    memory |= corrector.observe(epoch)                    after every epoch, warm-up included

φ, the corrector's parameters, is learned through a look-ahead step of the backbone (`hypergradient`; MSLC,
MLC, MetaLabelNet), or by `trusted_loss` on trusted rows that pass through training like any other row
(TMLC-Net). A corrector may have no parameters, may use no trusted rows, and may be frozen: three different
facts, of its class, of its `Needs`, and of the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.metrics import noise_matrix
from relabel.sample_memory import PerSample, ProbabilityStore
from relabel.schedule import Schedule, Settings

Memory = dict[str, Tensor]
"""A batch's rows [B, ...] of what is remembered, by name."""

Store = dict[str, PerSample]
"""All rows of it."""


@dataclass(frozen=True)
class TrustedRows:
    """Trusted rows [M]: `rows`, indices into a source's rows and the external images behind them; `true`,
    their true labels; `given`, their given ones, −1 for rows without one.
    """

    rows: Tensor
    true: Tensor
    given: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def no_rows() -> TrustedRows:
    """No rows."""
    return TrustedRows(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))


class Learning(Enum):
    """How φ is learned from trusted rows, and so what part these take in the backbone's training."""

    NOT = "no trusted row reaches φ; all of them serve the calibration"
    LOOK_AHEAD = "through a look-ahead step; the backbone never trains on them"
    LOOK_AHEAD_AFTER_WARM_UP = (
        "through a look-ahead step; they pass through the warm-up, and it alone, under their given label"
    )
    DIRECT = "by `trusted_loss`; they pass through training as ordinary rows"


@dataclass(frozen=True)
class Needs:
    """What a corrector asks of a run, and what the run has to know of it.

    learning: how φ is learned; in_training_rows: some trusted rows pass through training under their given
    label for φ to be held against, because what the backbone memorises shows in the rows it trains on and
    never in the meta rows of a look-ahead; given_labels: the meta phase reads given labels (if not, rows
    without one take part in it); unlabelled_predictions: `observe` needs predictions of the unlabelled rows
    from the first epoch on; corrects: there is a meta phase at all; transfers: φ means the same for other
    classes and another backbone.
    """

    learning: Learning = Learning.LOOK_AHEAD
    in_training_rows: bool = False
    given_labels: bool = True
    unlabelled_predictions: bool = False
    corrects: bool = True
    transfers: bool = False

    @property
    def looks_ahead(self) -> bool:
        """Whether φ is learned through a look-ahead step of the backbone."""
        return self.learning in (Learning.LOOK_AHEAD, Learning.LOOK_AHEAD_AFTER_WARM_UP)

    @property
    def frozen(self) -> Needs:
        """What is left where φ is used as it is: no trusted row reaches it."""
        return replace(self, learning=Learning.NOT, in_training_rows=False)


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up leaves to a corrector.

    mean_probability: [N, C], the rows' average softmax so far; probability: [N, C], that of the last epoch;
    given: [N], −1 unlabelled; head: the backbone's classifier layer; features: gives the penultimate features
    [N + E, D] of all rows, without augmentation and in evaluation mode, at the cost of one pass however often
    it is called; meta: trusted rows that drive φ; in_training: trusted rows among those trained on.
    """

    mean_probability: Tensor | ProbabilityStore
    probability: Tensor | ProbabilityStore
    given: Tensor
    head: nn.Linear
    features: Callable[[], Tensor]
    meta: TrustedRows
    in_training: TrustedRows = field(default_factory=no_rows)

    @cached_property
    def transition(self) -> TransitionEstimate | None:
        """p(given | true) by the meta rows and the anchor points among the others; None without either."""
        meta, others = self.meta, self.given.clone()
        others[meta.rows[meta.rows < len(others)]] = -1
        anchors = anchor_points.count(self.mean_probability, others.numpy())
        counts = noise_matrix(meta.given.numpy(), meta.true.numpy(), self.mean_probability.shape[1])
        return TransitionEstimate.of(counts, anchors) if anchors.any() or counts.any() else None


@dataclass(frozen=True)
class Epoch:
    """One finished epoch over N rows.

    number: from 0; probability: [N, C], its softmax; trained: [N] bool, rows trained on under a given label;
    given: [N], −1 unlabelled; memory: of all rows, by name; meta, in_training: as in `WarmUp`.
    """

    number: int
    probability: Tensor | ProbabilityStore
    trained: Tensor
    given: Tensor
    memory: Store
    meta: TrustedRows
    in_training: TrustedRows = field(default_factory=no_rows)


class Corrector(nn.Module, ABC):
    """Turns logits, given labels and a per-sample memory into soft labels, with learnable parameters φ."""

    recipe: ClassVar[Schedule] = Schedule()
    """How it is trained by default, in budgets of tens of epochs."""

    presets: ClassVar[Mapping[str, Settings]] = {}
    """The paper's own settings, by the name that the registry lists."""

    needs: Needs = Needs()
    """Of the class, or of the instance where an option or the number of classes decides."""

    def initialise(self, warm_up: WarmUp) -> None:
        """Start φ when the warm-up ends; not called where φ is frozen."""

    def begin(self, warm_up: WarmUp) -> Store:
        """The per-sample memory that the meta phase begins with, by name."""
        return {}

    def observe(self, epoch: Epoch) -> Store:
        """Take note of a finished epoch; returns, by name, the memory that changes."""
        return {}

    @abstractmethod
    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """Corrected distributions q [B, C], rows summing to 1, differentiable in φ.

        logits: [B, C], detached; given: [B] class ids; memory: this batch's rows of the sample memory.
        """

    def loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """The backbone's loss per sample [B], differentiable in `logits` and in φ."""
        learns = any(parameter.requires_grad for parameter in self.parameters())
        # A graph to a constant φ is of no use, and costs TMLC-Net's LSTM as much time again.
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            soft_label = self.soft_label(logits.detach(), given, memory)
        return soft_cross_entropy(logits, soft_label)

    def virtual_loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """The loss per sample [B] of the look-ahead step."""
        return self.loss(logits, given, memory)

    def trusted_loss(self, given: Tensor, true: Tensor, memory: Memory) -> Tensor:
        """Mean loss of φ on trusted rows [B], for `Learning.DIRECT`."""
        raise NotImplementedError

    def project(self) -> None:
        """Bring φ back to where it is defined, after a step of its optimizer."""

    def remember(self, logits: Tensor, given: Tensor, memory: Memory) -> Memory:
        """This batch's rows of the memory for the next epoch."""
        return {}

    def describe(self) -> dict[str, object]:
        """What φ itself says about the labels, as plain values for the metadata."""
        return {}


def soft_cross_entropy(logits: Tensor, soft_label: Tensor) -> Tensor:
    """−Σ_c q_c log softmax(z)_c per sample [B], of logits [B, C] and distributions q [B, C]."""
    return -(soft_label * F.log_softmax(logits, dim=1)).sum(dim=1)
