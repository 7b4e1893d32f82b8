"""The contract every label corrector meets.

A corrector sees tensors only: no files, no flags, no progress bar. The training loop calls

    memory |= corrector.begin(warm_up)                    once, when the warm-up ends
    soft label, loss of memory = ledger.read(index)       per batch of the meta phase
    ledger.write(index, corrector.remember(...))          after the backbone's step
    memory |= corrector.observe(epoch)                    after every epoch, warm-up included

φ, the corrector's parameters, is learned in one of two ways: through a look-ahead step of the backbone
(`hypergradient`; MSLC, MLC, MetaLabelNet), or on trusted rows that pass through training like any other row
(`trusted_loss`; TMLC-Net).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    their verified labels; `given`, their given ones, −1 for rows without one.
    """

    rows: Tensor
    true: Tensor
    given: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def no_rows() -> TrustedRows:
    """No rows."""
    return TrustedRows(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))


class MetaRows(Enum):
    """The part that the trusted rows which φ is learned from take in the backbone's training."""

    NONE = "φ is learned from no trusted row; all of them serve the calibration"
    UNSEEN = "the backbone never trains on them"
    WARM_UP = "they pass through the warm-up, and it alone, under their given label"
    TRAINED = "they pass through training as ordinary rows, for `trusted_loss` to judge"


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up leaves to a corrector.

    mean_probability: [N, C], the rows' average softmax so far; probability: [N, C], that of the last epoch;
    given: [N], −1 unlabelled; head: the backbone's classifier layer; features: gives the penultimate features
    [N + E, D] of all rows, without augmentation and in evaluation mode, at the cost of one pass; meta:
    trusted rows that drive φ; witness: trusted rows among those trained on.
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
    given: [N], −1 unlabelled; memory: of all rows, by name; meta, witness: as in `WarmUp`.
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

    corrects = True
    """Whether there is a meta phase at all."""

    meta_rows = MetaRows.UNSEEN
    """Their part in training."""

    has_in_training_rows = False
    """Whether some trusted rows pass through training under their given label for φ to be held against.

    What the backbone learns by heart shows in the rows it trains on, never in the meta rows of a look-ahead.
    """

    reads_given_labels = True
    """Whether the meta phase reads given labels; if not, unlabelled rows take part in it."""

    transfers = False
    """Whether φ means the same for other classes and another backbone."""

    follows_unlabelled = False
    """Whether `observe` needs predictions of the unlabelled rows from the first epoch on."""

    @property
    def begun(self) -> dict[str, Tensor]:
        """What `begin` has found out about the data set at hand: the buffers that the state dict leaves out.

        Of a checkpoint it is a part, of a file for other data not.
        """
        lasting = self.state_dict()
        return {name: values for name, values in self.named_buffers() if name not in lasting}

    @begun.setter
    def begun(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    @property
    def looks_ahead(self) -> bool:
        """Whether φ is learned through a look-ahead step of the backbone."""
        return self.meta_rows in (MetaRows.UNSEEN, MetaRows.WARM_UP)

    @property
    def looks_ahead_along_its_loss(self) -> bool:
        """Whether the look-ahead step follows `loss` itself and not a `virtual_loss` of its own."""
        return type(self).virtual_loss is Corrector.virtual_loss

    def begin(self, warm_up: WarmUp) -> Store:
        """Start φ and the per-sample memory when the warm-up ends; returns it by name."""
        return {}

    def observe(self, epoch: Epoch) -> Store:
        """Take note of a finished epoch; returns, by name, the memory that changes."""
        return {}

    @abstractmethod
    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """Corrected distributions q [B, C], rows summing to 1, differentiable in φ.

        logits: [B, C], detached; given: [B] class ids; memory: this batch's rows of the ledger.
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
        """Mean loss of φ on trusted rows [B], for correctors with `MetaRows.TRAINED`."""
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
