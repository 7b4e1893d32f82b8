"""The configuration of every command: the one declaration of each flag, which is also a keyword from Python.

A config is made of groups, and a group of fields made with `flag`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from relabel.errors import RelabelError
from relabel.options import InMemory, flag
from relabel.schedule import BATCH_SIZE, LARGE_BATCH_SIZE, LARGE_BATCHES_FROM
from relabel.types import Saved

NOISES = (
    "symmetric", "symmetric-inclusive", "uniform", "flip-random", "flip-to-one", "asymmetric", "superclass",
    "feature-dependent", "instance-dependent",
)  # fmt: skip
"""`--noise`, by the names in `simulate.noise`."""
META_GRADIENTS = ("last-layer", "exact")
LARGEST_IMAGE = 1024  # px
DEFAULT_CORRECTOR = "tmlc"
DEFAULT_AUGMENTATION = "flip"
DEFAULT_OUTPUT = "labels.parquet"
SHIPPED_CORRECTOR = Path(__file__).parent / "pretrained" / "tmlc.pt"
CORRECTOR_FOR_OTHER_IMAGES = "mslc"
"""The default where the trusted images are not those of SOURCE."""


@dataclass(frozen=True)
class SourceOptions:
    """How SOURCE is to be read, beside its place; None means the default, or what is found there.

    trusted_column: a flag where there are trusted rows; features: the columns of vectors, None where SOURCE
    holds images.
    """

    trusted_column: str | None = None
    classes: str | None = flag(
        "A file with one class a line, or names with commas: the classes in their order, to which numbers as "
        "labels are indices. Default: classes.txt in SOURCE or beside it.",
        None,
    )
    image_column: str | None = flag(
        "The column of images, or of a manifest's file names. Default: image, file_name.", None
    )
    label_column: str | None = flag(
        "The column of labels; in WebDataset shards, the part or the JSON field. Default: label.", None
    )
    features: str | None = flag(
        "SOURCE is Parquet with vectors: their column of lists, or numeric columns, such as 'f_*'.", None
    )
    config: str | None = flag("The configuration of a data set of the Hub that has several.", None)
    split: str | None = flag("Of a data set of Hugging Face that has several.", None)
    revision: str | None = flag("Branch, tag or commit of a data set of the Hub.", None)
    streaming: bool = flag("Keep only decoded images of a data set of the Hub.", False)

    def given(self) -> list[str]:
        """The flags that were given."""
        return ["--" + name.replace("_", "-") for name, value in vars(self).items() if value]


@dataclass(frozen=True)
class TrustedSourceOptions(SourceOptions):
    """The same for a SOURCE that may hold trusted rows."""

    trusted_column: str | None = flag(
        "Instead of --trusted: SOURCE's column of trusted labels, empty elsewhere.", None
    )


@dataclass(frozen=True)
class NetworkOptions:
    """The backbone, and what it is shown; None means decided from the data."""

    backbone: str | None = flag(
        "cnn8 or a torchvision classifier by name. Default: cnn8, with --weights resnet18; for vectors mlp.",
        None,
    )
    weights: str = flag("none, imagenet (torchvision's download) or the path of a state dict.", "none")
    freeze: bool = flag("Train only the last layer, on features computed once.", False)
    image_size: int | None = flag("Side in pixels. Default: native up to 64; 224 with --weights.", None)
    augment: str | None = flag(
        "flip: shift and mirror, the default; shift: for digits and letters.",
        None,
        choices=("flip", "shift", "none"),
    )

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        if self.image_size is not None and not 8 <= self.image_size <= LARGEST_IMAGE:
            raise RelabelError(f"--image-size {self.image_size}: must lie between 8 and {LARGEST_IMAGE}.")


@dataclass(frozen=True)
class TrainingOptions:
    """The schedule of the backbone; None means the recipe's, or decided from the data."""

    epochs: int | None = flag("Default: 20 to 80, fewer for larger data.", None)
    warmup: int | None = flag("Epochs before the corrector. Default: the corrector's share.", None)
    batch_size: int | None = flag(
        f"Default: {BATCH_SIZE}, or {LARGE_BATCH_SIZE} from {LARGE_BATCHES_FROM:,} rows on.", None
    )
    lr: float | None = flag("Peak learning rate. Default: from the batch size.", None)

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        _check_least(("--epochs", self.epochs, 2), ("--batch-size", self.batch_size, 2))
        if self.warmup is not None and not 1 <= self.warmup < (self.epochs or self.warmup + 1):
            raise RelabelError(
                f"--warmup {self.warmup}: must be at least 1 and less than the number of epochs."
            )
        _check_rate("--lr", self.lr)


