"""Flags to config, results to files and text: the only place that prints or exits.

torch is imported inside the commands, so that `--help` and every mistake in the flags answer at once.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from enum import StrEnum
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TypeVar, get_type_hints

import typer
from rich.console import Console

from relabel import __version__, correctors, demo, hub, noise, summary
from relabel.config import (
    BATCH_SIZE,
    DEFAULT_CORRECTOR,
    LARGE_BATCH_SIZE,
    LARGE_BATCHES_FROM,
    PRESETS,
    SHIPPED_CORRECTOR,
    FitConfig,
    PredictConfig,
    SourceOptions,
)
from relabel.correctors import REGISTRY
from relabel.errors import DivergedError, RelabelError, RunError
from relabel.files import check_name, check_output, make_folder
from relabel.interrupts import Stopped
from relabel.progress import Terminal

if TYPE_CHECKING:
    from relabel.output.labelling import Labelling
    from relabel.pipeline import FitResult

Shown = TypeVar("Shown")

_OPTIONS = ", ".join(
    f"{name}={'|'.join(values)} ({corrector})"
    for corrector, entry in REGISTRY.items()
    for name, values in entry.options.items()
)

_NO_PARQUET = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".xlsx", ".pt", ".zip", ".tar")

app = typer.Typer(
    help="Repair image data sets whose labels are partly wrong, guided by a few hundred verified rows.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
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


@app.command(short_help="Correct the labels of SOURCE, guided by verified rows.")
@reads_source
def fit(
    context: typer.Context,
    source: SourceArgument,
    reading: SourceOptions,
    trusted: Annotated[
        Path | None,
        typer.Option(help="Verified rows: CSV or Parquet (file_name,label), or a folder of class folders."),
    ] = None,
    trusted_column: TrustedColumnOption = None,
    corrector: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(REGISTRY)}; none is plain training, calibrated. Default: {DEFAULT_CORRECTOR}."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"A paper's own settings, which other flags override: {' or '.join(PRESETS)}."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help=f"A corrector's option: {_OPTIONS}.")
    ] = None,
    output: OutputOption = "labels.parquet",
    labels: LabelsOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = "none",
    freeze: FreezeOption = False,
    image_size: ImageSizeOption = None,
    augment: AugmentOption = None,
    no_cache: NoCacheOption = False,
    epochs: EpochsOption = None,
    warmup: WarmupOption = None,
    batch_size: BatchSizeOption = None,
    lr: RateOption = None,
    meta_gradient: Annotated[
        MetaGradient,
        typer.Option(help="Through the look-ahead step of the last layer alone, or of the whole backbone."),
    ] = MetaGradient.LAST_LAYER,
    meta_every: Annotated[
        int | None, typer.Option(help="Batches from one meta step to the next. Default: the corrector's.")
    ] = None,
    meta_batch_size: Annotated[
        int | None, typer.Option(help="Verified rows a meta step. Default: the corrector's.")
    ] = None,
    meta_lr: Annotated[
        float | None, typer.Option(help="The corrector's learning rate. Default: the corrector's.")
    ] = None,
    precision: PrecisionOption = 0.95,
    seed: SeedOption = 0,
    device: DeviceOption = DeviceName.AUTO,
    amp: AmpOption = Amp.AUTO,
    resume: ResumeOption = False,
    checkpoint: CheckpointOption = None,
    save_corrector: Annotated[Path | None, typer.Option(help="Also write the trained corrector.")] = None,
    save_model: Annotated[
        Path | None,
        typer.Option(
            help="Also write the trained model, for relabel predict: a share of the verified rows, "
            "for its calibration, are then not trained on."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a backbone with a label corrector and write one Parquet row per image."""
    console = _console(stderr=True)
    arguments: list[str] = context.obj
    if trusted is None and trusted_column is None:
        raise RelabelError(
            "fit needs verified rows: there is neither --trusted nor --trusted-column.",
            "Name a table or a folder with --trusted; relabel apply does without.",
        )
    to_stdout = output == "-"
    if to_stdout:
        _check_stdout(as_json)
    state = checkpoint or _checkpoint_path(output, arguments)
    config = FitConfig(
        source=source,
        trusted=trusted,
        labels=labels,
        reading=replace(reading, trusted_column=trusted_column),
        corrector=corrector,
        preset=preset,
        options=_parse_options(option or []),
        backbone=backbone,
        weights=weights,
        freeze=freeze,
        image_size=image_size,
        augment=augment and augment.value,
        cache=not no_cache,
        epochs=epochs,
        warmup=warmup,
        batch_size=batch_size,
        learning_rate=lr,
        meta_gradient=meta_gradient.value,
        meta_every=meta_every,
        meta_batch_size=meta_batch_size,
        meta_learning_rate=meta_lr,
        precision=precision,
        seed=seed,
        device=device.value,
        amp=amp.value,
        keep_model=save_model is not None,
        checkpoint=state,
        resume=resume,
    )
    correctors.check(config.recipe.corrector, config.options)
    if save_corrector and config.recipe.corrector == "none":
        raise RelabelError(
            "--save-corrector: with --corrector none there is nothing to save.", "Leave it out."
        )
    _check_source(source)
    _check_there({"--trusted": trusted, "--labels": labels})
    _check_outputs(
        {
            "--output": None if to_stdout else Path(output),
            "--save-corrector": save_corrector,
            "--save-model": save_model,
            "--checkpoint": state,
        },
        {**_files_of(source, reading), "--trusted": trusted, "--labels": labels, "--weights": Path(weights)},
        overwrite,
    )
    _check_is_parquet(output)

    saves: dict[Path, Callable[[FitResult, Path], None]] = {}
    if save_corrector:
        saves[save_corrector] = lambda result, path: result.corrector.save(path)
    if save_model:
        saves[save_model] = lambda result, path: result.model().save(path)
    _fit(console, arguments, config, state, checkpoint is not None, saves, output, overwrite, as_json, quiet)


