"""Stop and go on: the whole run state after each epoch, in one file that is never half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from relabel.errors import RelabelError
from relabel.files import atomic_path

_FORMAT = 8


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A short digest of everything that must be equal for a checkpoint to be continued."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save(path: Path, state: Mapping[str, Any], digest: str) -> None:
    """Write the state (tensors and plain values) under `path`, replacing the last one at once."""
    with atomic_path(path) as temporary:
        torch.save({"format": _FORMAT, "fingerprint": digest, "state": dict(state)}, temporary)


def is_checkpoint(path: Path) -> bool:
    """Whether `save` wrote the file; false for one that is damaged."""
    try:
        # Mapped, not read: the tensors of a large run stay on disk.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return isinstance(saved, dict) and {"format", "fingerprint", "state"} <= saved.keys()
    except Exception:
        return False


def load(path: Path, digest: str) -> dict[str, Any]:
    """The state saved under `path`; never executes code from the file.

    Raises RelabelError when the file is damaged or belongs to another run.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        belongs = saved["format"] == _FORMAT and saved["fingerprint"] == digest
        state: dict[str, Any] = saved["state"]
    except Exception as error:
        raise RelabelError(
            f"The checkpoint {path} is damaged or another kind of file ({type(error).__name__}).",
            "Drop --resume to start again.",
        ) from error
    if not belongs:
        raise RelabelError(
            f"The checkpoint {path} belongs to a run with other data or other settings.",
            "Repeat that run's command with --resume, or drop --resume to start again.",
        )
    return state
