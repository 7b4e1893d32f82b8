"""Model files: a trained backbone, with all it takes to label images that were not in its fit.

A versioned header, tensors and plain values only; reading one executes nothing from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relabel import backbones
from relabel.backbones import Backbone
from relabel.calibration.calibrate import Calibration
from relabel.data.batches import Inputs
from relabel.device import Compute
from relabel.errors import RelabelError
from relabel.files import kind_of, load_tensors, save_tensors
from relabel.labels.metadata import Run
from relabel.modality import Modality, of_backbone
from relabel.sample_memory import ProbabilityStore
from relabel.saved.corrector_file import CorrectorFile, read_corrector

_KIND = "model"
_FORMAT = 2
_FIELDS = {
    "backbone": str, "class_names": list, "state": dict, "corrector": dict, "calibration": dict,
    "trained": dict,
}  # fmt: skip
EVIDENCE = "prediction"
"""The name, in the calibration, of the one evidence there is of an unseen image: the backbone's softmax."""


@dataclass(frozen=True)
class Model:
    """A backbone trained on images of `size` px, or on vectors [size], and classes `class_names` [C].

    backbone_name: as `backbones.build` knows it; calibration: for images the backbone has not seen, on the
    evidence `EVIDENCE`; run: the fit, as far as it is of use without its rows; versions: that made the model.

    What predicts is the backbone, whatever the corrector: the papers' correctors teach it and are done when
    it is trained, MetaLabelNet's label generator included. The corrector is kept with it as a record.
    """

    backbone: Backbone
    backbone_name: str
    size: int
    class_names: list[str]
    corrector: CorrectorFile
    calibration: Calibration
    run: Run
    versions: Mapping[str, str]

    @property
    def modality(self) -> Modality:
        """What it labels."""
        return of_backbone(self.backbone_name)

    @property
    def named_size(self) -> dict[str, Any]:
        """`size` by its name in files."""
        return {self.modality.size_field: self.size}

    def evidence(
        self, inputs: Inputs, compute: Compute, on_batch: Callable[[int], None] = lambda rows: None
    ) -> dict[str, ProbabilityStore]:
        """The calibration's evidence: the backbone's softmax [N, C] by the evidence's name."""
        probability = ProbabilityStore(len(inputs), len(self.class_names))
        for index, logits, _ in backbones.evaluate(self.backbone, inputs, compute):
            probability[index] = torch.softmax(logits, dim=1).cpu()
            on_batch(len(index))
        return {EVIDENCE: probability}

    def describe(self) -> dict[str, Any]:
        """Plain values for `relabel inspect`."""
        return {
            "kind": f"relabel {_KIND}",
            "class_names": self.class_names,
            "backbone": self.backbone_name,
            "parameters": sum(parameter.numel() for parameter in self.backbone.parameters()),
            **self.named_size,
            "corrector": self.corrector.name,
            "options": self.corrector.options,
            **self._trained(),
            "calibration": self.calibration.to_dict(),
        }

    def _trained(self) -> dict[str, Any]:
        """JSON data on the run."""
        return {**self.run.to_dict(), "versions": self.versions}

    def save(self, path: str | Path) -> None:
        """Write a model file; `read_model` reads it."""
        calibration = asdict(self.calibration)
        content = {
            "backbone": self.backbone_name,
            **self.named_size,
            "class_names": self.class_names,
            "state": {key: value.cpu() for key, value in self.backbone.state_dict().items()},
            "corrector": self.corrector.content(),
            "calibration": {
                key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                for key, value in calibration.items()
            },
            "trained": self._trained(),
        }
        save_tensors(path, _KIND, _FORMAT, content)


def read_model(path: Path) -> Model:
    """Read a model file without executing anything from it.

    Raises RelabelError for a damaged file, another kind of file and another format.
    """
    content = load_tensors(path, _KIND, _FORMAT)
    damaged = RelabelError(f"{path} is not a whole model file.", "Write it again with relabel fit.")
    if not all(isinstance(content.get(name), kind) for name, kind in _FIELDS.items()):
        raise damaged
    class_names, name = content["class_names"], content["backbone"]
    size = content.get(of_backbone(name).size_field)
    least, most = of_backbone(name).sizes
    if len(class_names) < 2 or not all(isinstance(name, str) for name in class_names):
        raise damaged
    if len(set(class_names)) < len(class_names) or not isinstance(size, int) or not least <= size <= most:
        raise damaged
    try:
        backbone = backbones.build(name, len(class_names), size)
        backbone.load_state_dict(content["state"])
        calibration = Calibration.restored(
            {
                key: value.numpy() if isinstance(value, Tensor) else value
                for key, value in content["calibration"].items()
            },
            [EVIDENCE],
            len(class_names),
        )
        corrector = CorrectorFile.from_content(content["corrector"], path)
        trained = json.loads(json.dumps(content["trained"], allow_nan=False))
        if trained != content["trained"]:
            raise damaged
        versions = dict(trained.pop("versions"))
    except Exception as error:  # whatever else stands where a tensor or a value should
        raise damaged from error
    if not all(bool(value.isfinite().all()) for value in backbone.state_dict().values()):
        raise damaged
    return Model(
        backbone=backbone,
        backbone_name=name,
        size=size,
        class_names=class_names,
        corrector=corrector,
        calibration=calibration,
        run=Run.taken(trained),
        versions=versions,
    )


def describe_file(path: Path) -> dict[str, Any]:
    """Plain values on a model file or a corrector file; RelabelError for any other."""
    kind = kind_of(path)
    if kind == _KIND:
        return read_model(path).describe()
    if kind == "corrector":
        return read_corrector(path).describe()
    raise RelabelError(
        f"{path} is neither a corrector nor a model file that can be loaded safely.",
        "Name a file that relabel wrote.",
    )
