"""The whole story of a run, in order: read, check, decode, train, calibrate, hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel import __version__, backbones
from relabel.backbones import Backbone
from relabel.calibration import calibrate, transfer
from relabel.calibration.calibrate import Calibration
from relabel.calibration.prior import CalibrationPrior
from relabel.config import (
    CORRECTOR_FOR_OTHER_IMAGES,
    DEFAULT_AUGMENTATION,
    DEFAULT_CORRECTOR,
    SHIPPED_CORRECTOR,
    FitConfig,
)
from relabel.correctors import registry
from relabel.correctors.base import Learning, Needs, TrustedRows
from relabel.data.batches import Inputs, VectorInputs
from relabel.data.content import Showing
from relabel.data.sources import UNLABELLED, Source, open_source, too_few_classes
from relabel.data.trusted import TrustedSet, trusted_of
from relabel.device import Compute, resolve
from relabel.errors import RelabelError
from relabel.files import digest
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate, joint_counts
from relabel.labels.assemble import SoftLabels, label_rows, usable_rows, versions, warn_of_errors
from relabel.labels.metadata import Run
from relabel.labels.table import Labels
from relabel.metrics import noise_matrix
from relabel.options import values_of
from relabel.progress import Silent, Watcher
from relabel.sample_memory import ProbabilityStore, blocks
from relabel.saved.corrector_file import CorrectorFile, read_corrector, shipped_state
from relabel.saved.model_file import EVIDENCE, Model
from relabel.schedule import Schedule, Settings
from relabel.training import checkpoint
from relabel.training.loop import EpochReport, Training
from relabel.training.rows import Rows

CALIBRATION_SHARE = 2 / 3  # a corrector has few parameters; calibration and promise live off every probe
IN_TRAINING_SHARE = 1 / 2  # of the meta rows, for a corrector that has witnesses
UNSEEN_SHARE = 1 / 4  # of the trusted rows, for the calibration of a model that is kept
_SETTLES_NOTHING = {
    "--checkpoint", "--resume", "--precision", "--no-cache", "--output", "--overwrite", "--save-corrector",
    "--keep-model",
}  # fmt: skip
"""What a checkpoint may be continued without: no flag here has a part in the training."""
_MOST_ASKED = 20_000  # rows, for the margin of corrections


@dataclass(frozen=True)
class _Split:
    """Trusted rows by use: meta rows drive the corrector, witness rows show it what training does to the rows
    it corrects, probe rows calibrate the labels, unseen rows, which the backbone never trains on, the model
    that is kept; the meta rows of a look-ahead corrector that never saw them are both.

    External images (not in SOURCE) follow the source's rows in `Inputs`.
    """

    meta: NDArray[np.int64]
    meta_labels: NDArray[np.int64]
    in_training: NDArray[np.int64]
    in_training_labels: NDArray[np.int64]
    calibration_rows: NDArray[np.int64]
    calibration_labels: NDArray[np.int64]
    unseen: NDArray[np.int64]
    unseen_labels: NDArray[np.int64]


def fit(config: FitConfig, watcher: Watcher | None = None) -> Labels:
    """Train a backbone and a corrector on SOURCE, guided by the trusted rows, and calibrate.

    With `config.pretrained` that corrector is used as it is; trusted rows, if any, only calibrate. Writes
    nothing but its checkpoint. Raises RelabelError for anything wrong with flags or input, before any
    training.
    """
    watcher = watcher or Silent()
    compute = resolve(config.compute.device, config.compute.amp)
    torch.manual_seed(config.run.seed)
    pretrained = _pretrained(config)
    if pretrained is not None:
        config = replace(config, corrector=pretrained.name, option=pretrained.options)
    registry.check(_corrector_name(config), config.option)
    source = open_source(
        config.source,
        config.labels,
        config.reading,
        largest=config.network.image_size or largest_size(config),
        watcher=watcher,
    )
    trusted = trusted_of(source, config.trusted)
    for warning in (*source.warnings, *trusted.warnings):
        watcher.warn(warning)
    if pretrained is not None and trusted.external:
        watcher.warn(
            f"--trusted: {len(trusted.external)} images are not among those of SOURCE and calibrate nothing."
        )
    config = _with_corrector(config, source, trusted, watcher)

    # Built before the images are decoded: a wrong --backbone or --weights is told at once.
    backbone, built = build_backbone(source, config)
    sizes = len(source.class_names), backbone.head.in_features
    if pretrained is not None:
        corrector = pretrained.transferred(*sizes)
    else:
        options = _options(config)
        start = shipped_state() if registry.begins_pretrained(_corrector_name(config), options) else None
        corrector = registry.create(_corrector_name(config), *sizes, options, start)
        _refuse_idle(config, corrector.needs)
    needs = corrector.needs.frozen if pretrained is not None else corrector.needs

    inputs, unreadable = _inputs(source, trusted, built, config, watcher)
    errors = {**source.errors, **{row: text for row, text in unreadable.items() if row < len(source)}}
    trusted = trusted.without(errors, source)
    for warning in trusted.warnings:
        watcher.warn(warning)
    split = _split(trusted, source.given, unreadable, needs, config)
    _check_usable(source, errors, split, config.has_trusted, watcher)

    shown = inputs.digest()
    frozen: _Frozen | None = None
    if config.network.freeze:
        inputs, frozen = _frozen_features(backbone, inputs, compute, watcher)
        backbone = backbones.linear(backbone.head.in_features, len(source.class_names))
    held_out = np.zeros(len(source), dtype=bool)
    if pretrained is not None:
        held_out = transfer.held_out(_usable_labels(source, errors), config.run.seed)
    rows = _rows(source, errors, split, held_out, needs)
    # Of all labelled rows, not of those the corrector at hand trains on: else each had its own batch size.
    schedule = schedule_for(config, int((_usable_labels(source, errors) >= 0).sum()))
    training = Training(
        backbone, corrector, inputs, rows, schedule, compute, config.run.seed, frozen=pretrained is not None
    )
    extent = source.modality.extent(built[source.modality.size_field])
    watcher.say(
        f"{len(source):,} {source.noun}, {len(source.class_names)} classes, {extent}; {built['backbone']} on "
        f"{compute.describe()}; {_corrector_name(config)}: {schedule.epochs} epochs"
        + (f", {schedule.warmup_epochs} of them warm-up; " if needs.corrects else "; ")
        + f"{len(split.meta) + len(split.in_training)} verified rows guide the corrector, "
        f"{len(split.calibration_rows)} judge the result"
        + (f", {len(split.unseen)} for the model's calibration" if config.keep_model else "")
        + (f", {held_out.sum()} labels held out." if pretrained is not None else ".")
    )
    _train(training, config, source, split, shown, watcher)
    watcher.stage("Calibrating", None)
    transition = None if pretrained else _transition(training, source, trusted, errors)
    labels, fitted = _labelled(
        training, pretrained, source, trusted, split, held_out, errors, config, built, transition
    )
    run = labels.metadata.run
    trained = CorrectorFile.of(
        corrector,
        _corrector_name(config),
        len(source.class_names),
        training.backbone.head.in_features,
        run.options or {},
        {
            **built,
            "epochs": run.epochs,
            "seed": run.seed,
            "trusted_rows": run.trusted_rows,
            "class_names": source.class_names,
        },
        fitted.calibration_prior,
    )
    make_model = partial(_model, training, trained, frozen, source, trusted, split, transition, config, run)
    return labels.kept_with(trained, make_model if config.keep_model else None)


def _pretrained(config: FitConfig) -> CorrectorFile | None:
    """The corrector that is used as it is, if there is one."""
    if isinstance(config.pretrained, Path):
        return read_corrector(config.pretrained)
    if config.pretrained is None:
        return None
    assert isinstance(config.pretrained, CorrectorFile)
    # As its file would be read, which draws random numbers: the result is the same.
    return CorrectorFile.from_content(config.pretrained.content(), Path("the corrector in memory"))


def _with_corrector(config: FitConfig, source: Source, trusted: TrustedSet, watcher: Watcher) -> FitConfig:
    """The config with a corrector: the default one learns from rows of SOURCE with a given label alone."""
    labelled = int(np.count_nonzero(source.given[trusted.rows] >= 0))
    others = len(trusted.rows) + len(trusted.external) - labelled
    if config.corrector or config.preset or labelled >= others:
        return replace(config, corrector=_corrector_name(config))
    watcher.say(
        f"Most verified {source.noun} have no given label in SOURCE, and {DEFAULT_CORRECTOR} cannot learn "
        f"from such: {CORRECTOR_FOR_OTHER_IMAGES} does."
    )
    return replace(config, corrector=CORRECTOR_FOR_OTHER_IMAGES)


def _refuse_idle(config: FitConfig, needs: Needs) -> None:
    """Refuse flags that the corrector has no use for: a comparison of two values would be one of chance."""
    name = _corrector_name(config)
    if config.meta.meta_gradient == "exact" and not needs.looks_ahead:
        raise RelabelError(
            f"--meta-gradient exact: {name} is not learned through a look-ahead step.",
            "Leave it out, or use --corrector mslc, mlc or metalabelnet.",
        )
    learning = {
        "--warmup": config.training.warmup,
        "--meta-every": config.meta.meta_every,
        "--meta-batch-size": config.meta.meta_batch_size,
        "--meta-lr": config.meta.meta_lr,
    }
    idle = [flag for flag, value in learning.items() if value is not None]
    if idle and not needs.corrects:
        raise RelabelError(f"{idle[0]} has no meaning for --corrector {name}.", "Leave it out.")


def build_backbone(source: Source, config: FitConfig) -> tuple[Backbone, dict[str, Any]]:
    """The backbone that the flags ask for, and what the metadata says of it."""
    content = source.content
    size = content.size(config.network.image_size, largest_size(config))
    name = config.network.backbone or content.modality.default_backbone(config.network.weights)
    backbone = backbones.build(
        name, len(source.class_names), size, config.network.weights, content.standardisation()
    )
    return backbone, {"backbone": name, **content.described(size, config.network.weights)}


def _inputs(
    source: Source, trusted: TrustedSet, built: Mapping[str, Any], config: FitConfig, watcher: Watcher
) -> tuple[Inputs, dict[int, str]]:
    """What the backbone is shown, external images last, and why which rows could not be decoded."""
    remedies = ", set a smaller --image-size, or add --no-cache"
    showing = Showing(config.network.augment or DEFAULT_AUGMENTATION, config.cache, remedies)
    return source.content.open(built[source.modality.size_field], showing, watcher, trusted.external)


def largest_size(config: FitConfig) -> int:
    """Larger images are made smaller: to 64 px from scratch, to 224 px with pretrained weights."""
    return backbones.SMALL_IMAGE if config.network.weights == "none" else 224


def _split(
    trusted: TrustedSet,
    given: NDArray[np.int64],
    unreadable: dict[int, str],
    needs: Needs,
    config: FitConfig,
) -> _Split:
    """Deal the readable trusted rows into unseen, probe, witness and meta rows, class by class.

    A corrector that learns nothing from trusted rows leaves them all to the calibration; one that trains on
    its meta rows can use those with a given label only.
    """
    usable = np.array([row not in unreadable for row in trusted.rows], dtype=bool)
    outside = len(given) + np.arange(len(trusted.external))
    readable = np.array([row not in unreadable for row in outside], dtype=bool)
    rows = np.concatenate([trusted.rows[usable], outside[readable]])
    labels = np.concatenate([trusted.labels[usable], trusted.external_labels[readable]])
    learns = needs.learning is not Learning.NOT
    meta_is_unseen = needs.learning is Learning.LOOK_AHEAD
    external = np.flatnonzero(rows >= len(given))
    shuffled = np.random.default_rng(config.run.seed).permutation(len(rows) - len(external))
    inside = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.empty(0, dtype=np.int64)
    if config.keep_model and not meta_is_unseen:
        missing = max(0, round(len(rows) * UNSEEN_SHARE) - len(external))
        held_out, inside = _deal(inside, missing / max(1, len(inside)))
    calibration_rows, meta = _deal(inside, CALIBRATION_SHARE if learns else 1.0)
    in_training = np.empty(0, dtype=np.int64)
    if needs.in_training_rows:
        labelled = given[rows[meta]] >= 0
        in_training, rest = _deal(meta[labelled], IN_TRAINING_SHARE)
        meta = np.concatenate([rest, meta[~labelled]])
    meta = np.concatenate([meta, external]) if needs.looks_ahead else meta[given[rows[meta]] >= 0]
    if learns and len(meta) == 0 and (len(rows) or not config.has_trusted):
        raise RelabelError(
            "--trusted: too few verified rows for this corrector to learn from.",
            "Verify more labelled images of SOURCE, or use --corrector none.",
        )
    unseen = meta if meta_is_unseen else np.concatenate([held_out, external])
    parts = [np.sort(part) for part in (meta, in_training, calibration_rows, unseen)]
    return _Split(*(column[part] for part in parts for column in (rows, labels)))


def _deal(ordered: NDArray[np.int64], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A share of `ordered` and the rest, in order; every run of entries gives its share, to within one."""
    ticks = np.diff(np.floor(np.arange(len(ordered) + 1) * share + 1e-9)) > 0
    return ordered[ticks], ordered[~ticks]


