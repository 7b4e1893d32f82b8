"""What is remembered per sample from one epoch to the next, keyed by row index.

What there is of a row is stated in bytes where it is kept, for that is what a large collection costs:
arrays of 32 MB and more lie in mapped temporary files, on disk and not in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relabel.device import upload
from relabel.files import scratch_array

_MAPPED_FROM = 2**25  # bytes
_DENSE_CLASSES = 64
_LIKELIEST = 32  # classes of a row, where there are more
_BLOCK = 2**21  # values of one block of rows
_DEFERRED = 2**18  # values of predictions that wait to be written


def per_sample(num_rows: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros [num_rows, *shape], in a mapped temporary file when they are large."""
    values = torch.zeros((), dtype=dtype)
    size = (num_rows, *shape)
    if values.element_size() * torch.Size(size).numel() < _MAPPED_FROM:
        return torch.zeros(size, dtype=dtype)
    return torch.from_numpy(scratch_array(size, values.numpy().dtype))


def class_type(num_classes: int) -> torch.dtype:
    """The type that class ids are kept in."""
    return torch.int16 if num_classes <= torch.iinfo(torch.int16).max else torch.int32


def blocks(num_rows: int, width: int) -> Iterator[slice]:
    """All rows in order, a few million values at a time where a row has `width` of them."""
    step = max(1, _BLOCK // width)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


class ProbabilityStore:
    """A distribution over C classes for every row, uniform at first.

    Of up to 64 classes all shares are kept, as float32: 4·C bytes a row. Of more, the 32 largest, as
    float16, and which they are: 128 bytes a row. What they leave is spread evenly over the other classes.
    """

    def __init__(self, num_rows: int, num_classes: int) -> None:
        self.shape = (num_rows, num_classes)
        self._kept: Tensor | None = None
        if num_classes <= _DENSE_CLASSES:
            self._shares = per_sample(num_rows, num_classes)
        else:
            self._shares = per_sample(num_rows, _LIKELIEST, dtype=torch.float16)
            self._kept = per_sample(num_rows, _LIKELIEST, dtype=class_type(num_classes))
            self._kept += torch.arange(_LIKELIEST, dtype=self._kept.dtype)
        self._shares += 1 / num_classes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """The rows `index`, a slice or [B], as float32 [B, C]."""
        shares = self._shares[index]
        if self._kept is None:
            return shares
        shares = shares.float()
        rest = (1 - shares.sum(dim=1, keepdim=True)).clamp(min=0) / (self.shape[1] - _LIKELIEST)
        whole = rest.expand(-1, self.shape[1]).scatter(1, self._kept[index].long(), shares)
        return whole / whole.sum(dim=1, keepdim=True)  # halves do not sum to 1 exactly

    def __setitem__(self, index: slice | Tensor, probability: Tensor) -> None:
        """Replace the rows `index`, a slice or [B], by `probability` [B, C]."""
        if self._kept is None:
            self._shares[index] = probability
        else:
            largest = probability.topk(_LIKELIEST, dim=1, sorted=False)
            self._shares[index] = largest.values.to(self._shares.dtype)
            self._kept[index] = largest.indices.to(self._kept.dtype)

    def clone(self) -> ProbabilityStore:
        """A copy."""
        copy = ProbabilityStore(*self.shape)
        copy.load_state_dict(self.state_dict())
        return copy

    def state_dict(self) -> dict[str, Tensor]:
        """Everything `load_state_dict` needs."""
        return {"shares": self._shares} | ({} if self._kept is None else {"kept": self._kept})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` of another one of this shape returned."""
        self._shares.copy_(state["shares"])
        if self._kept is not None:
            self._kept.copy_(state["kept"])


class History:
    """What a few epochs left of every row, `capacity` of them at most: `history[index]` is [B, epochs, ...],
    oldest first.

    What there is of one row lies side by side: a batch is read at once, and a row from one page of a mapped
    file.
    """

    def __init__(self, num_rows: int, capacity: int, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self._values = per_sample(num_rows, capacity, *shape, dtype=dtype)
        self._places: list[int] = []

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        # Three times as fast as `_values[index]` for a batch.
        rows = self._values[index] if isinstance(index, slice) else self._values.index_select(0, index)
        return rows.index_select(1, torch.tensor(self._places, dtype=torch.int64))

    def keep(self, epochs: Sequence[int]) -> None:
        """Forget all epochs but these, counted from the oldest, which is 0."""
        self._places = [self._places[epoch] for epoch in epochs]

    def add(self) -> Tensor:
        """Begin another epoch, the newest; returns its values [N, ...], to be written."""
        free = set(range(self._values.shape[1])) - set(self._places)
        self._places.append(min(free))
        return self._values[:, self._places[-1]]

    def state_dict(self) -> dict[str, Any]:
        """Everything `restored` needs."""
        return {"values": self._values, "places": self._places}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> History:
        """The history that `state_dict` was of, with values of its own."""
        values = state["values"]
        made = cls(len(values), *values.shape[1:], dtype=values.dtype)
        made._values.copy_(values)
        made._places = list(state["places"])
        return made


PerSample = Tensor | ProbabilityStore | History
"""One entry a row: `values[index]` are the rows `index` [B] of it."""


class SampleMemory:
    """Named memories of a corrector with one entry per sample, and the backbone's predictions: `mean`
    [N, C], their running average, `early` [N, C], the average that was put aside, and `latest` [N, C], the
    newest one; all uniform before the first.

    Every training row is visited once per epoch, so a row's memory is read before it is written and the
    result does not depend on the order of the rows within the epoch.

    The average is over epochs, of the softmax that the training forward computes anyway: it costs no
    extra pass, each epoch sees the image under another augmentation, and it keeps what the network knew
    before it began to memorise wrong labels (Tanaka et al. 2018, eq. 2, average likewise).

    It lives in host memory and on disk: what comes from an accelerator is waited for.
    """

    def __init__(self, num_rows: int, num_classes: int) -> None:
        self.mean = ProbabilityStore(num_rows, num_classes)
        self.latest = ProbabilityStore(num_rows, num_classes)
        self.early = ProbabilityStore(num_rows, num_classes)
        self.visits = torch.zeros(num_rows)
        self.memory: dict[str, PerSample] = {}

    def add_prediction(self, index: Tensor, probability: Tensor) -> None:
        """Add one epoch's softmax `probability` [B, C] of rows `index` [B] to their averages."""
        index, probability = index.cpu(), probability.detach().float().cpu()
        self.visits[index] += 1
        mean = self.mean[index]
        self.mean[index] = mean + (probability - mean) / self.visits[index, None]
        self.latest[index] = probability

    def forget_predictions(self) -> None:
        """Start the averages anew: the next prediction of a row will be the whole of its average."""
        self.visits.zero_()

    def put_aside(self) -> None:
        """Keep the average so far as `early`, and start anew."""
        self.early.load_state_dict(self.mean.state_dict())
        self.forget_predictions()

    def read(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Every memory's rows `index` [B], on `device`."""
        index = index.cpu()
        return {name: upload(values[index], device) for name, values in self.memory.items()}

    def write(self, index: Tensor, values: Mapping[str, Tensor]) -> None:
        """Replace the memory rows `index` [B] by `values`."""
        index = index.cpu()
        for name, value in values.items():
            memory = self.memory[name]
            assert not isinstance(memory, History)
            if isinstance(memory, ProbabilityStore):
                memory[index] = value.detach().float().cpu()
            else:
                memory[index] = value.detach().to("cpu", memory.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs to go on; tensors in plain dictionaries."""
        memory = {
            name: values if isinstance(values, Tensor) else values.state_dict()
            for name, values in self.memory.items()
        }
        return {
            "mean": self.mean.state_dict(),
            "early": self.early.state_dict(),
            "latest": self.latest.state_dict(),
            "visits": self.visits,
            "memory": memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.mean.load_state_dict(state["mean"])
        self.early.load_state_dict(state["early"])
        self.latest.load_state_dict(state["latest"])
        self.visits.copy_(state["visits"])
        self.memory = {}
        for name, values in state["memory"].items():
            if isinstance(values, Tensor):
                self.memory[name] = per_sample(*values.shape, dtype=values.dtype).copy_(values)
            elif "places" in values:
                self.memory[name] = History.restored(values)
            else:
                restored = ProbabilityStore(*self.mean.shape)
                restored.load_state_dict(values)
                self.memory[name] = restored


class DeferredWrites:
    """What the steps of an epoch leave to a sample memory, handed over many values at a time.

    No row comes twice in an epoch, so a write may wait; an accelerator is then waited for seldom.
    """

    def __init__(self, memory: SampleMemory) -> None:
        self._memory = memory
        self._waiting: list[tuple[Tensor, Tensor, Mapping[str, Tensor]]] = []

    def add(self, index: Tensor, probability: Tensor, memory: Mapping[str, Tensor]) -> None:
        """Note the softmax [B, C] and the memory of rows `index` [B]; handed over once they are many."""
        self._waiting.append((index, probability, memory))
        if len(self._waiting) * probability.numel() >= _DEFERRED:
            self.flush()

    def flush(self) -> None:
        """Hand over what is waiting."""
        if not self._waiting:
            return
        indices, probabilities, memories = zip(*self._waiting, strict=True)
        self._waiting = []
        index = torch.cat(indices)
        self._memory.add_prediction(index, torch.cat(probabilities))
        self._memory.write(index, {name: torch.cat([m[name] for m in memories]) for name in memories[0]})
