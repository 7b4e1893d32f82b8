"""`relabel corrupt`: open the clean data, give a noise model the values that it needs, describe what it did.

Most noise models need nothing but labels. torch is imported where images are decoded or a network learns, so
that those commands answer at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from relabel import __version__
from relabel.config import CorruptConfig
from relabel.data.sources import Source, open_source, too_few_classes
from relabel.errors import RelabelError
from relabel.labels.metadata import matrix_metadata
from relabel.metrics import noise_matrix, row_shares
from relabel.progress import Watcher
from relabel.schedule import WEIGHT_DECAY, Schedule
from relabel.simulate import noise
from relabel.simulate.class_maps import read_mapping, read_superclasses
from relabel.simulate.noisy_labels_file import NoisyLabels

if TYPE_CHECKING:
    from relabel.training.loop import Training

IMAGE_SIZE = 32
"""At most: the size of CIFAR, which both models that read images were made for."""
SAMPLES_SEEN = 100_000
"""The network's epochs are as many as make this many, within limits: enough for its second choices."""
EPOCH_LIMITS = (10, 20)


def corrupt(config: CorruptConfig, watcher: Watcher) -> NoisyLabels:
    """Flip a share of the labels of SOURCE.

    Raises RelabelError for anything wrong with flags or input, before any image is decoded.
    """
    source = open_source(config.source, config.labels, config.reading, largest=IMAGE_SIZE, watcher=watcher)
    for warning in source.warnings:
        watcher.warn(warning)
    names = source.class_names
    mapping = _mapping(config, names, watcher)
    corrupted = noise.corrupt(
        source.given,
        names,
        noise=config.noise,
        rate=config.rate,
        seed=config.seed,
        mapping=mapping,
        images=SourceValues(source, config, watcher),
    )
    versions = {"relabel": __version__, "numpy": np.__version__}
    if config.noise == "feature-dependent":
        versions["torch"] = version("torch")
    matrix = row_shares(noise_matrix(corrupted.labels, source.given, len(names)))
    metadata: dict[str, Any] = {
        "noise": config.noise,
        "rate": config.rate,
        "actual_rate": corrupted.actual_rate,
        "seed": config.seed,
        **matrix_metadata("noise_matrix", matrix, names),
        "versions": versions,
    }
    metadata |= source.content.named()
    if mapping:
        metadata["map"] = {names[true]: names[given] for true, given in mapping.items()}
    return NoisyLabels(source.file_names, corrupted.labels, source.given, names, metadata)


def _mapping(config: CorruptConfig, names: Sequence[str], watcher: Watcher) -> dict[int, int] | None:
    """The classes that are mistaken for others, as the config's file has them; None without one."""
    if not config.map:
        return None
    if config.noise != "superclass":
        return read_mapping(config.map, names)
    mapping = read_superclasses(config.map, names)
    if alone := [name for row, name in enumerate(names) if row not in mapping]:
        watcher.warn(f"Alone in their superclass, so their labels stay clean: {', '.join(alone)}.")
    return mapping


class SourceValues:
    """`noise.Images` of a source: decodes, and trains a network, only when a noise model asks."""

    def __init__(self, source: Source, config: CorruptConfig, watcher: Watcher) -> None:
        self._source = source
        self._config = config
        self._watcher = watcher

    def values(self) -> tuple[noise.RowIndex, NDArray[np.uint8] | NDArray[np.float32]]:
        """Images of at most 32 px, or standardised vectors."""
        source = self._source
        unlabelled = np.flatnonzero(source.given < 0).tolist()
        values, errors = source.content.values(IMAGE_SIZE, self._watcher, unlabelled, standardised=True)
        labelled = np.flatnonzero(source.given >= 0)
        failed = np.isin(labelled, list(errors))
        rows, kept = labelled[~failed], labelled[failed]
        if len(rows) == 0:
            raise RelabelError(
                f"None of the labelled {source.noun} of {source.location} can be read ({errors[kept[0]]}).",
                "Check that the files were written and copied completely.",
            )
        if len(kept):
            self._watcher.warn(
                f"{len(kept):,} of {len(source):,} {source.noun} cannot be used and keep their label; "
                f"first {source.file_names[kept[0]]!r}: {errors[kept[0]]}."
            )
        return rows, values

    def logits(self) -> tuple[noise.RowIndex, NDArray[np.float32]]:
        """Logits, without augmentation, of a cnn8 or mlp trained on the labels by plain cross-entropy."""
        rows, values = self.values()
        if len(np.unique(self._source.given[rows])) < noise.FEWEST_CLASSES:
            raise too_few_classes(self._source)

        import torch

        training = self._training(rows, values)
        logits = np.zeros((len(self._source), len(self._source.class_names)), dtype=np.float32)
        for index, batch in training.predict(torch.from_numpy(rows)):
            logits[index.numpy()] = batch.cpu().numpy()
        agreed = (logits[rows].argmax(axis=1) == self._source.given[rows]).mean()
        self._watcher.say(f"The network agrees with {agreed * 100:.1f} % of the labels.")
        return rows, logits

    def _training(self, rows: noise.RowIndex, values: NDArray[np.uint8] | NDArray[np.float32]) -> Training:
        """A finished run of plain cross-entropy on those rows."""
        import torch

        from relabel import backbones
        from relabel.correctors import registry
        from relabel.device import resolve
        from relabel.training.loop import EpochReport, Training
        from relabel.training.rows import Rows

        source, watcher = self._source, self._watcher
        compute = resolve(self._config.device)
        # Drawn, because torch takes no seed beyond 64 bits.
        seed = int(np.random.default_rng(self._config.seed).integers(2**62))
        schedule = _schedule(len(rows), self._config.epochs)

        def on_epoch(report: EpochReport) -> None:
            watcher.say(f"Epoch {report.epoch + 1}/{report.epochs}: loss {report.loss:.3f}")

        devices = [compute.device] if compute.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the caller's random numbers stay as they were
            torch.manual_seed(seed)
            # A mirror would make other characters of digits and letters.
            backbone, inputs = backbones.for_values(values, len(source.class_names), augment="shift")
            training = Training(
                backbone,
                registry.create("none", len(source.class_names), backbone.head.in_features),
                inputs,
                Rows(torch.from_numpy(rows), torch.from_numpy(source.given)),
                schedule,
                compute,
                seed,
            )
            extent = f"{source.modality.extent(values.shape[1])}: {source.modality.backbone}"
            watcher.say(
                f"Learning {len(rows):,} {source.noun} of {extent} on {compute.describe()}, "
                f"{schedule.epochs} epochs."
            )
            watcher.stage("Training", training.steps_before(schedule.epochs))
            training.run(on_epoch, watcher.advance)
        return training


def _schedule(rows: int, epochs: int | None) -> Schedule:
    """Of plain training, shorter and with the usual weight decay: its second choices are all it is for."""
    low, high = EPOCH_LIMITS
    epochs = epochs or min(high, max(low, math.ceil(SAMPLES_SEEN / rows)))
    return Schedule(epochs=epochs, weight_decay=WEIGHT_DECAY).resolved(rows)