@app.command(short_help="Correct the labels of SOURCE without any verified row.")
@reads_source
def apply(
    context: typer.Context,
    source: SourceArgument,
    reading: SourceOptions,
    corrector: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Written by pretrain or by fit --save-corrector; or hf://user/repo/file. Default: the one "
            "that comes with relabel.",
        ),
    ] = None,
    trusted: Annotated[
        Path | None,
        typer.Option(help="Verified rows, where there are any: as in fit. They calibrate the result."),
    ] = None,
    trusted_column: TrustedColumnOption = None,
    output: OutputOption = "labels.parquet",
    labels: LabelsOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = "none",
    freeze: FreezeOption = False,
    image_size: ImageSizeOption = None,
    augment: AugmentOption = None,
    no_cache: NoCacheOption = False,
    epochs: ApplyEpochsOption = None,
    warmup: WarmupOption = None,
    batch_size: BatchSizeOption = None,
    lr: RateOption = None,
    precision: PrecisionOption = 0.95,
    seed: SeedOption = 0,
    device: DeviceOption = DeviceName.AUTO,
    amp: AmpOption = Amp.AUTO,
    resume: ResumeOption = False,
    checkpoint: CheckpointOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a backbone while a pretrained corrector rewrites its labels; writes what fit writes.

    The corrector has learned on other data sets what training looks like on wrong labels; `relabel inspect`
    shows on which. Without verified rows the probabilities are calibrated on those data sets too.
    """
    console = _console(stderr=True)
    arguments: list[str] = context.obj
    to_stdout = output == "-"
    if to_stdout:
        _check_stdout(as_json)
    state = checkpoint or _checkpoint_path(output, arguments)
    corrector = corrector or str(SHIPPED_CORRECTOR)
    local = None if corrector.startswith("hf://") else Path(corrector)
    if local and not local.is_file():
        raise RelabelError(
            f"--corrector {local}: no such file.", "Write one with relabel pretrain or fit --save-corrector."
        )
    _check_source(source)
    _check_there({"--trusted": trusted, "--labels": labels})
    config = FitConfig(
        source=source,
        trusted=trusted,
        pretrained=Path(corrector),
        labels=labels,
        reading=replace(reading, trusted_column=trusted_column),
        backbone=backbone,
        weights=weights,
        freeze=freeze,
        image_size=image_size,
        augment=augment and augment.value,
        cache=not no_cache,
        epochs=epochs,
        warmup=warmup,
        batch_size=batch_size,
        learning_rate=lr,
        precision=precision,
        seed=seed,
        device=device.value,
        amp=amp.value,
        checkpoint=state,
        resume=resume,
    )
    _check_outputs(
        {"--output": None if to_stdout else Path(output), "--checkpoint": state},
        {
            **_files_of(source, reading), "--corrector": local, "--trusted": trusted, "--labels": labels,
            "--weights": Path(weights),
        },
        overwrite,
    )  # fmt: skip
    _check_is_parquet(output)
    config = replace(config, pretrained=hub.resolve(corrector, "--corrector", SHIPPED_CORRECTOR.name))
    _fit(console, arguments, config, state, checkpoint is not None, {}, output, overwrite, as_json, quiet)


def _fit(
    console: Console,
    arguments: list[str],
    config: FitConfig,
    state: Path,
    named: bool,
    saves: Mapping[Path, Callable[[FitResult, Path], None]],
    output: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a fit with its checkpoint `state`, which the user may have `named`; save, write and tell.

    saves: what writes the files beside the labels, by their paths.
    """

    def how_to_resume() -> str:
        outputs = [*saves, *([] if output == "-" else [Path(output)])]
        return _how_to_resume(state, arguments, any(path.exists() for path in outputs))

    try:
        with Terminal(console, quiet) as watcher:
            watcher.stage("Starting", None)  # torch takes seconds to import
            from relabel import pipeline
            from relabel.checkpoint import is_checkpoint

            if state.exists() and not config.resume:
                if named and not is_checkpoint(state):
                    raise RelabelError(
                        f"--checkpoint {state} is damaged or another kind of file.",
                        "Name another file, or remove this one.",
                    )
                watcher.warn(f"Starting afresh replaces the checkpoint {state}; --resume would continue it.")
            result = pipeline.fit(config, watcher)
        for path, save in saves.items():
            save(result, path)
        _write_labels(output, result, arguments, overwrite)
    except Stopped as stop:
        raise stop.saying(how_to_resume()) from None
    except BrokenPipeError:
        _abandon_stdout()
        raise RunError("The reader of standard output closed it too early.", how_to_resume()) from None
    except DivergedError:
        state.unlink(missing_ok=True)
        raise
    except RunError as error:
        raise RunError(error.message, f"{error.hint} {how_to_resume()}".strip()) from error
    state.unlink(missing_ok=True)
    _show_result(console, result, output, as_json, quiet)