@dataclass(frozen=True)
class TransferTrainingOptions(TrainingOptions):
    """The same under a corrector from other data, whose runs are shorter."""

    epochs: int | None = flag(
        "Default: 20 to 40, fewer for larger data; in a long run the backbone memorises the wrong labels "
        "that are left.",
        None,
    )


@dataclass(frozen=True)
class MetaOptions:
    """How the corrector itself is trained; None means its recipe's."""

    meta_gradient: str = flag(
        "Through the look-ahead step of the last layer alone, or of the whole backbone.",
        "last-layer",
        choices=META_GRADIENTS,
    )
    meta_every: int | None = flag("Batches from one meta step to the next. Default: the corrector's.", None)
    meta_batch_size: int | None = flag("Trusted rows a meta step. Default: the corrector's.", None)
    meta_lr: float | None = flag("The corrector's learning rate. Default: the corrector's.", None)

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        _check_least(("--meta-every", self.meta_every, 1), ("--meta-batch-size", self.meta_batch_size, 1))
        _check_rate("--meta-lr", self.meta_lr)


@dataclass(frozen=True)
class RunOptions:
    """What makes a run repeatable, and what continues it."""

    seed: int = flag("Makes a CPU run repeatable bit for bit.", 0)
    resume: bool = flag("Continue an interrupted run.", False)
    checkpoint: Path | None = flag(
        "Where the run's state is kept. Default: beside the output.",
        None,
        keyword="Where the run's state is kept until it is done. Default: beside `output`, if there is one.",
    )

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        _check_seed(self.seed)


@dataclass(frozen=True)
class ComputeOptions:
    """Where and how exactly to compute."""

    device: str = flag("Where to compute.", "auto", choices=("auto", "cpu", "cuda", "mps"))
    amp: str = flag("bf16 where the hardware has it.", "auto", choices=("auto", "bf16", "off"))


@dataclass(frozen=True)
class OutputOptions:
    """Where the labels go; None for nowhere, as from Python."""

    output: str | None = flag(
        "The Parquet file to write; - is standard output.",
        None,
        short="-o",
        usual=DEFAULT_OUTPUT,
        keyword="Also write the labels to this Parquet file.",
    )
    overwrite: bool = flag("Replace an existing output.", False)


