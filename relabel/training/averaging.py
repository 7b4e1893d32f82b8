"""Mean weights over a span of epochs (Izmailov et al., Averaging Weights Leads to Wider Optima, 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from relabel.backbones import Backbone

_Tensors = tuple[Tensor, ...] | list[Tensor]


def last_epochs(end: int, share: float) -> range:
    """The last epochs before `end`, so many that they are this share of those before it."""
    return range(end - math.ceil(end * share), end)


class WeightAverage:
    """The running mean of a backbone's weights and buffers after every step of some epochs."""

    def __init__(self, epochs: range) -> None:
        self.epochs = epochs
        self._average: AveragedModel | None = None

    def update(self, epoch: int, backbone: Backbone) -> None:
        """Count the weights after a step, if it is one of these epochs'."""
        if epoch in self.epochs:
            self._average = self._average or _average_of(backbone)
            self._average.update_parameters(backbone)

    @property
    def backbone(self) -> Backbone | None:
        """The backbone with the mean weights; None before the first of the epochs."""
        if self._average is None:
            return None
        average = self._average.module
        assert isinstance(average, Backbone)
        return average

    def clear(self) -> None:
        """Give up the mean, whose copy of the backbone nothing needs any more."""
        self._average = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs; empty without a mean."""
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], backbone: Backbone) -> None:
        """Restore what `state_dict` returned; backbone: one of the same shape."""
        self._average = None
        if state:
            self._average = _average_of(backbone)
            self._average.load_state_dict(state)


def _average_of(backbone: Backbone) -> AveragedModel:
    """The running mean of a backbone's weights and buffers, none yet.

    BatchNorm's count of its batches, an integer, has no mean: torch's own function fails on it. The other one
    that torch takes, for one tensor at a time, waits for a GPU at every tensor.
    """
    of_floats = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def mean(before: _Tensors, newest: _Tensors, count: Tensor | int) -> None:
        if before[0].is_floating_point():
            of_floats(before, newest, count)
        else:
            for average, value in zip(before, newest, strict=True):
                average.copy_(value)

    return AveragedModel(backbone, multi_avg_fn=mean, use_buffers=True)