@app.command(short_help="Meta-train a corrector for apply on data whose labels are true.")
@reads_source
def pretrain(
    context: typer.Context,
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="As in fit; the labels are true.")
    ],
    reading: SourceOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The corrector file to write.")],
    episodes: Annotated[
        int,
        typer.Option(help="Short training runs to learn from; a third as many follow, corrected by it."),
    ] = 24,
    steps: Annotated[int, typer.Option(help="Steps of the corrector's own training.")] = 3_000,
    recordings: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep the recorded runs here. Default: only until the end."),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = DeviceName.AUTO,
    amp: AmpOption = Amp.AUTO,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Meta-train one TMLC-Net on many short runs over data whose labels are true.

    Each run takes some classes and rows of a SOURCE, makes some labels wrong and trains a small network; what
    it predicts is recorded once and replayed while the corrector learns. An interrupted command goes on where
    it stopped when it is repeated.
    """
    arguments: list[str] = context.obj
    if str(output) == "-":
        raise RelabelError("--output -: a corrector file goes to a file.", "Name one, such as tmlc.pt.")
    folder = recordings or _hidden_beside(output, "recordings")
    read = {
        name: path
        for number, source in enumerate(sources, 1)
        for name, path in _files_of(source, reading, f"SOURCE {number}").items()
    }
    _check_outputs({"--output": output}, read, overwrite)
    if folder.exists() and not folder.is_dir():
        raise RelabelError(f"--recordings {folder} is not a folder.", "Name another one.")
    if folder.resolve() == output.resolve():
        raise RelabelError(f"--recordings {folder} is also --output.", "Choose another name.")
    for source in sources:
        _check_source(source)

    from relabel.transfer.pretraining import PretrainConfig, pretrain

    config = PretrainConfig(
        sources=tuple(sources),
        folder=folder,
        reading=reading,
        episodes=episodes,
        steps=steps,
        seed=seed,
        device=device.value,
        amp=amp.value,
    )
    console = _console(stderr=True)
    make_folder(folder, f"--recordings {folder}")
    kept = f"The recorded runs in {folder} are kept; continue with: {shlex.join(['relabel', *arguments])}"
    try:
        with Terminal(console, quiet) as watcher:
            corrector = pretrain(config, watcher)
        corrector.save(output)
    except (Stopped, RelabelError) as error:
        if any(folder.iterdir()):
            if isinstance(error, Stopped):
                raise error.saying(kept) from None
            if isinstance(error, RunError):
                raise RunError(error.message, f"{error.hint} {kept}".strip()) from error
        elif recordings is None:
            folder.rmdir()
        raise
    if recordings is None:
        shutil.rmtree(folder)
    if not quiet:
        typer.echo(f"Wrote {output} ({output.stat().st_size / 1e3:,.0f} kB).", err=True)


@app.command(short_help="Label images that were not in the fit.")
@reads_source
def predict(
    context: typer.Context,
    source: SourceArgument,
    reading: SourceOptions,
    model: Annotated[Path, typer.Option(help="A file written with fit --save-model.")],
    output: OutputOption = "labels.parquet",
    labels: LabelsOption = None,
    no_cache: NoCacheOption = False,
    precision: PrecisionOption = 0.95,
    device: DeviceOption = DeviceName.AUTO,
    amp: AmpOption = Amp.AUTO,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Label images that were not in the fit, with a model that fit saved; they may have labels or none.

    The backbone predicts, whatever the corrector: also for metalabelnet, whose label generator teaches it.
    Given labels must be among the model's classes; they get a noise probability and an action, as in fit.
    """
    console = _console(stderr=True)
    arguments: list[str] = context.obj
    if output == "-":
        _check_stdout(as_json)
    config = PredictConfig(
        source=source,
        model=model,
        labels=labels,
        reading=reading,
        cache=not no_cache,
        precision=precision,
        device=device.value,
        amp=amp.value,
    )
    _check_source(source)
    _check_there({"--labels": labels})
    if not model.is_file():
        raise RelabelError(f"--model {model}: no such file.", "Write one with relabel fit --save-model.")
    _check_outputs(
        {"--output": None if output == "-" else Path(output)},
        {**_files_of(source, reading), "--model": model, "--labels": labels},
        overwrite,
    )
    _check_is_parquet(output)

    from relabel import prediction

    try:
        with Terminal(console, quiet) as watcher:
            result = prediction.predict(config, watcher)
        _write_labels(output, result, arguments, overwrite)
    except BrokenPipeError:
        _abandon_stdout()
        raise RunError("The reader of standard output closed it too early.") from None
    _show_result(console, result, output, as_json, quiet)


