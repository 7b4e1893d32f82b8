"""Data sets of the `datasets` library: a folder it saved, or a repository of the Hugging Face Hub.

Only the table is taken from it: images stay encoded, and are decoded as everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from relabel import hub
from relabel.data.draft_source import DraftSource, Request
from relabel.data.image_refs import Embedded, Reference, Slices
from relabel.data.image_spool import Spool
from relabel.data.label_columns import LabelColumns, class_names, row_names
from relabel.data.parquet_images import has_path, needed_image_column
from relabel.data.tables import brief, first_few
from relabel.errors import ImageError, RelabelError, RunError

if TYPE_CHECKING:
    import datasets

_BATCH = 1000  # rows looked at together for their names
_STREAMED = 128  # images fetched and decoded at a time


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def open_saved(request: Request) -> DraftSource:
    """The rows of a folder that `save_to_disk` wrote; the images stay in it.

    Raises RelabelError when it is damaged, when the split is to be named, or a column is missing.
    """
    library, folder, split = _library(), Path(request.location), request.options.split
    try:
        data = library.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise RelabelError(
            f"The saved data set {folder} cannot be read: {brief(error)}.", "Save it again."
        ) from error
    if isinstance(data, library.DatasetDict):
        data = data[_split(list(data), split, str(folder))]
    elif split is not None:
        raise RelabelError(f"--split {split}: {folder} has no splits.", "Leave it out.")
    return _rows(data, DraftSource(folder, "saved"), request)


def open_hub(request: Request) -> DraftSource:
    """The rows of one split of a Hub data set: from the cache of `datasets`, or streamed into a `Spool`.

    huggingface_hub's settings apply: `HF_HOME`, `HF_TOKEN` or a log-in, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
    Raises RelabelError for a repository, revision, configuration or split that is not there or, where there
    are several, not named, and for columns that are not there; RunError when the download fails.
    """
    location, options, watcher = request.location, request.options, request.watcher
    parsed = hub.parse_dataset(location)
    assert parsed is not None
    repo, revision = parsed
    if revision and options.revision:
        raise RelabelError(
            f"--revision {options.revision}: {location} names a revision itself.", "Keep one of them."
        )
    revision = revision or options.revision
    builder = _builder(location, repo, revision, options.config)
    splits = builder.info.splits or {}
    split = _split(list(splits or builder.config.data_files or ()), options.split, location)
    rows = DraftSource(Path(location), "hub")
    try:
        if options.streaming:
            known = splits[split].num_examples if split in splits else None
            watcher.stage("Streaming", known)
            stream = builder.as_streaming_dataset(split=split)
            return _streamed(stream, rows, request)
        watcher.say(f"Taking {location}, {split}, from the Hub or its cache.")
        builder.download_and_prepare()
        data = builder.as_dataset(split=split)
    except RelabelError:
        raise
    except Exception as error:  # datasets wraps what goes wrong in types of its own, and not always
        raise _explained(error, location, repo, revision) from error
    return _rows(data, rows, request)


def _library() -> ModuleType:
    """`datasets`, imported late because it takes a second, and kept off the screen."""
    library = import_module("datasets")
    library.disable_progress_bars()
    library.logging.set_verbosity_error()
    return library


def _builder(location: str, repo: str, revision: str | None, config: str | None) -> datasets.DatasetBuilder:
    """A repository without its data; from the cache where the Hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    library = _library()
    failure: Exception | None = None
    try:
        # datasets would ask, too, and then say less about the answer.
        HfApi().dataset_info(repo, revision=revision)
    except Exception as error:
        refusal = _explained(error, location, repo, revision)
        answered = isinstance(error, HfHubHTTPError) and not isinstance(refusal, RunError)
        if answered or not _cached(repo):
            raise refusal from error
        failure = error
    try:
        return library.load_dataset_builder(repo, name=config, revision=revision)
    except Exception as error:
        refusal = _explained(failure or error, location, repo, revision)
        if isinstance(error, ValueError):  # it has no type of its own for a configuration that is not named
            try:
                names = (
                    _cached(repo) if failure else library.get_dataset_config_names(repo, revision=revision)
                )
            except Exception:
                raise refusal from error
            _check_config(names, config, location if failure is None else f"{location}, in the cache,")
        raise refusal from error


