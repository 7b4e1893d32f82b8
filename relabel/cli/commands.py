"""The commands: flags to config, results to files and text.

torch is imported inside them, so that `--help` and every mistake in the flags answer at once.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from relabel import __version__
from relabel.cli import tables
from relabel.cli.checks import check_stdout, with_checkpoint
from relabel.cli.flags import JsonOption, QuietOption, takes
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
    SHIPPED_CORRECTOR,
    ApplyConfig,
    CorruptConfig,
    EvaluateConfig,
    FitConfig,
    LabellingConfig,
    PredictConfig,
    PretrainConfig,
)
from relabel.errors import DivergedError, RelabelError, RunError
from relabel.files import make_folder
from relabel.interrupts import Stopped
from relabel.options import changed
from relabel.progress import Terminal
from relabel.verbs.checks import (
    check_apply,
    check_corrupt,
    check_fit,
    check_predict,
    check_pretrain,
    hidden_beside,
)

if TYPE_CHECKING:
    from relabel.labels.table import Labels

app = typer.Typer(
    help="Repair image data sets whose labels are partly wrong, guided by a few hundred trusted rows.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(short_help="Correct the labels of SOURCE, guided by trusted rows.")
@takes(FitConfig)
def fit(
    context: typer.Context, config: FitConfig, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Train a backbone with a label corrector and write one Parquet row per image."""
    if config.outputs.output == "-":
        check_stdout(as_json)
    named = config.run.checkpoint is not None
    config = with_checkpoint(config, context.obj)
    check_fit(config)
    _train(config, context.obj, named, _Shown(quiet, as_json))