def _check_usable(
    source: Source, errors: dict[int, str], split: _Split, verified: bool, watcher: Watcher
) -> None:
    """Refuse a source whose readable images cannot train a classifier; warn of unusable ones."""
    good = usable_rows(source, errors)
    if len(np.unique(source.given[good & (source.given >= 0)])) < 2:
        raise too_few_classes(source)
    if verified and len(split.meta) + len(split.calibration_rows) + len(split.unseen) == 0:
        raise RelabelError("--trusted: none of the verified images can be read.", "Verify other images.")
    warn_of_errors(source, errors, watcher)


def _usable_labels(source: Source, errors: dict[int, str]) -> NDArray[np.int64]:
    """The given labels [N], −1 for rows without one and for those that cannot be used."""
    return np.where(usable_rows(source, errors), source.given, UNLABELLED)


def _rows(
    source: Source,
    errors: dict[int, str],
    split: _Split,
    held_out: NDArray[np.bool_],
    needs: Needs,
) -> Rows:
    taught = usable_rows(source, errors)
    apart = [split.unseen, split.meta] if needs.looks_ahead else [split.unseen]
    for rows in apart:
        taught[rows[rows < len(source)]] = False
    seen = np.where(held_out, UNLABELLED, source.given)
    return Rows(
        train=torch.from_numpy(np.flatnonzero(taught & (seen >= 0))),
        given=torch.from_numpy(seen),
        unlabelled=torch.from_numpy(np.flatnonzero(taught & (seen < 0))),
        meta=_verified(split.meta, split.meta_labels, source),
        in_training=_verified(split.in_training, split.in_training_labels, source),
    )