@app.command(short_help="Compare a labels file with the truth.")
def evaluate(
    labels_file: LabelsFileArgument,
    truth: Annotated[
        Path,
        typer.Option(
            help="CSV or Parquet: file_name (or index) and clean_label (or label); rows may be a subset. "
            "Or Parquet with the images in it."
        ),
    ],
    label_column: Annotated[
        str | None, typer.Option(help="The column of true labels. Default: clean_label, else label.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a labels file with the truth: accuracy before and after, detection, calibration, fixes.

    Verified rows are left out of every figure: they are right by construction.
    """
    from relabel.output.evaluation import evaluate_file

    with Terminal(_console(stderr=True), quiet=False) as watcher:
        evaluation = evaluate_file(_labels_source(labels_file), truth, label_column, watcher)
    if as_json:
        _print_json(evaluation.to_dict())
    else:
        _show(summary.show_evaluation, evaluation)


@app.command(short_help="Make a benchmark: put wrong labels on clean data.")
@reads_source
def corrupt(
    context: typer.Context,
    source: SourceArgument,
    reading: SourceOptions,
    noise_name: Annotated[str, typer.Option("--noise", help=f"One of {', '.join(noise.NOISE_MODELS)}.")],
    rate: Annotated[float, typer.Option(help="Share of the labels to make wrong, 0 to 1.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The .csv or .parquet to write; - is CSV on stdout.")
    ],
    mapping: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="For asymmetric: CSV (from,to) or JSON {class: class}. "
            "For superclass: CSV (class,superclass) or JSON {superclass: [class, ...]}.",
        ),
    ] = None,
    labels: LabelsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same noise.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(help="For feature-dependent. Default: 10 to 20, fewer for larger data.")
    ] = None,
    device: Annotated[
        DeviceName, typer.Option(help="For feature-dependent; only a CPU repeats it bit for bit.")
    ] = DeviceName.AUTO,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a benchmark out of clean data: file_name, noisy label and clean_label of every row.

    `--labels` of fit reads it as it is, and so does `--truth` of evaluate; inspect shows its noise matrix. A
    Parquet file also keeps in its metadata what made it.

    symmetric and flip-random (an exact share of each class) take every other class alike; symmetric-inclusive
    and uniform (exact quotas) every class, so that some labels stay right; flip-to-one takes one other class
    for each class, asymmetric the one in --map, superclass the next of the same superclass. feature-dependent
    trains a small network and flips what is nearest to its decision boundary; instance-dependent flips by
    the pixels of the image, or the values of the vector.
    """
    from relabel import corruption
    from relabel.output import noisy_labels

    if output != "-":
        read = {**_files_of(source, reading), "--labels": labels, "--map": mapping}
        _check_outputs({"--output": Path(output)}, read, overwrite)
        noisy_labels.check_suffix(Path(output))
    config = corruption.CorruptConfig(
        source=source,
        noise=noise_name,
        rate=rate,
        mapping=mapping,
        labels=labels,
        reading=reading,
        seed=seed,
        epochs=epochs,
        device=device.value,
    )
    with Terminal(_console(stderr=True), quiet) as watcher:
        result = corruption.corrupt(config, watcher)
    clean, corrupted = result.source.given, result.corrupted
    columns = (result.source.file_names, corrupted.labels, clean, result.source.class_names)
    if output == "-":
        with _guarded_stdout() as stream:
            stream.write(noisy_labels.to_csv(*columns).encode())
    else:
        arguments: list[str] = context.obj
        metadata = {**result.metadata, "command": shlex.join(["relabel", *arguments])}
        noisy_labels.write(Path(output), *columns, metadata)
    if not quiet:
        typer.echo(
            f"{int(corrupted.wrong.sum()):,} of {int((clean >= 0).sum()):,} labels are now wrong: "
            f"actual rate {corrupted.actual_rate:.4f} ({noise_name}, seed {seed}).",
            err=True,
        )


@app.command(short_help="Show what a file written by relabel holds.")
def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="[FILE]",
            show_default=False,
            help="A file written by relabel; - reads standard input. Default: the corrector of apply.",
        ),
    ] = str(SHIPPED_CORRECTOR),
    as_json: JsonOption = False,
) -> None:
    """Show what a labels file, a corrector file, a model file or noisy labels hold."""
    if file == "-":
        with _standard_input() as path:
            _inspect(path, as_json)
    else:
        _inspect(Path(file), as_json)