def _cached(repo: str) -> list[str]:
    """The configurations of a repository that `datasets` has in its cache."""
    naming, config = import_module("datasets.naming"), import_module("datasets.config")
    user, _, name = repo.partition("/")
    folder = Path(config.HF_DATASETS_CACHE, f"{user}___{naming.camelcase_to_snakecase(name)}")
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _check_config(names: Sequence[str], wanted: str | None, where: str) -> None:
    """Refuse a configuration that is none of `names`, or is not named where there are several."""
    known = first_few(names, 20)
    if wanted is not None and wanted not in names:
        raise RelabelError(
            f"--config {wanted}: {where} has the configuration(s) {known}.", "Name one of them."
        )
    if wanted is None and len(names) > 1:
        raise RelabelError(f"{where} has the configurations {known}.", "Name one with --config.")


def _explained(error: Exception, location: str, repo: str, revision: str | None) -> RelabelError:
    what = location if location.startswith("hf://") else f"{location} (no file or folder here)"
    link: BaseException | None = error
    while link is not None:
        # What datasets and pyarrow raise of their own is not about the Hub, whatever built-in type it has.
        foreign = type(link).__module__.split(".")[0] in ("datasets", "pyarrow")
        if isinstance(link, OSError) and not foreign and type(link) is not FileNotFoundError:
            refusal = hub.explained(link, what, repo, revision or "main", "")
            if refusal is not None:
                return refusal
        link = link.__cause__ or link.__context__
    return RunError(
        f"{location}: datasets cannot read it ({brief(error.__cause__ or error)}).",
        "Check that the repository holds images in a form that datasets knows.",
    )


def _split(splits: Sequence[str], wanted: str | None, location: str) -> str:
    names = ", ".join(map(str, splits))
    if wanted is not None and wanted not in splits:
        raise RelabelError(f"--split {wanted}: {location} has the split(s) {names}.", "Name one of them.")
    if wanted is None and len(splits) != 1:
        raise RelabelError(f"{location} has the splits {names}.", "Name one with --split.")
    return wanted or splits[0]


def _rows(data: datasets.Dataset, rows: DraftSource, request: Request) -> DraftSource:
    """The rows of a `Dataset`, whose Arrow files are mapped to memory."""
    where = request.location
    schema = data.features.arrow_schema
    column = needed_image_column(schema, where, request.options.image_column)
    labels = LabelColumns(request)
    wanted = labels.present(schema.names, where)
    table = data.select_columns(wanted).with_format("arrow")[:] if wanted else pa.table({})
    labels.add(table, len(data), class_names(schema.metadata), where)
    labels.settle(rows)
    images = data.select_columns([column]).with_format("arrow")
    cells: list[str | None] = [None] * len(data)
    if has_path(schema, column):
        batches = images.iter(_BATCH)
        cells = [name for batch in batches for name in pc.struct_field(batch[column], "path").to_pylist()]
    rows.take_images(row_names(cells), _ArrowImages(images, where))
    return rows


class _ArrowImages:
    """The image cells of a `Dataset` of one column, in Arrow format, as references."""

    def __init__(self, data: datasets.Dataset, where: str) -> None:
        self._data = data
        self._where = where

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> Reference:
        return Embedded(f"row {row + 1} of {self._where}", partial(self._cell, row), Path(self._where))

    def _cell(self, row: int) -> object:
        return self._data[row].column(0)[0].as_py()


def _streamed(stream: datasets.IterableDataset, rows: DraftSource, request: Request) -> DraftSource:
    """The rows of an `IterableDataset`, gone through once."""
    where = request.location
    if stream.features is None:
        raise RelabelError(f"{where} does not say what its columns hold.", "Leave out --streaming.")
    schema = stream.features.arrow_schema
    column = needed_image_column(schema, where, request.options.image_column)
    labels = LabelColumns(request)
    wanted = labels.present(schema.names, where)
    cells: list[str | None] = []
    values: dict[str, list[object]] = {name: [] for name in wanted}
    places: list[tuple[int, int]] = []
    errors: dict[int, str] = {}
    with Spool(request.largest) as spool:
        examples = iter(stream.decode(False).select_columns([column, *wanted]))
        while batch := list(islice(examples, _STREAMED)):
            for example in batch:
                cell = example[column]
                cells.append(cell.get("path") if isinstance(cell, dict) else None)
                for name, found in values.items():
                    found.append(example[name])
            references = [Embedded("", partial(example.get, column), Path(where)) for example in batch]
            for place in spool.add_all(references):
                if isinstance(place, ImageError):
                    errors[len(places)] = place.message
                places.append((0, 0) if isinstance(place, ImageError) else place)
            request.watcher.advance(len(batch))
        kept = spool.mapped()
    table = pa.table({name: pa.array(found, schema.field(name).type) for name, found in values.items()})
    labels.add(table, len(cells), class_names(schema.metadata), where)
    labels.settle(rows)
    offsets, sizes = zip(*places, strict=True) if places else ((), ())
    rows.take_images(row_names(cells), Slices(kept, offsets, sizes, where), errors)
    return rows
