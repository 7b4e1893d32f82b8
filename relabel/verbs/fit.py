"""`relabel fit`: a backbone and a corrector are trained on SOURCE, guided by trusted rows, and calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from relabel.calibration import calibrate
from relabel.calibration.calibrate import Calibration
from relabel.calibration.prior import CalibrationPrior
from relabel.config import (
    CORRECTOR_FOR_OTHER_IMAGES,
    DEFAULT_CORRECTOR,
    SHIPPED_CORRECTOR,
    FitConfig,
    MetaOptions,
)
from relabel.correctors import registry
from relabel.correctors.base import Corrector, Learning, Needs
from relabel.data.sources import UNLABELLED, Source
from relabel.data.trusted import TrustedSet
from relabel.device import resolve
from relabel.errors import RelabelError
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.assemble import label_rows
from relabel.labels.metadata import Run
from relabel.labels.table import Labels
from relabel.metrics import noise_matrix
from relabel.progress import Silent, Watcher
from relabel.sample_memory import ProbabilityStore
from relabel.saved.corrector_file import CorrectorFile, shipped_state
from relabel.schedule import Schedule, Settings
from relabel.training.loop import Training
from relabel.verbs.kept_model import kept_model
from relabel.verbs.run import (
    Built,
    Data,
    announcement,
    build_backbone,
    check_usable,
    decode,
    fingerprint,
    freeze,
    of_rows,
    open_rows,
    train,
    training_rows,
)
from relabel.verbs.split import Split, split_trusted


def fit(config: FitConfig, watcher: Watcher | None = None) -> Labels:
    """Train a backbone and a corrector on SOURCE, guided by the trusted rows, and calibrate.

    Writes nothing but its checkpoint. Raises RelabelError for anything wrong with flags or input, before any
    training.
    """
    watcher = watcher or Silent()
    compute, seed = resolve(config.compute.device, config.compute.amp), config.run.seed
    torch.manual_seed(seed)
    registry.check(registry.chosen(config.corrector, config.preset), config.option)
    source, trusted = open_rows(config, watcher)
    choice = _Choice.of(config, _corrector_name(config, source, trusted, watcher))
    built = build_backbone(source, config.network)
    corrector = choice.corrector(len(source.class_names), built.backbone.head.in_features)
    _refuse_idle(choice.name, corrector.needs, config.training.warmup, config.meta)

    data = decode(source, trusted, built, config.network.augment, config.cache, watcher)
    split = split_trusted(
        data.trusted, source.given, data.unreadable, corrector.needs, seed, config.keep_model
    )
    _refuse_untaught(corrector.needs, split, data, config.has_trusted)
    check_usable(data, split, config.has_trusted, watcher)
    backbone, frozen = built.backbone, None
    if config.network.freeze:
        backbone, data, frozen = freeze(backbone, data, compute, watcher)
    schedule = schedule_for(config, choice.settings, data.labelled_rows)
    rows = training_rows(data, split, corrector.needs)
    training = Training(backbone, corrector, data.inputs, rows, schedule, compute, seed)
    watcher.say(announcement(training, data, built, choice.name, _roles(split, config.keep_model)))
    evidence = train(
        training,
        config.run,
        fingerprint(config, data, split, training, **{"--save-model": config.keep_model}),
        watcher,
    )

    transition = _transition(evidence["early"], data)
    fitted = _calibrated(evidence, data, split, transition, seed)
    run = choice.run(training, data, built)
    labels = label_rows(source, data.errors, evidence, fitted, data.trusted, config.precision, run)
    trained = choice.file(training, data, built, fitted.calibration_prior)
    make_model = partial(kept_model, training, data, split.unseen, transition, run, trained, frozen)
    return labels.kept_with(trained, make_model if config.keep_model else None)


@dataclass(frozen=True)
class _Choice:
    """A corrector by name, its settings or a preset's, and its options."""

    name: str
    preset: str | None
    settings: Settings
    options: dict[str, str]

    @classmethod
    def of(cls, config: FitConfig, name: str) -> _Choice:
        """The flags' options take the place of the settings'."""
        settings = registry.settings_of(name, config.preset)
        return cls(name, config.preset, settings, {**settings.options, **config.option})

    @property
    def began(self) -> bool:
        """Whether φ begins at the parameters that come with relabel."""
        return registry.begins_pretrained(self.name, self.options)

    def corrector(self, num_classes: int, num_features: int) -> Corrector:
        """A fresh one."""
        start = shipped_state() if self.began else None
        return registry.create(self.name, num_classes, num_features, self.options, start)

    def run(self, training: Training, data: Data, built: Built) -> Run:
        """What the labels say of the run."""
        return Run(
            corrector=self.name,
            preset=self.preset,
            options=self.options,
            **built.described,
            epochs=training.schedule.epochs,
            seed=training.seed,
            trusted_rows=data.trusted_rows,
            began_at=SHIPPED_CORRECTOR.name if self.began else None,
            described=training.corrector.describe(),
        )

    def file(self, training: Training, data: Data, built: Built, prior: CalibrationPrior) -> CorrectorFile:
        """The trained corrector."""
        described = {
            **built.described,
            "epochs": training.schedule.epochs,
            "seed": training.seed,
            "trusted_rows": data.trusted_rows,
            "class_names": data.source.class_names,
        }
        head = training.backbone.head
        sizes = len(data.source.class_names), head.in_features
        return CorrectorFile.of(training.corrector, self.name, *sizes, self.options, described, prior)