def _inspect(path: Path, as_json: bool) -> None:
    if path.is_dir():
        raise RelabelError(f"{path} is a folder.", "Name a file that relabel wrote.")
    from relabel.output import noisy_labels
    from relabel.output.parquet import read_labels

    if _starts_with(path, b"PK"):
        from relabel.model import describe_file

        described = describe_file(path)
        if as_json:
            _print_json(described)
        else:
            _show(summary.show_trained, described)
        return
    if noisy_labels.is_noisy_labels(path):
        noisy = noisy_labels.read(path)
        if as_json:
            _print_json(noisy.to_dict())
        else:
            _show(summary.show_noisy_labels, noisy.lines())
        return
    labels_file = read_labels(path)
    if as_json:
        _print_json({"rows": labels_file.table.num_rows, **labels_file.metadata})
    else:
        _show(summary.show_labels_file, labels_file)


@app.command(name="demo", short_help="See it work on real images with 30 % wrong labels.")
def demo_command(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="A new folder for the images.")] = Path(
        "relabel-demo"
    ),
    overwrite: OverwriteOption = False,
) -> None:
    """Write a small real data set with 30 % wrong labels, run fit on it and show what it gained."""
    data = demo.write_dataset(directory, overwrite)
    arguments = data.fit_arguments
    typer.echo(data.describe(), err=True)
    typer.echo(f"\n$ relabel {shlex.join(arguments)}\n", err=True)
    _invoke(arguments)
    from relabel.output.evaluation import evaluate_file

    evaluation = evaluate_file(data.output, data.truth)
    typer.echo(
        f"\n$ relabel evaluate {shlex.join([str(data.output), '--truth', str(data.truth)])}\n", err=True
    )
    _show(summary.show_evaluation, evaluation)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options of relabel itself."""
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; every failure becomes one sentence on standard error and an exit code."""
    try:
        _invoke(list(arguments))
        code = 0
    except typer.Exit as leave:
        code = leave.exit_code
    except RelabelError as error:
        code = _fail(error, f"Error: {error}", error.exit_code)
    except Stopped as stop:
        code = _fail(stop, str(stop), 128 + stop.signum)
    except KeyboardInterrupt as interrupt:
        code = _fail(interrupt, "Interrupted.", 130)
    except BrokenPipeError:
        _abandon_stdout()
        code = 1
    except Exception as error:
        code = _fail_unexpected(error, arguments)
    return code


