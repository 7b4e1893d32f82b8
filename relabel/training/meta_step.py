"""Steps of a corrector's parameters φ on trusted rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from relabel.backbones import Backbone, untracked
from relabel.correctors.base import Corrector
from relabel.data.batches import Inputs
from relabel.device import Compute, upload
from relabel.sample_memory import SampleMemory
from relabel.schedule import Schedule
from relabel.training.hypergradient import (
    HYPERGRADIENTS,
    Hypergradient,
    LookAhead,
    LossFunction,
    TrustedBatch,
)
from relabel.training.rows import Rows

_OPTIMIZERS: dict[str, type[torch.optim.Adam] | type[torch.optim.SGD]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,  # plain gradient descent
}


class MetaLearner:
    """φ of a corrector with the optimizer that moves it, and the trusted rows that it learns from."""

    def __init__(
        self,
        corrector: Corrector,
        backbone: Backbone,
        inputs: Inputs,
        rows: Rows,
        schedule: Schedule,
        compute: Compute,
    ) -> None:
        self.corrector, self.backbone, self.inputs = corrector, backbone, inputs
        self.rows, self.schedule, self.compute = rows, schedule, compute
        self.parameters = learned(corrector)
        self.optimizer = _OPTIMIZERS[schedule.meta_optimizer](
            self.parameters, lr=schedule.meta_learning_rate, weight_decay=schedule.meta_weight_decay
        )
        self.exact = schedule.meta_gradient == "exact"

    def direct_step(self, batch: Tensor, memory: SampleMemory) -> Tensor:
        """One step down the corrector's own loss on a batch [M] of the meta rows; returns the loss."""
        rows, device = self.rows.meta.rows[batch], self.compute.device
        loss = self.corrector.trusted_loss(
            upload(self.rows.given[rows], device),
            upload(self.rows.meta.true[batch], device),
            memory.read(rows, device),
        )
        self._follow(torch.autograd.grad(loss, self.parameters, allow_unused=True))
        return loss.detach()

    def trusted_batch(self, batch: Tensor, generator: torch.Generator) -> TrustedBatch:
        """The inputs and true labels of a batch [M] of the meta rows, to judge a look-ahead step."""
        if len(batch) == 1:
            batch = batch.repeat(2)  # BatchNorm needs two values to normalise, and the mean stays
        inputs = self.inputs.batch(self.rows.meta.rows[batch], self.compute.device, generator)
        labels = upload(self.rows.meta.true[batch], self.compute.device)
        return TrustedBatch(inputs, labels, None if self.exact else self._features(inputs))

    def look_ahead_step(
        self, outputs: tuple[Tensor, Tensor], virtual_loss: LossFunction, trusted: TrustedBatch, rate: float
    ) -> Hypergradient:
        """One step down the trusted loss after a look-ahead step of the backbone.

        outputs: logits [B, C] and features [B, D] of the noisy batch; rate: the backbone's current one.
        """
        step = LookAhead(
            self.backbone,
            *outputs,
            virtual_loss,
            self.parameters,
            trusted,
            self.schedule.virtual_learning_rate or rate,
            self.compute.autocast,
        )
        found = HYPERGRADIENTS[self.schedule.meta_gradient](step)
        self._follow(found.gradients)
        return found

    def _features(self, inputs: Tensor) -> Tensor:
        """Features [M, D] of trusted inputs as training sees them, leaving no trace in the backbone.

        BatchNorm takes the batch's own statistics, as it does for the noisy batch: while the rate is high
        the running ones lag so far behind that the features of the two would not compare.
        """
        devices = [self.compute.device] if self.compute.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), untracked(self.backbone):
            return forward(self.backbone, inputs, self.compute)[1]

    def _follow(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.corrector.project()


def forward(backbone: Backbone, inputs: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Logits [B, C] and features [B, D] in the backbone's present mode, of a batch of one too."""
    alone = backbone.training and len(inputs) == 1  # BatchNorm needs two values to normalise
    with compute.autocast():
        logits, features = backbone(inputs.repeat_interleave(2, dim=0) if alone else inputs)
    return logits[: len(inputs)], features[: len(inputs)]


def learned(corrector: Corrector) -> list[torch.nn.Parameter]:
    """φ: the parameters that are not a copy kept for comparison."""
    return [parameter for parameter in corrector.parameters() if parameter.requires_grad]


@contextmanager
def constant(corrector: Corrector) -> Iterator[None]:
    """φ as a constant: the backbone's step needs no graph to it."""
    parameters = learned(corrector)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def shuffled_batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled batches of positions below `rows`, all of them once in every round."""
    while True:
        yield from torch.tensor_split(torch.randperm(rows, generator=generator), math.ceil(rows / batch_size))
