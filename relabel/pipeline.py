"""The whole story of a run, in order: read, check, decode, train, calibrate, hand over."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relabel import __version__, backbones, checkpoint, correctors
from relabel.config import FitConfig
from relabel.correctors import files
from relabel.correctors.base import Corrector
from relabel.data.images import probe_sizes
from relabel.data.loading import ImageInputs, Inputs, VectorInputs, decode_all
from relabel.data.sources import Source, open_source
from relabel.data.trusted import TrustedSet, read_trusted
from relabel.device import Compute, resolve
from relabel.errors import RelabelError
from relabel.metrics import noise_matrix, wilson_interval
from relabel.output import calibration
from relabel.output.calibration import Calibration, Promise
from relabel.progress import Silent, Watcher
from relabel.training import EpochReport, Rows, Schedule, Training

PROBE_SHARE = 2 / 3  # a corrector has few parameters; calibration and promise live off every probe
SAMPLES_SEEN = 750_000  # the default budget: epochs are as many as make this many, within limits
EPOCH_LIMITS = (20, 50)
WARMUP_SHARE = 0.4


@dataclass(frozen=True)
class FitResult:
    """Everything `fit` found, one entry per row of the source unless said.

    soft_label: [N, C]; noise_probability: [N], NaN where undefined; action: [N]; trusted: [N];
    errors: row to reason; metadata: the Parquet's JSON; corrector: trained; summary: figures for a reader.
    """

    source: Source
    soft_label: NDArray[np.float32]
    noise_probability: NDArray[np.float32]
    action: NDArray[np.str_]
    trusted: NDArray[np.bool_]
    errors: dict[int, str]
    metadata: dict[str, Any]
    corrector: Corrector
    summary: dict[str, Any]

    def save_corrector(self, path: Path) -> None:
        """Write the trained corrector with what it was trained on."""
        described = ("backbone", "image_size", "epochs", "seed", "trusted_rows", "class_names")
        trained = {name: self.metadata[name] for name in described}
        files.save_corrector(path, self.metadata["corrector"], self.corrector, trained)


@dataclass(frozen=True)
class _Split:
    """Trusted rows by use: meta rows drive the corrector, probe rows calibrate.

    External images (not in SOURCE) follow the source's rows in `Inputs`, and are meta rows.
    """

    meta: NDArray[np.int64]
    meta_labels: NDArray[np.int64]
    probe: NDArray[np.int64]
    probe_labels: NDArray[np.int64]


def fit(config: FitConfig, watcher: Watcher | None = None) -> FitResult:
    """Train a backbone and a corrector on SOURCE, guided by the trusted rows, and calibrate.

    Writes nothing but its checkpoint. Raises RelabelError for anything wrong with flags or input, before
    any training.
    """
    watcher = watcher or Silent()
    compute = resolve(config.device, config.amp)
    torch.manual_seed(config.seed)
    corrector = correctors.create(config.corrector)
    source = open_source(config.source, config.labels)
    trusted = read_trusted(config.trusted, source)
    for warning in (*source.warnings, *trusted.warnings):
        watcher.warn(warning)

    size = config.image_size or _image_size(source, config)
    name = config.backbone or ("cnn8" if config.weights == "none" else "resnet18")
    # Built before the images are decoded: a wrong --backbone or --weights is told at once.
    backbone = backbones.build(name, len(source.class_names), size, config.weights)

    references = [*source.references, *trusted.external]
    watcher.stage("Decoding", len(references) - len(source.errors))
    images, unreadable = decode_all(references, size, set(source.errors), watcher.advance)
    errors = {**source.errors, **{row: text for row, text in unreadable.items() if row < len(source)}}
    split = _split(trusted, unreadable, len(source), corrector, config.seed)
    _check_usable(source, errors, split, watcher)

    inputs: Inputs = ImageInputs(images, config.augment)
    if config.freeze:
        inputs = _frozen_features(backbone, inputs, compute, watcher)
        backbone = backbones.linear(backbone.head.in_features, len(source.class_names))
    rows = _rows(source, errors, split)
    schedule = _schedule(config, len(rows.train))
    training = Training(backbone, corrector, inputs, rows, schedule, compute, config.seed)
    watcher.say(
        f"{len(source):,} images, {len(source.class_names)} classes, {size} px; {name} on "
        f"{compute.describe()}; {config.corrector}: {schedule.epochs} epochs, "
        f"{schedule.warmup_epochs} of them warm-up; "
        f"{len(split.meta)} meta and {len(split.probe)} probe rows."
    )
    _train(training, config, source, split, watcher)
    return _calibrated(training, source, trusted, split, errors, config, name, size)


def _image_size(source: Source, config: FitConfig) -> int:
    """Native size for small images; 64 px from scratch and 224 px with pretrained weights for larger ones."""
    usable = [path for row, path in enumerate(source.references) if row not in source.errors]
    largest = backbones.SMALL_IMAGE if config.weights == "none" else 224
    return max(8, min(probe_sizes(usable), largest))


def _split(
    trusted: TrustedSet, unreadable: dict[int, str], rows: int, corrector: Corrector, seed: int
) -> _Split:
    """Deal the readable trusted rows into probe and meta rows, class by class.

    A corrector that learns nothing from trusted rows leaves them all to the calibration.
    """
    usable = np.array([row not in unreadable for row in trusted.rows], dtype=bool)
    inside, labels = trusted.rows[usable], trusted.labels[usable]
    share = PROBE_SHARE if corrector.uses_trusted_rows else 1.0
    shuffled = np.random.default_rng(seed).permutation(len(inside))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Every k-th of the rows sorted by class: each class gives its share, to within one row.
    ticks = np.floor(np.arange(1, len(inside) + 1) * share) > np.floor(np.arange(len(inside)) * share)
    probe, meta = np.sort(by_class[ticks]), np.sort(by_class[~ticks])
    external = np.array(
        [rows + i for i in range(len(trusted.external)) if rows + i not in unreadable], dtype=np.int64
    )
    return _Split(
        meta=np.concatenate([inside[meta], external]),
        meta_labels=np.concatenate([labels[meta], trusted.external_labels[external - rows]]),
        probe=inside[probe],
        probe_labels=labels[probe],
    )


def _check_usable(source: Source, errors: dict[int, str], split: _Split, watcher: Watcher) -> None:
    """Refuse a source whose readable images cannot train a classifier; warn of unusable ones."""
    good = _usable(source, errors)
    if len(np.unique(source.given[good & (source.given >= 0)])) < 2:
        raise RelabelError(
            f"{source.location}: fewer than two classes have an image that can be read.",
            "Check that the files are images and were copied completely.",
        )
    if len(split.meta) + len(split.probe) == 0:
        raise RelabelError("--trusted: none of the verified images can be read.", "Verify other images.")
    if errors:
        row = min(errors)
        watcher.warn(
            f"{len(errors)} of {len(source):,} images cannot be used and become rows with an error; "
            f"first {source.file_names[row]!r}: {errors[row]}."
        )


def _usable(source: Source, errors: dict[int, str]) -> NDArray[np.bool_]:
    usable = np.ones(len(source), dtype=bool)
    usable[list(errors)] = False
    return usable


def _rows(source: Source, errors: dict[int, str], split: _Split) -> Rows:
    good = _usable(source, errors)
    labelled = good & (source.given >= 0)
    labelled[split.meta[split.meta < len(source)]] = False
    return Rows(
        train=torch.from_numpy(np.flatnonzero(labelled)),
        given=torch.from_numpy(source.given),
        unlabelled=torch.from_numpy(np.flatnonzero(good & (source.given < 0))),
        meta=torch.from_numpy(split.meta),
        meta_labels=torch.from_numpy(split.meta_labels),
    )


def _schedule(config: FitConfig, rows: int) -> Schedule:
    """Fill in what the flags leave open, from the number of training rows."""
    low, high = EPOCH_LIMITS
    epochs = config.epochs or min(high, max(low, math.ceil(SAMPLES_SEEN / rows)))
    batch_size = config.batch_size or (256 if rows >= 10_000 else 64)
    warmup = config.warmup or max(1, round(epochs * WARMUP_SHARE))
    return Schedule(
        epochs=epochs,
        warmup_epochs=min(warmup, epochs - 1),
        average_from=min(max(1, round(epochs / 3)), epochs - 1),
        batch_size=batch_size,
        learning_rate=config.learning_rate or 0.2 * (batch_size / 256) ** 0.5,
        weight_decay=5e-4,
        meta_learning_rate=1e-3,
        meta_batch_size=64,
    )


def _frozen_features(
    backbone: backbones.Backbone, inputs: Inputs, compute: Compute, watcher: Watcher
) -> Inputs:
    """Every row's penultimate features, computed once: with `--freeze` they are all that training sees."""
    backbone = backbone.to(compute.device).to(memory_format=compute.memory_format).eval()
    features = torch.empty(len(inputs), backbone.head.in_features)
    watcher.stage("Features", len(inputs))
    for index in torch.arange(len(inputs)).tensor_split(math.ceil(len(inputs) / 64)):
        with torch.no_grad(), compute.autocast():
            features[index] = backbone(inputs.batch(index, compute.device, None))[1].cpu()
        watcher.advance(len(index))
    # Unit variance: the head's learning rate then suits every backbone.
    return VectorInputs((features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-6))


