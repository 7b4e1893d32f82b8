"""Flags to config, results to files and text: the only place that prints or exits.

torch is imported inside the commands, so that `--help` and every mistake in the flags answer at once.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, BinaryIO, NoReturn

import typer
from rich.console import Console

from relabel import __version__, demo, noise, summary
from relabel.config import FitConfig
from relabel.correctors import REGISTRY
from relabel.errors import RelabelError
from relabel.files import atomic_path, check_output
from relabel.progress import Terminal

app = typer.Typer(
    help="Repair image data sets whose labels are partly wrong, guided by a few hundred verified rows.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Augmentation(StrEnum):
    """`--augment`."""

    FLIP = "flip"
    SHIFT = "shift"
    NONE = "none"


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
    str, typer.Argument(help="A folder of class folders, a folder with metadata.csv, or a manifest file.")
]
LabelsFileArgument = Annotated[str, typer.Argument(help="A file written by relabel; - reads standard input.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


@app.command()
def fit(
    source: SourceArgument,
    trusted: Annotated[
        Path,
        typer.Option(help="Verified rows: CSV or Parquet (file_name,label), or a folder of class folders."),
    ],
    corrector: Annotated[
        str, typer.Option(help=f"{' or '.join(REGISTRY)}; none is plain training, calibrated.")
    ] = "mslc",
    output: Annotated[
        str, typer.Option("--output", "-o", help="The Parquet file to write; - is standard output.")
    ] = "labels.parquet",
    labels: Annotated[
        Path | None, typer.Option(help="CSV or Parquet (file_name,label) that replaces or adds given labels.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="cnn8 or a torchvision classifier by name. Default: cnn8, or resnet18 with --weights."
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="none, imagenet (torchvision's download) or the path of a state dict.")
    ] = "none",
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Train only the last layer, on features computed once.")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels. Default: native up to 64; 224 with --weights.")
    ] = None,
    augment: Annotated[
        Augmentation, typer.Option(help="flip: shift and mirror; shift: for digits and letters.")
    ] = Augmentation.FLIP,
    epochs: Annotated[int | None, typer.Option(help="Default: 20 to 60, fewer for larger data.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Epochs before the corrector. Default: a third.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 64, or 256 from 10,000 rows on.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default: from the batch size.")
    ] = None,
    precision: Annotated[float, typer.Option(help="Share of the rows marked fix that must be right.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Makes a CPU run repeatable bit for bit.")] = 0,
    device: Annotated[DeviceName, typer.Option(help="Where to compute.")] = DeviceName.AUTO,
    amp: Annotated[Amp, typer.Option(help="bf16 where the hardware has it.")] = Amp.AUTO,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Where the run's state is kept. Default: beside the output.")
    ] = None,
    save_corrector: Annotated[Path | None, typer.Option(help="Also write the trained corrector.")] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a backbone with a label corrector and write one Parquet row per image."""
    console = Console(stderr=True)
    to_stdout = output == "-"
    if to_stdout and as_json:
        raise RelabelError("--json and -o - both want standard output.", "Write the labels to a file.")
    if to_stdout and sys.stdout.isatty():
        raise RelabelError("-o - would write Parquet bytes to the terminal.", "Pipe them on, or name a file.")
    if not to_stdout:
        check_output(Path(output), overwrite)
    if save_corrector:
        check_output(save_corrector, overwrite)
    checkpoint = checkpoint or _checkpoint_path(output)
    config = FitConfig(
        source=source,
        trusted=trusted,
        labels=labels,
        corrector=corrector,
        backbone=backbone,
        weights=weights,
        freeze=freeze,
        image_size=image_size,
        augment=augment.value,
        epochs=epochs,
        warmup=warmup,
        batch_size=batch_size,
        learning_rate=lr,
        precision=precision,
        seed=seed,
        device=device.value,
        amp=amp.value,
        checkpoint=checkpoint,
        resume=resume,
    )
    from relabel import pipeline
    from relabel.output.parquet import write_labels

    try:
        with Terminal(console, quiet) as watcher:
            result = pipeline.fit(config, watcher)
    except KeyboardInterrupt:
        _interrupted(checkpoint)
    write_labels(
        sys.stdout.buffer if to_stdout else Path(output),
        file_names=result.source.file_names,
        given=result.source.given,
        soft_label=result.soft_label,
        noise_probability=result.noise_probability,
        action=result.action,
        trusted=result.trusted,
        errors=result.errors,
        class_names=result.source.class_names,
        metadata={**result.metadata, "command": shlex.join(["relabel", *sys.argv[1:]])},
        overwrite=overwrite,
    )
    sys.stdout.flush()
    if save_corrector:
        result.save_corrector(save_corrector)
    checkpoint.unlink(missing_ok=True)
    if as_json:
        _print_json({**result.summary, "output": output})
    elif not quiet:
        summary.show_fit(console, result.summary, "standard output" if to_stdout else output)


