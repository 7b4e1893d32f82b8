"""Label correctors: one paper, one file, one contract (`base.Corrector`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from relabel.errors import RelabelError

if TYPE_CHECKING:
    from relabel.correctors.base import Corrector

REGISTRY = {
    "mslc": "relabel.correctors.mslc.MSLC",
    "none": "relabel.correctors.plain.Plain",
}
"""Name to dotted class name: listing the correctors imports none of them, and so no torch."""


def create(name: str) -> Corrector:
    """A fresh corrector of a registered name; RelabelError for any other."""
    if name not in REGISTRY:
        raise RelabelError(f"--corrector {name}: no such corrector.", f"Use {' or '.join(REGISTRY)}.")
    module, _, attribute = REGISTRY[name].rpartition(".")
    corrector: Corrector = getattr(import_module(module), attribute)()
    return corrector