def _train(training: Training, config: FitConfig, source: Source, split: _Split, watcher: Watcher) -> None:
    """Run the epochs, with a checkpoint after each when the config names one."""
    digest = checkpoint.fingerprint(
        {
            "config": {**asdict(config), "checkpoint": None, "resume": None, "precision": None},
            "files": source.file_names,
            "given": source.given.tolist(),
            "split": [split.meta.tolist(), split.meta_labels.tolist(), split.probe.tolist()],
            "compute": training.compute.describe(),
            "versions": [__version__, torch.__version__],
        }
    )
    if config.checkpoint and config.resume:
        if config.checkpoint.exists():
            training.load_state_dict(checkpoint.load(config.checkpoint, digest))
            watcher.say(f"Resuming after epoch {training.epoch} from {config.checkpoint}.")
        else:
            watcher.say(f"No checkpoint at {config.checkpoint} yet; starting with the first epoch.")

    def on_epoch(report: EpochReport) -> None:
        if config.checkpoint:
            checkpoint.save(config.checkpoint, training.state_dict(), digest)
        meta = "" if report.meta_loss is None else f", trusted loss {report.meta_loss:.3f}"
        watcher.say(
            f"Epoch {report.epoch + 1}/{report.epochs} ({report.phase}): loss {report.loss:.3f}{meta}"
        )

    watcher.stage("Training", training.schedule.epochs * training.steps_per_epoch)
    watcher.advance(training.epoch * training.steps_per_epoch)
    training.run(on_epoch, watcher.advance)