def _verified(rows: NDArray[np.int64], labels: NDArray[np.int64], source: Source) -> TrustedRows:
    given = np.full(len(rows), UNLABELLED)
    inside = rows < len(source)
    given[inside] = source.given[rows[inside]]
    return TrustedRows(*map(torch.from_numpy, (rows, labels, given)))


def schedule_for(config: FitConfig, rows: int) -> Schedule:
    """The settings of the corrector or the preset under the flags; the rest by the labelled rows.

    Raises RelabelError when the warm-up asked for would take all of the epochs.
    """
    asked = _settings(config).schedule.overridden(
        epochs=config.training.epochs,
        warmup_epochs=config.training.warmup,
        batch_size=config.training.batch_size,
        learning_rate=config.training.lr,
        meta_gradient=config.meta.meta_gradient,
        meta_every=config.meta.meta_every,
        meta_batch_size=config.meta.meta_batch_size,
        meta_learning_rate=config.meta.meta_lr,
        averaged_model=None if config.keep_model else 0.0,
    )
    return asked.resolved(
        rows, transferred=config.pretrained is not None, from_scratch=config.network.weights == "none"
    )


def _corrector_name(config: FitConfig) -> str:
    return registry.chosen(config.corrector, config.preset)


def _settings(config: FitConfig) -> Settings:
    return registry.settings_of(_corrector_name(config), config.preset)


