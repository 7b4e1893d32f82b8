"""The model of a fit that is kept for images which training never saw: its weights, its calibration."""

from __future__ import annotations

import numpy as np
import torch

from relabel.backbones import Backbone
from relabel.calibration import calibrate
from relabel.calibration.calibrate import Calibration
from relabel.data.sources import UNLABELLED
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.assemble import versions
from relabel.labels.metadata import Run
from relabel.sample_memory import ProbabilityStore
from relabel.saved.corrector_file import CorrectorFile
from relabel.saved.model_file import EVIDENCE, Model
from relabel.training.loop import Training
from relabel.verbs.run import Data, Frozen
from relabel.verbs.split import Part


def kept_model(
    training: Training,
    data: Data,
    unseen: Part,
    transition: TransitionEstimate,
    run: Run,
    corrector: CorrectorFile,
    frozen: Frozen | None,
) -> Model:
    """What labels images that were not in this fit.

    unseen: trusted rows that the backbone never trained on; run: of the labels; frozen: with `--freeze`.
    """
    source, size = data.source, run.dimension if run.image_size is None else run.image_size
    assert run.backbone is not None
    assert size is not None
    given = np.concatenate([source.given, np.full(len(data.trusted.external), UNLABELLED)])[unseen.rows]
    head, fitted = _for_unseen(training, given, unseen, transition)
    return Model(
        backbone=head if frozen is None else frozen.under(head),
        backbone_name=run.backbone,
        size=size,
        class_names=source.class_names,
        corrector=corrector,
        calibration=fitted,
        run=Run(
            preset=run.preset,
            weights=run.weights,
            features=run.features,
            epochs=run.epochs,
            seed=run.seed,
            trusted_rows=run.trusted_rows,
            freeze=frozen is not None,
            averaged=head is training.averaged,
        ),
        versions=versions(),
    )


def _for_unseen(
    training: Training,
    given: np.ndarray[tuple[int], np.dtype[np.int64]],
    unseen: Part,
    transition: TransitionEstimate,
) -> tuple[Backbone, Calibration]:
    """The weights for images that were not in the fit, and the calibration of their softmax.

    Rows that were trained on are not exchangeable with such images: the backbone has seen them, under their
    given label. Those that it never saw also choose between the last weights and the mean of the weights over
    the run's end, by the likelihood of their true labels. The mean forgets what single epochs memorised, but
    a short run is still learning. BatchNorm's statistics are averaged too (examples/RESULTS.md, "Choices").
    """

    def judged(backbone: Backbone) -> tuple[float, Calibration]:
        # As `predict` will keep them: of many classes the likeliest.
        probability = ProbabilityStore(len(unseen), len(transition.matrix))
        start = 0
        for index, logits in training.predict(torch.from_numpy(unseen.rows), backbone):
            probability[start : (start := start + len(index))] = torch.softmax(logits, dim=1).cpu()
        evidence = {EVIDENCE: probability[:].numpy()}
        fitted = calibrate.fit(evidence, given, unseen.true, transition, training.seed)
        shares = fitted.soft_labels(evidence, given)[np.arange(len(unseen)), unseen.true]
        return float(np.log(shares).sum()), fitted

    candidates = [backbone for backbone in (training.averaged, training.backbone) if backbone is not None]
    judgements = [judged(backbone) for backbone in candidates]
    best = max(range(len(candidates)), key=lambda place: judgements[place][0])
    return candidates[best], judgements[best][1]