@dataclass(frozen=True)
class FitOutputOptions(OutputOptions):
    """What a fit can write beside the labels."""

    save_corrector: Path | None = flag("Also write the trained corrector.", None)
    save_model: Path | None = flag(
        "Also write the trained model, for relabel predict: a share of the trusted rows, for its "
        "calibration, are then not trained on.",
        None,
    )
    keep_model: bool = flag("Keep the trained model as `labels.model`, without a file.", False, hidden=True)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What every command with one SOURCE takes."""

    source: str | InMemory = flag(
        "A folder, a manifest, Parquet with images, a .zip or .tar, a pattern of shards, or a data set that "
        "datasets saved or that is on the Hub; or vectors (--features).",
        argument=True,
        metavar="SOURCE",
    )
    labels: Path | InMemory | None = flag(
        "CSV or Parquet (file_name,label) that replaces or adds given labels.", None
    )
    reading: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True, kw_only=True)
class LabellingConfig(SourceConfig):
    """What every command takes that labels the rows of SOURCE."""

    cache: bool = flag(
        "Decode images anew for every batch instead of once to a temporary file: slower, and no disk.",
        True,
        keyword="Decode images once, to a temporary file; False decodes them for every batch: slower, and no "
        "disk.",
    )
    precision: float = flag("Share of the rows marked fix that must be right.", 0.95)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        if not 0 < self.precision < 1:
            raise RelabelError(f"--precision {self.precision}: must lie between 0 and 1.", "Use 0.95, say.")
        self._check_images()

    def _check_images(self) -> None:
        """Vectors take no flag that is about images."""
        if not self.cache:
            _refuse_vectors("--no-cache", self.reading.features)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LabellingConfig):
    """What `fit` and `apply` share: a backbone is trained on SOURCE.

    trusted: None for no trusted row, which takes a corrector that learns nothing from any.
    """

    trusted: Path | InMemory | None = None
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    run: RunOptions = field(default_factory=RunOptions)
    reading: TrustedSourceOptions = field(default_factory=TrustedSourceOptions)

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        super().__post_init__()
        self._check_trusted()

    @property
    def has_trusted(self) -> bool:
        """Whether trusted rows were named."""
        return self.trusted is not None or self.reading.trusted_column is not None

    def _check_trusted(self) -> None:
        """Trusted rows are named once, and apart from the given labels."""
        trusted, labels = self.trusted, self.labels
        if trusted is not None and self.reading.trusted_column is not None:
            raise RelabelError("--trusted and --trusted-column both name trusted rows.", "Keep one of them.")
        if isinstance(trusted, Path) and isinstance(labels, Path) and trusted.resolve() == labels.resolve():
            raise RelabelError(
                f"--trusted {trusted} is also --labels, so every label in it would count as trusted.",
                "Name a table of those rows alone that a person has checked.",
            )

    def _check_images(self) -> None:
        """Vectors take the MLP and no flag that is about images; images take any other backbone."""
        network, features = self.network, self.reading.features
        if features is None and network.backbone == "mlp":
            raise RelabelError("--backbone mlp takes vectors.", "Name their column with --features.")
        for named, given in (
            (f"--backbone {network.backbone}", network.backbone not in (None, "mlp")),
            (f"--weights {network.weights}", network.weights != "none"),
            ("--freeze", network.freeze),
            (f"--image-size {network.image_size}", network.image_size is not None),
            (f"--augment {network.augment}", network.augment is not None),
            ("--no-cache", not self.cache),
        ):
            if given:
                _refuse_vectors(named, features)
        if network.freeze and network.weights == "none":
            raise RelabelError(
                "--freeze needs a pretrained backbone.", "Add --weights imagenet or --weights PATH."
            )
        if network.freeze and network.augment is not None:
            raise RelabelError(
                f"--augment {network.augment}: with --freeze each image is seen once, as it is.",
                "Leave it out.",
            )


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainingConfig):
    """`relabel fit`; None means the recipe's, or decided from the data."""

    trusted: Path | InMemory | None = flag(
        "Trusted rows: CSV or Parquet (file_name,label), or a folder of class folders.", None
    )
    corrector: str | None = flag(
        f"$correctors; none is plain training, calibrated. Default: {DEFAULT_CORRECTOR}.", None
    )
    preset: str | None = flag(
        "A paper's own settings, which other flags override, but for what stands in brackets: $presets.", None
    )
    option: Mapping[str, str] = flag("A corrector's option: $options.", {}, metavar="NAME=VALUE")
    outputs: FitOutputOptions = field(default_factory=FitOutputOptions)
    meta: MetaOptions = field(default_factory=MetaOptions)

    @property
    def keep_model(self) -> bool:
        """Whether the model is wanted, whose calibration takes trusted rows that it never saw."""
        return self.outputs.keep_model or self.outputs.save_model is not None