def _options(config: FitConfig) -> dict[str, str]:
    return {**_settings(config).options, **config.option}


@dataclass(frozen=True)
class _Frozen:
    """The backbone behind features computed once, which training saw as (features − mean) · scale."""

    backbone: Backbone
    mean: Tensor
    scale: Tensor


def _frozen_features(
    backbone: Backbone, inputs: Inputs, compute: Compute, watcher: Watcher
) -> tuple[Inputs, _Frozen]:
    """Every row's penultimate features, computed once: with `--freeze` they are all that training sees."""
    watcher.stage("Features", len(inputs))
    features = backbones.frozen_features(backbone, inputs, compute, watcher.advance)
    # Unit variance: the head's learning rate then suits every backbone. A feature without any stays at 0,
    # lest the first unseen image that has it be multiplied by a million.
    mean, deviation = features.mean(dim=0), features.std(dim=0)
    scale = torch.where(deviation > 1e-6, 1 / deviation, 0.0)
    return VectorInputs(features.sub_(mean).mul_(scale)), _Frozen(backbone, mean, scale)


def _train(
    training: Training, config: FitConfig, source: Source, split: _Split, shown: str, watcher: Watcher
) -> None:
    """Run the epochs, with a checkpoint after each when the config names one; shown: the inputs' digest."""
    # What is in a file of weights or of a corrector counts, not where it lies.
    pretrained = None
    if isinstance(config.pretrained, Path):
        pretrained = digest(config.pretrained.read_bytes())
    elif isinstance(config.pretrained, CorrectorFile):
        pretrained = digest(repr(config.pretrained.state).encode())
    weights = config.network.weights
    if weights not in ("none", "imagenet"):
        weights = digest(Path(weights).read_bytes())
    asked = {flag: value for flag, value in values_of(config).items() if flag not in _SETTLES_NOTHING}
    belongs = checkpoint.fingerprint(
        {
            **asked,
            "--corrector": [config.corrector, pretrained],
            "--weights": weights,
            "--save-model": config.keep_model,
            "the names of the rows": digest("\0".join(source.file_names).encode(errors="surrogateescape")),
            f"the {source.noun}": shown,
            "the rows that can be used": [
                digest(rows.numpy()) for rows in (training.rows.train, training.rows.unlabelled)
            ],
            "the given labels": digest(training.rows.given.numpy()),
            "the verified rows": [digest(rows) for rows in vars(split).values()],
            "device": training.compute.describe(),
            "versions": [__version__, torch.__version__],
        }
    )
    if config.run.checkpoint and config.run.resume:
        if config.run.checkpoint.exists():
            training.load_state_dict(checkpoint.load(config.run.checkpoint, belongs))
            watcher.say(f"Resuming after epoch {training.epoch} from {config.run.checkpoint}.")
        else:
            watcher.say(f"No checkpoint at {config.run.checkpoint} yet; starting with the first epoch.")

    def on_epoch(report: EpochReport) -> None:
        if config.run.checkpoint:
            checkpoint.save(config.run.checkpoint, training.state_dict(), belongs)
        meta = "" if report.meta_loss is None else f", trusted loss {report.meta_loss:.3f}"
        watcher.say(
            f"Epoch {report.epoch + 1}/{report.epochs} ({report.phase}): loss {report.loss:.3f}{meta}"
        )

    watcher.stage("Training", training.steps_before(training.schedule.epochs))
    watcher.advance(training.steps_before(training.epoch))
    training.run(on_epoch, watcher.advance)