@app.command(short_help="Correct the labels of SOURCE without any trusted row.")
@takes(ApplyConfig)
def apply(
    context: typer.Context, config: ApplyConfig, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Train a backbone while a pretrained corrector rewrites its labels; writes what fit writes.

    The corrector has learned on other data sets what training looks like on wrong labels; `relabel inspect`
    shows on which. Without trusted rows the probabilities are calibrated on those data sets too.
    """
    if config.outputs.output == "-":
        check_stdout(as_json)
    named = config.run.checkpoint is not None
    config = with_checkpoint(config, context.obj)
    check_apply(config)
    _train(config, context.obj, named, _Shown(quiet, as_json))


@dataclass(frozen=True)
class _Shown:
    """How the summary is shown."""

    quiet: bool
    as_json: bool


def _train(config: FitConfig | ApplyConfig, arguments: list[str], named: bool, shown: _Shown) -> None:
    """Run a fit or an apply with its checkpoint, which the user may have `named`; save, write and report."""
    console = make_console(stderr=True)
    state = config.run.checkpoint
    assert state is not None

    def how_to_resume() -> str:
        if not state.exists():
            return "No epoch was finished and nothing was written."
        # Here, for what stops a run may come before the imports below.
        from relabel.verbs.outputs import written_by

        return _how_to_resume(state, arguments, any(path.exists() for path in written_by(config)))

    try:
        with Terminal(console, shown.quiet) as watcher:
            watcher.stage("Starting", None)  # torch takes seconds to import
            from relabel.verbs.apply import apply
            from relabel.verbs.fit import fit
            from relabel.verbs.outputs import checkpointed, save_trained

            with checkpointed(config, watcher, named):
                result = fit(config, watcher) if isinstance(config, FitConfig) else apply(config, watcher)
                save_trained(config, result)
                _write_labels(config, result, arguments)
    except Stopped as stop:
        raise stop.saying(how_to_resume()) from None
    except BrokenPipeError:
        abandon_stdout()
        raise RunError("The reader of standard output closed it too early.", how_to_resume()) from None
    except DivergedError:
        raise
    except RunError as error:
        raise RunError(error.message, f"{error.hint} {how_to_resume()}".strip()) from error
    _show_result(console, result, config, shown)


@app.command(short_help="Meta-train a corrector for apply on data whose labels are true.")
@takes(PretrainConfig)
def pretrain(context: typer.Context, config: PretrainConfig, quiet: QuietOption = False) -> None:
    """Meta-train one TMLC-Net on many short runs over data whose labels are true.

    Each run takes some classes and rows of a SOURCE, makes some labels wrong and trains a small network; what
    it predicts is recorded once and replayed while the corrector learns. An interrupted command goes on where
    it stopped when it is repeated.
    """
    arguments: list[str] = context.obj
    named, output = config.recordings, config.output
    assert output is not None
    if str(output) != "-":
        config = changed(config, recordings=named or hidden_beside(output, "recordings"))
    check_pretrain(config)
    folder = config.recordings
    assert folder is not None

    from relabel.pretraining.meta_train import pretrain

    make_folder(folder, f"--recordings {folder}")
    kept = f"The recorded runs in {folder} are kept; continue with: {shlex.join(['relabel', *arguments])}"
    try:
        with Terminal(make_console(stderr=True), quiet) as watcher:
            corrector = pretrain(config, watcher)
        corrector.save(output)
    except (Stopped, RelabelError) as error:
        if any(folder.iterdir()):
            if isinstance(error, Stopped):
                raise error.saying(kept) from None
            if isinstance(error, RunError):
                raise RunError(error.message, f"{error.hint} {kept}".strip()) from error
        elif named is None:
            folder.rmdir()
        raise
    if named is None:
        shutil.rmtree(folder)
    if not quiet:
        typer.echo(f"Wrote {output} ({output.stat().st_size / 1e3:,.0f} kB).", err=True)


@app.command(short_help="Label images that were not in the fit.")
@takes(PredictConfig)
def predict(
    context: typer.Context, config: PredictConfig, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Label images that were not in the fit, with a model that fit saved; they may have labels or none.

    The backbone predicts, whatever the corrector: also for metalabelnet, whose label generator teaches it.
    Given labels must be among the model's classes; they get a noise probability and an action, as in fit.
    """
    console = make_console(stderr=True)
    if config.outputs.output == "-":
        check_stdout(as_json)
    check_predict(config)

    from relabel.verbs.predict import predict

    try:
        with Terminal(console, quiet) as watcher:
            result = predict(config, watcher)
        _write_labels(config, result, context.obj)
    except BrokenPipeError:
        abandon_stdout()
        raise RunError("The reader of standard output closed it too early.") from None
    _show_result(console, result, config, _Shown(quiet, as_json))


@app.command(short_help="Compare a labels file with the truth.")
@takes(EvaluateConfig)
def evaluate(config: EvaluateConfig, as_json: JsonOption = False) -> None:
    """Compare a labels file with the truth: accuracy before and after, detection, calibration, fixes.

    Trusted rows are left out of every figure: they are right by construction.
    """
    from relabel.labels.table import Labels

    with Terminal(make_console(stderr=True), quiet=False) as watcher:
        labels = Labels.read(labels_source(config.labels))
        evaluation = labels.evaluate(config.truth, config.label_column, watcher)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        show_table(tables.show_evaluation, evaluation)


@app.command(short_help="Make a benchmark: put wrong labels on clean data.")
@takes(CorruptConfig)
def corrupt(context: typer.Context, config: CorruptConfig, quiet: QuietOption = False) -> None:
    """Make a benchmark out of clean data: file_name, noisy label and clean_label of every row.

    `--labels` of fit reads it as it is, and so does `--truth` of evaluate; inspect shows its noise matrix. A
    Parquet file also keeps in its metadata what made it.

    symmetric and flip-random (an exact share of each class) take every other class alike; symmetric-inclusive
    and uniform (exact quotas) every class, so that some labels stay right; flip-to-one takes one other class
    for each class, asymmetric the one in --map, superclass the next of the same superclass. feature-dependent
    trains a small network and flips what is nearest to its decision boundary; instance-dependent flips by
    the pixels of the image, or the values of the vector.
    """
    from relabel.simulate.corrupt import corrupt

    check_corrupt(config)
    with Terminal(make_console(stderr=True), quiet) as watcher:
        result = corrupt(config, watcher)
    if config.output == "-":
        with guarded_stdout() as stream:
            stream.write(result.to_csv().encode())
    else:
        arguments: list[str] = context.obj
        metadata = {**result.metadata, "command": shlex.join(["relabel", *arguments])}
        replace(result, metadata=metadata).save(Path(str(config.output)), config.overwrite)
    if not quiet:
        typer.echo(
            f"{result.wrong_rows:,} of {result.labelled_rows:,} labels are now wrong: "
            f"actual rate {result.actual_rate:.4f} ({config.noise}, seed {config.seed}).",
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:
    """Write a small real data set with 30 % wrong labels, run fit on it and show what it gained."""
    from relabel.simulate import demo

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
    flags = ["--resume", *(["--overwrite"] if replace else [])]
    missing = [flag for flag in flags if flag not in arguments]
    # First, in case the last words follow a --.
    line = shlex.join(["relabel", arguments[0], *missing, *arguments[1:]])
    return f"The checkpoint {checkpoint} is kept; continue with: {line}"


def _write_labels(config: LabellingConfig, result: Labels, arguments: Sequence[str]) -> None:
    output = config.outputs.output
    with guarded_stdout() if output == "-" else nullcontext(str(output)) as destination:
        result.made_by(shlex.join(["relabel", *arguments])).save(destination, config.outputs.overwrite)


def _show_result(console: Console, result: Labels, config: LabellingConfig, shown: _Shown) -> None:
    output = str(config.outputs.output)
    if shown.as_json:
        print_json({**result.summary.to_dict(), "output": output})
    elif not shown.quiet:
        tables.show_result(
            console, result.summary, "the labels to standard output" if output == "-" else output
        )
