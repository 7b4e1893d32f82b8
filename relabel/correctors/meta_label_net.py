"""MetaLabelNet (Algan, Ulusoy: MetaLabelNet: Learning to Generate Soft-Labels from Noisy-Labels, 2022).

The soft label is one linear layer on the features of the backbone as the warm-up left it, frozen:

    q = softmax(W g(x) + b)

The backbone follows KL(p ‖ q) + H(p), which is the reverse cross-entropy −Σ_c p_c log q_c; the look-ahead
step follows KL(p ‖ q) alone, with step size 1. The given labels are not read after the warm-up, so rows
without one take part.

Where we leave the paper: W starts from the warmed-up classifier layer, not at random, and is put back when
the trusted rows' loss of q rises. Reverse cross-entropy follows a bad q wherever it goes, and the look-ahead
gradient of the next steps follows the backbone. By default the warm-up ends in the mean of its last weights
(Izmailov et al., Averaging Weights Leads to Wider Optima, 2018) and the learning rate falls to a fifth; in
the paper it has just fallen to a tenth, which also takes the noise of large steps out of the features. The
warm-up takes half of the run, but at least 27 epochs as far as they are no more than nine tenths: what the
given labels still have to teach, this method no longer reads (see examples/RESULTS.md, "MetaLabelNet:
averaged weights and a long warm-up").
"""

from __future__ import annotations

import copy
from dataclasses import replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import Corrector, Epoch, Learning, Memory, Needs, Store, WarmUp
from relabel.schedule import Schedule, Settings

_FLOOR = 1e-4  # of q: without it one confident q would outweigh a batch
_TOLERANCE = 1.02  # a loss this much above the best is more than the noise of a meta step


class MetaLabelNet(Corrector):
    """A linear label generator on frozen features, memory `features` [N, D].

    start: `classifier` begins at the warmed-up classifier layer, and the meta rows pass through the warm-up;
    `random` is the paper's, whose meta rows the backbone never trains on.
    """

    needs = Needs(given_labels=False)
    recipe = Schedule(
        warmup=0.5, least_warmup=27, meta_phase_rate=0.2, averaged_weights=1 / 3, averaged_model=0.5,
        virtual_learning_rate=1.0,
    )  # fmt: skip
    # Section IV-B (CIFAR-10).
    paper = Schedule(
        epochs=120, warmup=44 / 120, batch_size=128, learning_rate=1e-2, weight_decay=1e-4,
        milestones=(40 / 120, 80 / 120), meta_learning_rate=1e-2, meta_weight_decay=1e-4, meta_batch_size=128,
        virtual_learning_rate=1.0,
    )  # fmt: skip
    presets = MappingProxyType({"metalabelnet-paper": Settings(paper, {"start": "random"})})

    def __init__(self, num_classes: int, num_features: int, start: str = "classifier") -> None:
        super().__init__()
        self.start = start
        if start == "classifier":
            # In the warm-up their features take on the same traces of given labels as those of other rows.
            self.needs = replace(self.needs, learning=Learning.LOOK_AHEAD_AFTER_WARM_UP)
        self.generator = nn.Linear(num_features, num_classes)
        self.best = copy.deepcopy(self.generator).requires_grad_(False)
        self.register_buffer("best_loss", torch.tensor(float("inf")))
        self.best_loss: Tensor

    def initialise(self, warm_up: WarmUp) -> None:
        """Start W and b from the classifier layer, and the guard there."""
        if self.start == "classifier":
            self.generator.load_state_dict(warm_up.head.state_dict())
        self._guard(warm_up.features()[warm_up.meta.rows], warm_up.meta.true)

    def begin(self, warm_up: WarmUp) -> Store:
        """Freeze the features of every row."""
        return {"features": warm_up.features()}

    def observe(self, epoch: Epoch) -> Store:
        """Put W and b back to their best when the trusted rows' loss of q has risen."""
        if "features" in epoch.memory:
            self._guard(epoch.memory["features"][epoch.meta.rows], epoch.meta.true)
        return {}

    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """q [B, C]; reads neither logits nor given labels."""
        return torch.softmax(self.generator(memory["features"]), dim=1)

    def loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """KL(p ‖ q) + H(p) = −Σ_c p_c log q_c per sample [B]."""
        log_soft_label = self.soft_label(logits, given, memory).clamp(min=_FLOOR).log()
        return -(torch.softmax(logits, dim=1) * log_soft_label).sum(dim=1)

    def virtual_loss(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """KL(p ‖ q) per sample [B]."""
        log_probability = F.log_softmax(logits, dim=1)
        negative_entropy = (log_probability.exp() * log_probability).sum(dim=1)
        return self.loss(logits, given, memory) + negative_entropy

    def _guard(self, features: Tensor, true: Tensor) -> None:
        """Keep the generator with the lowest loss on trusted rows [M, D], [M]; return to it from a worse."""
        if len(true) == 0:
            return
        device = self.generator.weight.device
        with torch.no_grad():
            loss = F.cross_entropy(self.generator(features.to(device)), true.to(device))
        if loss <= self.best_loss:
            self.best_loss.copy_(loss)
            self.best.load_state_dict(self.generator.state_dict())
        elif not loss <= _TOLERANCE * self.best_loss:  # also when it is not a number
            self.generator.load_state_dict(self.best.state_dict())