def _labelled(
    training: Training,
    pretrained: CorrectorFile | None,
    source: Source,
    trusted: TrustedSet,
    split: _Split,
    held_out: NDArray[np.bool_],
    errors: dict[int, str],
    config: FitConfig,
    built: Mapping[str, Any],
    transition: TransitionEstimate | None,
) -> tuple[Labels, Calibration]:
    """Calibrate and put every row's labels, probability and action together."""
    evidence: Mapping[str, ProbabilityStore] = training.evidence()
    transferred: Calibration | None = None
    if pretrained is not None:
        transferred = _borrowed(
            pretrained.calibration_prior, evidence, _usable_labels(source, errors), held_out, config.run.seed
        )
        evidence = {name: evidence[name] for name in pretrained.calibration_prior.evidence}
    labelled = source.given[split.calibration_rows] >= 0
    calibration_rows = split.calibration_rows[labelled]
    given, true = source.given[calibration_rows], split.calibration_labels[labelled]
    of_rows = _of_rows(evidence, calibration_rows)
    if transferred is None:
        assert transition is not None
        fitted = calibrate.fit(of_rows, given, true, transition, config.run.seed)
    elif len(calibration_rows):
        held_out_rows = held_out[calibration_rows]
        fitted = calibrate.refit(transferred, of_rows, given, true, held_out_rows, config.run.seed)
    else:
        fitted = transferred
    name, options = _corrector_name(config), _options(config)
    began = pretrained is None and registry.begins_pretrained(name, options)
    run = Run(
        corrector=name,
        preset=config.preset,
        options=options,
        **built,
        epochs=training.schedule.epochs,
        seed=config.run.seed,
        trusted_rows=len(trusted.rows) + len(trusted.external),
        began_at=SHIPPED_CORRECTOR.name if began else None,
        described=training.corrector.describe(),
    )
    if pretrained is not None:
        shipped = config.pretrained == SHIPPED_CORRECTOR  # whose place says nothing to others
        named = str(config.pretrained) if isinstance(config.pretrained, Path) else "in memory"
        file = SHIPPED_CORRECTOR.name if shipped else named
        run = replace(run, pretrained={"file": file, **pretrained.trained}, held_out_rows=int(held_out.sum()))
    return label_rows(source, errors, evidence, fitted, trusted, config.precision, run, held_out), fitted


