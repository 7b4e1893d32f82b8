"""What is refused before any work: files that are not there, and outputs that would replace something.

Nothing here imports torch: a mistake is reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from relabel.config import (
    ApplyConfig,
    CorruptConfig,
    FitConfig,
    LabellingConfig,
    PredictConfig,
    PretrainConfig,
    SourceConfig,
    SourceOptions,
    TrainingConfig,
)
from relabel.correctors import registry
from relabel.errors import RelabelError
from relabel.files import check_name, check_output
from relabel.options import InMemory
from relabel.types import Saved

_NO_PARQUET = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".xlsx", ".pt", ".zip", ".tar")
_STDOUT = "-"

Named = Mapping[str, object]
"""Files by what a message calls them; what is no path, such as None or a table in memory, is no file."""


def check_fit(config: FitConfig) -> None:
    """Refuse a fit that could not begin, or whose results could not be written."""
    if not config.has_trusted:
        raise RelabelError(
            "fit needs trusted rows: there is neither --trusted nor --trusted-column.",
            "Name a table or a folder with --trusted; relabel apply does without.",
        )
    corrector = registry.chosen(config.corrector, config.preset)
    registry.check(corrector, config.option)
    outputs = config.outputs
    if outputs.save_corrector and corrector == "none":
        raise RelabelError(
            "--save-corrector: with --corrector none there is nothing to save.", "Leave it out."
        )
    _check_inputs(config)
    written = {"--save-corrector": outputs.save_corrector, "--save-model": outputs.save_model}
    _check_labels_output(config, written | {"--checkpoint": config.run.checkpoint}, _read_by_training(config))


def check_apply(config: ApplyConfig) -> None:
    """Refuse an apply that could not begin, or whose result could not be written."""
    read = _read_by_training(config)
    if isinstance(config.corrector, str) and not config.corrector.startswith("hf://"):
        read["--corrector"] = corrector = Path(config.corrector)
        if not corrector.is_file():
            raise RelabelError(
                f"--corrector {corrector}: no such file.",
                "Write one with relabel pretrain or fit --save-corrector.",
            )
    _check_inputs(config)
    _check_labels_output(config, {"--checkpoint": config.run.checkpoint}, read)


def check_predict(config: PredictConfig) -> None:
    """Refuse a predict that could not begin, or whose result could not be written."""
    _check_inputs(config)
    read = {}
    if not isinstance(config.model, Saved) and not config.model.startswith("hf://"):
        read["--model"] = model = Path(config.model)
        if not model.is_file():
            raise RelabelError(f"--model {model}: no such file.", "Write one with relabel fit --save-model.")
    _check_labels_output(config, {}, read)


def check_corrupt(config: CorruptConfig) -> None:
    """Refuse noisy labels that could not be written."""
    if config.output in (None, _STDOUT):
        return
    from relabel.simulate import noisy_labels_file

    output = Path(str(config.output))
    read = {**_read(config), "--map": config.map}
    check_outputs({"--output": output}, read, config.overwrite)
    noisy_labels_file.check_suffix(output)


def check_pretrain(config: PretrainConfig) -> None:
    """Refuse a meta-training that could not begin, or whose result could not be written."""
    output, folder = config.output, config.recordings
    if str(output) == _STDOUT:
        raise RelabelError("--output -: a corrector file goes to a file.", "Name one, such as tmlc.pt.")
    read: dict[str, object] = {}
    for number, source in enumerate(config.sources, 1):
        read |= files_of(source, config.reading, f"SOURCE {number}")
    check_outputs({"--output": output}, read, config.overwrite)
    if folder and folder.exists() and not folder.is_dir():
        raise RelabelError(f"--recordings {folder} is not a folder.", "Name another one.")
    if folder and output and folder.resolve() == output.resolve():
        raise RelabelError(f"--recordings {folder} is also --output.", "Choose another name.")
    for source in config.sources:
        check_source(source)


def hidden_beside(path: Path, suffix: str) -> Path:
    """The place of what a run keeps until its output is written."""
    # Not `with_name`, which refuses a folder's name such as "." before anyone could say what is wrong.
    hidden = path.parent / f".{path.name}.{suffix}"
    check_name(hidden, path)
    return hidden


def _check_inputs(config: SourceConfig) -> None:
    """A SOURCE, trusted rows or labels that are not there are refused without waiting for torch."""
    check_source(config.source)
    trusted = config.trusted if isinstance(config, TrainingConfig) else None
    for flag, path in _paths({"--trusted": trusted, "--labels": config.labels}).items():
        if not os.path.exists(path):
            raise RelabelError(
                f"{flag}: there is no file or folder {path}.", "Check the spelling of the path."
            )


def check_source(source: str | InMemory) -> None:
    """A SOURCE that is not there is refused without waiting for torch."""
    if isinstance(source, str) and not os.path.exists(source):
        from relabel.data import sources

        sources.check_there(source)


def _check_labels_output(config: LabellingConfig, written: Named, read: Named) -> None:
    """Refuse outputs that cannot be written, or a name for the labels that is one of something else."""
    output, overwrite = config.outputs.output, config.outputs.overwrite
    to_file = None if output in (None, _STDOUT) else Path(str(output))
    check_outputs({"--output": to_file, **written}, {**_read(config), **read}, overwrite)
    if to_file and to_file.suffix.lower() in _NO_PARQUET:
        raise RelabelError(
            f"--output {output}: the labels are written as Parquet.", "End the name in .parquet."
        )


def _read(config: SourceConfig) -> dict[str, object]:
    return {**files_of(config.source, config.reading), "--labels": config.labels}


def _read_by_training(config: TrainingConfig) -> dict[str, object]:
    return {"--trusted": config.trusted, "--weights": Path(config.network.weights)}


def files_of(source: str | InMemory, reading: SourceOptions, name: str = "SOURCE") -> dict[str, Path]:
    """The files and folders of SOURCE, which no output may replace, by what a message calls them."""
    from relabel.data.draft_source import CLASSES_FILE
    from relabel.data.shards import expand

    files = {} if reading.classes is None else {"--classes": Path(reading.classes)}
    if not isinstance(source, str):
        return files
    files = {f"{name}'s classes": Path(source).parent / CLASSES_FILE, **files}
    if os.path.exists(source):
        return {**files, name: Path(source)}
    return files | {f"{name} ({path})": path for path in expand(source)}


def check_outputs(written: Named, read: Named, overwrite: bool) -> None:
    """Refuse an output that cannot be written, or that would replace an input or another output."""
    owners = {path.resolve(): flag for flag, path in _paths(read).items() if os.path.isfile(path)}
    folders = {flag: path for flag, path in _paths(read).items() if os.path.isdir(path)}
    for flag, path in _paths(written).items():
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
    from relabel.data.decode import IMAGE_SUFFIXES
    from relabel.data.sources import is_part

    if {path.suffix.lower(), path.resolve().suffix.lower()} & IMAGE_SUFFIXES:
        raise RelabelError(f"{flag} {path} is an image.", "Choose another name.")
    for name, folder in folders.items():
        if is_part(folder, path):
            raise RelabelError(f"{flag} {path} is part of {name}.", "Choose another name.")


def _paths(files: Named) -> dict[str, Path]:
    return {flag: path for flag, path in files.items() if isinstance(path, Path)}