@dataclass(frozen=True, kw_only=True)
class ApplyConfig(TrainingConfig):
    """`relabel apply`; corrector: None for the one that comes with relabel."""

    corrector: str | Saved | None = flag(
        "Written by pretrain or by fit --save-corrector; or hf://user/repo/file. Default: the one that comes "
        "with relabel.",
        None,
        metavar="FILE",
        keyword="A path, hf://user/repo/file, or the object: `labels.corrector` of a fit. Default: the one "
        "that comes with relabel.",
    )
    trusted: Path | InMemory | None = flag(
        "Trusted rows, where there are any: as in fit. They calibrate the result.", None
    )
    training: TransferTrainingOptions = field(default_factory=TransferTrainingOptions)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(LabellingConfig):
    """`relabel predict`."""

    model: str | Saved = flag(
        "A file written with fit --save-model; or hf://user/repo/file.",
        keyword="A path, hf://user/repo/file, or the object: `labels.model` of a fit with `keep_model=True`.",
    )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """`relabel pretrain`; sources: with true labels, read as `reading` says.

    recordings: keeps the recorded runs, and those that are there already are not made again.
    """

    sources: tuple[str, ...] = flag("As in fit; the labels are true.", argument=True, metavar="SOURCE...")
    output: Path | None = flag(
        "The corrector file to write.",
        None,
        short="-o",
        required=True,
        keyword="Also write the corrector to this file.",
    )
    episodes: int = flag("Short training runs to learn from; a third as many follow, corrected by it.", 24)
    steps: int = flag("Steps of the corrector's own training.", 3_000)
    recordings: Path | None = flag(
        "Keep the recorded runs here. Default: only until the end.", None, metavar="FOLDER"
    )
    seed: int = flag("Makes a CPU run repeatable bit for bit.", 0)
    overwrite: bool = flag("Replace an existing output.", False)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    reading: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        _check_least(("--episodes", self.episodes, 2), ("--steps", self.steps, 1))
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class CorruptConfig(SourceConfig):
    """`relabel corrupt`."""

    noise: str = flag(f"One of {', '.join(NOISES)}.")
    rate: float = flag("Share of the labels to make wrong, 0 to 1.")
    output: str | None = flag(
        "The .csv or .parquet to write; - is CSV on stdout.",
        None,
        short="-o",
        required=True,
        keyword="Also write the labels to this .csv or .parquet.",
    )
    map: Path | None = flag(
        "For asymmetric: CSV (from,to) or JSON {class: class}. "
        "For superclass: CSV (class,superclass) or JSON {superclass: [class, ...]}.",
        None,
    )
    seed: int = flag("The same seed makes the same noise.", 0)
    epochs: int | None = flag("For feature-dependent. Default: 10 to 20, fewer for larger data.", None)
    device: str = flag(
        "For feature-dependent; only a CPU repeats it bit for bit.",
        "auto",
        choices=("auto", "cpu", "cuda", "mps"),
    )
    overwrite: bool = flag("Replace an existing output.", False)

    def __post_init__(self) -> None:
        """Refuse values no run can have; the message names the flag."""
        if self.epochs is not None and self.noise != "feature-dependent":
            raise RelabelError(f"--noise {self.noise} trains no network.", "Leave out --epochs.")
        _check_least(("--epochs", self.epochs, 1), ("--seed", self.seed, 0))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`relabel evaluate`."""

    labels: str = flag("A file written by relabel; - reads standard input.", argument=True, metavar="FILE")
    truth: Path | InMemory = flag(
        "CSV or Parquet: file_name (or index) and clean_label (or label); rows may be a subset. Or Parquet "
        "with the images in it."
    )
    label_column: str | None = flag("The column of true labels. Default: clean_label, else label.", None)


def _check_least(*values: tuple[str, int | None, int]) -> None:
    for named, value, least in values:
        if value is not None and value < least:
            raise RelabelError(f"{named} {value}: must be at least {least}.")


def _check_rate(named: str, rate: float | None) -> None:
    if rate is not None and not 0 < rate < math.inf:
        raise RelabelError(f"{named} {rate}: must be a positive number.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise RelabelError(f"--seed {seed}: must lie between 0 and 2^63 - 1.")


def _refuse_vectors(named: str, features: str | None) -> None:
    if features is not None:
        raise RelabelError(
            f"{named} is for images, and --features {features} names vectors.", "Leave out one of the two."
        )