def _fail_unexpected(error: Exception, arguments: Sequence[str]) -> int:
    # Typer's own errors share no public class across its versions.
    if hasattr(error, "format_message"):
        return _fail(error, f"Error: {_usage_sentence(error, error.format_message(), arguments)}", 2)
    # Raised by Python's own tests of whether a file is there, wherever they are.
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _fail(error, f"Error: There is no file {error.filename}: the name is too long.", 2)
    reason = " ".join(str(error).split())
    return _fail(error, f"Error: {type(error).__name__}: {reason} (RELABEL_DEBUG=1 shows where).", 1)


@contextmanager
def _guarded_stdout() -> Iterator[BinaryIO]:
    """Standard output, for text and bytes. Raises RunError when full, and BrokenPipeError as it comes."""
    try:
        yield sys.stdout.buffer
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon_stdout()
        raise RunError(
            f"Standard output could not be written: {error.strerror or error}.",
            "Free some space or choose another place.",
        ) from error


def _abandon_stdout() -> None:
    """The reader of our output has gone; a second error at interpreter exit would say nothing more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _invoke(arguments: list[str]) -> None:
    """Run one command; not `app()`, which would swallow KeyboardInterrupt and BrokenPipeError."""
    _check_words(arguments)
    command = typer.main.get_command(app)
    with command.make_context("relabel", list(arguments), obj=arguments) as context:
        command.invoke(context)


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse an empty word: as a path it would be the current folder, and as a name no name at all."""
    for before, word in zip(["relabel", *arguments], arguments, strict=False):
        flag, equals, value = word.partition("=")
        bare = bool(equals) and not value and flag.startswith("--")
        if bare or not word:
            raise RelabelError(
                f"After {flag if bare else before} there is an empty word.",
                "Write what belongs there; a shell variable that is not set leaves nothing.",
            )


