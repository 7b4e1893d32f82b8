"""relabel from Python: the commands as functions, and their flags as keywords.

Nothing is printed unless `progress=True`, and the caller's random numbers stay as they were. What a command
would warn of is in `labels.warnings`. A mistake raises `RelabelError` with the command line's sentence.
`relabel.types` has the types that arguments are of.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import Parameter, Signature, signature
from pathlib import Path
from textwrap import fill
from threading import RLock
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from relabel import hub
from relabel.config import (
    ApplyConfig,
    CorruptConfig,
    EvaluateConfig,
    FitConfig,
    PredictConfig,
    PretrainConfig,
    TrainingConfig,
)
from relabel.correctors.registry import in_words
from relabel.errors import RelabelError
from relabel.options import Option, build, changed, options_of
from relabel.progress import Recorder, Terminal, Watcher
from relabel.types import LabelsLike, PathLike, Saved, Table, TrustedLike
from relabel.verbs import checks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from relabel.labels.table import Labels
    from relabel.metrics import Evaluation
    from relabel.saved.corrector_file import CorrectorFile
    from relabel.simulate.noisy_labels_file import NoisyLabels

_ONE_AT_A_TIME = RLock()

Config = TypeVar("Config")
Function = TypeVar("Function", bound=Callable[..., Any])


_ARGUMENTS = {
    "source": "A folder, a manifest, Parquet with images or vectors, a .zip or .tar, a pattern of shards, or "
    "a data set that datasets saved or that is on the Hub; or a data frame of `file_name` and `label`, or of "
    "vectors, whose columns `features` names.",
    "features": "An array of vectors [N, D] in the place of `source`, or the columns of vectors in `source`: "
    "one of lists, or numeric ones, such as 'f_*'.",
    "labels": "They replace or add given labels: a path, a data frame of `file_name` and `label`, or one "
    "label a row [N] in the rows' order: class names or ids, with None, NaN, '' and -1 for rows without one.",
    "trusted": "Trusted rows: a path, a data frame of `file_name` and `label`, or a pair (rows, true labels) "
    "of row numbers from 0, a mask or names.",
    "progress": "Show on standard error what the command shows.",
}
"""The help of what a function takes otherwise than the command does."""


class _Shown(str):
    """An annotation that help() shows without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def with_keywords_of(config: type, **arguments: str) -> Callable[[Function], Function]:
    """Give a function a config's options: keywords in its signature, and every argument's help in its docs.

    arguments: the help of the function's own parameters that is not in `_ARGUMENTS`.
    """
    own_help = _ARGUMENTS | arguments

    def decorate(function: Function) -> Function:
        plain = _unquoted(signature(function))
        own = {**plain.parameters}
        del own["options"]
        options = [option for option in options_of(config) if option.name not in own]
        names = [*own, *(option.name for option in options)]
        more = [_parameter(option) for option in options]
        function.__signature__ = plain.replace(parameters=[*own.values(), *more])  # type: ignore[attr-defined]
        texts = [own_help[name] for name in own] + [_keyword_help(option, names) for option in options]
        lines = [_folded(f"{name}: {text}") for name, text in zip(names, texts, strict=True)]
        head = f"{(function.__doc__ or '').rstrip()}\n\n    Arguments; relabel.types explains their types:\n"
        function.__doc__ = "\n".join([head, *lines, ""])
        return function

    return decorate


def with_plain_types(function: Function) -> Function:
    """Show the types in a function's signature without quotes."""
    function.__signature__ = _unquoted(signature(function))  # type: ignore[attr-defined]
    return function


def _unquoted(plain: Signature) -> Signature:
    parameters = [each.replace(annotation=_Shown(each.annotation)) for each in plain.parameters.values()]
    return plain.replace(parameters=parameters, return_annotation=_Shown(plain.return_annotation))


def _parameter(option: Option) -> Parameter:
    default = Parameter.empty if option.is_needed else option.default
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=default, annotation=_type_of(option))


def _type_of(option: Option) -> _Shown:
    """What a keyword may be: where the command line takes a file, any path."""
    hint = str(option.hint) if len(option.types) > 1 or option.default is None else option.types[0].__name__
    if option.types[0] is Mapping:
        hint = "Mapping[str, str]"
    if option.words.choices:
        hint = hint.replace("str", f"Literal[{', '.join(map(repr, option.words.choices))}]")
    if Saved in option.types:
        hint = hint.replace("str", "PathLike")
    return _Shown(hint.replace("pathlib.Path", "PathLike").replace(f"{Saved.__module__}.", ""))


