"""What the arguments of the Python API may be, by the names in its signatures.

No library is imported for these types: what has the attributes is taken.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable


class Array(Protocol):
    """Values by position: a list, a NumPy array, a tensor, a pandas or polars series, an Arrow array.

    The shape and the kind of values are those that the argument's help names.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...  # noqa: ANN401


class DataFrame(Protocol):
    """Columns by name: a pandas or polars DataFrame, or an Arrow table."""

    @property
    def columns(self) -> Any:  # noqa: ANN401
        """Their names, or the columns themselves."""


@runtime_checkable
class Saved(Protocol):
    """A trained corrector or model, in the place of its file."""

    def save(self, path: str | Path) -> None:
        """Write the file."""


PathLike: TypeAlias = str | os.PathLike[str]
"""Where a file or a folder is."""

Table: TypeAlias = DataFrame | Mapping[str, Array]
"""A data frame, or a dict of columns by name."""

LabelsLike: TypeAlias = Array
"""One label a row [N] in the rows' order: class names or ids; None, NaN, "" and -1 for rows without one."""

TrustedLike: TypeAlias = tuple[Array, Array]
"""(rows, true labels): row numbers from 0, a mask [N] of booleans or names; and the true label of each."""
