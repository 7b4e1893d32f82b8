"""The training loop: warm-up on the given labels, then the meta phase with a corrector.

One pass over the training rows is an epoch. Per batch of the meta phase: the backbone's forward; a step of φ
on a trusted batch, through a look-ahead step (`meta_step`) or directly; the backbone's step on the corrected
targets, reusing the same forward; the sample memory.

The look-ahead of `exact` has already found the gradient that the backbone needs, so both levels then step at
once: the backbone follows the soft labels of φ before its step, where the papers' algorithms let it wait for
those after. That saves a backward pass. MetaLabelNet, whose look-ahead has another loss, still waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from relabel.backbones import Backbone, evaluate, frozen_features
from relabel.correctors.base import Corrector, Epoch, Learning, Needs, WarmUp
from relabel.correctors.plain import Plain
from relabel.data.batches import Inputs
from relabel.device import Compute, upload
from relabel.errors import DivergedError
from relabel.sample_memory import DeferredWrites, ProbabilityStore, SampleMemory
from relabel.schedule import HEAD_START, Schedule, averaged_epochs
from relabel.training.averaging import WeightAverage, last_epochs
from relabel.training.checkpoint import load_passing_buffers, passing_buffers
from relabel.training.linearize import linearizable
from relabel.training.meta_step import MetaLearner, constant, forward, learned, shuffled_batches
from relabel.training.rows import Rows

_MOMENTUM = 0.9  # as in all four papers


@dataclass(frozen=True)
class EpochReport:
    """What one epoch looked like: index from 0, mean training loss, mean trusted loss of the meta phase."""

    epoch: int
    epochs: int
    phase: str
    loss: float
    meta_loss: float | None


class Training:
    """Backbone, corrector and sample memory, and the state to stop and go on between two epochs.

    frozen: the corrector corrects as it is, and no trusted row is read.
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
        frozen: bool = False,
    ) -> None:
        self.backbone = backbone.to(compute.device).to(memory_format=compute.memory_format)
        self.corrector = corrector.to(compute.device)
        self.needs = corrector.needs.frozen if frozen else corrector.needs
        self.inputs, self.rows, self.schedule, self.compute = inputs, rows, schedule, compute
        self.seed, self.frozen, self.epoch = seed, frozen, 0
        self.sample_memory = SampleMemory(len(rows.given), backbone.head.out_features)
        self.optimizer = _sgd(backbone, schedule)
        self.meta: MetaLearner | None = None  # nor for a corrector that has no parameters
        if self.needs.learning is not Learning.NOT and learned(corrector):
            self.meta = MetaLearner(corrector, backbone, inputs, rows, schedule, compute)
        self._plain = Plain(backbone.head.out_features, backbone.head.in_features)
        self._warmup_average = WeightAverage(last_epochs(schedule.warmup_epochs, schedule.averaged_weights))
        self._average = WeightAverage(last_epochs(schedule.epochs, schedule.averaged_model))

    def run(self, on_epoch: Callable[[EpochReport], None], on_step: Callable[[], None]) -> None:
        """Train until the last epoch, calling `on_step` after each batch and `on_epoch` after each epoch."""
        while self.epoch < self.schedule.epochs:
            on_epoch(self.run_epoch(on_step))

    def run_epoch(self, on_step: Callable[[], None] = lambda: None) -> EpochReport:
        """One pass over the training rows."""
        epoch, schedule, memory = self.epoch, self.schedule, self.sample_memory
        corrects = _corrects(self.needs, schedule, epoch)
        generator = torch.Generator().manual_seed(_derive(self.seed, epoch))
        torch.manual_seed(_derive(self.seed, epoch) + 1)  # dropout draws from the global state
        meta_batches = shuffled_batches(len(self.rows.meta), schedule.meta_batch_size, generator)
        if corrects and epoch == schedule.warmup_epochs:
            self._begin_meta_phase(meta_batches)
        early, late = averaged_epochs(schedule.epochs)
        if epoch == early.start:
            memory.forget_predictions()
        if epoch == late.start:
            memory.put_aside()

        self.backbone.train()
        rows = self.rows.trained(self.needs, corrects)
        steps = _steps(len(rows), schedule)
        order = rows[torch.randperm(len(rows), generator=generator)]
        loss_sum = torch.zeros((), device=self.compute.device)
        trusted_losses: list[Tensor] = []
        writes = DeferredWrites(memory)
        for step, index in enumerate(torch.tensor_split(order, steps)):
            rate = schedule.learning_rate_at(epoch + step / steps, 1 / steps, corrects)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            meta_step = corrects and self.meta is not None and step % schedule.meta_every == 0
            meta_batch = next(meta_batches) if meta_step else None
            loss, trusted_loss = self._step(index, meta_batch, rate, generator, writes)
            loss_sum += loss  # not `.item()`, which waits for the device
            if trusted_loss is not None:
                trusted_losses.append(trusted_loss)
            for average in (self._warmup_average, self._average):
                average.update(epoch, self.backbone)
            on_step()
        writes.flush()
        mean_loss = loss_sum.item() / steps
        if not math.isfinite(mean_loss):
            raise _diverged(self, f"The training loss is no longer finite in epoch {epoch + 1}.")

        self._finish_epoch(averaged=epoch >= early.start)
        return EpochReport(
            epoch=epoch,
            epochs=schedule.epochs,
            phase="meta" if corrects else "warm-up" if self.needs.corrects else "train",
            loss=mean_loss,
            meta_loss=torch.stack(trusted_losses).mean().item() if trusted_losses else None,
        )

    def _step(
        self,
        index: Tensor,
        meta_batch: Tensor | None,
        rate: float,
        generator: torch.Generator,
        writes: DeferredWrites,
    ) -> tuple[Tensor, Tensor | None]:
        """One step of the backbone on rows `index` [B], after one of φ on a meta batch; both mean losses."""
        meta, device = self.meta, self.compute.device
        corrects = _corrects(self.needs, self.schedule, self.epoch)
        corrector = self.corrector if corrects else self._plain
        trusted, trusted_loss = None, None
        followed: Mapping[str, Tensor] = {}
        if meta is not None and meta_batch is not None:
            if self.needs.looks_ahead:
                trusted = meta.trusted_batch(meta_batch, generator)
            else:
                trusted_loss = meta.direct_step(meta_batch, self.sample_memory)

        given = upload(self.rows.given[index], device)
        with linearizable() if trusted and meta and meta.exact else nullcontext():
            inputs = self.inputs.batch(index, device, generator)
            logits, features = forward(self.backbone, inputs, self.compute)
        memory = self.sample_memory.read(index, device) if corrects else {}
        if trusted and meta:
            found = meta.look_ahead_step(
                (logits, features), lambda z: corrector.virtual_loss(z, given, memory), trusted, rate
            )
            trusted_loss = found.trusted_loss
            if type(corrector).virtual_loss is Corrector.virtual_loss:
                followed = found.backbone_gradients

        self.optimizer.zero_grad(set_to_none=True)
        with constant(corrector):
            loss = corrector.loss(logits.detach() if followed else logits, given, memory).mean()
        if followed:
            for name, gradient in followed.items():
                self.backbone.get_parameter(name).grad = gradient
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            logits = logits.detach()
            remembered = corrector.remember(logits, given, memory)
            writes.add(index, torch.softmax(logits, dim=1), remembered)
        return loss.detach(), trusted_loss

    def _begin_meta_phase(self, meta_batches: Iterator[Tensor]) -> None:
        average = self._warmup_average.backbone
        if average is not None:
            self.backbone.load_state_dict(average.state_dict())
            self._warmup_average.clear()
        warm_up = WarmUp(
            mean_probability=self.sample_memory.mean,
            probability=self.sample_memory.latest,
            given=self.rows.given,
            head=self.backbone.head,
            features=cache(partial(frozen_features, self.backbone, self.inputs, self.compute)),
            meta=self.rows.meta,
            in_training=self.rows.in_training,
        )
        if not self.frozen:
            self.corrector.initialise(warm_up)
        self.sample_memory.memory |= self.corrector.begin(warm_up)
        if self.meta is not None and self.needs.learning is Learning.DIRECT:
            for _ in range(HEAD_START):
                self.meta.direct_step(next(meta_batches), self.sample_memory)

    def _finish_epoch(self, averaged: bool) -> None:
        """Predict the unlabelled rows where something asks for it, and show the epoch to the corrector.

        averaged: whether the epoch is in a window of the temporal ensemble.
        """
        memory, corrects = self.sample_memory, _corrects(self.needs, self.schedule, self.epoch)
        trained_on = corrects and not self.needs.given_labels
        if (averaged or self.needs.unlabelled_predictions) and not trained_on:
            for index, logits in self.predict(self.rows.unlabelled):
                memory.add_prediction(index, torch.softmax(logits, dim=1))
        trained = torch.zeros(len(self.rows.given), dtype=torch.bool)
        trained[self.rows.train] = True
        finished = Epoch(
            number=self.epoch,
            probability=memory.latest,
            trained=trained,
            given=self.rows.given,
            memory=memory.memory,
            meta=self.rows.meta,
            in_training=self.rows.in_training,
        )
        memory.memory |= self.corrector.observe(finished)
        self.epoch += 1

    def steps_before(self, epoch: int) -> int:
        """Batches of the epochs before `epoch`; before `schedule.epochs`, those of the whole run."""
        phases = (_corrects(self.needs, self.schedule, earlier) for earlier in range(epoch))
        return sum(_steps(len(self.rows.trained(self.needs, phase)), self.schedule) for phase in phases)

    def predict(self, rows: Tensor, backbone: Backbone | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(index [B], logits [B, C]) of `rows`, in evaluation mode, without augmentation.

        backbone: by default, the one that is trained. Raises DivergedError for logits that are not finite,
        which a finite loss, of batches normalised by their own statistics, does not rule out.
        """
        backbone, batch_size = backbone or self.backbone, self.schedule.batch_size
        for index, logits, _ in evaluate(backbone, self.inputs, self.compute, rows, batch_size):
            if not torch.isfinite(logits).all():
                raise _diverged(self, "The network's predictions are no longer finite.")
            yield index, logits

    def evidence(self) -> dict[str, ProbabilityStore]:
        """What training says of every row, as distributions [N, C] by name, for the calibration.

        `early`, `late`: the temporal ensemble's two windows, the softmax averaged over each of the
        `averaged_epochs`; `last`: the finished backbone's, without augmentation. With two windows the
        calibration stops early, as it were, as far as memorised labels ask for it. The corrector's own soft
        label is not among the evidence: beside a backbone that it has taught it adds nothing (see
        examples/RESULTS.md, "Two windows of the temporal ensemble").
        """
        last = ProbabilityStore(*self.sample_memory.mean.shape)
        for index, logits in self.predict(torch.arange(len(last))):
            last[index] = torch.softmax(logits, dim=1).cpu()
        return {"early": self.sample_memory.early, "late": self.sample_memory.mean, "last": last}

    @property
    def averaged(self) -> Backbone | None:
        """The backbone with the mean of the run's last weights, None where the schedule asks for none."""
        return self._average.backbone

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if never stopped; tensors and plain values."""
        return {
            "epoch": self.epoch,
            "backbone": self.backbone.state_dict(),
            "averages": [average.state_dict() for average in (self._warmup_average, self._average)],
            "optimizer": self.optimizer.state_dict(),
            "corrector": self.corrector.state_dict(),
            "passing_buffers": passing_buffers(self.corrector),
            "meta_optimizer": self.meta.optimizer.state_dict() if self.meta else None,
            "sample_memory": self.sample_memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.epoch = state["epoch"]
        self.backbone.load_state_dict(state["backbone"])
        averages = (self._warmup_average, self._average)
        for average, values in zip(averages, state["averages"], strict=True):
            average.load_state_dict(values, self.backbone)
        self.optimizer.load_state_dict(state["optimizer"])
        self.corrector.load_state_dict(state["corrector"])
        load_passing_buffers(self.corrector, state["passing_buffers"], self.compute.device)
        if self.meta:
            self.meta.optimizer.load_state_dict(state["meta_optimizer"])
        self.sample_memory.load_state_dict(state["sample_memory"])


def _corrects(needs: Needs, schedule: Schedule, epoch: int) -> bool:
    """Whether an epoch is one of the meta phase."""
    return needs.corrects and epoch >= schedule.warmup_epochs


def _steps(rows: int, schedule: Schedule) -> int:
    return math.ceil(rows / schedule.batch_size)


def _sgd(backbone: Backbone, schedule: Schedule) -> torch.optim.SGD:
    """Biases and the parameters of norms, which have one dimension, do not decay."""
    decayed = [p for p in backbone.parameters() if p.ndim > 1]
    others = [p for p in backbone.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": schedule.weight_decay or 0.0},
        {"params": others},
    ]
    return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=_MOMENTUM, nesterov=True)


def _diverged(training: Training, what: str) -> DivergedError:
    learns = training.meta and _corrects(training.needs, training.schedule, training.epoch)
    return DivergedError(what, "Lower --lr or --meta-lr." if learns else "Lower --lr.")


def _derive(seed: int, epoch: int) -> int:
    """A generator seed for an epoch: apart for neighbouring seeds, and the same on every machine."""
    return (seed * 1_000_003 + epoch * 7_919 + 17) % 2**62
