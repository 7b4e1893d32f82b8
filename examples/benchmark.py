"""Measure `relabel` on real data: methods x settings x seeds, as a Parquet file of runs and Markdown tables.

    pip install -e '.[benchmark]'
    python examples/benchmark.py cifar10n cifar10n_worse_25k.parquet --test cifar10_test_5k.parquet
    python examples/benchmark.py trashnet PATH/TO/trashnet --precision 0.9

A *setting* says where the labels come from. `human` takes the file's `label`; the truth is its `clean_label`.
NOISE-RATE is noise that `relabel corrupt` puts on the true labels: `symmetric-0.4`, `instance-dependent-0.4`
or any other of its models, `asymmetric` with CIFAR-10's usual map. A *method* is a corrector, run by `relabel
fit` as a user would type it; `apply`, which is `relabel apply` without any trusted row, with the corrector
that comes with relabel or that of `--pretrained`; or one of four baselines without relabel (`baselines.py`).
All have the same backbone, image size, augmentation and schedule; METHOD@EPOCHS, such as `cleanlab@20`, has a
budget of its own. `trusted-only` never sees a given label, so one setting's run stands for all with its seed.
Trusted rows are drawn at random for each seed, given to every method but `apply` and left out of every
figure.

The options listed below go to every method; all others go to `relabel` alone. `--rows N` takes the first N
rows of the data. `--features COLUMN` takes vectors in place of images, such as `embed.py` makes of the same
files: in DATA, which is then a Parquet for trashnet too, and in `--test`. `--jobs N` keeps N runs going side
by side, each with its share of the cores: small images leave most of a GPU idle. Seconds then mean little.

Finished runs are kept in `--output` at once, and a run that is there already is not repeated: a long table
can be made in several goes. The tables show every run of that file made under the same conditions, also of
other methods, settings, seeds and epochs; `--methods` without a name runs nothing and only shows them.
Seconds are those of labelling, without the test images, and peak memory is that of the process that labels.
Test accuracy is that of the model which `fit --save-model` keeps, by `predict` on images without a label.
With `none` and `tmlc` a quarter of the trusted rows then calibrates the model, which costs their labels a
little. The test accuracy of the outside baselines is that of the network as its last step left it.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import importlib.util
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import _shared
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _shared import table, write_csv

from relabel import interrupts
from relabel.errors import RelabelError
from relabel.files import atomic_path, check_output
from relabel.interrupts import Stopped
from relabel.simulate.noise import NOISE_MODELS

if TYPE_CHECKING:
    from multiprocessing.pool import IMapIterator, Pool

Item = TypeVar("Item")

BASELINES = ("plain", "cleanlab", "fine-tune", "trusted-only")
WITHOUT_LABELS = ("trusted-only",)  # whose networks the noise of a setting does not reach
METHODS = ("none", "mslc", "mlc", "metalabelnet", "tmlc", "apply", *BASELINES)
SETTINGS = {
    "cifar10n": (
        "human", "symmetric-0.2", "symmetric-0.4", "symmetric-0.6", "asymmetric-0.4",
        "instance-dependent-0.4",
    ),
    "trashnet": ("symmetric-0.3",),
}  # fmt: skip
TRUSTED = {"cifar10n": 1000, "trashnet": 300}
CIFAR10_MAP = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog"}

# Beside --epochs: what `fit` and `baselines.py` both understand.
SHARED_FLAGS = (
    "--features", "--backbone", "--image-size", "--augment", "--batch-size", "--lr", "--device", "--amp",
)  # fmt: skip
READING_FLAGS = ("--features",)  # those that every command with a SOURCE takes


@dataclass(frozen=True)
class Figure:
    """A column: the name of a figure, its factor for display and its decimals."""

    name: str
    scale: float = 1
    digits: int = 3


COLUMNS = {
    "before": Figure("label_accuracy_before", 100, 1),
    "after": Figure("label_accuracy_after", 100, 1),
    "on mislabelled rows": Figure("accuracy_on_wrong_rows", 100, 1),
    "on correct rows": Figure("accuracy_on_right_rows", 100, 1),
    "AUROC": Figure("noise_auroc"),
    "AP": Figure("noise_average_precision"),
    "calibration error": Figure("calibration_error"),
    "fix rows": Figure("fix_rows", 1, 0),
    "fix precision": Figure("fix_precision", 100, 1),
    "fix ÷ mislabelled rows": Figure("fix_per_wrong_row", 100, 1),
    "test": Figure("test_accuracy", 100, 1),
    # Of runs made before `fit --save-model` could choose other weights than the last.
    "test, last weights": Figure("last_weights_test_accuracy", 100, 1),
    "seconds": Figure("seconds", 1, 0),
    "peak GB": Figure("peak_gigabytes", 1, 1),
}
OVERVIEWS = {
    "Label accuracy after, %": COLUMNS["after"],
    "Test accuracy, %": COLUMNS["test"],
    "Test accuracy with the last weights, %": COLUMNS["test, last weights"],
}


@dataclass(frozen=True)
class Run:
    """What tells one run from another; `epochs` is None where the method decides, `options` are flags."""

    benchmark: str
    setting: str
    method: str
    seed: int
    rows: int
    trusted: int
    epochs: int | None
    options: str

    @property
    def flags(self) -> list[str]:
        """What `fit` and `baselines.py` are given besides files."""
        epochs = [] if self.epochs is None else ["--epochs", str(self.epochs)]
        return ["--seed", str(self.seed), *epochs, *shlex.split(self.options)]


TEXT = ("benchmark", "setting", "method", "options")
KEY = {name: pa.string() if name in TEXT else pa.int64() for name in Run.__dataclass_fields__}

Result = dict[str, Any]
"""A finished run: the fields of `Run`, and figures."""


@dataclass(frozen=True)
class Data:
    """A data set on disk: `source` under its true labels, `human` with both labels, test images and truth."""

    source: Path
    human: Path | None = None
    test: Path | None = None
    test_truth: Path | None = None


class FailedError(Exception):
    """A command of a run failed; it has said why on standard error."""


def main() -> None:
    """Run what is missing and show the tables."""
    arguments, parser = parse()
    plan = [run for run in planned(arguments) if not is_done(run, arguments)]
    if any(run.method == "cleanlab" for run in plan) and importlib.util.find_spec("cleanlab") is None:
        parser.error("cleanlab is not installed: pip install -e '.[benchmark]', or name other --methods")
    interrupts.install()
    try:
        failed = run_all(plan, arguments) if plan else []
    except Stopped as stop:
        print(stop.saying(f"Finished runs are in {arguments.output}."), file=sys.stderr)
        sys.exit(128 + stop.signum)
    text = markdown(read_results(arguments.output), arguments)
    print(text)
    if arguments.markdown:
        with atomic_path(arguments.markdown) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"{len(failed)} of {len(plan)} runs failed: {', '.join(map(_describe, failed))}")


def parse() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The command line, checked before anything runs; `shared` and `fit_options` hold flags as text."""
    parser = _shared.parser(__doc__)
    parser.add_argument("benchmark", choices=["trashnet", "cifar10n"])
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--settings", nargs="+", help="default: all six for cifar10n, symmetric-0.3 for trashnet"
    )
    parser.add_argument(
        "--methods", nargs="*", help="default: all: none, the four correctors, apply and four baselines"
    )
    parser.add_argument("--pretrained", type=Path, help="another corrector file for apply")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, help="the first so many rows of the data (not trashnet)")
    parser.add_argument("--trusted", type=int, help="trusted rows (default: 1,000; trashnet 300)")
    parser.add_argument("--test", type=Path, help="a Parquet of test images with their label (not trashnet)")
    parser.add_argument("--output", type=Path, default=Path("benchmark.parquet"), help="the Parquet of runs")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--epochs", type=int, help="of every method (default: decided from the rows)")
    shared = parser.add_argument_group("options of every method, as in relabel fit")
    for flag in SHARED_FLAGS:
        shared.add_argument(flag)
    arguments, fit_options = parser.parse_known_args()
    if not arguments.data.exists():
        parser.error(f"{arguments.benchmark} needs the path of its data")
    _check_data(arguments, parser)
    arguments.settings = arguments.settings or SETTINGS[arguments.benchmark]
    for setting in arguments.settings:
        if not _is_setting(setting) or (setting == "human" and arguments.benchmark != "cifar10n"):
            parser.error(f"--settings {setting}: not a setting of {arguments.benchmark}")
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: needs at least one")
    arguments.plan = _methods(arguments, parser)
    try:
        for output in filter(None, (arguments.output, arguments.markdown)):
            check_output(output, overwrite=True)
    except RelabelError as error:
        parser.error(str(error))
    values = [(flag, getattr(arguments, flag[2:].replace("-", "_"))) for flag in SHARED_FLAGS]
    arguments.shared = shlex.join(
        word for flag, value in values if value is not None for word in (flag, value)
    )
    arguments.fit_options = shlex.join([*shlex.split(arguments.shared), *fit_options])
    return arguments, parser