def _usage_sentence(error: Exception, message: str, arguments: Sequence[str]) -> str:
    message = " ".join(message.split()).replace("Value error, ", "")
    message = re.sub(r"Input should be a valid (\w+).*", r"not a valid \1", message)
    context = getattr(error, "ctx", None)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    where = context.command_path if context else f"relabel {command}".strip()
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See {where} --help."


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("RELABEL_DEBUG") == "1":
        traceback.print_exception(error)
    typer.echo(message, err=True)
    return code


def _how_to_resume(checkpoint: Path, arguments: list[str], replace: bool) -> str:
    """The line that continues a run, and replaces what it has written already if there is any."""
    if not checkpoint.exists():
        return "No epoch was finished and nothing was written."
    flags = ["--resume", *(["--overwrite"] if replace else [])]
    missing = [flag for flag in flags if flag not in arguments]
    # First, in case the last words follow a --.
    line = shlex.join(["relabel", arguments[0], *missing, *arguments[1:]])
    return f"The checkpoint {checkpoint} is kept; continue with: {line}"


def _checkpoint_path(output: str, arguments: Sequence[str]) -> Path:
    """Beside the output; for standard output here, under a name that two runs at a time do not share."""
    if output == "-":
        words = "\0".join(word for word in arguments if word not in ("--resume", "--overwrite"))
        return Path(f".relabel-{hashlib.sha256(words.encode(errors='replace')).hexdigest()[:8]}.checkpoint")
    return _hidden_beside(Path(output), "checkpoint")


def _hidden_beside(path: Path, suffix: str) -> Path:
    # Not `with_name`, which refuses a folder's name such as "." before anyone could say what is wrong.
    hidden = path.parent / f".{path.name}.{suffix}"
    check_name(hidden, path)
    return hidden