def _corrector_name(config: FitConfig, source: Source, trusted: TrustedSet, watcher: Watcher) -> str:
    """The corrector of the flags; the default one learns from rows of SOURCE with a given label alone."""
    labelled = int(np.count_nonzero(source.given[trusted.rows] >= 0))
    others = len(trusted.rows) + len(trusted.external) - labelled
    if config.corrector or config.preset or labelled >= others:
        return registry.chosen(config.corrector, config.preset)
    watcher.say(
        f"Most trusted {source.noun} have no given label in SOURCE, and {DEFAULT_CORRECTOR} cannot learn "
        f"from such: {CORRECTOR_FOR_OTHER_IMAGES} does."
    )
    return CORRECTOR_FOR_OTHER_IMAGES


def _refuse_idle(name: str, needs: Needs, warmup: int | None, meta: MetaOptions) -> None:
    """Refuse flags that the corrector has no use for: a comparison of two values would be one of chance."""
    if meta.meta_gradient == "exact" and not needs.looks_ahead:
        raise RelabelError(
            f"--meta-gradient exact: {name} is not learned through a look-ahead step.",
            "Leave it out, or use --corrector mslc, mlc or metalabelnet.",
        )
    learning = {
        "--warmup": warmup,
        "--meta-every": meta.meta_every,
        "--meta-batch-size": meta.meta_batch_size,
        "--meta-lr": meta.meta_lr,
    }
    idle = [flag for flag, value in learning.items() if value is not None]
    if idle and not needs.corrects:
        raise RelabelError(f"{idle[0]} has no meaning for --corrector {name}.", "Leave it out.")


def _refuse_untaught(needs: Needs, split: Split, data: Data, has_trusted: bool) -> None:
    """Refuse a corrector without a row to learn from; where none can be read, `check_usable` says so."""
    learns, readable = needs.learning is not Learning.NOT, any(map(len, split.parts))
    if learns and len(split.meta) == 0 and (readable or not has_trusted):
        raise RelabelError(
            "--trusted: too few trusted rows for this corrector to learn from.",
            "Verify more labelled images of SOURCE, or use --corrector none.",
        )


def schedule_for(config: FitConfig, settings: Settings, rows: int) -> Schedule:
    """The settings under the flags, and the rest by the number of labelled rows."""
    training, meta = config.training, config.meta
    chosen = settings.schedule.overridden(
        epochs=training.epochs,
        warmup_epochs=training.warmup,
        batch_size=training.batch_size,
        learning_rate=training.lr,
        meta_gradient=meta.meta_gradient,
        meta_every=meta.meta_every,
        meta_batch_size=meta.meta_batch_size,
        meta_learning_rate=meta.meta_lr,
        averaged_model=None if config.keep_model else 0.0,
    )
    return chosen.resolved(rows, from_scratch=config.network.weights == "none")


def _roles(split: Split, keep_model: bool) -> str:
    """What the trusted rows are for, in the announcement."""
    return (
        f"{len(split.meta) + len(split.in_training)} trusted rows teach the corrector, "
        f"{len(split.calibration)} calibrate the labels"
        + (f", {len(split.unseen)} the kept model" if keep_model else "")
    )


def _transition(early: ProbabilityStore, data: Data) -> TransitionEstimate:
    """p(given | true) by the trusted rows of SOURCE and the anchor points among the others."""
    given, trusted = data.given, data.trusted
    given[trusted.rows] = UNLABELLED
    counts = noise_matrix(data.source.given[trusted.rows], trusted.labels, len(data.source.class_names))
    return TransitionEstimate.of(counts, anchor_points.count(early, given))


def _calibrated(
    evidence: Mapping[str, ProbabilityStore],
    data: Data,
    split: Split,
    transition: TransitionEstimate,
    seed: int,
) -> Calibration:
    """On the rows of the calibration set that have a given label."""
    judges = split.calibration.labelled(data.source.given)
    given = data.source.given[judges.rows]
    return calibrate.fit(of_rows(evidence, judges.rows), given, judges.true, transition, seed)