def _borrowed(
    calibration_prior: CalibrationPrior,
    evidence: Mapping[str, ProbabilityStore],
    given: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    seed: int,
) -> Calibration:
    """The calibration of a source that nobody has verified a row of; given: [N], −1 where it is of no use."""
    seen = np.where(held_out, UNLABELLED, given)
    anchors = anchor_points.count(evidence["early"], seen)
    transition = TransitionEstimate.of(anchors).matrix
    # Without an anchor point, after a single epoch, nothing is known of what is mistaken for what.
    judges = np.flatnonzero(held_out & anchors.any())
    weighed = {name: evidence[name] for name in calibration_prior.evidence}
    transferred = transfer.transferred_calibration(
        calibration_prior, _of_rows(weighed, judges), given[judges], transition
    )
    if not anchors.any():
        return transferred
    soft_label = SoftLabels(weighed, seen, transferred, TrustedSet.empty())
    parts = blocks(*soft_label.shape)
    joint = sum(joint_counts(soft_label[rows], seen[rows]) for rows in parts)
    transferred = transfer.raked(transferred, np.asarray(joint))
    # A share of all rows, which a part of them tells as well.
    trained = np.random.default_rng(seed).permutation(np.flatnonzero(seen >= 0))
    asked = trained[next(blocks(_MOST_ASKED, soft_label.shape[1]))]
    return transfer.with_decision_threshold(
        transferred, transferred.soft_labels(_of_rows(weighed, asked), seen[asked]), seen[asked]
    )


