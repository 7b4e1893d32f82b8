"""A model that is kept: its weights, and a calibration on rows that its backbone never saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relabel import backbones
from relabel.calibration import calibrate
from relabel.data.batches import VectorInputs
from relabel.data.in_memory import trusted_frame, vectors_frame
from relabel.data.sources import open_source
from relabel.device import resolve
from relabel.saved.model_file import EVIDENCE, Model
from relabel.training.loop import Training

COLOURS = ["blue", "green", "red"]


def predictions(training: Training, model: Model) -> np.ndarray:
    """What the backbone that the model took over says of every row of the training."""
    backbone = training.averaged if model.run.averaged else training.backbone
    assert backbone is not None
    every = torch.arange(len(training.rows.given))
    found = backbones.evaluate(backbone, training.inputs, training.compute, every)
    return torch.cat([torch.softmax(logits, 1) for _, logits, _ in found]).numpy()


@pytest.mark.parametrize(
    ("corrector", "unseen", "calibration_rows"),
    [("mslc", 4, 16), ("mlc", 8, 16), ("tmlc", 6, 12), ("none", 6, 18)],
)
def test_the_calibration_for_unseen_images_lives_off_rows_the_backbone_never_saw(
    small_fit: Any, corrector: str, unseen: int, calibration_rows: int
) -> None:
    result, training = small_fit(corrector=corrector)
    trusted = np.flatnonzero(result.columns.trusted)
    never_trained = np.setdiff1d(trusted, training.rows.train)
    model = result.model
    fitted = model.calibration
    assert len(fitted.right) == len(never_trained) == unseen
    assert result.metadata.calibration.calibration_rows == calibration_rows
    truth = np.array(
        [COLOURS.index(Path(name).stem.strip("0123456789")) for name in result.columns.file_names]
    )
    assert set(truth[never_trained]) == {0, 1, 2}, "rows of every class"
    right = predictions(training, model)[never_trained].argmax(axis=1) == truth[never_trained]
    assert fitted.right.sum() >= right.sum() - 2  # cross-validated, with the given labels to help


@pytest.mark.parametrize("spoilt", ["averaged", "backbone"])
def test_rows_never_trained_on_choose_between_the_last_weights_and_their_mean(
    small_fit: Any, spoilt: str
) -> None:
    result, training = small_fit(epochs=8)
    assert training.averaged is not None
    means, lasts = (net.state_dict().values() for net in (training.averaged, training.backbone))
    assert any(not torch.equal(mean, last) for mean, last in zip(means, lasts, strict=True))
    with torch.no_grad():
        for parameter in getattr(training, spoilt).head.parameters():
            parameter.zero_()
    model = result.model
    assert model.run.averaged == (spoilt == "backbone")
    assert model.backbone is (training.averaged if spoilt == "backbone" else training.backbone)


def test_without_rows_never_trained_on_a_model_has_the_mean_of_the_weights(small_fit: Any) -> None:
    result, training = small_fit(corrector="none", trusted=None)
    assert result.model.backbone is training.averaged


def test_a_preset_keeps_the_last_weights_as_in_the_paper(small_fit: Any) -> None:
    result, training = small_fit(preset="mslc-paper")
    assert training.averaged is None
    model = result.model
    assert model.backbone is training.backbone
    assert not model.run.averaged


@pytest.mark.parametrize("corrector", ["none", "tmlc"])
def test_without_a_model_to_keep_every_trusted_row_is_trained_on(small_fit: Any, corrector: str) -> None:
    result, training = small_fit(corrector=corrector, keep_model=False)
    assert np.isin(np.flatnonzero(result.columns.trusted), training.rows.train).all()
    assert training.averaged is None, "an average costs time at every step"


@pytest.mark.parametrize("corrector", ["none", "mslc"])
def test_trusted_images_outside_the_source_calibrate_without_a_given_label(
    small_fit: Any, draw: Any, tmp_path: Path, corrector: str
) -> None:
    for place, colour in enumerate(COLOURS):
        for number in range(6):
            draw(tmp_path / f"trusted/{colour}/{number}.png", colour, 1000 + 100 * place + number)
    result, _ = small_fit(corrector=corrector, trusted=tmp_path / "trusted")
    fitted = result.model.calibration
    assert len(fitted.right) == 18
    assert not fitted.relabelled.any()
    assert set(fitted.cross_validated.values()) == {None}
    assert fitted.weights[EVIDENCE] != 1, "the prior, which the rows should have moved"
    assert result.metadata.calibration.calibration_rows == 0


def test_trusted_rows_without_a_given_label_are_not_trained_on(
    folder: Path, small_fit: Any, tmp_path: Path
) -> None:
    """MetaLabelNet trains on rows without a label; those that drive it must stay out."""
    source = open_source(str(folder / "images"))
    names = [source.file_names[row] for row in range(0, 48, 2)]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *(f"{name}," for name in names)]))
    _, training = small_fit(corrector="metalabelnet", labels=tmp_path / "labels.csv")
    meta = training.rows.meta.rows
    assert (training.rows.meta.given == -1).any()
    assert not np.isin(meta, torch.cat([training.rows.train, training.rows.unlabelled])).any()


def test_a_model_of_many_classes_is_calibrated_on_what_it_will_keep_of_its_predictions(fit: Any) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(240) % 80)
    vectors = (rng.normal(0, 1, (240, 16)) + rng.normal(0, 1, (80, 16))[labels]).astype(np.float32)
    rows = np.arange(0, 240, 2)
    result, _ = fit(
        source=vectors_frame(vectors, labels), features="embedding",
        trusted=trusted_frame((rows, labels[rows])), corrector="mslc", epochs=2, keep_model=True,
        device="cpu", amp="off",
    )  # fmt: skip
    seen = {}
    plain = calibrate.fit

    def noted(evidence: Any, *arguments: Any) -> Any:
        seen.update(evidence)
        return plain(evidence, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "fit", noted)
        model = result.model
    assert [*seen] == [EVIDENCE]
    inputs = VectorInputs(torch.from_numpy(vectors))
    kept = model.evidence(inputs, resolve("cpu", "off"))[EVIDENCE][:].numpy()
    share = np.sort(seen[EVIDENCE], axis=1)
    assert (share[:, :48] == share[:, :1]).all(), "all but the 32 likeliest share alike"
    assert all(np.abs(kept - row).max(axis=1).min() < 1e-6 for row in seen[EVIDENCE])