def _calibrated(
    training: Training,
    source: Source,
    trusted: TrustedSet,
    split: _Split,
    errors: dict[int, str],
    config: FitConfig,
    backbone_name: str,
    image_size: int,
) -> FitResult:
    """Calibrate on the probe rows and put every row's labels, probability and action together."""
    num_classes = len(source.class_names)
    given = source.given
    evidence = training.evidence()
    counts = noise_matrix(given[trusted.rows], trusted.labels, num_classes)
    scored = split.probe[given[split.probe] >= 0]
    scored_labels = split.probe_labels[given[split.probe] >= 0]
    fitted = calibration.fit(
        {name: values[scored] for name, values in evidence.items()},
        given[scored],
        scored_labels,
        counts,
        config.seed,
    )
    soft = fitted.soft_labels(evidence, given)
    usable = _usable(source, errors)
    is_trusted = np.zeros(len(source), dtype=bool)
    is_trusted[trusted.rows] = True
    unverified = usable & ~is_trusted
    promise = fitted.promise(soft[unverified], given[unverified], config.precision)
    action = calibration.actions(soft, given, promise)
    soft[trusted.rows] = np.eye(num_classes)[trusted.labels]
    changed = trusted.labels != given[trusted.rows]
    action[trusted.rows] = np.where(changed, "fix", "keep")
    labelled = given >= 0
    noise_probability = np.full(len(source), np.nan)
    noise_probability[labelled] = 1 - soft[labelled, given[labelled]]

    corrected = soft.argmax(axis=1)
    matrix = calibration.expected_noise_matrix(soft[usable], given[usable])
    known = np.bincount(corrected[usable], minlength=num_classes) > 0
    wrong, verified = int(counts.sum() - np.trace(counts)), int(counts.sum())
    noise = {
        "estimated_noise_rate": float(noise_probability[usable & labelled].mean()),
        "verified_noise_rate": wrong / verified if verified else None,
        "verified_noise_rate_interval": list(wilson_interval(wrong, verified)),
    }
    metadata = {
        "class_names": source.class_names,
        "corrector": config.corrector,
        "backbone": backbone_name,
        "weights": config.weights,
        "image_size": image_size,
        "epochs": training.schedule.epochs,
        "seed": config.seed,
        "versions": {
            "relabel": __version__,
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
        },
        "trusted_rows": len(trusted.rows) + len(trusted.external),
        **noise,
        "noise_matrix": matrix.round(6).tolist(),
        "calibration": {**fitted.to_dict(), "promise": asdict(promise)},
    }
    summary = {
        "rows": len(source),
        "unusable_rows": len(errors),
        "ignored_files": source.ignored_files,
        "unlabelled_rows": int((~labelled).sum()),
        "trusted_rows": int(is_trusted.sum()),
        "trusted_outside_source": len(trusted.external),
        "relabelled_rows": int((unverified & labelled & (corrected != given)).sum()),
        "actions": {name: int((action[unverified] == name).sum()) for name in ("keep", "fix", "review")},
        **noise,
        "largest_confusions": _largest(matrix * known[:, None], source.class_names),
        "calibration": fitted.to_dict(),
        "promise": promise_sentence(fitted, promise),
    }
    return FitResult(
        source=source,
        soft_label=soft.astype(np.float32),
        noise_probability=noise_probability.astype(np.float32),
        action=action,
        trusted=is_trusted,
        errors=errors,
        metadata=metadata,
        corrector=training.corrector,
        summary=summary,
    )


