"""Repair data sets whose labels are partly wrong, guided by a few hundred trusted rows.

    import relabel
    labels = relabel.fit("images/", trusted="trusted.csv")
    labels.to_pandas(), labels.save("labels.parquet")

fit, apply, predict, evaluate, corrupt and pretrain are the commands of the same names, their flags keywords;
`calibrate` takes the probabilities of a network of your own, `read` a labels file. Mistakes raise
`RelabelError`. Importing relabel imports nothing else: torch comes with the first call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from relabel.api import apply, calibrate, corrupt, evaluate, fit, predict, pretrain, read
    from relabel.errors import RelabelError
    from relabel.labels.table import Labels

_PLACES = {
    "Labels": "relabel.labels.table",
    "RelabelError": "relabel.errors",
    "apply": "relabel.api",
    "calibrate": "relabel.api",
    "corrupt": "relabel.api",
    "evaluate": "relabel.api",
    "fit": "relabel.api",
    "predict": "relabel.api",
    "pretrain": "relabel.api",
    "read": "relabel.api",
}

__all__ = [
    "Labels",
    "RelabelError",
    "__version__",
    "apply",
    "calibrate",
    "corrupt",
    "evaluate",
    "fit",
    "predict",
    "pretrain",
    "read",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
