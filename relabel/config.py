"""What one run is asked to do: a command's flags as one value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from relabel.errors import RelabelError

META_GRADIENTS = ("last-layer", "exact")
DEFAULT_CORRECTOR = "tmlc"
DEFAULT_AUGMENTATION = "flip"
SHIPPED_CORRECTOR = Path(__file__).parent / "pretrained" / "tmlc.pt"
CORRECTOR_FOR_OTHER_IMAGES = "mslc"
"""The default where the verified images are not those of SOURCE."""


@dataclass(frozen=True)
class SourceOptions:
    """How SOURCE is to be read, beside its place; None means the default, or what is found there.

    classes: a file with one name a line, or names with commas between them; features: the columns of vectors,
    None where SOURCE holds images; config: one of the configurations of a Hub data set; streaming: keep only
    decoded images of it.
    """

    classes: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    trusted_column: str | None = None
    features: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False

    def given(self) -> list[str]:
        """The flags that were given."""
        return ["--" + name.replace("_", "-") for name, value in vars(self).items() if value]


@dataclass(frozen=True)
class FitConfig:
    """`relabel fit` and `relabel apply`; None means the recipe's, or decided from the data.

    trusted: None for no verified row, which takes a corrector that learns nothing from any; pretrained: a
    corrector file whose corrector is used as it is (`apply`); reading: what else SOURCE needs to be read.
    keep_model: whether `FitResult.model` is wanted, for whose calibration a share of the verified rows stays
    out of the training. cache: keep decoded images on disk; the result is the same without.
    """

    source: str
    trusted: Path | None = None
    pretrained: Path | None = None
    labels: Path | None = None
    reading: SourceOptions = field(default_factory=SourceOptions)
    corrector: str | None = None
    preset: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    backbone: str | None = None
    weights: str = "none"
    freeze: bool = False
    image_size: int | None = None
    augment: str | None = None
    cache: bool = True
    epochs: int | None = None
    warmup: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    meta_gradient: str = "last-layer"
    meta_every: int | None = None
    meta_batch_size: int | None = None
    meta_learning_rate: float | None = None
    precision: float = 0.95
    seed: int = 0
    device: str = "auto"
    amp: str = "auto"
    keep_model: bool = False
    checkpoint: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        if self.meta_gradient not in META_GRADIENTS:
            raise RelabelError(
                f"--meta-gradient {self.meta_gradient}: there is no such one.",
                f"Use {' or '.join(META_GRADIENTS)}.",
            )
        _check_trusted(self)
        _check_precision(self.precision)
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise RelabelError(f"--image-size {self.image_size}: must lie between 8 and 1024.")
        for flag, value, least in (
            ("--epochs", self.epochs, 2),
            ("--batch-size", self.batch_size, 2),
            ("--meta-every", self.meta_every, 1),
            ("--meta-batch-size", self.meta_batch_size, 1),
        ):
            if value is not None and value < least:
                raise RelabelError(f"{flag} {value}: must be at least {least}.")
        if self.warmup is not None and not 1 <= self.warmup < (self.epochs or self.warmup + 1):
            raise RelabelError(
                f"--warmup {self.warmup}: must be at least 1 and less than the number of epochs."
            )
        for flag, rate in (("--lr", self.learning_rate), ("--meta-lr", self.meta_learning_rate)):
            if rate is not None and not 0 < rate < math.inf:
                raise RelabelError(f"{flag} {rate}: must be a positive number.")
        if not 0 <= self.seed < 2**63:
            raise RelabelError(f"--seed {self.seed}: must lie between 0 and 2^63 - 1.")
        _check_backbone(self)
        if self.freeze and self.weights == "none":
            raise RelabelError(
                "--freeze needs a pretrained backbone.", "Add --weights imagenet or --weights PATH."
            )
        if self.freeze and self.augment is not None:
            raise RelabelError(
                f"--augment {self.augment}: with --freeze each image is seen once, as it is.", "Leave it out."
            )

    @property
    def has_trusted(self) -> bool:
        """Whether verified rows were named."""
        return self.trusted is not None or self.reading.trusted_column is not None


@dataclass(frozen=True)
class PredictConfig:
    """`relabel predict`; the defaults are the flags'."""

    source: str
    model: Path
    labels: Path | None = None
    reading: SourceOptions = field(default_factory=SourceOptions)
    cache: bool = True
    precision: float = 0.95
    device: str = "auto"
    amp: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        _check_precision(self.precision)
        if not self.cache and self.reading.features is not None:
            raise _for_images("--no-cache", self.reading.features)


def _check_trusted(config: FitConfig) -> None:
    """Verified rows are named once, and apart from the given labels."""
    if config.trusted is not None and config.reading.trusted_column is not None:
        raise RelabelError("--trusted and --trusted-column both name verified rows.", "Keep one of them.")
    if config.trusted and config.labels and config.trusted.resolve() == config.labels.resolve():
        raise RelabelError(
            f"--trusted {config.trusted} is also --labels, so every label in it would count as verified.",
            "Name a table of those rows alone that a person has verified.",
        )


def _check_backbone(config: FitConfig) -> None:
    """Vectors take the MLP and no flag that is about images; images take any other backbone."""
    features = config.reading.features
    if features is None:
        if config.backbone == "mlp":
            raise RelabelError("--backbone mlp takes vectors.", "Name their column with --features.")
        return
    for flag, given in (
        (f"--backbone {config.backbone}", config.backbone not in (None, "mlp")),
        (f"--weights {config.weights}", config.weights != "none"),
        ("--freeze", config.freeze),
        (f"--image-size {config.image_size}", config.image_size is not None),
        (f"--augment {config.augment}", config.augment is not None),
        ("--no-cache", not config.cache),
    ):
        if given:
            raise _for_images(flag, features)


def _for_images(flag: str, features: str) -> RelabelError:
    return RelabelError(
        f"{flag} is for images, and --features {features} names vectors.", "Leave out one of the two."
    )


def _check_precision(precision: float) -> None:
    if not 0 < precision < 1:
        raise RelabelError(f"--precision {precision}: must lie between 0 and 1.", "Use 0.95, say.")
