"""The commands: flags to config, results to files and text.

torch is imported inside them, so that `--help` and every mistake in the flags answer at once.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from relabel import __version__, hub
from relabel.cli import tables
from relabel.cli.checks import (
    check_is_parquet,
    check_outputs,
    check_source,
    check_stdout,
    check_there,
    checkpoint_path,
    files_of,
    hidden_beside,
    parse_options,
)
from relabel.cli.flags import (
    OPTIONS_TOLD,
    Amp,
    AmpOption,
    ApplyEpochsOption,
    AugmentOption,
    BackboneOption,
    BatchSizeOption,
    CheckpointOption,
    DeviceName,
    DeviceOption,
    EpochsOption,
    FreezeOption,
    ImageSizeOption,
    JsonOption,
    LabelsFileArgument,
    LabelsOption,
    MetaGradient,
    NoCacheOption,
    OutputOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    RateOption,
    ResumeOption,
    SeedOption,
    SourceArgument,
    TrustedColumnOption,
    WarmupOption,
    WeightsOption,
    reads_source,
)
from relabel.cli.running import invoke
from relabel.cli.streams import (
    abandon_stdout,
    guarded_stdout,
    labels_source,
    make_console,
    print_json,
    show_table,
    standard_input,
    starts_with,
)
from relabel.config import (
    DEFAULT_CORRECTOR,
    SHIPPED_CORRECTOR,
    FitConfig,
    PredictConfig,
    SourceOptions,
)
from relabel.correctors import registry
from relabel.correctors.registry import PRESETS, REGISTRY
from relabel.errors import DivergedError, RelabelError, RunError
from relabel.files import make_folder
from relabel.interrupts import Stopped
from relabel.progress import Terminal
from relabel.simulate import demo, noise

if TYPE_CHECKING:
    from relabel.labels.table import Labels

app = typer.Typer(
    help="Repair image data sets whose labels are partly wrong, guided by a few hundred verified rows.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
        list[str] | None, typer.Option(metavar="NAME=VALUE", help=f"A corrector's option: {OPTIONS_TOLD}.")
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
    console = make_console(stderr=True)
    arguments: list[str] = context.obj
    if trusted is None and trusted_column is None:
        raise RelabelError(
            "fit needs verified rows: there is neither --trusted nor --trusted-column.",
            "Name a table or a folder with --trusted; relabel apply does without.",
        )
    to_stdout = output == "-"
    if to_stdout:
        check_stdout(as_json)
    state = checkpoint or checkpoint_path(output, arguments)
    config = FitConfig(
        source=source,
        trusted=trusted,
        labels=labels,
        reading=replace(reading, trusted_column=trusted_column),
        corrector=corrector,
        preset=preset,
        options=parse_options(option or []),
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
    chosen = registry.chosen(config.corrector, config.preset)
    registry.check(chosen, config.options)
    if save_corrector and chosen == "none":
        raise RelabelError(
            "--save-corrector: with --corrector none there is nothing to save.", "Leave it out."
        )
    check_source(source)
    check_there({"--trusted": trusted, "--labels": labels})
    check_outputs(
        {
            "--output": None if to_stdout else Path(output),
            "--save-corrector": save_corrector,
            "--save-model": save_model,
            "--checkpoint": state,
        },
        {**files_of(source, reading), "--trusted": trusted, "--labels": labels, "--weights": Path(weights)},
        overwrite,
    )
    check_is_parquet(output)

    saves: dict[Path, Callable[[Labels, Path], None]] = {}
    if save_corrector:
        saves[save_corrector] = lambda result, path: result.corrector.save(path)
    if save_model:
        saves[save_model] = lambda result, path: result.model.save(path)
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
    console = make_console(stderr=True)
    arguments: list[str] = context.obj
    to_stdout = output == "-"
    if to_stdout:
        check_stdout(as_json)
    state = checkpoint or checkpoint_path(output, arguments)
    corrector = corrector or str(SHIPPED_CORRECTOR)
    local = None if corrector.startswith("hf://") else Path(corrector)
    if local and not local.is_file():
        raise RelabelError(
            f"--corrector {local}: no such file.", "Write one with relabel pretrain or fit --save-corrector."
        )
    check_source(source)
    check_there({"--trusted": trusted, "--labels": labels})
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
    check_outputs(
        {"--output": None if to_stdout else Path(output), "--checkpoint": state},
        {
            **files_of(source, reading), "--corrector": local, "--trusted": trusted, "--labels": labels,
            "--weights": Path(weights),
        },
        overwrite,
    )  # fmt: skip
    check_is_parquet(output)
    config = replace(config, pretrained=hub.resolve(corrector, "--corrector", SHIPPED_CORRECTOR.name))
    _fit(console, arguments, config, state, checkpoint is not None, {}, output, overwrite, as_json, quiet)


def _fit(
    console: Console,
    arguments: list[str],
    config: FitConfig,
    state: Path,
    named: bool,
    saves: Mapping[Path, Callable[[Labels, Path], None]],
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
            from relabel.training.checkpoint import is_checkpoint
            from relabel.verbs import fit

            if state.exists() and not config.resume:
                if named and not is_checkpoint(state):
                    raise RelabelError(
                        f"--checkpoint {state} is damaged or another kind of file.",
                        "Name another file, or remove this one.",
                    )
                watcher.warn(f"Starting afresh replaces the checkpoint {state}; --resume would continue it.")
            result = fit.fit(config, watcher)
        for path, save in saves.items():
            save(result, path)
        _write_labels(output, result, arguments, overwrite)
    except Stopped as stop:
        raise stop.saying(how_to_resume()) from None
    except BrokenPipeError:
        abandon_stdout()
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
    folder = recordings or hidden_beside(output, "recordings")
    read = {
        name: path
        for number, source in enumerate(sources, 1)
        for name, path in files_of(source, reading, f"SOURCE {number}").items()
    }
    check_outputs({"--output": output}, read, overwrite)
    if folder.exists() and not folder.is_dir():
        raise RelabelError(f"--recordings {folder} is not a folder.", "Name another one.")
    if folder.resolve() == output.resolve():
        raise RelabelError(f"--recordings {folder} is also --output.", "Choose another name.")
    for source in sources:
        check_source(source)

    from relabel.pretraining.meta_train import PretrainConfig, pretrain

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
    console = make_console(stderr=True)
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
    console = make_console(stderr=True)
    arguments: list[str] = context.obj
    if output == "-":
        check_stdout(as_json)
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
    check_source(source)
    check_there({"--labels": labels})
    if not model.is_file():
        raise RelabelError(f"--model {model}: no such file.", "Write one with relabel fit --save-model.")
    check_outputs(
        {"--output": None if output == "-" else Path(output)},
        {**files_of(source, reading), "--model": model, "--labels": labels},
        overwrite,
    )
    check_is_parquet(output)

    from relabel.verbs import predict

    try:
        with Terminal(console, quiet) as watcher:
            result = predict.predict(config, watcher)
        _write_labels(output, result, arguments, overwrite)
    except BrokenPipeError:
        abandon_stdout()
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
    from relabel.labels.table import Labels

    with Terminal(make_console(stderr=True), quiet=False) as watcher:
        evaluation = Labels.read(labels_source(labels_file)).evaluate(truth, label_column, watcher)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        show_table(tables.show_evaluation, evaluation)


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
    from relabel.simulate import corrupt, noisy_labels_file

    if output != "-":
        read = {**files_of(source, reading), "--labels": labels, "--map": mapping}
        check_outputs({"--output": Path(output)}, read, overwrite)
        noisy_labels_file.check_suffix(Path(output))
    config = corrupt.CorruptConfig(
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
    with Terminal(make_console(stderr=True), quiet) as watcher:
        result = corrupt.corrupt(config, watcher)
    if output == "-":
        with guarded_stdout() as stream:
            stream.write(result.to_csv().encode())
    else:
        arguments: list[str] = context.obj
        metadata = {**result.metadata, "command": shlex.join(["relabel", *arguments])}
        replace(result, metadata=metadata).save(Path(output), overwrite)
    if not quiet:
        typer.echo(
            f"{result.wrong_rows:,} of {result.labelled_rows:,} labels are now wrong: "
            f"actual rate {result.actual_rate:.4f} ({noise_name}, seed {seed}).",
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
        with standard_input() as path:
            _inspect(path, as_json)
    else:
        _inspect(Path(file), as_json)


def _inspect(path: Path, as_json: bool) -> None:
    if path.is_dir():
        raise RelabelError(f"{path} is a folder.", "Name a file that relabel wrote.")
    from relabel.labels.table import Labels
    from relabel.simulate import noisy_labels_file

    if starts_with(path, b"PK"):
        from relabel.saved.model_file import describe_file

        described = describe_file(path)
        if as_json:
            print_json(described)
        else:
            show_table(tables.show_trained, described)
        return
    if noisy_labels_file.is_noisy_labels(path):
        noisy = noisy_labels_file.read(path)
        if as_json:
            print_json(noisy.to_dict())
        else:
            show_table(tables.show_noisy_labels, noisy.lines())
        return
    labels = Labels.read(path)
    if as_json:
        print_json({"rows": len(labels), **labels.metadata.to_dict()})
    else:
        show_table(tables.show_labels_file, labels)


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
    invoke(app, arguments)
    from relabel.labels.table import Labels

    evaluation = Labels.read(data.output).evaluate(data.truth)
    typer.echo(
        f"\n$ relabel evaluate {shlex.join([str(data.output), '--truth', str(data.truth)])}\n", err=True
    )
    show_table(tables.show_evaluation, evaluation)


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


def _how_to_resume(checkpoint: Path, arguments: list[str], replace: bool) -> str:
    """The line that continues a run, and replaces what it has written already if there is any."""
    if not checkpoint.exists():
        return "No epoch was finished and nothing was written."
    flags = ["--resume", *(["--overwrite"] if replace else [])]
    missing = [flag for flag in flags if flag not in arguments]
    # First, in case the last words follow a --.
    line = shlex.join(["relabel", arguments[0], *missing, *arguments[1:]])
    return f"The checkpoint {checkpoint} is kept; continue with: {line}"


def _write_labels(output: str, result: Labels, arguments: Sequence[str], overwrite: bool) -> None:
    with guarded_stdout() if output == "-" else nullcontext(Path(output)) as destination:
        result.made_by(shlex.join(["relabel", *arguments])).save(destination, overwrite)


def _show_result(console: Console, result: Labels, output: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({**result.summary.to_dict(), "output": output})
    elif not quiet:
        tables.show_result(
            console, result.summary.to_dict(), "the labels to standard output" if output == "-" else output
        )
