"""What `fit` and `apply` share: SOURCE and its trusted rows, the backbone, checkpointed training.

In the order of a run: `open_rows`, `build_backbone`, `decode`, `freeze`, `training_rows`, `train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel import __version__, backbones
from relabel.backbones import Backbone
from relabel.config import DEFAULT_AUGMENTATION, NetworkOptions, RunOptions, TrainingConfig
from relabel.correctors.base import Needs, TrustedRows
from relabel.data.batches import Inputs, VectorInputs
from relabel.data.content import Showing
from relabel.data.sources import UNLABELLED, Source, open_source, too_few_classes
from relabel.data.trusted import TrustedSet, trusted_of
from relabel.device import Compute
from relabel.errors import RelabelError
from relabel.files import digest
from relabel.labels.assemble import usable_rows, warn_of_errors
from relabel.options import values_of
from relabel.progress import Watcher
from relabel.sample_memory import ProbabilityStore
from relabel.training import checkpoint
from relabel.training.loop import EpochReport, Training
from relabel.training.rows import Rows
from relabel.verbs.split import Part, Split

_LARGEST_PRETRAINED = 224  # px, what torchvision's weights were trained on
_SETTLES_NOTHING = {
    "--checkpoint", "--resume", "--precision", "--no-cache", "--output", "--overwrite", "--save-corrector",
    "--keep-model",
}  # fmt: skip
"""What a checkpoint may be continued without: no flag here has a part in the training."""


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    trusted: its readable rows; inputs: what the backbone is shown, images outside SOURCE last; shown: their
    digest; unreadable: rows of `inputs`, and why; errors: those of SOURCE.
    """

    source: Source
    trusted: TrustedSet
    inputs: Inputs
    shown: str
    unreadable: dict[int, str]
    errors: dict[int, str]

    @property
    def given(self) -> NDArray[np.int64]:
        """The given labels [N], −1 for rows without one and for those that cannot be used."""
        return np.where(usable_rows(self.source, self.errors), self.source.given, UNLABELLED)

    @property
    def labelled_rows(self) -> int:
        """How many there are: all, and not those alone that the corrector at hand trains on, lest each
        corrector had a batch size of its own."""
        return int((self.given >= 0).sum())

    @property
    def trusted_rows(self) -> int:
        """How many can be read, in SOURCE and outside it."""
        return len(self.trusted.rows) + len(self.trusted.external)


@dataclass(frozen=True)
class Built:
    """A backbone, and what the metadata says of it."""

    backbone: Backbone
    described: Mapping[str, Any]


@dataclass(frozen=True)
class Frozen:
    """The backbone behind features computed once, which training saw as (features − mean) · scale."""

    backbone: Backbone
    mean: Tensor
    scale: Tensor

    def under(self, head: Backbone) -> Backbone:
        """The whole network, with that head on the features."""
        return backbones.with_head(self.backbone, head.head, self.mean, self.scale)


def open_rows(config: TrainingConfig, watcher: Watcher) -> tuple[Source, TrustedSet]:
    """SOURCE and its trusted rows, with their warnings."""
    source = open_source(
        config.source,
        config.labels,
        config.reading,
        largest=config.network.image_size or largest_size(config.network.weights),
        watcher=watcher,
    )
    trusted = trusted_of(source, config.trusted)
    for warning in (*source.warnings, *trusted.warnings):
        watcher.warn(warning)
    return source, trusted


def largest_size(weights: str) -> int:
    """Pixels to which larger images are made smaller unless --image-size says otherwise."""
    return backbones.SMALL_IMAGE if weights == "none" else _LARGEST_PRETRAINED


def build_backbone(source: Source, network: NetworkOptions) -> Built:
    """The backbone that the flags ask for; before any decoding, so that a wrong flag is refused at once."""
    content, weights = source.content, network.weights
    size = content.size(network.image_size, largest_size(weights))
    name = network.backbone or content.modality.default_backbone(weights)
    backbone = backbones.build(name, len(source.class_names), size, weights, content.standardisation())
    return Built(backbone, {"backbone": name, **content.described(size, weights)})


def decode(
    source: Source, trusted: TrustedSet, built: Built, augment: str | None, cache: bool, watcher: Watcher
) -> Data:
    """Decode what the backbone is shown; rows that cannot be read become rows with an error."""
    showing = Showing(
        augment or DEFAULT_AUGMENTATION, cache, ", set a smaller --image-size, or add --no-cache"
    )
    size = built.described[source.modality.size_field]
    inputs, unreadable = source.content.open(size, showing, watcher, trusted.external)
    errors = {**source.errors, **{row: text for row, text in unreadable.items() if row < len(source)}}
    trusted = trusted.without(errors, source)
    for warning in trusted.warnings:
        watcher.warn(warning)
    return Data(source, trusted, inputs, inputs.digest(), unreadable, errors)


def check_usable(data: Data, split: Split, has_trusted: bool, watcher: Watcher) -> None:
    """Refuse a source whose readable rows cannot train a classifier; warn of unusable ones."""
    given = data.given
    if len(np.unique(given[given >= 0])) < 2:
        raise too_few_classes(data.source)
    if has_trusted and not any(map(len, split.parts)):
        raise RelabelError("--trusted: none of the trusted images can be read.", "Verify other images.")
    warn_of_errors(data.source, data.errors, watcher)


