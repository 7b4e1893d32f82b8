"""The training loop: warm-up on the given labels, then the meta phase with a corrector.

One pass over the training rows is an epoch. Per batch of the meta phase: the backbone's forward; the
corrector's meta step on a trusted batch (`hypergradient`); the backbone's step on the corrected targets,
reusing the same forward; the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from relabel import hypergradient
from relabel.backbones import Backbone
from relabel.correctors.base import Corrector, Memory
from relabel.correctors.plain import Plain
from relabel.data.loading import Inputs
from relabel.device import Compute
from relabel.errors import RunError
from relabel.ledger import Ledger


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs, steps and rates of one run."""

    epochs: int
    warmup_epochs: int
    average_from: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    meta_learning_rate: float
    meta_batch_size: int


@dataclass(frozen=True)
class Rows:
    """Which rows play which part; all row indices into `Inputs`.

    train: [n] rows trained on under their given label (probe rows are among them);
    given: [N] class ids, −1 unlabelled; unlabelled: [u] rows that are only predicted;
    meta, meta_labels: [M] trusted rows that drive the meta loss and are never trained on.
    """

    train: Tensor
    given: Tensor
    unlabelled: Tensor
    meta: Tensor
    meta_labels: Tensor


@dataclass(frozen=True)
class EpochReport:
    """What one epoch looked like: index from 0, mean training loss, mean trusted loss of the meta phase."""

    epoch: int
    epochs: int
    phase: str
    loss: float
    meta_loss: float | None


@dataclass(frozen=True)
class _TrustedBatch:
    """A batch of meta rows under the current backbone: features [M, D], verified labels [M], mean loss."""

    features: Tensor
    labels: Tensor
    loss: Tensor