def _largest(matrix: NDArray[np.float64], names: list[str], entries: int = 5) -> list[dict[str, Any]]:
    """The largest shares of a true class under another given label."""
    shares = matrix.copy()
    np.fill_diagonal(shares, -1)
    order = np.argsort(-shares, axis=None, kind="stable")[: min(entries, matrix.size - len(names))]
    pairs = [divmod(int(cell), len(names)) for cell in order]
    return [
        {"true": names[true], "given": names[given], "share": float(shares[true, given])}
        for true, given in pairs
    ]


def promise_sentence(fitted: Calibration, promise: Promise) -> str:
    """What `fix` promises, or why it cannot, in one sentence."""
    percent = f"{promise.precision * 100:g} %"
    if fitted.withheld:
        return "On the probe rows corrections did more harm than good, so every given label is kept."
    judged = f"{promise.right} of the {promise.probes} probe rows relabelled with such confidence are right"
    if promise.threshold is not None:
        return f"At least {percent} of the fixes are expected to be right; {judged}."
    if promise.probes < promise.needed:
        return (
            f"Too few verified rows to promise {percent}: {promise.probes} probe rows were relabelled with "
            f"such confidence and it takes {promise.needed} at the least, so no row is marked fix; verify "
            f"more rows or lower --precision."
        )
    return (
        f"The probe rows do not support {percent}: {judged}, so no row is marked fix; lower --precision or "
        f"verify more rows."
    )