def freeze(
    backbone: Backbone, data: Data, compute: Compute, watcher: Watcher
) -> tuple[Backbone, Data, Frozen]:
    """Every row's penultimate features, computed once: with `--freeze` a new head sees nothing else."""
    watcher.stage("Features", len(data.inputs))
    features = backbones.frozen_features(backbone, data.inputs, compute, watcher.advance)
    # Unit variance: the head's learning rate then suits every backbone. A feature without any stays at 0,
    # lest the first unseen image that has it be multiplied by a million.
    mean, deviation = features.mean(dim=0), features.std(dim=0)
    scale = torch.where(deviation > 1e-6, 1 / deviation, 0.0)
    inputs = VectorInputs(features.sub_(mean).mul_(scale))
    head = backbones.linear(backbone.head.in_features, len(data.source.class_names))
    return head, replace(data, inputs=inputs), Frozen(backbone, mean, scale)


def training_rows(data: Data, split: Split, needs: Needs, held_out: NDArray[np.bool_] | None = None) -> Rows:
    """Which rows play which part in training; held_out: [N], whose given label training does not see."""
    source = data.source
    taught = usable_rows(source, data.errors)
    for part in [split.unseen, split.meta] if needs.looks_ahead else [split.unseen]:
        taught[part.rows[part.rows < len(source)]] = False
    seen = source.given if held_out is None else np.where(held_out, UNLABELLED, source.given)
    return Rows(
        train=torch.from_numpy(np.flatnonzero(taught & (seen >= 0))),
        given=torch.from_numpy(seen),
        unlabelled=torch.from_numpy(np.flatnonzero(taught & (seen < 0))),
        meta=trusted_rows(split.meta, source.given),
        in_training=trusted_rows(split.in_training, source.given),
    )


def trusted_rows(part: Part, given: NDArray[np.int64]) -> TrustedRows:
    """Trusted rows as the training knows them; given: [N] of SOURCE, outside of which nothing has a label."""
    labels = np.full(len(part), UNLABELLED)
    inside = part.rows < len(given)
    labels[inside] = given[part.rows[inside]]
    return TrustedRows(*map(torch.from_numpy, (part.rows, part.true, labels)))


def train(training: Training, run: RunOptions, belongs: str, watcher: Watcher) -> dict[str, ProbabilityStore]:
    """Run the epochs, with a checkpoint after each where one is named; gives `Training.evidence`.

    belongs: the `fingerprint` of the run, without which no checkpoint is continued.
    """
    path = run.checkpoint
    if path and run.resume:
        if path.exists():
            training.load_state_dict(checkpoint.load(path, belongs))
            watcher.say(f"Resuming after epoch {training.epoch} from {path}.")
        else:
            watcher.say(f"No checkpoint at {path} yet; starting with the first epoch.")

    def on_epoch(report: EpochReport) -> None:
        if path:
            checkpoint.save(path, training.state_dict(), belongs)
        meta = "" if report.meta_loss is None else f", trusted loss {report.meta_loss:.3f}"
        watcher.say(
            f"Epoch {report.epoch + 1}/{report.epochs} ({report.phase}): loss {report.loss:.3f}{meta}"
        )

    watcher.stage("Training", training.steps_before(training.schedule.epochs))
    watcher.advance(training.steps_before(training.epoch))
    training.run(on_epoch, watcher.advance)
    watcher.stage("Calibrating", None)
    return training.evidence()


def fingerprint(config: TrainingConfig, data: Data, split: Split, training: Training, **more: object) -> str:
    """Everything that must be equal for a checkpoint to be continued; more: what replaces a flag's value."""
    weights = config.network.weights
    if weights not in ("none", "imagenet"):  # what is in a file counts, not where it lies
        weights = digest(Path(weights).read_bytes())
    names = "\0".join(data.source.file_names).encode(errors="surrogateescape")
    flags = {flag: value for flag, value in values_of(config).items() if flag not in _SETTLES_NOTHING}
    rows = training.rows
    return checkpoint.fingerprint(
        {
            **flags,
            "--weights": weights,
            "the names of the rows": digest(names),
            f"the {data.source.noun}": data.shown,
            "the rows that can be used": [digest(part.numpy()) for part in (rows.train, rows.unlabelled)],
            "the given labels": digest(rows.given.numpy()),
            "the trusted rows": [digest(column) for part in split.parts for column in (part.rows, part.true)],
            "device": training.compute.describe(),
            "versions": [__version__, torch.__version__],
            **more,
        }
    )


def announcement(training: Training, data: Data, built: Built, corrector: str, roles: str) -> str:
    """The sentence before training: rows, classes, backbone and epochs, and the `roles` of rows."""
    source, schedule = data.source, training.schedule
    extent = source.modality.extent(built.described[source.modality.size_field])
    warmup = f", {schedule.warmup_epochs} of them warm-up" if training.corrector.needs.corrects else ""
    return (
        f"{len(source):,} {source.noun}, {len(source.class_names)} classes, {extent}; "
        f"{built.described['backbone']} on {training.compute.describe()}; "
        f"{corrector}: {schedule.epochs} epochs{warmup}; {roles}."
    )


def of_rows(
    evidence: Mapping[str, ProbabilityStore], rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """The distributions of some rows, by name."""
    index = torch.from_numpy(rows)
    return {name: values[index].numpy() for name, values in evidence.items()}