class Training:
    """Backbone, corrector and ledger, and the state to stop and go on between two epochs.

    Random numbers come from (seed, epoch), so the epoch number is the whole random state.
    """

    def __init__(
        self,
        backbone: Backbone,
        corrector: Corrector,
        inputs: Inputs,
        rows: Rows,
        schedule: Schedule,
        compute: Compute,
        seed: int,
    ) -> None:
        self.backbone = backbone.to(compute.device).to(memory_format=compute.memory_format)
        self.corrector = corrector.to(compute.device)
        self.inputs = inputs
        self.rows = rows
        self.schedule = schedule
        self.compute = compute
        self.seed = seed
        self.epoch = 0
        self.ledger = Ledger(len(rows.given), backbone.head.out_features)
        self._warmup = Plain()
        self._steps = math.ceil(len(rows.train) / schedule.batch_size)
        decayed = [p for p in backbone.parameters() if p.ndim > 1]
        others = [p for p in backbone.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": others},
        ]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=schedule.learning_rate,
            momentum=0.9,
            nesterov=True,
        )
        self.meta_optimizer = (
            torch.optim.Adam(corrector.parameters(), lr=schedule.meta_learning_rate)
            if list(corrector.parameters())
            else None
        )

    def run(self, on_epoch: Callable[[EpochReport], None], on_step: Callable[[], None]) -> None:
        """Train until the last epoch, calling `on_step` after each batch and `on_epoch` after each epoch."""
        while self.epoch < self.schedule.epochs:
            on_epoch(self.run_epoch(on_step))

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self._steps

    def run_epoch(self, on_step: Callable[[], None] = lambda: None) -> EpochReport:
        """One pass over the training rows."""
        epoch, schedule = self.epoch, self.schedule
        generator = torch.Generator().manual_seed(_derive(self.seed, epoch))
        torch.manual_seed(_derive(self.seed, epoch) + 1)  # dropout draws from the global state
        corrected = self.meta_optimizer is not None and epoch >= schedule.warmup_epochs
        self.backbone.train()
        if corrected and epoch == schedule.warmup_epochs:
            self._begin_meta_phase(generator)
        if epoch == schedule.average_from:
            self.ledger.forget_predictions()
        trusted_batches = self._trusted_batches(generator) if corrected else None
        loss_sum = torch.zeros((), device=self.compute.device)
        meta_sum = torch.zeros((), device=self.compute.device)
        order = self.rows.train[torch.randperm(len(self.rows.train), generator=generator)]
        for step, index in enumerate(torch.tensor_split(order, self._steps)):
            rate = self._learning_rate(epoch * self._steps + step)
            given = self.rows.given[index].to(self.compute.device)
            # Before the noisy batch's forward: its backward needs BatchNorm's buffers as it left them.
            trusted = next(trusted_batches) if trusted_batches is not None else None
            logits, features = self._forward(index, generator)
            memory: Memory = {}
            corrector: Corrector = self._warmup
            if trusted is not None:
                corrector = self.corrector
                memory = self.ledger.read(index, self.compute.device)
                meta_sum += trusted.loss
                self._meta_step(logits, features, given, memory, rate, trusted)
            loss = corrector.loss(logits, given, memory).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            loss_sum += loss.detach()
            with torch.no_grad():
                logits = logits.detach()
                self.ledger.add_prediction(index, torch.softmax(logits, dim=1))
                self.ledger.write(index, corrector.remember(logits, given, memory))
            on_step()
        if epoch >= schedule.average_from:
            self._predict_unlabelled()
        mean_loss = loss_sum.item() / self._steps
        if not math.isfinite(mean_loss):
            raise RunError(f"The training loss is no longer finite in epoch {epoch + 1}.", "Lower --lr.")
        self.epoch += 1
        return EpochReport(
            epoch=epoch,
            epochs=schedule.epochs,
            phase="meta" if corrected else "train" if self.meta_optimizer is None else "warm-up",
            loss=mean_loss,
            meta_loss=meta_sum.item() / self._steps if corrected else None,
        )

    def _forward(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        batch = self.inputs.batch(index, self.compute.device, generator)
        alone = self.backbone.training and len(index) == 1  # BatchNorm needs two values to normalise
        with self.compute.autocast():
            logits, features = self.backbone(batch.repeat_interleave(2, dim=0) if alone else batch)
        return logits[: len(index)], features[: len(index)]

    def _begin_meta_phase(self, generator: torch.Generator) -> None:
        self.ledger.memory = self.corrector.begin(self.ledger.mean_probability())
        labelled = torch.zeros(len(self.rows.meta), dtype=torch.bool)
        inside = self.rows.meta < len(self.rows.given)
        labelled[inside] = self.rows.given[self.rows.meta[inside]] >= 0
        rows, true = self.rows.meta[labelled], self.rows.meta_labels[labelled]
        if len(rows):
            parts = [
                self._trusted_forward(index, generator)[0]
                for index in torch.tensor_split(rows, math.ceil(len(rows) / self.schedule.batch_size))
            ]
            device = self.compute.device
            self.corrector.warm_start(torch.cat(parts), self.rows.given[rows].to(device), true.to(device))

    def _trusted_forward(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Logits and features of trusted rows as training sees rows, leaving no trace in the backbone.

        BatchNorm takes the batch's own statistics, as it does for the noisy batch: while the rate is high
        the running ones lag so far behind that the features of the two would not compare.
        """
        devices = [self.compute.device] if self.compute.device.type == "cuda" else []
        buffers = [buffer.clone() for buffer in self.backbone.buffers()]
        with torch.no_grad(), torch.random.fork_rng(devices):
            logits, features = self._forward(index, generator)
            for buffer, before in zip(self.backbone.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return logits, features

    def _meta_step(
        self,
        logits: Tensor,
        features: Tensor,
        given: Tensor,
        memory: Memory,
        rate: float,
        trusted: _TrustedBatch,
    ) -> None:
        """One step of φ down the trusted loss after a look-ahead step."""
        assert self.meta_optimizer is not None
        parameters = list(self.corrector.parameters())
        gradients = hypergradient.last_layer(
            self.backbone.head,
            features.detach(),
            logits.detach(),
            lambda z: self.corrector.loss(z, given, memory),
            parameters,
            trusted.features,
            trusted.labels,
            rate,
        )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.meta_optimizer.step()

    def _trusted_batches(self, generator: torch.Generator) -> Iterator[_TrustedBatch]:
        """Endless shuffled batches of meta rows, each run through the backbone when it is asked for."""
        count = len(self.rows.meta)
        batches = math.ceil(count / self.schedule.meta_batch_size)
        while True:
            for rows in torch.tensor_split(torch.randperm(count, generator=generator), batches):
                logits, features = self._trusted_forward(self.rows.meta[rows], generator)
                labels = self.rows.meta_labels[rows].to(self.compute.device)
                yield _TrustedBatch(features, labels, F.cross_entropy(logits, labels))

    def _learning_rate(self, step: int) -> float:
        """One cycle: up over the first fifth of the steps, then down to zero, both linear (Smith 2018)."""
        total = self.schedule.epochs * self._steps
        rise = max(1, total // 5)
        share = (step + 1) / rise if step < rise else (total - step) / max(1, total - rise)
        rate = self.schedule.learning_rate * share
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _predict_unlabelled(self) -> None:
        for index, logits in self.predict(self.rows.unlabelled):
            self.ledger.add_prediction(index, torch.softmax(logits, dim=1))

    def predict(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(index [B], logits [B, C]) of `rows`, in evaluation mode, without augmentation."""
        self.backbone.eval()
        for start in range(0, len(rows), self.schedule.batch_size):
            index = rows[start : start + self.schedule.batch_size]
            with torch.no_grad():
                logits, _ = self._forward(index, None)
            yield index, logits

    def evidence(self) -> dict[str, NDArray[np.floating[Any]]]:
        """What training says of every row, as distributions [N, C] by name, for the calibration.

        `mean`: the epoch-averaged softmax; `last`: the finished backbone's, without augmentation. The
        corrector's own soft label is not among them: beside the average of a backbone it has taught it
        added nothing on TrashNet and cost 0.3 points on CIFAR-10N.
        """
        mean = self.ledger.mean_probability()
        last = torch.empty_like(mean)
        for index, logits in self.predict(torch.arange(len(mean))):
            last[index] = torch.softmax(logits, dim=1).cpu()
        return {"mean": mean.numpy(), "last": last.numpy()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if never stopped; tensors and plain values."""
        return {
            "epoch": self.epoch,
            "backbone": self.backbone.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "corrector": self.corrector.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict() if self.meta_optimizer else None,
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.epoch = state["epoch"]
        self.backbone.load_state_dict(state["backbone"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.corrector.load_state_dict(state["corrector"])
        if self.meta_optimizer:
            self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.ledger.load_state_dict(state["ledger"])


def _derive(seed: int, epoch: int) -> int:
    """A generator seed for an epoch: apart for neighbouring seeds, and the same on every machine."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % 2**62
