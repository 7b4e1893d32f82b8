"""Labels for rows that were not in the fit: read the model, read the rows, predict, calibrate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from relabel import hub
from relabel.config import PredictConfig
from relabel.data.batches import Inputs
from relabel.data.content import Showing
from relabel.data.sources import UNLABELLED, Source, open_source
from relabel.data.tables import first_few
from relabel.data.trusted import TrustedSet
from relabel.device import resolve
from relabel.errors import RelabelError
from relabel.labels.assemble import label_rows, warn_of_errors
from relabel.labels.table import Labels
from relabel.modality import of_features
from relabel.progress import Silent, Watcher
from relabel.saved.model_file import Model, read_model


def predict(config: PredictConfig, watcher: Watcher | None = None) -> Labels:
    """Label the rows of SOURCE, which may have given labels or none, with a saved model.

    Raises RelabelError for anything wrong with flags, model or input, before any image is decoded.
    """
    watcher = watcher or Silent()
    compute = resolve(config.compute.device, config.compute.amp)
    model = config.model
    if not isinstance(model, Model):
        model = read_model(hub.resolve(str(model), "--model", "model.pt"))
    _check_modality(model, config)
    opened = open_source(
        config.source,
        config.labels,
        config.reading,
        need_classes=False,
        largest=model.size,
        watcher=watcher,
    )
    source = _in_classes_of(model, opened, config)
    for warning in source.warnings:
        watcher.warn(warning)

    inputs, unreadable = _inputs(model, source, config, watcher)
    errors = {**source.errors, **unreadable}
    if len(errors) == len(source):
        raise RelabelError(
            f"None of the images of {source.location} can be read ({errors[0]}).",
            "Check that the files are images and were copied completely.",
        )
    warn_of_errors(source, errors, watcher)
    watcher.say(
        f"{len(source):,} {source.noun}, {len(model.class_names)} classes, "
        f"{model.modality.extent(model.size)}; "
        f"{model.backbone_name} on {compute.describe()}."
    )
    watcher.stage("Predicting", len(source))
    evidence = model.evidence(inputs, compute, watcher.advance)
    run = replace(
        model.run,
        corrector=model.corrector.name,
        options=model.corrector.options,
        backbone=model.backbone_name,
        **model.named_size,
        model={"file": _called(config), "versions": model.versions},
    )
    return label_rows(source, errors, evidence, model.calibration, TrustedSet.empty(), config.precision, run)


def _called(config: PredictConfig) -> str:
    """What a message calls the model."""
    return config.model if isinstance(config.model, str) else "in memory"


def _check_modality(model: Model, config: PredictConfig) -> None:
    """Refuse images for a model of vectors, and the other way round."""
    wanted, features = of_features(config.reading.features), model.run.features
    if model.modality is not wanted:
        raise RelabelError(
            f"--model {_called(config)} was trained on {model.modality.noun} and labels no {wanted.noun}.",
            f"Name the vectors' columns; in its fit it was --features {features}."
            if features
            else "Leave out --features, or name another --model.",
        )


def _inputs(
    model: Model, source: Source, config: PredictConfig, watcher: Watcher
) -> tuple[Inputs, dict[int, str]]:
    """What the backbone is shown, and why which rows could not be decoded."""
    size = source.content.size(model.size, model.size)
    if size != model.size:
        raise RelabelError(
            f"--features {config.reading.features}: the {source.noun} have {source.modality.extent(size)} "
            f"and the model {_called(config)} takes {model.size}.",
            "Make them as those of its fit were made, or name other columns.",
        )
    return source.content.open(size, Showing(cache=config.cache, remedies=", or add --no-cache"), watcher)


def _in_classes_of(model: Model, source: Source, config: PredictConfig) -> Source:
    """The source with its labels as the model's class ids."""
    position = {name: place for place, name in enumerate(model.class_names)}
    has_label = source.given != UNLABELLED
    used = [source.class_names[given] for given in np.unique(source.given[has_label])]
    strangers = [repr(name) for name in used if name not in position]
    if strangers:
        hint = f"Its classes are {first_few([repr(name) for name in model.class_names], 10)}."
        if source.kind == "folder":
            hint += " Folders are read as labels; a CSV with file_name alone lists images without any."
        raise RelabelError(
            f"{source.location} has labels that are no class of the model {_called(config)}: "
            f"{first_few(strangers)}.",
            hint,
        )
    places = np.array([position.get(name, UNLABELLED) for name in source.class_names], dtype=np.int64)
    given = np.full(len(source), UNLABELLED, dtype=np.int64)
    given[has_label] = places[source.given[has_label]]
    return replace(source, given=given, class_names=model.class_names)