def _check_data(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse files that are not there, or of another kind than the benchmark takes."""
    if arguments.benchmark == "trashnet" and (arguments.rows or arguments.test):
        parser.error("trashnet is sorted by class and has no test images: no --rows, no --test")
    if arguments.test and not arguments.test.exists():
        parser.error(f"--test {arguments.test}: no such file")
    if arguments.data.is_dir() != (arguments.benchmark == "trashnet" and not arguments.features):
        parser.error(f"{arguments.data}: a Parquet file is expected, and of trashnet's images their folder")
    for path in filter(None, (arguments.data, arguments.test) if arguments.features else ()):
        if arguments.features not in pq.read_schema(path).names:
            parser.error(f"--features {arguments.features}: {path} has no such column")


def _methods(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[tuple[str, int | None]]:
    """Methods and their epochs."""
    names = arguments.methods
    if names is None:
        names = METHODS
    methods = []
    for name in names:
        method, _, epochs = name.partition("@")
        if method not in METHODS:
            parser.error(f"--methods {name}: not one of {', '.join(METHODS)}")
        if epochs and not epochs.isdecimal():
            parser.error(f"--methods {name}: {epochs} is not a number of epochs")
        methods.append((method, int(epochs) if epochs else arguments.epochs))
    if arguments.pretrained and not arguments.pretrained.is_file():
        parser.error(f"--pretrained {arguments.pretrained}: no such file")
    return methods


def _is_setting(setting: str) -> bool:
    noise, _, rate = setting.rpartition("-")
    return setting == "human" or (noise in NOISE_MODELS and rate.replace(".", "", 1).isdecimal())


def planned(arguments: argparse.Namespace) -> list[Run]:
    """Every run the command line asks for: seed by seed, so that the first one fills the table."""
    same = conditions(arguments)
    return [
        Run(
            setting=setting,
            method=method,
            seed=seed,
            epochs=epochs,
            options=options_of(method, arguments),
            **same,
        )
        for seed in arguments.seeds
        for setting in arguments.settings
        for method, epochs in arguments.plan
        if method not in WITHOUT_LABELS or setting == arguments.settings[0]
    ]


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all runs of one table have in common, except their options and epochs."""
    return {
        "benchmark": arguments.benchmark,
        "rows": count_rows(arguments),
        "trusted": arguments.trusted or TRUSTED[arguments.benchmark],
    }


def options_of(method: str, arguments: argparse.Namespace) -> str:
    """The flags of a method; the baselines do not take those that are `fit`'s own."""
    if method == "apply" and arguments.pretrained:
        return shlex.join([*shlex.split(arguments.fit_options), "--corrector", str(arguments.pretrained)])
    options: str = arguments.shared if method in BASELINES else arguments.fit_options
    return options


def count_rows(arguments: argparse.Namespace) -> int:
    """Rows of the data that take part."""
    if arguments.data.is_dir():
        return sum(path.is_file() for path in arguments.data.glob("*/*"))
    rows: int = pq.read_metadata(arguments.data).num_rows
    return min(rows, arguments.rows or rows)


def is_done(run: Run, arguments: argparse.Namespace) -> bool:
    """Whether the output holds this run, with a test accuracy if the command line wants one."""
    setting = ("setting",) if run.method in WITHOUT_LABELS else ()
    return any(
        _key(result, *setting) == _key(asdict(run), *setting)
        and (not arguments.test or run.method == "apply" or result.get("test_accuracy") is not None)
        for result in read_results(arguments.output)
    )


def run_all(plan: Sequence[Run], arguments: argparse.Namespace) -> list[Run]:
    """Run the plan, adding each result to the output; returns the runs that failed."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="relabel-benchmark-") as name:
        one = partial(run_one, data=prepare(arguments, Path(name)), folder=Path(name))
        # Left early, the pool terminates its workers, and these what they started.
        with interrupts.held() as check, worker_pool(arguments.jobs) as pool:
            results = pool.imap_unordered(one, plan)
            for done in range(1, len(plan) + 1):
                run, figures = _next(results, check)
                if figures is None:
                    failed.append(run)
                    outcome = "failed"
                else:
                    add_result(arguments.output, {**asdict(run), **figures})
                    outcome = _in_words(figures)
                sys.stderr.write(f"[{done}/{len(plan)}] {_describe(run)}: {outcome}\n")
    return failed


def worker_pool(jobs: int) -> Pool:
    """`jobs` processes that share the cores; none is a fork of this one, which has threads of Arrow's."""
    return multiprocessing.get_context("spawn").Pool(jobs, _begin_worker, (jobs,))


def _begin_worker(jobs: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everyone, and is for the parent
    if jobs > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))


