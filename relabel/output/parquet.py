"""The labels file: one Parquet row for every input row, in input order, and in its metadata what made it.

Plain Arrow types only, so pandas, polars, DuckDB and `datasets` read it as it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from relabel.errors import RelabelError
from relabel.files import atomic_path, check_output

METADATA_KEY = b"relabel"
# Bounds what a streaming reader holds at a time: 256 MB of soft labels at 1,000 classes.
_ROWS_PER_GROUP = 65_536


@dataclass(frozen=True)
class LabelsFile:
    """A labels file in memory: `table` has exactly the columns of `schema`, `metadata` is its JSON."""

    table: pa.Table
    metadata: dict[str, Any]
    class_names: list[str]


def schema(num_classes: int) -> pa.Schema:
    """Return the columns of a labels file over `num_classes` classes, in order."""
    return pa.schema(
        [
            pa.field("file_name", pa.string()),
            pa.field("original_label", pa.string()),
            pa.field("soft_label", pa.list_(pa.float32(), num_classes)),
            pa.field("corrected_label", pa.string()),
            pa.field("noise_probability", pa.float32()),
            pa.field("action", pa.string()),
            pa.field("trusted", pa.bool_()),
            pa.field("error", pa.string()),
        ]
    )


def write_labels(
    destination: Path | BinaryIO,
    *,
    file_names: Sequence[str],
    given: NDArray[np.int64],
    soft_label: NDArray[np.float32],
    noise_probability: NDArray[np.float32],
    action: Sequence[str] | NDArray[np.str_],
    trusted: NDArray[np.bool_],
    errors: Mapping[int, str],
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write the labels file; equal input gives equal bytes, to a path and to a stream alike.

    `given` is -1 for an unlabelled row; `soft_label` is [N, C], every other column [N]. `errors` names the
    rows, by index, that could not be used: their labels out are null whatever the arrays hold there.
    `metadata` is JSON data; the class names join it. A stream is left open, and its `BrokenPipeError` is the
    caller's.

    Raises `RelabelError` as `check_output` does, and `RunError` when the disk refuses.
    """
    # A long run ends here, so rounding is forgiven; anything more is a defect of ours.
    rows, num_classes = soft_label.shape
    assert num_classes == len(class_names)
    assert {rows} == {len(column) for column in (file_names, given, noise_probability, action, trusted)}

    failed = np.zeros(rows, dtype=np.bool_)
    failed[list(errors)] = True
    messages = np.full(rows, None, dtype=object)
    messages[list(errors)] = list(errors.values())
    assert np.allclose(soft_label[~failed].sum(axis=1), 1, atol=1e-3), "soft labels must sum to 1"

    scored = ~failed & (given >= 0)
    assert (np.abs(noise_probability[scored] - 0.5) <= 0.5 + 1e-6).all(), "probabilities must be in 0..1"

    names = pa.array(class_names, pa.string())
    given_id = pa.array(given, pa.int64(), mask=given < 0)
    corrected_id = pa.array(soft_label.argmax(axis=1), pa.int64(), mask=failed)
    probabilities = pa.array(np.ascontiguousarray(soft_label, dtype=np.float32).reshape(-1))
    description = {**metadata, "class_names": list(class_names)}
    table = pa.Table.from_arrays(
        [
            pa.array(file_names, pa.string()),
            names.take(given_id),
            pa.FixedSizeListArray.from_arrays(probabilities, num_classes, mask=pa.array(failed)),
            names.take(corrected_id),
            pa.array(noise_probability.clip(0, 1), pa.float32(), mask=~scored),
            pa.array(np.asarray(action, dtype=object), pa.string(), mask=failed),
            pa.array(trusted, pa.bool_()),
            pa.array(messages, pa.string()),
        ],
        schema=schema(num_classes).with_metadata({METADATA_KEY: metadata_json(description)}),
    )

    if isinstance(destination, Path):
        check_output(destination, overwrite)
        with atomic_path(destination) as temporary, temporary.open("wb") as stream:
            write_table(table, stream)
    else:
        write_table(table, destination)


def read_labels(source: Path | BinaryIO) -> LabelsFile:
    """Read a labels file from a path or, to its end, from a binary stream.

    Raises `RelabelError` when it is missing, not Parquet, cut short or not a labels file.
    """
    name = str(source) if isinstance(source, Path) else "standard input"
    if isinstance(source, Path) and not source.is_file():
        raise RelabelError(f"The labels file {name} does not exist or is not a file.", "Check the path.")
    try:
        with (
            pa.OSFile(str(source), "r")
            if isinstance(source, Path)
            else pa.BufferReader(source.read()) as file
        ):
            is_parquet = file.read(4) == b"PAR1"
            file.seek(0)
            table = pq.read_table(file) if is_parquet else None
    except (pa.ArrowException, OSError) as error:
        raise RelabelError(f"{name} is cut short or damaged.", "Write or copy it again.") from error
    if table is None and not isinstance(source, Path):
        raise RelabelError(f"{name} holds no Parquet file.", "Check the command before the pipe.")
    if table is None:
        raise RelabelError(f"{name} is not a Parquet file.", "Name a file that relabel wrote.")

    metadata = _from_json((table.schema.metadata or {}).get(METADATA_KEY))
    if metadata is None:
        raise RelabelError(
            f"{name} is a Parquet file without relabel's metadata.",
            "Name the file as relabel wrote it; other tools drop the metadata when they save.",
        )
    class_names: list[str] = metadata["class_names"]
    expected = schema(len(class_names)).with_metadata(table.schema.metadata)
    missing = [column for column in expected.names if column not in table.column_names]
    if missing:
        raise RelabelError(f"{name} lacks the column {missing[0]}.", "Name the file as relabel wrote it.")
    try:
        table = table.select(expected.names).cast(expected)
    except pa.ArrowException as error:
        raise RelabelError(
            f"{name} has a column of the wrong type: {error}.", "Name the file as relabel wrote it."
        ) from error
    return LabelsFile(table, metadata, class_names)


def write_table(table: pa.Table, stream: BinaryIO | Path) -> None:
    """Write a table the way every Parquet file of ours is written."""
    pq.write_table(table, stream, row_group_size=_ROWS_PER_GROUP, compression="zstd")


def metadata_json(metadata: Mapping[str, Any]) -> bytes:
    """JSON data as the metadata of a file of ours; equal data give equal bytes."""
    return json.dumps(metadata, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()


def _from_json(text: bytes | None) -> dict[str, Any] | None:
    """Return the metadata, or None when it is not what `_to_json` wrote."""
    try:
        metadata = json.loads(text or b"null")
    except ValueError:
        return None
    names = metadata.get("class_names") if isinstance(metadata, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return dict(metadata)