def _keyword_help(option: Option, names: Sequence[str]) -> str:
    """An option's help, with keywords in the place of flags."""

    def keyword(flag: re.Match[str]) -> str:
        name = flag[0].lower().lstrip("-").replace("-", "_")
        return f"`{name}`" if name in names else flag[0]

    return re.sub(r"--[a-z][a-z-]*|\bSOURCE\b", keyword, option.words.keyword or in_words(option.words.help))


def _folded(text: str) -> str:
    return fill(text, 110, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)


@with_keywords_of(FitConfig)
def fit(
    source: PathLike | Table | None = None,
    *,
    features: str | ArrayLike | None = None,
    labels: PathLike | Table | LabelsLike | None = None,
    trusted: PathLike | Table | TrustedLike | None = None,
    progress: bool = False,
    **options: Any,  # noqa: ANN401
) -> Labels:
    """Correct the labels of a data set, guided by trusted rows.

    The `Labels` keep the corrector, and with `keep_model=True` the model. A run with an `output` keeps its
    checkpoint beside it until that is written, one without keeps none unless `checkpoint` names it.

    >>> import numpy as np, relabel
    >>> rng = np.random.default_rng(0)
    >>> true = np.arange(120) % 3
    >>> X = rng.normal(size=(120, 4)) + 4 * np.eye(3, 4)[true]
    >>> y = np.where(rng.random(120) < 0.2, (true + 1) % 3, true)
    >>> labels = relabel.fit(features=X, labels=y, trusted=(np.arange(30), true[:30]), epochs=2)
    >>> labels.class_names
    ['0', '1', '2']
    >>> labels.table.column_names[:3]
    ['file_name', 'original_label', 'soft_label']
    """
    given = _inputs(source, features, labels, trusted)
    config = build(FitConfig, **given, **options)
    return _trained(config, progress)


@with_keywords_of(
    ApplyConfig,
    trusted="Trusted rows, where there are any: as in `fit`. They calibrate the result.",
)
def apply(
    source: PathLike | Table | None = None,
    *,
    features: str | ArrayLike | None = None,
    labels: PathLike | Table | LabelsLike | None = None,
    trusted: PathLike | Table | TrustedLike | None = None,
    progress: bool = False,
    **options: Any,  # noqa: ANN401
) -> Labels:
    """Correct the labels of a data set by a corrector from other data, without any trusted row.

    >>> import numpy as np, relabel
    >>> true = np.arange(120) % 3
    >>> X = np.random.default_rng(0).normal(size=(120, 4)) + 4 * np.eye(3, 4)[true]
    >>> labels = relabel.apply(features=X, labels=np.roll(true, 1), epochs=2)
    >>> len(labels)
    120
    """
    given = _inputs(source, features, labels, trusted)
    return _trained(build(ApplyConfig, **given, **options), progress)


@with_keywords_of(PredictConfig)
def predict(
    source: PathLike | Table | None = None,
    *,
    features: str | ArrayLike | None = None,
    labels: PathLike | Table | LabelsLike | None = None,
    progress: bool = False,
    **options: Any,  # noqa: ANN401
) -> Labels:
    """Label rows that were not in the fit, which may have labels or none.

    >>> import numpy as np, relabel
    >>> true = np.arange(160) % 2
    >>> X = np.random.default_rng(0).normal(size=(160, 3)) + 4 * np.eye(2, 3)[true]
    >>> rows = np.arange(40)
    >>> labels = relabel.fit(features=X, labels=true, trusted=(rows, true[rows]), epochs=2, keep_model=True)
    >>> relabel.predict(features=X[:5], model=labels.model).to_pandas().corrected_label.isin(["0", "1"]).all()
    np.True_
    """
    config = build(PredictConfig, **_inputs(source, features, labels), **options)
    _refuse_stdout(config.outputs.output)
    checks.check_predict(config)
    with _watched(progress) as watcher:
        from relabel.verbs.predict import predict

        found = predict(config, watcher)
        return _handed_over(found, config.outputs.output, config.outputs.overwrite, watcher)


@with_keywords_of(CorruptConfig)
def corrupt(
    source: PathLike | Table | None = None,
    *,
    features: str | ArrayLike | None = None,
    labels: PathLike | Table | LabelsLike | None = None,
    progress: bool = False,
    **options: Any,  # noqa: ANN401
) -> NoisyLabels:
    """Make a benchmark out of clean data: put wrong labels on a share of its rows.

    What comes back has `.table`, `.to_pandas()`, `.actual_rate` and
    `.save(path)`.

    >>> import numpy as np, relabel
    >>> noisy = relabel.corrupt(
    ...     features=np.eye(50, 3), labels=np.arange(50) % 5, noise="symmetric", rate=0.4
    ... )
    >>> noisy.actual_rate
    0.4
    >>> noisy.table.column_names
    ['file_name', 'label', 'clean_label']
    """
    config = build(CorruptConfig, **_inputs(source, features, labels), **options)
    _refuse_stdout(config.output)
    checks.check_corrupt(config)
    with _watched(progress) as watcher:
        from relabel.simulate.corrupt import corrupt

        noisy = corrupt(config, watcher)
        if config.output:
            noisy.save(config.output, config.overwrite)
        return noisy


