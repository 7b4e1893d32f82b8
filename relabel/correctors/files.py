"""Corrector files: a versioned header and a state dict, tensors and plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relabel import __version__
from relabel.correctors import REGISTRY, create
from relabel.correctors.base import Corrector
from relabel.errors import RelabelError
from relabel.files import atomic_path

_KIND = "relabel corrector"
_FORMAT = 1


@dataclass(frozen=True)
class CorrectorFile:
    """What a corrector file holds: the corrector's name, its parameters and how it was trained."""

    name: str
    state: dict[str, Tensor]
    trained: dict[str, Any]
    relabel_version: str

    def describe(self) -> dict[str, Any]:
        """Plain values for `relabel inspect`."""
        return {
            "kind": _KIND,
            "corrector": self.name,
            "parameters": sum(value.numel() for value in self.state.values()),
            "relabel_version": self.relabel_version,
            **self.trained,
        }


def save_corrector(path: Path, name: str, corrector: Corrector, trained: Mapping[str, Any]) -> None:
    """Write a trained corrector; `trained` is plain JSON data on the run."""
    state = {key: value.cpu() for key, value in corrector.state_dict().items()}
    content = {
        "kind": _KIND,
        "format": _FORMAT,
        "relabel_version": __version__,
        "corrector": name,
        "state": state,
        "trained": dict(trained),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def read_corrector(path: Path) -> CorrectorFile:
    """Read a corrector file without executing anything from it.

    Raises RelabelError for a damaged file, another kind of file and a newer format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RelabelError(
            f"{path} is not a corrector file that can be loaded safely ({type(error).__name__}).",
            "Name a file written with --save-corrector.",
        ) from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise RelabelError(f"{path} is not a corrector file.", "Name a file written with --save-corrector.")
    if content.get("format") != _FORMAT:
        raise RelabelError(
            f"{path} has format {content.get('format')}, and this version reads format {_FORMAT}.",
            "Install the newest relabel.",
        )
    name, state, trained = (content.get(key) for key in ("corrector", "state", "trained"))
    if not isinstance(state, dict) or not isinstance(trained, dict):
        raise RelabelError(f"{path} is not a whole corrector file.", "Write it again.")
    if name not in REGISTRY:
        raise RelabelError(f"{path} holds an unknown corrector {name!r}.", "Install the newest relabel.")
    expected = {key: value.shape for key, value in create(name).state_dict().items()}
    if expected != {key: getattr(value, "shape", None) for key, value in state.items()}:
        raise RelabelError(f"{path} does not hold the parameters of {name}.", "Write it again.")
    return CorrectorFile(name, state, trained, str(content.get("relabel_version")))