def _next(results: IMapIterator[Item], check: Callable[[], None]) -> Item:
    while True:
        try:
            return results.next(timeout=0.2)
        except multiprocessing.TimeoutError:
            check()


def run_one(run: Run, data: Data, folder: Path) -> tuple[Run, dict[str, float | None] | None]:
    """The figures of a run, None when it fails: its command has said why on standard error."""
    interrupts.install()
    sys.stderr.write(f"{_describe(run)} ...\n")  # one piece, as others write too
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            labels = noisy_labels(run, data, folder)
            trusted = draw_trusted(run, labels, Path(scratch))
            return run, measure(run, data, labels, trusted, Path(scratch))
    except FailedError as error:
        sys.stderr.write(f"failed: {error}\n")
        return run, None
    except Stopped:
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def prepare(arguments: argparse.Namespace, folder: Path) -> Data:
    """Put the images on disk as files, their bytes unchanged, or the vectors alone; once for all runs."""
    if arguments.benchmark == "trashnet":
        return Data(arguments.data)
    rows, human = count_rows(arguments), folder / "human.csv"
    given = class_labels(arguments.data, "label", rows)
    true = class_labels(arguments.data, "clean_label", rows)
    if arguments.features:
        source = folder / "true.parquet"
        names = write_vectors(arguments.data, arguments.features, source, true)
    else:
        source = folder / "images" / "true.csv"
        names = write_images(arguments.data, rows, source.parent)
        write_csv(source, ("file_name", "label"), zip(names, true, strict=True))
    write_csv(human, ("file_name", "label", "clean_label"), zip(names, given, true, strict=True))
    if not arguments.test:
        return Data(source, human)
    # No label beside the test rows: `predict` must not see one.
    test, test_truth = folder / ("test.parquet" if arguments.features else "test"), folder / "test.csv"
    labels = class_labels(arguments.test, "label", None)
    if arguments.features:
        names = write_vectors(arguments.test, arguments.features, test, [None] * len(labels))
    else:
        names = write_images(arguments.test, None, test)
    write_csv(test_truth, ("file_name", "label"), zip(names, labels, strict=True))
    return Data(source, human, test, test_truth)


