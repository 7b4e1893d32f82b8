"""Stop and go on: the whole run state after each epoch, in one file that is never half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relabel.errors import RelabelError
from relabel.files import atomic_path

_FORMAT = 11
_SHORT = 60
_DIGEST = "#"  # with which no JSON begins
_UNSET = {"null": "not given", "false": "not given", "true": "given"}  # as flags, by their JSON


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Everything that must be equal for a checkpoint to be continued, by names that a message can tell.

    Values that are short as JSON stay as they are, of others there is a digest.
    """
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in parts.items()}
    return json.dumps({name: _short(text) for name, text in texts.items()}, sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else _DIGEST + hashlib.sha256(text.encode()).hexdigest()[:16]


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
        ours, theirs = (_FORMAT, digest), (saved["format"], saved["fingerprint"])
        state: dict[str, Any] = saved["state"]
    except Exception as error:
        raise RelabelError(
            f"The checkpoint {path} is damaged or another kind of file ({type(error).__name__}).",
            "Drop --resume to start again.",
        ) from error
    if ours != theirs:
        raise RelabelError(
            f"The checkpoint {path} belongs to a run with other data or other settings"
            f"{_differences(digest, theirs[1])}.",
            "Repeat that run's command with --resume, or drop --resume to start again.",
        )
    return state


def _differences(ours: str, theirs: object) -> str:
    """What differs, as the end of a sentence; empty where the two cannot be compared."""
    try:
        here, there = json.loads(ours), json.loads(str(theirs))
        names = [name for name in here if name in there and here[name] != there[name]]
    except (ValueError, TypeError):
        return ""
    differences = [_difference(name, here[name], there[name]) for name in names]
    return f": {'; '.join(differences)}" if differences else ""


def _difference(name: str, here: str, there: str) -> str:
    """What a user can act on: the value that it had, or only that it is another one."""
    if _DIGEST in (here[0], there[0]):
        return f"{name} differ" if name.startswith("the ") else f"{name} differs"
    now, then = (_UNSET.get(text, text) for text in (here, there))
    return f"{name} was {then} and is {now}"


def passing_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that a module's state dict leaves out: of a checkpoint they are a part, of a file for other
    data not."""
    lasting = module.state_dict()
    return {name: values for name, values in module.named_buffers() if name not in lasting}


def load_passing_buffers(module: nn.Module, values: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `passing_buffers` returned."""
    for name, value in values.items():
        setattr(module, name, value.to(device, copy=True))  # a copy: checkpoints are mapped
