"""`relabel apply`: a backbone is trained on SOURCE while a corrector from other data rewrites its labels.

Nothing teaches the corrector. A tenth of the given labels are held out of training, and the calibration is
that of the data sets it learned on, moved as those labels ask for; trusted rows, where there are any, improve
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from relabel import hub
from relabel.calibration import calibrate, transfer
from relabel.calibration.calibrate import Calibration
from relabel.calibration.prior import CalibrationPrior
from relabel.config import SHIPPED_CORRECTOR, ApplyConfig
from relabel.correctors import registry
from relabel.data.sources import UNLABELLED
from relabel.data.trusted import TrustedSet
from relabel.device import resolve
from relabel.files import digest
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate, joint_counts
from relabel.labels.assemble import SoftLabels, label_rows
from relabel.labels.metadata import Run
from relabel.labels.table import Labels
from relabel.progress import Silent, Watcher
from relabel.sample_memory import ProbabilityStore, blocks
from relabel.saved.corrector_file import CorrectorFile, read_corrector
from relabel.schedule import Schedule
from relabel.training.loop import Training
from relabel.verbs.run import (
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

# For the decision threshold of corrections. It follows from a share, which a sample estimates as well.
_THRESHOLD_ROWS = 20_000


def apply(config: ApplyConfig, watcher: Watcher | None = None) -> Labels:
    """Train a backbone on SOURCE under a transferred corrector; trusted rows, if any, only calibrate.

    Writes nothing but its checkpoint. Raises RelabelError for anything wrong with flags or input, before any
    training.
    """
    watcher = watcher or Silent()
    compute, seed = resolve(config.compute.device, config.compute.amp), config.run.seed
    torch.manual_seed(seed)
    transferred, file = _read(config.corrector)
    source, trusted = open_rows(config, watcher)
    if trusted.external:
        watcher.warn(
            f"--trusted: {len(trusted.external)} images are not among those of SOURCE and calibrate nothing."
        )
    built = build_backbone(source, config.network)
    corrector = transferred.transferred(len(source.class_names), built.backbone.head.in_features)
    needs = corrector.needs.frozen

    data = decode(source, trusted, built, config.network.augment, config.cache, watcher)
    split = split_trusted(data.trusted, source.given, data.unreadable, needs, seed, keep_model=False)
    check_usable(data, split, config.has_trusted, watcher)
    backbone = built.backbone
    if config.network.freeze:
        backbone, data, _ = freeze(backbone, data, compute, watcher)
    held_out = transfer.held_out(data.given, seed)
    schedule = _schedule(config, transferred.name, data.labelled_rows)
    rows = training_rows(data, split, needs, held_out)
    training = Training(backbone, corrector, data.inputs, rows, schedule, compute, seed, frozen=True)
    judges = f"{len(split.calibration)} trusted rows calibrate the labels"
    roles = f"{judges}, {held_out.sum()} given labels are held out"
    watcher.say(announcement(training, data, built, transferred.name, roles))
    belongs = fingerprint(config, data, split, training, **{"--corrector": _digest(transferred)})
    evidence = train(training, config.run, belongs, watcher)

    prior = transferred.calibration_prior
    fitted = _calibrated(evidence, data, split, held_out, prior, seed)
    run = Run(
        corrector=transferred.name,
        options=transferred.options,
        **built.described,
        epochs=schedule.epochs,
        seed=seed,
        trusted_rows=data.trusted_rows,
        pretrained={"file": file, **transferred.trained},
        held_out_rows=int(held_out.sum()),
        described=corrector.describe(),
    )
    pooled = _pooled(evidence, prior)
    labels = label_rows(source, data.errors, pooled, fitted, data.trusted, config.precision, run, held_out)
    return labels.kept_with(transferred, None)


def _read(corrector: object) -> tuple[CorrectorFile, str]:
    """The corrector, and what the labels say of where it came from."""
    if isinstance(corrector, CorrectorFile):
        # As its file would be read, which draws random numbers: the result is the same.
        return CorrectorFile.from_content(corrector.content(), Path("the corrector in memory")), "in memory"
    path = hub.resolve(str(corrector or SHIPPED_CORRECTOR), "--corrector", SHIPPED_CORRECTOR.name)
    shipped = path == SHIPPED_CORRECTOR  # whose place says nothing to others
    return read_corrector(path), SHIPPED_CORRECTOR.name if shipped else str(path)


def _digest(corrector: CorrectorFile) -> str:
    """Of all that it brings into a run, wherever it lies."""
    prior = corrector.calibration_prior
    arrays = [value.numpy() for value in corrector.state.values()] + [prior.right, prior.confidence]
    plain = json.dumps([corrector.name, corrector.options, prior.weights, prior.abstains])
    return digest(plain.encode() + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


def _schedule(config: ApplyConfig, corrector: str, rows: int) -> Schedule:
    """The corrector's own under the flags, and the rest by the number of labelled rows."""
    training = config.training
    settings = registry.settings_of(corrector).schedule.overridden(
        epochs=training.epochs,
        warmup_epochs=training.warmup,
        batch_size=training.batch_size,
        learning_rate=training.lr,
        averaged_model=0.0,
    )
    return settings.resolved(rows, transferred=True, from_scratch=config.network.weights == "none")


def _pooled(evidence: Mapping[str, ProbabilityStore], prior: CalibrationPrior) -> dict[str, ProbabilityStore]:
    """The distributions that the transferred calibration pools."""
    return {name: evidence[name] for name in prior.evidence}


def _calibrated(
    evidence: Mapping[str, ProbabilityStore],
    data: Data,
    split: Split,
    held_out: NDArray[np.bool_],
    prior: CalibrationPrior,
    seed: int,
) -> Calibration:
    """The transferred calibration, improved on the calibration set where there is one."""
    found = transferred_calibration(evidence, data.given, held_out, prior, seed)
    given, judges = data.source.given, split.calibration.labelled(data.source.given)
    if len(judges) == 0:
        return found
    return calibrate.refit(
        found,
        of_rows(_pooled(evidence, prior), judges.rows),
        given[judges.rows],
        judges.true,
        held_out[judges.rows],
        seed,
    )


def transferred_calibration(
    evidence: Mapping[str, ProbabilityStore],
    given: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    prior: CalibrationPrior,
    seed: int,
) -> Calibration:
    """The calibration of a source without a trusted row; given: [N], −1 where it is of no use."""
    seen = np.where(held_out, UNLABELLED, given)
    anchors = anchor_points.count(evidence["early"], seen)
    transition = TransitionEstimate.of(anchors).matrix
    # Without an anchor point, as after a single epoch, nothing is known of which classes are confused.
    judges = np.flatnonzero(held_out & anchors.any())
    pooled = _pooled(evidence, prior)
    found = transfer.transferred_calibration(prior, of_rows(pooled, judges), given[judges], transition)
    if not anchors.any():
        return found
    soft_label = SoftLabels(pooled, seen, found, TrustedSet.empty())
    parts = blocks(*soft_label.shape)
    joint = sum(joint_counts(soft_label[rows], seen[rows]) for rows in parts)
    found = transfer.raked(found, np.asarray(joint))
    trained = np.random.default_rng(seed).permutation(np.flatnonzero(seen >= 0))
    some = trained[next(blocks(_THRESHOLD_ROWS, soft_label.shape[1]))]
    return transfer.with_decision_threshold(
        found, found.soft_labels(of_rows(pooled, some), seen[some]), seen[some]
    )