@app.command()
def evaluate(
    labels_file: LabelsFileArgument,
    truth: Annotated[
        Path, typer.Option(help="CSV or Parquet: file_name and clean_label (or label); rows may be a subset.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare a labels file with the truth: accuracy before and after, detection, calibration, fixes.

    Verified rows are left out of every figure: they are right by construction.
    """
    from relabel.output.evaluation import evaluate_file

    evaluation = evaluate_file(_labels_source(labels_file), truth)
    if as_json:
        _print_json(evaluation.to_dict())
    else:
        summary.show_evaluation(Console(), evaluation)


@app.command()
def corrupt(
    source: SourceArgument,
    noise_name: Annotated[str, typer.Option("--noise", help=f"One of {', '.join(noise.NOISE_MODELS)}.")],
    rate: Annotated[float, typer.Option(help="Share of the labels to make wrong, 0 to 1.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The CSV to write; - is standard output.")],
    mapping: Annotated[
        Path | None, typer.Option("--map", help="For asymmetric: CSV (from,to) or JSON {class: class}.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV or Parquet (file_name,label) that replaces or adds given labels.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same noise.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a benchmark out of clean data: a CSV with file_name, noisy label and clean_label.

    `--labels` of fit reads it as it is, and so does `--truth` of evaluate.
    """
    from relabel.data.sources import open_source

    if output != "-":
        check_output(Path(output), overwrite)
    opened = open_source(source, labels)
    target_of = noise.read_mapping(mapping, opened.class_names) if mapping else None
    corrupted = noise.corrupt(
        opened.given, opened.class_names, noise=noise_name, rate=rate, seed=seed, mapping=target_of
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "label", "clean_label"])
    names = [*opened.class_names, ""]  # −1, unlabelled, picks the empty last one
    for name, noisy, clean in zip(opened.file_names, corrupted.labels, opened.given, strict=True):
        writer.writerow([name, names[noisy], names[clean]])
    if output == "-":
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
    else:
        with atomic_path(Path(output)) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    typer.echo(
        f"{int(corrupted.wrong.sum()):,} of {int((opened.given >= 0).sum()):,} labels are now wrong: "
        f"actual rate {corrupted.actual_rate:.4f} ({noise_name}, seed {seed}).",
        err=True,
    )


@app.command()
def inspect(
    file: LabelsFileArgument,
    as_json: JsonOption = False,
) -> None:
    """Show what a labels file or a corrector file holds."""
    from relabel.output.parquet import read_labels

    if file != "-" and _starts_with(Path(file), b"PK"):
        from relabel.correctors.files import read_corrector

        described = read_corrector(Path(file)).describe()
        if as_json:
            _print_json(described)
        else:
            summary.show_corrector(Console(), described)
        return
    labels_file = read_labels(_labels_source(file))
    if as_json:
        _print_json({"rows": labels_file.table.num_rows, **labels_file.metadata})
    else:
        summary.show_labels_file(Console(), labels_file)


@app.command(name="demo")
def demo_command(
    directory: Annotated[Path, typer.Argument(help="A new folder for the images.")] = Path("relabel-demo"),
    overwrite: OverwriteOption = False,
) -> None:
    """Write a small real data set with 30 % wrong labels, run fit on it and show what it gained."""
    data = demo.write_dataset(directory, overwrite)
    arguments = data.fit_arguments
    typer.echo(data.describe(), err=True)
    typer.echo(f"\n$ relabel {shlex.join(arguments)}\n", err=True)
    app(args=arguments, standalone_mode=False)
    from relabel.output.evaluation import evaluate_file

    evaluation = evaluate_file(data.output, data.truth)
    typer.echo(
        f"\n$ relabel evaluate {shlex.join([str(data.output), '--truth', str(data.truth)])}\n", err=True
    )
    summary.show_evaluation(Console(), evaluation)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options of relabel itself."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """The console command: every failure becomes one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(standalone_mode=False)
    except RelabelError as error:
        code = _fail(error, str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        code = _fail(interrupt, str(interrupt) or "Interrupted.", 130)
    except BrokenPipeError:
        # The reader of our output has gone; a second error at interpreter exit would say nothing more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except typer.exceptions.TyperException as error:
        code = _fail(error, f"{_usage_sentence(error)} See relabel --help.", 2)
    except Exception as error:
        code = _fail(error, f"{type(error).__name__}: {error} (RELABEL_DEBUG=1 shows where).", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_sentence(error: Exception) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(message.split()).rstrip(".") + "."


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("RELABEL_DEBUG") == "1":
        raise error
    typer.echo(f"Error: {message}" if code != 130 else message, err=True)
    return code


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)  # an exception, so that temporary files are removed on the way out


def _interrupted(checkpoint: Path) -> NoReturn:
    if not checkpoint.exists():
        raise KeyboardInterrupt("Interrupted before the first epoch was done; nothing was written.")
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    raise KeyboardInterrupt(
        f"Interrupted; the checkpoint {checkpoint} is kept. "
        f"Continue with: {shlex.join(['relabel', *arguments, '--resume'])}"
    )


def _checkpoint_path(output: str) -> Path:
    path = Path("relabel-stdout" if output == "-" else output)
    return path.with_name(f".{path.name}.checkpoint")


def _labels_source(argument: str) -> Path | BinaryIO:
    return sys.stdin.buffer if argument == "-" else Path(argument)


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
