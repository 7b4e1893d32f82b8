"""Corrector files: a versioned header and a state dict, tensors and plain values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relabel import __version__
from relabel.calibration.prior import CalibrationPrior
from relabel.config import SHIPPED_CORRECTOR
from relabel.correctors.base import Corrector
from relabel.correctors.registry import REGISTRY, create
from relabel.errors import RelabelError
from relabel.files import load_tensors, save_tensors

_FORMAT = 6
_FIELDS = {
    "corrector": str, "num_classes": int, "num_features": int, "options": dict, "state": dict,
    "trained": dict, "calibration_prior": dict,
}  # fmt: skip


@dataclass(frozen=True)
class CorrectorFile:
    """What a corrector file holds: how to make the corrector, its parameters and how it was trained.

    trained: a JSON object, which `fit` and `pretrain` fill in differently.
    """

    name: str
    num_classes: int
    num_features: int
    options: dict[str, str]
    state: dict[str, Tensor]
    trained: Mapping[str, object]
    calibration_prior: CalibrationPrior
    relabel_version: str = __version__

    @classmethod
    def of(
        cls,
        corrector: Corrector,
        name: str,
        num_classes: int,
        num_features: int,
        options: Mapping[str, str],
        trained: Mapping[str, Any],
        calibration_prior: CalibrationPrior,
    ) -> CorrectorFile:
        """A trained corrector made as `create(name, num_classes, num_features, options)`.

        trained: plain JSON data on the run; calibration_prior: for the calibration where it is frozen.
        """
        state = {key: value.cpu() for key, value in corrector.state_dict().items()}
        return cls(name, num_classes, num_features, dict(options), state, dict(trained), calibration_prior)

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: Path) -> CorrectorFile:
        """What `content` returned, as read from `path`; RelabelError when it makes no corrector."""
        if not all(isinstance(content.get(name), kind) for name, kind in _FIELDS.items()):
            raise RelabelError(f"{path} is not a whole corrector file.", "Write it again.")
        name = content["corrector"]
        if name not in REGISTRY:
            raise RelabelError(f"{path} holds an unknown corrector {name!r}.", "Install the newest relabel.")
        try:
            file = cls(
                name,
                content["num_classes"],
                content["num_features"],
                content["options"],
                content["state"],
                content["trained"],
                CalibrationPrior.restored(
                    {
                        key: value.numpy() if isinstance(value, Tensor) else value
                        for key, value in content["calibration_prior"].items()
                    }
                ),
                str(content.get("relabel_version")),
            )
            file.corrector()
        except Exception as error:  # whatever else stands where a state dict should
            raise RelabelError(
                f"{path} does not hold the parameters of {name}.", "Write it again."
            ) from error
        return file

    def content(self) -> dict[str, Any]:
        """Tensors and plain values for a file."""
        return {
            "corrector": self.name,
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "options": self.options,
            "state": self.state,
            "trained": dict(self.trained),
            "calibration_prior": {
                key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                for key, value in vars(self.calibration_prior).items()
            },
            "relabel_version": self.relabel_version,
        }

    def describe(self) -> dict[str, Any]:
        """Plain values for `relabel inspect`."""
        return {
            "kind": "relabel corrector",
            "corrector": self.name,
            "options": self.options,
            "parameters": sum(value.numel() for value in self.state.values()),
            "relabel_version": self.relabel_version,
            **self.trained,
        }

    def corrector(self) -> Corrector:
        """The trained corrector."""
        made = create(self.name, self.num_classes, self.num_features, self.options)
        made.load_state_dict(self.state)
        return made

    def transferred(self, num_classes: int, num_features: int) -> Corrector:
        """The trained corrector for other classes and another backbone, where it is used frozen.

        Raises RelabelError for a corrector that means nothing there, and for a calibration by unknown
        evidence.
        """
        made = create(self.name, num_classes, num_features, self.options)
        if not made.needs.transfers:
            raise RelabelError(
                f"A trained {self.name} is of no use on other data.",
                "Name a file that fit --corrector tmlc --save-corrector or pretrain has written.",
            )
        unknown = set(self.calibration_prior.evidence) - {"early", "late", "last"}
        if unknown:
            raise RelabelError(
                f"The corrector's calibration asks for {min(unknown)!r}, which this version does not know.",
                "Install the newest relabel.",
            )
        made.load_state_dict(self.state)
        return made

    def save(self, path: str | Path) -> None:
        """Write a corrector file; `read_corrector` reads it."""
        save_tensors(path, "corrector", _FORMAT, self.content())


def read_corrector(path: Path) -> CorrectorFile:
    """Read a corrector file without executing anything from it.

    Raises RelabelError for a damaged file, another kind of file and another format.
    """
    return CorrectorFile.from_content(load_tensors(path, "corrector", _FORMAT), path)


def shipped_state() -> dict[str, Tensor]:
    """The state dict of the corrector that comes with relabel; draws no random number."""
    with torch.random.fork_rng([]):  # a file is checked by making its corrector, at random first
        return read_corrector(SHIPPED_CORRECTOR).state
