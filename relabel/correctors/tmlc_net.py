"""TMLC-Net: Transferable Meta Label Correction (2025).

A row's training dynamics, one feature vector per epoch (NNP, eqs. 1 to 5), run through an LSTM (TSE, eq. 6),
whose last hidden state a two-layer decoder turns into the corrected distribution (SD, eq. 7).

Printed, the inputs tell that a label is suspect but not which class is right, and their size depends on the
number of classes. Ours scores every pair (row, class) with one shared network instead, on the paper's
features computed as if that class were the given label: with l_ic = −log p_ic,

    CNL_ic = l_ic / mean of l over the rows labelled c      (eq. 1)
    GNL_ic = l_ic / mean loss of all rows                   (eq. 2)
    PE_i   = entropy of p_i / log C                         (eq. 3)
    NLO_ic = [c = y_i]                                      (eq. 4)

and a softmax over c of the scores is eq. 7. For c = y_i the features are the paper's; permuting the classes
permutes the output, and the same weights run at any number of classes. Means are over the epoch, not the
batch, where a class with one row would have CNL 1 by construction; log1p keeps the tail finite.

Eq. 10's target, the smoothed given label, has label smoothing as its optimum and corrects nothing (option
`target=given`). The paper's clause "one-hot if we have clean labels" works: the trusted rows are its query
set. They pass through training under their corrected label like any other row, so that their dynamics are
those of the rows to correct. A few of them teach little, so φ begins at a pretrained corrector, learned on
recorded runs over other data, and a Gaussian prior holds it there, the more the fewer they are. From a random
start (option `start=random`) with M of them the soft label keeps a share of 10 / (M + 10) for the given
label.

The features do not tell which class is mistaken for which. From the pretrained start on, the scores gain
half of what the given label says beyond symmetric noise (`log_likelihood_ratio`), by p(given | true) as the
meta rows and the anchor points estimate it when the warm-up ends. Anchor points alone do not do: those of
images are often wrong. For all of these choices see examples/RESULTS.md, "TMLC-Net: start, noise matrix and
history" and "Structured noise and few trusted rows".

With more than 20 classes a row's history is that of 20 candidates, its given label and what the backbone
thinks likeliest early on; the other classes get no share of the soft label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import Corrector, Epoch, Learning, Memory, Needs, Store, WarmUp
from relabel.device import upload
from relabel.label_noise.transition_matrix import Floats
from relabel.sample_memory import History, ProbabilityStore, blocks, class_type, per_sample
from relabel.schedule import Schedule, Settings

_FLOOR = 1e-4  # of p: what bf16 logits resolve
_SMOOTHING = 0.1  # ε of eq. 10
_PSEUDO_ROWS = 10  # that keep their given label, beside the meta rows, from a random start
_PRIOR_PRECISION = 10.0  # 1 / variance of each parameter around the pretrained one; 2 was as good
_LOG_RATIO_SHARE = 0.5  # that scores gain; all of it was a little worse, with flips and symmetric noise
_IGNORED = -100
_KEPT = 16  # epochs in a history, beside the newest: memory does not grow with the length of the run
CANDIDATES = 20  # classes of a row that have a history, where there are more
_CHOICES = (0, 1, 2, 4)  # epochs after which they are chosen, each time anew: the first know little
_REPLAYED = 8  # of them, the LSTM runs through; more cost time and gained nothing


class TMLCNet(Corrector):
    """Class-wise TMLC-Net with memory `losses` [N, K, C, 2] (CNL, GNL) and `entropy` [N, K] of `kept` epochs,
    and beyond 20 classes `candidates` [N, 20], the classes that the histories are of: 68·C + 34 bytes a row,
    1,434 at the most.

    target: `trusted`, the trusted rows' true label, or `given`, eq. 10. without: the ablations of table V:
    `nnp` takes raw losses and entropies, `tse` the last epoch alone, `sd` the single best class in place of a
    distribution. start: `pretrained` begins at the state dict `pretrained` and stays near it, as far as its
    target and inputs are those (else, and with `random`, at random), and its scores gain half the
    log-likelihood ratio against symmetric noise [C, C].
    """

    recipe = Schedule(meta_learning_rate=3e-3, meta_every=4, averaged_model=0.5)
    # Section IV-C (CIFAR); the rate of the meta-learner is not printed.
    paper = Schedule(
        epochs=200, warmup=0.1, batch_size=128, learning_rate=0.1, weight_decay=1e-4,
        milestones=(80 / 200, 120 / 200), meta_learning_rate=1e-3, meta_batch_size=128,
    )  # fmt: skip
    presets = MappingProxyType({"tmlc-paper": Settings(paper, {"start": "random"})})
    needs = Needs(Learning.DIRECT, transfers=True)

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        target: str = "trusted",
        without: str = "nothing",
        start: str = "pretrained",
        pretrained: Mapping[str, Tensor] | None = None,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        self._state = pretrained
        self.num_classes = num_classes
        # Candidates are chosen early on, those of unlabelled rows too.
        self.needs = replace(self.needs, unlabelled_predictions=num_classes > CANDIDATES)
        self.target = target
        self.without = without
        suits = target == "trusted" and without in ("nothing", "sd")  # what the pretrained φ was learned for
        self.start = start if suits else "random"
        self.register_buffer("kept_share", torch.zeros(()))
        self.kept_share: Tensor
        self.register_buffer("prior_precision", torch.zeros(()))
        self.prior_precision: Tensor
        self.register_buffer("log_ratio", None, persistent=False)
        self.log_ratio: Tensor | None
        self.encoder = nn.LSTM(4, hidden, batch_first=True)
        # No last bias: one that all classes share, a softmax does not see.
        self.decoder = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False))

    def initialise(self, warm_up: WarmUp) -> None:
        """Begin at the pretrained φ, with a prior by the number of meta rows and the noise's log ratio."""
        if self.start == "random":
            self.kept_share.fill_(_PSEUDO_ROWS / (len(warm_up.meta) + _PSEUDO_ROWS))
            return
        transition = warm_up.transition if (warm_up.meta.given >= 0).any() else None
        if transition is not None:
            log_ratio = torch.from_numpy(_LOG_RATIO_SHARE * log_likelihood_ratio(transition.matrix))
            self.log_ratio = log_ratio.to(next(self.parameters()))
        self.prior_precision.fill_(_PRIOR_PRECISION / len(warm_up.meta))
        with torch.no_grad():
            for parameter, pretrained in zip(self.parameters(), self._pretrained, strict=True):
                parameter.copy_(pretrained)

    @cached_property
    def _pretrained(self) -> list[Tensor]:
        """The pretrained parameters, in the order and on the device of this corrector's own."""
        assert self._state is not None, "start=pretrained takes a pretrained state"
        return [self._state[name].to(own.device, own.dtype) for name, own in self.named_parameters()]

    def observe(self, epoch: Epoch) -> Store:
        """Append the epoch's features to every row's history, which keeps a few epochs of a long run."""
        rows, classes = epoch.probability.shape
        memory, passed = dict(epoch.memory), epoch.number
        if "losses" not in memory:
            capacity = 1 if self.without == "tse" else _KEPT + 1
            # float16: the history is the largest thing the sample memory holds.
            memory["losses"] = History(rows, capacity, min(classes, CANDIDATES), 2, dtype=torch.float16)
            memory["entropy"] = History(rows, capacity, dtype=torch.float16)
        if classes > CANDIDATES:
            if epoch.number in _CHOICES:
                memory["candidates"] = likeliest(epoch.probability, epoch.given)
            passed = epoch.number - chosen(epoch.number)
        means = None
        if self.without != "nnp":
            means = mean_losses(epoch.probability, epoch.given, epoch.trained)
        earlier: list[int] = []
        if self.without != "tse":
            after = kept(passed + 1)
            earlier = [place for place, number in enumerate(kept(passed)) if number in after]
        newest = {}
        for name in ("losses", "entropy"):
            history = memory[name]
            assert isinstance(history, History)
            history.keep(earlier)
            newest[name] = history.add()
        for block in blocks(rows, classes):
            found, newest["entropy"][block] = normalized_features(epoch.probability[block], means)
            if "candidates" in memory:
                found = found.gather(1, memory["candidates"][block].long()[:, :, None].expand(-1, -1, 2))
            newest["losses"][block] = found
        return memory

    def soft_label(self, logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        """Eq. 7 [B, C] from the histories up to the last finished epoch, less the given label's share."""
        scores = self._scores(given, memory)
        soft_label = torch.softmax(scores, dim=1)
        if self.without == "sd":
            soft_label = F.one_hot(scores.argmax(dim=1), scores.shape[1]).to(scores.dtype)
        is_given = self._is(given, memory)
        kept_share = self.kept_share * is_given.any(dim=1, keepdim=True)  # no given label, nothing to keep
        soft_label = (1 - kept_share) * soft_label + kept_share * is_given
        if "candidates" in memory:
            everywhere = soft_label.new_zeros(len(given), self.num_classes)
            soft_label = everywhere.scatter(1, memory["candidates"].long(), soft_label)
        return soft_label

    def trusted_loss(self, given: Tensor, true: Tensor, memory: Memory) -> Tensor:
        """Mean KL(target ‖ q) (eq. 11) up to the target's own entropy, and what keeps φ near its start."""
        scores = self._scores(given, memory)
        smoothing = _SMOOTHING if self.target == "given" else 0.0
        is_target = self._is(given if self.target == "given" else true, memory)
        # A true class that is no candidate teaches nothing.
        position = torch.where(is_target.any(dim=1), is_target.to(torch.uint8).argmax(dim=1), _IGNORED)
        loss = F.cross_entropy(
            scores, position, label_smoothing=smoothing, ignore_index=_IGNORED, reduction="sum"
        )
        loss = loss / is_target.any(dim=1).sum().clamp(min=1)
        if self.start == "pretrained":
            pairs = zip(self.parameters(), self._pretrained, strict=True)
            loss = loss + self.prior_precision / 2 * sum(
                (own - pretrained).square().sum() for own, pretrained in pairs
            )
        return loss

    def states(self, given: Tensor, memory: Memory) -> Tensor:
        """The LSTM's last hidden state [B, C, H] of each row and class (or candidate), eq. 6's encoding."""
        dtype = next(self.parameters()).dtype
        losses, entropy = memory["losses"].to(dtype), memory["entropy"].to(dtype)
        rows, epochs, classes, _ = losses.shape
        if epochs > _REPLAYED:
            # Evenly, without the first sixth, when the backbone knows next to nothing.
            replayed = torch.linspace(epochs // 6, epochs - 1, _REPLAYED).round().long()
            replayed = upload(replayed, losses.device)
            losses, entropy, epochs = losses[:, replayed], entropy[:, replayed], _REPLAYED
        features = torch.cat(
            [
                losses,
                entropy[:, :, None, None].expand(-1, -1, classes, 1),
                self._is(given, memory).to(dtype)[:, None, :, None].expand(-1, epochs, -1, 1),
            ],
            dim=3,
        )
        _, (hidden, _) = self.encoder(features.transpose(1, 2).reshape(rows * classes, epochs, 4))
        states: Tensor = hidden[0].view(rows, classes, -1)
        return states

    def _scores(self, given: Tensor, memory: Memory) -> Tensor:
        scores: Tensor = self.decoder(self.states(given, memory)).squeeze(2)
        if self.log_ratio is not None:
            given_label_bias = self.log_ratio[self._classes(memory).long(), given[:, None]]
            scores = scores + given_label_bias * (given >= 0)[:, None]
        return scores

    def _is(self, labels: Tensor, memory: Memory) -> Tensor:
        """[B, C or candidates] bool: which class a label [B] is; none for −1."""
        return labels[:, None] == self._classes(memory)

    def _classes(self, memory: Memory) -> Tensor:
        """The classes [C], or candidates [B, 20], that the histories are of."""
        losses = memory["losses"]
        return memory.get("candidates", torch.arange(losses.shape[2], device=losses.device))


def log_likelihood_ratio(transition: Floats) -> Floats:
    """log p(given | true) − log of the same under symmetric noise, [C, C] by (true, given).

    transition: [C, C], positive, rows sum to 1; the other noise has its mean rate.
    """
    rate = 1 - np.diag(transition).mean()
    log_ratio: Floats = np.log(transition) - np.log(rate / (len(transition) - 1))
    np.fill_diagonal(log_ratio, np.log(np.diag(transition) / (1 - rate)))
    return log_ratio


def kept(epochs: int) -> list[int]:
    """Which epochs of so many the history keeps: evenly spaced ones, _KEPT at most, and the newest."""
    stride = 1
    while epochs // stride > _KEPT:
        stride *= 2
    return sorted({*range(stride - 1, epochs, stride), epochs - 1} - {-1})


def chosen(epoch: int) -> int:
    """The epoch after which the candidates were chosen that are remembered after epoch `epoch`."""
    return max(choice for choice in _CHOICES if choice <= epoch)


def likeliest(probability: Tensor | ProbabilityStore, given: Tensor) -> Tensor:
    """Each row's given label and its likeliest classes [N, 20], in order; probability: [N, C]."""
    candidates = per_sample(len(given), CANDIDATES, dtype=class_type(probability.shape[1]))
    for block in blocks(*probability.shape):
        labelled = (given[block] >= 0).nonzero().squeeze(1)
        preferred = probability[block].clone()
        preferred[labelled, given[block][labelled]] = 2.0
        candidates[block] = preferred.topk(CANDIDATES, dim=1).indices.sort(dim=1).values.to(candidates.dtype)
    return candidates


def mean_losses(
    probability: Tensor | ProbabilityStore, given: Tensor, trained: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss of the rows labelled with each class [C], and of all rows: what eqs. 1 and 2 divide by.

    probability: [N, C]; given: [N]; trained: [N] bool, the rows the means are over. A class that no row is
    labelled takes the mean over all rows for its own.
    """
    classes = probability.shape[1]
    rows = trained.nonzero().squeeze(1)
    labels = given[rows]
    own = torch.cat(
        [
            probability[rows[block]].gather(1, labels[block, None]).squeeze(1)
            for block in blocks(len(rows), classes)
        ]
    )
    losses = -own.clamp(min=_FLOOR).log()
    sums = torch.zeros(classes, dtype=losses.dtype).index_add_(0, labels, losses)
    counts = torch.bincount(labels, minlength=classes)
    # The floor: a class whose every row the network is sure of has mean 0.
    mean = losses.mean().clamp(min=_FLOOR)
    return torch.where(counts > 0, sums / counts.clamp(min=1), mean).clamp(min=_FLOOR), mean


def normalized_features(probability: Tensor, means: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """One epoch's features: log1p of CNL and GNL [B, C, 2], and PE [B] in 0..1.

    probability: [B, C]; means: `mean_losses`, None to leave out both normalisations (w/o NNP).
    """
    losses = -probability.clamp(min=_FLOOR).log()
    entropy = (probability * losses).sum(dim=1)
    if means is None:
        return torch.stack([losses, losses], dim=2), entropy
    of_class, overall = means
    normalized = torch.stack([losses / of_class, losses / overall], dim=2)
    return torch.log1p(normalized), entropy / math.log(probability.shape[1])