@with_keywords_of(
    EvaluateConfig,
    labels="As a verb returned them, or the path of their file.",
    truth="A path, a data frame of `file_name` (or `index`) and `clean_label` (or `label`), which may cover "
    "a part of the rows, or one true label a row [N] in the rows' order.",
)
def evaluate(
    labels: Labels | PathLike,
    truth: PathLike | Table | LabelsLike,
    *,
    progress: bool = False,
    **options: Any,  # noqa: ANN401
) -> Evaluation:
    """Compare labels with the truth; trusted rows are left out of every figure.

    What comes back has the figures by name, and `.to_dict()`.

    >>> import numpy as np, relabel
    >>> rng = np.random.default_rng(0)
    >>> true = np.arange(120) % 3
    >>> probabilities = rng.dirichlet(np.ones(3), 120) * 0.4 + 0.6 * np.eye(3)[true]
    >>> noisy = np.where(rng.random(120) < 0.2, (true + 1) % 3, true)
    >>> labels = relabel.calibrate(probabilities, noisy, trusted=(np.arange(40), true[:40]))
    >>> relabel.evaluate(labels, true).rows
    80
    """
    with _watched(progress) as watcher:
        from relabel.labels.table import Labels

        path, held = ("", labels) if isinstance(labels, Labels) else (labels, None)
        config = build(EvaluateConfig, labels=path, truth=_table(truth, "truth"), **options)
        found = read(config.labels) if held is None else held
        return found.evaluate(config.truth, config.label_column, watcher)


@with_keywords_of(
    PretrainConfig,
    sources="SOURCE or several: what `fit` takes as `source`, by its path; the labels are true.",
)
def pretrain(
    sources: PathLike | Sequence[PathLike],
    *,
    progress: bool = False,
    **options: Any,  # noqa: ANN401
) -> CorrectorFile:
    """Meta-train a corrector for `apply` on data whose labels are true; minutes to hours.

    Without `recordings` the recorded runs are in a temporary folder until the end.

    >>> import relabel
    >>> corrector = relabel.pretrain("digits", episodes=2, steps=1)  # doctest: +SKIP
    >>> relabel.apply("images", corrector=corrector)  # doctest: +SKIP
    """
    config = build(PretrainConfig, sources=sources, **options)
    checks.check_pretrain(config)
    with _watched(progress) as watcher, tempfile.TemporaryDirectory(prefix="relabel-") as folder:
        from relabel.files import make_folder
        from relabel.pretraining.meta_train import pretrain

        config = changed(config, recordings=config.recordings or Path(folder))
        make_folder(Path(str(config.recordings)), f"--recordings {config.recordings}")
        corrector = pretrain(config, watcher)
        if config.output:
            corrector.save(config.output)
        return corrector


@with_plain_types
def calibrate(
    pred_probs: ArrayLike | Mapping[str, ArrayLike],
    labels: LabelsLike,
    *,
    trusted: TrustedLike,
    class_names: Sequence[str] | None = None,
    precision: float = 0.95,
    seed: int = 0,
) -> Labels:
    """Labels from the probabilities of a network of your own; nothing is trained.

    >>> import numpy as np, relabel
    >>> rng = np.random.default_rng(0)
    >>> true = np.arange(90) % 3
    >>> probabilities = rng.dirichlet(np.ones(3), 90) * 0.4 + 0.6 * np.eye(3)[true]
    >>> noisy = np.where(rng.random(90) < 0.2, (true + 1) % 3, true)
    >>> labels = relabel.calibrate(probabilities, noisy, trusted=(np.arange(30), true[:30]))
    >>> labels.noise_matrix.shape
    (3, 3)

    Arguments; relabel.types explains their types:

    pred_probs: [N, C], predicted out of fold: by a network that was not trained on the row; or several such
        matrices by name.
    labels: [N], column numbers or class names, with None, NaN, "" and -1 for rows without one.
    trusted: (rows, true labels) of row numbers from 0, a mask or names.
    class_names: [C]; by default the names of a data frame's columns, the column numbers or, where labels are
        names, these in order.
    precision: Share of the rows marked fix that must be right.
    seed: Of the cross-validation.
    """
    with _watched(progress=False):
        from relabel.verbs.calibrate import calibrate

        return calibrate(pred_probs, labels, trusted, class_names, precision, seed)