def write_vectors(data: Path, column: str, output: Path, labels: Sequence[str | None]) -> list[str]:
    """Write the first vectors of a Parquet, one a label, with these labels; returns their names."""
    names = [f"{row:06d}" for row in range(len(labels))]
    vectors = pq.read_table(data, columns=[column]).slice(0, len(labels))
    table = {"file_name": names, "label": pa.array(labels, pa.string()), column: vectors[column]}
    pq.write_table(pa.table(table), output)
    return names


def write_images(data: Path, rows: int | None, folder: Path) -> list[str]:
    """Write the first `rows` images of a Parquet into a new folder; returns their file names."""
    folder.mkdir()
    names = []
    for row, image in enumerate(pq.read_table(data, columns=["image"])["image"].slice(0, rows)):
        suffix = Path(image["path"].as_py() or ".png").suffix
        names.append(f"{row:06d}{suffix}")
        (folder / names[-1]).write_bytes(image["bytes"].as_py())
    return names


def class_labels(data: Path, column: str, rows: int | None) -> list[str]:
    """A column of class ids as the names in the Hugging Face metadata, or as numbers without it."""
    schema = pq.read_schema(data)
    if column not in schema.names:
        sys.exit(f"{data} has no column {column}")
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(column, {})
    ids = pq.read_table(data, columns=[column])[column].slice(0, rows).to_pylist()
    names = feature.get("names")
    return [names[label] if names else str(label) for label in ids]