def _parse_options(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs as a mapping."""
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise RelabelError(f"--option {pair}: is not NAME=VALUE.", "Write for example start=random.")
        if name in options:
            raise RelabelError(f"--option {name} is given twice.", "Keep one of them.")
        options[name] = value
    return options


def _check_there(named: Mapping[str, Path | None]) -> None:
    """A file that is not there is told without waiting for torch."""
    for flag, path in named.items():
        if path is not None and not os.path.exists(path):
            raise RelabelError(
                f"{flag}: there is no file or folder {path}.", "Check the spelling of the path."
            )


def _check_source(source: str) -> None:
    """A SOURCE that is not there is told without waiting for torch."""
    if not os.path.exists(source):
        from relabel.data.sources import check_there

        check_there(source)


def _files_of(source: str, reading: SourceOptions, name: str = "SOURCE") -> dict[str, Path]:
    """The files and folders of SOURCE, which no output may replace, by what a message calls them."""
    from relabel.data.rows import CLASSES_FILE
    from relabel.data.shards import expand

    files = {f"{name}'s classes": Path(source).parent / CLASSES_FILE}
    if reading.classes is not None:
        files["--classes"] = Path(reading.classes)
    if os.path.exists(source):
        return {**files, name: Path(source)}
    return files | {f"{name} ({path})": path for path in expand(source)}


def _write_labels(output: str, result: Labelling, arguments: Sequence[str], overwrite: bool) -> None:
    from relabel.output.parquet import write_labels

    with _guarded_stdout() if output == "-" else nullcontext(Path(output)) as destination:
        write_labels(
            destination,
            file_names=result.source.file_names,
            given=result.source.given,
            soft_label=result.soft_label,
            noise_probability=result.noise_probability,
            action=result.action,
            trusted=result.trusted,
            errors=result.errors,
            class_names=result.source.class_names,
            metadata={**result.metadata, "command": shlex.join(["relabel", *arguments])},
            overwrite=overwrite,
        )


def _show_result(console: Console, result: Labelling, output: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        _print_json({**result.summary, "output": output})
    elif not quiet:
        summary.show_result(
            console, result.summary, "the labels to standard output" if output == "-" else output
        )


def _check_is_parquet(output: str) -> None:
    """Refuse a name for the labels that is one of something else."""
    if Path(output).suffix.lower() in _NO_PARQUET:
        raise RelabelError(
            f"--output {output}: the labels are written as Parquet.", "End the name in .parquet."
        )


def _check_stdout(as_json: bool) -> None:
    if as_json:
        raise RelabelError("--json and -o - both want standard output.", "Write the labels to a file.")
    if sys.stdout.isatty():
        raise RelabelError("-o - would write Parquet bytes to the terminal.", "Pipe them on, or name a file.")


def _check_outputs(
    written: Mapping[str, Path | None], read: Mapping[str, Path | None], overwrite: bool
) -> None:
    """Refuse an output that cannot be written, or that would replace an input or another output."""
    owners = {path.resolve(): flag for flag, path in read.items() if path and os.path.isfile(path)}
    folders = {flag: path for flag, path in read.items() if path and os.path.isdir(path)}
    for flag, path in written.items():
        if path is None:
            continue
        try:
            check_output(path, overwrite or flag == "--checkpoint")
        except RelabelError as error:
            raise RelabelError(f"{flag}: {error.message}", error.hint) from None
        other = owners.setdefault(path.resolve(), flag)
        if other != flag:
            raise RelabelError(f"{flag} {path} is also {other}.", "Choose another name.")
        if path.exists():
            _check_replaced(flag, path, folders)


def _check_replaced(flag: str, path: Path, folders: Mapping[str, Path]) -> None:
    """Refuse to replace an image, or what else an input that is a folder is made of."""
    from relabel.data.images import IMAGE_SUFFIXES
    from relabel.data.sources import is_part

    if {path.suffix.lower(), path.resolve().suffix.lower()} & IMAGE_SUFFIXES:
        raise RelabelError(f"{flag} {path} is an image.", "Choose another name.")
    for name, folder in folders.items():
        if is_part(folder, path):
            raise RelabelError(f"{flag} {path} is part of {name}.", "Choose another name.")


def _console(*, stderr: bool = False) -> Console:
    """Plain text unless the stream is a terminal, whatever the environment forces: logs stay readable."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, force_terminal=None if stream.isatty() else False)


@contextmanager
def _standard_input() -> Iterator[Path]:
    """Standard input as a file, which a RelabelError in the block then calls by what it is."""
    with tempfile.TemporaryDirectory(prefix="relabel-") as folder:
        path = Path(folder, "stdin.csv")  # readers know the kind of a table by its name
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        except OSError as error:
            raise RunError(
                f"Standard input could not be kept in {tempfile.gettempdir()}: {error.strerror}.",
                "Free some space, or set TMPDIR to another folder.",
            ) from error
        if _starts_with(path, b"PAR1"):
            path = path.rename(path.with_suffix(".parquet"))
        try:
            yield path
        except RelabelError as error:
            message = error.message.replace(str(path), "standard input")
            raise type(error)(message, error.hint) from error


def _labels_source(argument: str) -> Path | BinaryIO:
    return sys.stdin.buffer if argument == "-" else Path(argument)


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _show(show: Callable[[Console, Shown], None], what: Shown) -> None:
    """Have one of the tables of `summary` on standard output."""
    with _guarded_stdout():
        show(_console(), what)


def _print_json(value: Mapping[str, Any]) -> None:
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    with _guarded_stdout():
        typer.echo(json.dumps(value, indent=2, ensure_ascii=ascii_only, default=str))
