"""The flags of the commands: their types, their words of help, and those that every SOURCE takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from enum import StrEnum
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from relabel.config import SourceOptions
from relabel.correctors.registry import REGISTRY
from relabel.schedule import BATCH_SIZE, LARGE_BATCH_SIZE, LARGE_BATCHES_FROM

OPTIONS_TOLD = ", ".join(
    f"{name}={'|'.join(values)} ({corrector})"
    for corrector, entry in REGISTRY.items()
    for name, values in entry.options.items()
)


class Augmentation(StrEnum):
    """`--augment`."""

    FLIP = "flip"
    SHIFT = "shift"
    NONE = "none"


class MetaGradient(StrEnum):
    """`--meta-gradient`."""

    LAST_LAYER = "last-layer"
    EXACT = "exact"


class DeviceName(StrEnum):
    """`--device`."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Amp(StrEnum):
    """`--amp`."""

    AUTO = "auto"
    BF16 = "bf16"
    OFF = "off"


SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder, a manifest, Parquet with images, a .zip or .tar, a pattern of shards, or a data set "
        "that datasets saved or that is on the Hub; or vectors (--features).",
    ),
]


TrustedColumnOption = Annotated[
    str | None,
    typer.Option(help="Instead of --trusted: SOURCE's column of verified labels, empty elsewhere."),
]


OutputOption = Annotated[
    str, typer.Option("--output", "-o", help="The Parquet file to write; - is standard output.")
]


LabelsOption = Annotated[
    Path | None, typer.Option(help="CSV or Parquet (file_name,label) that replaces or adds given labels.")
]


PrecisionOption = Annotated[float, typer.Option(help="Share of the rows marked fix that must be right.")]


DeviceOption = Annotated[DeviceName, typer.Option(help="Where to compute.")]


AmpOption = Annotated[Amp, typer.Option(help="bf16 where the hardware has it.")]


BackboneOption = Annotated[
    str | None,
    typer.Option(
        help="cnn8 or a torchvision classifier by name. Default: cnn8, with --weights resnet18; "
        "for vectors mlp."
    ),
]


WeightsOption = Annotated[
    str, typer.Option(help="none, imagenet (torchvision's download) or the path of a state dict.")
]


FreezeOption = Annotated[
    bool, typer.Option("--freeze", help="Train only the last layer, on features computed once.")
]


ImageSizeOption = Annotated[
    int | None, typer.Option(help="Side in pixels. Default: native up to 64; 224 with --weights.")
]


AugmentOption = Annotated[
    Augmentation | None,
    typer.Option(help="flip: shift and mirror, the default; shift: for digits and letters."),
]


NoCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Decode images anew for every batch instead of once to a temporary file: slower, and no disk.",
    ),
]


EpochsOption = Annotated[int | None, typer.Option(help="Default: 20 to 80, fewer for larger data.")]


ApplyEpochsOption = Annotated[
    int | None,
    typer.Option(help="Default: 20 to 40, fewer for larger data; a long run learns left mistakes by heart."),
]


WarmupOption = Annotated[
    int | None, typer.Option(help="Epochs before the corrector. Default: the corrector's share.")
]


BatchSizeOption = Annotated[
    int | None,
    typer.Option(help=f"Default: {BATCH_SIZE}, or {LARGE_BATCH_SIZE} from {LARGE_BATCHES_FROM:,} rows on."),
]


RateOption = Annotated[float | None, typer.Option(help="Peak learning rate. Default: from the batch size.")]


SeedOption = Annotated[int, typer.Option(help="Makes a CPU run repeatable bit for bit.")]


ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]


CheckpointOption = Annotated[
    Path | None, typer.Option(help="Where the run's state is kept. Default: beside the output.")
]


LabelsFileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="A file written by relabel; - reads standard input.")
]


OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]


JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


_READING = {
    "classes": "A file with one class a line, or names with commas: the classes in their order, to which "
    "numbers as labels are indices. Default: classes.txt in SOURCE or beside it.",
    "image_column": "The column of images, or of a manifest's file names. Default: image, file_name.",
    "label_column": "The column of labels; in WebDataset shards, the part or the JSON field. Default: label.",
    "features": "SOURCE is Parquet with vectors: their column of lists, or numeric columns, such as 'f_*'.",
    "config": "The configuration of a data set of the Hub that has several.",
    "split": "Of a data set of Hugging Face that has several.",
    "revision": "Branch, tag or commit of a data set of the Hub.",
    "streaming": "Keep only decoded images of a data set of the Hub.",
}


"""Help by field of `SourceOptions`, for the flags that every command with a SOURCE takes."""


def reads_source(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `_READING`, which it gets as one `SourceOptions` named `reading`."""
    taken = signature(command, eval_str=True)
    fields = {field.name: field for field in dataclasses.fields(SourceOptions)}
    hints = get_type_hints(SourceOptions)
    flags = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=fields[name].default,
            annotation=Annotated[hints[name], typer.Option("--" + name.replace("_", "-"), help=text)],
        )
        for name, text in _READING.items()
    ]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:  # noqa: ANN401
        reading = SourceOptions(**{name: values.pop(name) for name in _READING})
        command(**values, reading=reading)

    own = [
        parameter.replace(kind=Parameter.KEYWORD_ONLY)
        for parameter in taken.parameters.values()
        if parameter.name != "reading"
    ]
    wrapped.__signature__ = taken.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return wrapped