def noisy_labels(run: Run, data: Data, folder: Path) -> Path:
    """file_name, label and clean_label of a setting; made once for each seed."""
    if run.setting == "human":
        assert data.human is not None
        return data.human
    own = folder / f"{run.setting}-{run.seed}"
    own.mkdir(exist_ok=True)
    path = own / "labels.csv"
    noise, _, rate = run.setting.rpartition("-")
    options = ["--noise", noise, "--rate", rate, "--seed", str(run.seed), "--quiet"]
    with locked(own):
        if path.exists():
            return path
        if noise == "asymmetric":
            mapping = own / "map.json"
            mapping.write_text(json.dumps(CIFAR10_MAP))
            options += ["--map", str(mapping)]
        relabel("corrupt", data.source, *options, "-o", path, *_only(READING_FLAGS, run.flags))
    return path


def draw_trusted(run: Run, labels: Path, folder: Path) -> Path:
    """Trusted rows drawn at random, with their true labels; the same ones for every setting and method."""
    with labels.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drawn = np.sort(np.random.default_rng(1_000 + run.seed).permutation(len(rows))[: run.trusted])
    path = folder / "trusted.csv"
    write_csv(path, ("file_name", "label"), [(rows[i]["file_name"], rows[i]["clean_label"]) for i in drawn])
    return path


def untrusted_truth(labels: Path, trusted: Path, folder: Path) -> Path:
    """The truth of all rows but the trusted ones: those that every method is judged by."""
    with trusted.open(newline="", encoding="utf-8") as file:
        left_out = {row["file_name"] for row in csv.DictReader(file)}
    with labels.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["file_name"] not in left_out]
    path = folder / "untrusted.csv"
    columns = ("file_name", "clean_label")
    write_csv(path, columns, [tuple(row[column] for column in columns) for row in rows])
    return path