def _transition(
    training: Training, source: Source, trusted: TrustedSet, errors: dict[int, str]
) -> TransitionEstimate:
    """p(given | true) by the trusted rows of the source and the anchor points among the others."""
    given = _usable_labels(source, errors)
    given[trusted.rows] = UNLABELLED
    counts = noise_matrix(source.given[trusted.rows], trusted.labels, len(source.class_names))
    return TransitionEstimate.of(counts, anchor_points.count(training.sample_memory.early, given))


def _of_rows(
    evidence: Mapping[str, ProbabilityStore], rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    index = torch.from_numpy(rows)
    return {name: values[index].numpy() for name, values in evidence.items()}


def _model(
    training: Training,
    corrector: CorrectorFile,
    frozen: _Frozen | None,
    source: Source,
    trusted: TrustedSet,
    split: _Split,
    transition: TransitionEstimate | None,
    config: FitConfig,
    run: Run,
) -> Model:
    """What labels images that were not in this fit."""
    assert transition is not None
    told = run.to_dict()
    kept = ("preset", "weights", "features", "epochs", "seed", "trusted_rows")
    trained = {name: told[name] for name in kept if name in told}
    backbone, fitted = _for_unseen(training, source, trusted, split, transition, config.run.seed)
    averaged = backbone is training.averaged
    trained |= {"freeze": config.network.freeze, "averaged": averaged, "versions": versions()}
    if frozen is not None:
        backbone = backbones.with_head(frozen.backbone, backbone.head, frozen.mean, frozen.scale)
    return Model(
        backbone=backbone,
        backbone_name=told["backbone"],
        size=told[source.modality.size_field],
        class_names=source.class_names,
        corrector=corrector,
        calibration=fitted,
        trained=trained,
    )


def _for_unseen(
    training: Training,
    source: Source,
    trusted: TrustedSet,
    split: _Split,
    transition: TransitionEstimate,
    seed: int,
) -> tuple[Backbone, Calibration]:
    """The backbone for images that were not in the fit, and the calibration of its softmax.

    Rows that were trained on are not exchangeable with such images: the backbone has seen them, under their
    given label. Those that it never saw also choose between the last weights and the mean of the weights over
    the run's end, by the likelihood of their verified labels. The mean forgets what single epochs learned by
    heart, but a short run is still learning: of 5,000 other images of CIFAR-10N, after 60 epochs of TMLC-Net,
    MSLC and plain training on 5,000 rows, the mean over half of them knew 57.7, 54.7 and 53.4 %, the last
    weights 56.9, 50.6 and 46.6 %; after 20 epochs of TMLC-Net 51.8 and 52.8 %. BatchNorm's statistics are
    averaged too: found anew for the mean weights they were worse (TMLC-Net on 10,000 rows, 64.4 for 65.3 %).
    """
    given = np.concatenate([source.given, np.full(len(trusted.external), UNLABELLED)])[split.unseen]
    rows = torch.from_numpy(split.unseen)

    def judged(backbone: Backbone) -> tuple[float, Calibration]:
        # As `predict` will keep them: of many classes the likeliest.
        probability = ProbabilityStore(len(rows), len(source.class_names))
        start = 0
        for index, logits in training.predict(rows, backbone):
            probability[start : (start := start + len(index))] = torch.softmax(logits, dim=1).cpu()
        evidence = {EVIDENCE: probability[:].numpy()}
        fitted = calibrate.fit(evidence, given, split.unseen_labels, transition, seed)
        shares = fitted.soft_labels(evidence, given)[np.arange(len(rows)), split.unseen_labels]
        return float(np.log(shares).sum()), fitted

    candidates = [backbone for backbone in (training.averaged, training.backbone) if backbone is not None]
    judgements = [judged(backbone) for backbone in candidates]
    best = max(range(len(candidates)), key=lambda place: judgements[place][0])
    return candidates[best], judgements[best][1]
