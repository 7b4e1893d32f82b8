"""What is remembered per sample from one epoch to the next, keyed by row index."""

from __future__ import annotations

import torch
from torch import Tensor


class Ledger:
    """Named tensors with one row per sample, plus the backbone's predictions: their running average and
    `latest` [N, C], the newest one, uniform before the first.

    Every training row is visited once per epoch, so a row's memory is read before it is written and the
    result does not depend on the order of the rows within the epoch.

    The average is over epochs, of the softmax that the training forward computes anyway: it costs no
    extra pass, each epoch sees the image under another augmentation, and it keeps what the network knew
    before it began to memorise wrong labels (Tanaka et al. 2018, eq. 2, average likewise).

    It lives in host memory, however large the data: on an accelerator each step waits for its copy.
    """

    def __init__(self, num_rows: int, num_classes: int) -> None:
        self.num_classes = num_classes
        self.probability_sum = torch.zeros(num_rows, num_classes)
        self.visits = torch.zeros(num_rows)
        self.latest = torch.full((num_rows, num_classes), 1.0 / num_classes)
        self.memory: dict[str, Tensor] = {}

    def add_prediction(self, index: Tensor, probability: Tensor) -> None:
        """Add one epoch's softmax `probability` [B, C] of rows `index` [B] to their averages."""
        index, probability = index.cpu(), probability.detach().float().cpu()
        self.probability_sum[index] += probability
        self.visits[index] += 1
        self.latest[index] = probability

    def forget_predictions(self) -> None:
        """Start the average anew."""
        self.probability_sum.zero_()
        self.visits.zero_()

    def mean_probability(self) -> Tensor:
        """Epoch-averaged softmax [N, C]; uniform for rows never visited."""
        uniform = torch.full((1, self.num_classes), 1.0 / self.num_classes)
        return torch.where(
            self.visits[:, None] > 0, self.probability_sum / self.visits.clamp(min=1)[:, None], uniform
        )

    def read(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Every memory's rows `index` [B], on `device`."""
        index = index.cpu()
        return {name: values[index].to(device) for name, values in self.memory.items()}

    def write(self, index: Tensor, values: dict[str, Tensor]) -> None:
        """Replace the memory rows `index` [B] by `values`."""
        index = index.cpu()
        for name, value in values.items():
            self.memory[name][index] = value.detach().to("cpu", self.memory[name].dtype)

    def state_dict(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """Everything `load_state_dict` needs to go on."""
        return {
            "probability_sum": self.probability_sum,
            "visits": self.visits,
            "latest": self.latest,
            "memory": self.memory,
        }

    def load_state_dict(self, state: dict[str, Tensor | dict[str, Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        self.probability_sum = state["probability_sum"]  # type: ignore[assignment]
        self.visits = state["visits"]  # type: ignore[assignment]
        self.latest = state["latest"]  # type: ignore[assignment]
        self.memory = state["memory"]  # type: ignore[assignment]