def measure(run: Run, data: Data, labels: Path, trusted: Path, folder: Path) -> dict[str, float | None]:
    """Label the source with one method and hold the result against the truth."""
    output, predicted, model = folder / "labels.parquet", folder / "test.parquet", folder / "model.pt"
    files = [data.source, "--labels", labels, "--trusted", trusted, "-o", output]
    if run.method in BASELINES:
        script = Path(__file__).with_name("baselines.py")
        test = ["--test", data.test, "--test-output", predicted] if data.test else []
        finished = timed(script, run.method, *files, *run.flags, *test)
        more = json.loads(finished.printed)
        seconds = finished.seconds - more.pop("test_seconds")
    elif run.method == "apply":
        finished = timed(
            "-m", "relabel", "apply", data.source, "--labels", labels, "-o", output, "-q", *run.flags
        )
        more, seconds = {}, finished.seconds
    else:
        save = ["--save-model", model] if data.test else []
        finished = timed("-m", "relabel", "fit", *files, "--corrector", run.method, "-q", *run.flags, *save)
        more, seconds = {}, finished.seconds
        if data.test:
            where = _only((*READING_FLAGS, "--device", "--amp"), run.flags)
            relabel("predict", data.test, "--model", model, "-o", predicted, "-q", *where)
    truth = untrusted_truth(labels, trusted, folder) if run.method == "apply" else labels
    evaluation = evaluate(output, truth)
    wrong = round(evaluation["noise_rate"] * evaluation["rows"])
    evaluation["judged_rows"] = evaluation.pop("rows")  # `rows` counts the trusted ones too
    evaluation.pop("fix_precision_interval")
    tested = data.test_truth if predicted.exists() else None
    test_accuracy = evaluate(predicted, tested)["unlabelled_accuracy"] if tested else None
    return {
        **evaluation,
        **more,
        "fix_per_wrong_row": evaluation["fix_rows"] / wrong if wrong else None,
        "test_accuracy": test_accuracy,
        "seconds": seconds,
        "peak_gigabytes": finished.peak_gigabytes,
    }


