"""What one run is asked to do: the flags of `relabel fit` as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from relabel.errors import RelabelError


@dataclass(frozen=True)
class FitConfig:
    """`relabel fit`: None means "decide from the data"; every other default is the flag's default."""

    source: str
    trusted: Path
    labels: Path | None = None
    corrector: str = "mslc"
    backbone: str | None = None
    weights: str = "none"
    freeze: bool = False
    image_size: int | None = None
    augment: str = "flip"
    epochs: int | None = None
    warmup: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    precision: float = 0.95
    seed: int = 0
    device: str = "auto"
    amp: str = "auto"
    checkpoint: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        if not 0 < self.precision < 1:
            raise RelabelError(f"--precision {self.precision}: must lie between 0 and 1.", "Use 0.95, say.")
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise RelabelError(f"--image-size {self.image_size}: must lie between 8 and 1024.")
        for flag, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            if value is not None and value < 2:
                raise RelabelError(f"{flag} {value}: must be at least 2.")
        if self.warmup is not None and not 1 <= self.warmup < (self.epochs or self.warmup + 1):
            raise RelabelError(f"--warmup {self.warmup}: must lie between 1 and the number of epochs.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise RelabelError(f"--lr {self.learning_rate}: must be a positive number.")
        if not 0 <= self.seed < 2**63:
            raise RelabelError(f"--seed {self.seed}: must lie between 0 and 2^63 - 1.")
        if self.freeze and self.weights == "none":
            raise RelabelError(
                "--freeze needs a pretrained backbone.", "Add --weights imagenet or --weights PATH."
            )