@with_plain_types
def read(path: PathLike | BinaryIO) -> Labels:
    """The labels in a file that relabel wrote: a path, hf://user/repo/file or a binary stream.

    >>> import numpy as np, relabel
    >>> P = np.full((40, 2), 0.5)
    >>> trusted = (np.arange(20), np.arange(20) % 2)
    >>> relabel.calibrate(P, np.arange(40) % 2, trusted=trusted).save("labels.parquet")
    >>> len(relabel.read("labels.parquet"))
    40
    """
    from relabel.labels.table import Labels

    if isinstance(path, str | os.PathLike):
        return Labels.read(hub.resolve(os.fspath(path), "The labels", "labels.parquet"))
    return Labels.read(path)


def _trained(config: FitConfig | ApplyConfig, progress: bool) -> Labels:
    """Check, run, and write what the config asks for."""
    outputs, named = config.outputs, config.run.checkpoint is not None
    _refuse_stdout(outputs.output)
    if outputs.output and not named:
        config = changed(config, checkpoint=checks.hidden_beside(Path(outputs.output), "checkpoint"))
    if isinstance(config, FitConfig):
        checks.check_fit(config)
    else:
        checks.check_apply(config)
    with _watched(progress) as watcher:
        from relabel.verbs.outputs import checkpointed, save_trained

        with checkpointed(config, watcher, named):
            found = _run(config, watcher)
            save_trained(config, found)
            return _handed_over(found, outputs.output, outputs.overwrite, watcher)


def _run(config: TrainingConfig, watcher: Watcher) -> Labels:
    if isinstance(config, FitConfig):
        from relabel.verbs.fit import fit

        return fit(config, watcher)
    from relabel.verbs.apply import apply

    assert isinstance(config, ApplyConfig)
    return apply(config, watcher)


def _handed_over(found: Labels, output: str | None, overwrite: bool, watcher: Watcher) -> Labels:
    if isinstance(watcher, Recorder):
        found.warnings = tuple(watcher.warnings)
    if output:
        found.save(output, overwrite)
    return found


def _refuse_stdout(output: str | None) -> None:
    if output == "-":
        raise RelabelError(
            "--output -: only the command line writes to standard output.",
            "Name a file, or give Labels.save a binary stream.",
        )


@contextmanager
def _usual_torch() -> Iterator[None]:
    """Gradients, float32 and no autocast, for as long as a verb runs."""
    import torch

    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _watched(progress: bool) -> Iterator[Watcher]:
    """What a verb reports, on stderr or kept.

    It runs in PyTorch's usual state, whatever the caller's, and draws random numbers of its own. Both are the
    whole process's, so calls from several threads run one after the other.
    """
    import torch

    recorder = Recorder()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with _ONE_AT_A_TIME, _usual_torch(), torch.random.fork_rng(devices):
        if not progress:
            yield recorder
            return
        from rich.console import Console

        with Terminal(Console(stderr=True), quiet=False) as terminal:
            recorder.shown = terminal
            yield recorder


def _inputs(
    source: PathLike | Table | None,
    features: str | ArrayLike | None,
    labels: PathLike | Table | LabelsLike | None,
    trusted: PathLike | Table | TrustedLike | None = None,
) -> dict[str, Any]:
    """Arrays and data frames as tables in memory; paths, and what is left out, as they are."""
    if any(hasattr(each, "iloc") for each in (source, features, labels)):
        from relabel.data.in_memory import check_indexes

        check_indexes({"source": source, "features": features, "labels": labels}, trusted)
    if isinstance(labels, Iterator):
        labels = list(labels)
    given: dict[str, Any] = {"labels": _table(labels, "labels"), "features": features}
    if trusted is not None:
        given["trusted"] = _table(trusted, "trusted")
    if features is None or isinstance(features, str):
        return given if source is None else given | {"source": _table(source, "source")}
    if source is not None:
        raise RelabelError(
            "source and an array of features are both data.",
            "Leave out source, or name its columns of vectors with features.",
        )
    from relabel.data.in_memory import EMBEDDING, is_path, is_table, vectors_frame

    given["features"] = EMBEDDING
    if labels is None or is_path(labels) or is_table(labels):
        return given | {"source": vectors_frame(features)}
    return given | {"source": vectors_frame(features, labels), "labels": None}


def _table(value: object, name: str) -> Any:  # noqa: ANN401
    """A path as it is, a data frame as a table, and of `labels`, `truth` and `trusted` arrays too."""
    from relabel.data.in_memory import frame_of, is_path, is_table, path_or_frame, trusted_frame

    if value is None or is_path(value):
        return value
    if name == "source" or (name == "trusted" and is_table(value)):
        return frame_of(value, name)
    return trusted_frame(value) if name == "trusted" else path_or_frame(value, name)