def _only(wanted: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The `wanted` ones among the flags of a run, with their values."""
    pairs = itertools.pairwise(flags)
    return [word for flag, value in pairs if flag in wanted for word in (flag, value)]


def evaluate(labels: Path, truth: Path) -> dict[str, Any]:
    """The figures of `relabel evaluate`."""
    figures: dict[str, Any] = json.loads(relabel("evaluate", labels, "--truth", truth, "--json"))
    return figures


def relabel(*arguments: object) -> str:
    """Run the command line and return its standard output."""
    return timed("-m", "relabel", *arguments).printed


@dataclass(frozen=True)
class Finished:
    """A Python process that ended well: what it printed, and what it took."""

    printed: str
    seconds: float
    peak_gigabytes: float


def timed(*arguments: object) -> Finished:
    """Run Python with `arguments`. The peak includes ours at the start: this process does without torch."""
    command = [sys.executable, *map(str, arguments)]
    begin = time.perf_counter()
    process = None
    try:
        with interrupts.held():  # no signal between the start and the name to kill it by
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        raise
    if process.returncode:
        raise FailedError(shlex.join(command[1:]))
    return Finished(printed, time.perf_counter() - begin, usage.ru_maxrss / 2**20)


def read_results(output: Path) -> list[Result]:
    """The finished runs, none without a file."""
    if not output.exists():
        return []
    table = pq.read_table(output)
    if missing := set(KEY) - set(table.column_names):
        sys.exit(
            f"{output} is not a file of this benchmark (no column {min(missing)}): name another --output"
        )
    results: list[Result] = table.to_pylist()
    return results


def add_result(output: Path, result: Result) -> None:
    """Add a run to the file, in place of an earlier one of the same key; a reader never sees half a file.

    The folder is locked and the file read anew, so that several processes may add to it.
    """
    with locked(output.absolute().parent):
        results = [other for other in read_results(output) if _key(other) != _key(result)] + [result]
        figures = dict.fromkeys(name for row in results for name in row if name not in KEY)
        schema = pa.schema([*KEY.items(), *((name, pa.float64()) for name in figures)])
        with atomic_path(output) as temporary:
            pq.write_table(pa.Table.from_pylist(results, schema=schema), temporary)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which unlocks


def _key(result: Mapping[str, Any], *without: str) -> dict[str, Any]:
    return {name: result[name] for name in KEY if name not in without}


def _describe(run: Run) -> str:
    return f"{run.setting} {run.method} seed {run.seed}, {run.epochs or 'automatic'} epochs"


def _in_words(figures: Mapping[str, float | None]) -> str:
    shown = ("before", "after", "AUROC", "test", "seconds")
    return ", ".join(f"{name} {_mean([figures], COLUMNS[name])}" for name in shown)


def markdown(results: Iterable[Result], arguments: argparse.Namespace) -> str:
    """A table for each setting, one row a method: mean ± standard deviation over the seeds."""
    same = conditions(arguments)
    runs = [
        {**result, "method": _shown(result, arguments.epochs)}
        for result in results
        if all(result[name] == value for name, value in same.items())
        and result["options"] == options_of(result["method"], arguments)
    ]
    settings = _in_order((run["setting"] for run in runs), SETTINGS[arguments.benchmark])
    by_setting = {setting: [run for run in runs if run["setting"] == setting] for setting in settings}
    parts = [_heading({**same, "epochs": arguments.epochs}, arguments.fit_options)]
    parts += [f"### {setting}\n\n{_setting_table(own)}" for setting, own in by_setting.items()]
    if len(settings) > 1:
        for title, figure in OVERVIEWS.items():
            if _defined(runs, figure):
                parts.append(f"### {title}\n\n{_overview(by_setting, figure)}")
    return "\n\n".join(parts)


def _shown(result: Result, epochs: int | None) -> str:
    """The method, with its epochs where they are not those of the others."""
    name: str = result["method"]
    return name if result["epochs"] == epochs else f"{name}@{result['epochs'] or 'auto'}"


def _heading(same: Mapping[str, Any], options: str) -> str:
    epochs = f", {same['epochs']} epochs" if same["epochs"] else ""
    flags = f", `{options}`" if options else ""
    return (
        f"{same['benchmark']}: {same['rows']:,} rows, {same['trusted']:,} trusted{epochs}{flags}. "
        "Mean ± standard deviation over the seeds; accuracies and shares in %."
    )


def _setting_table(runs: Sequence[Result]) -> str:
    columns = {title: figure for title, figure in COLUMNS.items() if _defined(runs, figure)}
    rows = []
    for method in _by_method(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        rows.append([method, str(len(own)), *(_mean(own, figure) for figure in columns.values())])
    return table(["method", "seeds", *columns], rows)


def _defined(runs: Iterable[Result], figure: Figure) -> bool:
    return any(run.get(figure.name) is not None for run in runs)


def _overview(by_setting: Mapping[str, Sequence[Result]], figure: Figure) -> str:
    rows = []
    for method in _by_method(run["method"] for runs in by_setting.values() for run in runs):
        of_method = [[run for run in runs if run["method"] == method] for runs in by_setting.values()]
        if method.partition("@")[0] in WITHOUT_LABELS:
            of_method = [list(itertools.chain(*of_method))] * len(by_setting)
        if any(_defined(own, figure) for own in of_method):
            rows.append([method, *(_mean(own, figure) for own in of_method)])
    return table(["method", *by_setting], rows)


def _by_method(found: Iterable[str]) -> list[str]:
    return sorted(set(found), key=lambda name: (METHODS.index(name.partition("@")[0]), name))


def _in_order(found: Iterable[str], known: Sequence[str]) -> list[str]:
    present = sorted(set(found))
    return [name for name in known if name in present] + [name for name in present if name not in known]


def _mean(runs: Sequence[Mapping[str, Any]], figure: Figure) -> str:
    """Mean ± standard deviation; with the number of seeds, where not all of them define the figure."""
    values = [run.get(figure.name) for run in runs]
    known = [value * figure.scale for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):,.{figure.digits}f}" if len(known) > 1 else ""
    partly = f" ({len(known)})" if len(known) < len(values) else ""
    return f"{statistics.mean(known):,.{figure.digits}f}{spread}{partly}"


if __name__ == "__main__":
    _shared.run(main)
