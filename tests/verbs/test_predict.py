"""Fit on small pictures, keep the model, and label pictures with it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from relabel import backbones
from relabel.config import FitConfig, PredictConfig
from relabel.data.sources import open_source
from relabel.errors import RelabelError
from relabel.labels.table import Labels
from relabel.options import build
from relabel.saved.model_file import EVIDENCE, Model, read_model
from relabel.verbs import fit as fit_verb
from relabel.verbs.predict import predict

COLOURS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 40, 30)}


def draw(path: Path, colour: str, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 60, (10, 10, 3))
    Image.fromarray(np.clip(COLOURS[colour] + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """images/{blue,green,red} of 16 each with every fourth in a wrong folder, 8 of each verified."""
    folder = tmp_path_factory.mktemp("prediction")
    verified = ["file_name,label"]
    for place, colour in enumerate(COLOURS):
        for number in range(16):
            given = list(COLOURS)[(place + (number % 4 == 0)) % 3]
            draw(folder / f"images/{given}/{colour}{number}.png", colour, 100 * place + number)
            if number < 8:
                verified.append(f"{given}/{colour}{number}.png,{colour}")
    (folder / "trusted.csv").write_text("\n".join(verified))
    torch.manual_seed(1)
    torch.save(backbones.build("cnn8", 3, 10).state_dict(), folder / "cnn8.pt")
    return folder


def fit(folder: Path, monkeypatch, **options) -> tuple[Labels, fit_verb.Training]:
    """The result of a small fit, and the training behind it."""
    kept = []

    class Kept(fit_verb.Training):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(fit_verb, "Training", Kept)
    settings = {
        "source": str(folder / "images"), "trusted": folder / "trusted.csv", "epochs": 3, "batch_size": 16,
        "device": "cpu", "amp": "off", "augment": "none", "keep_model": True,
    }  # fmt: skip
    return fit_verb.fit(build(FitConfig, **{**settings, **options})), kept[0]


def predictions(training: fit_verb.Training, model: Model) -> np.ndarray:
    """What the backbone that the model took over says of every row of the training."""
    backbone = training.averaged if model.trained["averaged"] else training.backbone
    assert backbone is not None
    every = torch.arange(len(training.rows.given))
    found = backbones.evaluate(backbone, training.inputs, training.compute, every)
    return torch.cat([torch.softmax(logits, 1) for _, logits, _ in found]).numpy()


FROZEN = {"freeze": True, "weights": "cnn8.pt", "backbone": "cnn8", "augment": None}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"corrector": "none"},
        {"corrector": "mlc"},
        {"corrector": "metalabelnet"},
        {"corrector": "tmlc"},
        {"freeze": True, "weights": "cnn8.pt", "backbone": "cnn8", "augment": None},
        {
            "freeze": True,
            "weights": "cnn8.pt",
            "backbone": "cnn8",
            "augment": None,
            "corrector": "metalabelnet",
        },
    ],
    ids=lambda options: " ".join(map(str, filter(None, options.values()))) or "mslc",
)
def test_a_saved_model_gives_the_finished_backbone_s_predictions_through_its_calibration(
    folder, tmp_path, monkeypatch, options
):
    if "weights" in options:
        options = {**options, "weights": str(folder / options["weights"])}
    result, training = fit(folder, monkeypatch, **options)
    labels = result.columns.soft_label[:]
    model = result.model
    model.save(tmp_path / "model.pt")
    assert (result.columns.soft_label[:] == labels).all()
    expected = predictions(training, model)
    assert np.ptp(expected, axis=0).max() > 0.1, "predictions that are all alike would show nothing"

    settings = {"model": tmp_path / "model.pt", "device": "cpu", "amp": "off"}
    found = predict(build(PredictConfig, source=str(folder / "images"), **settings))
    fitted = read_model(tmp_path / "model.pt").calibration
    given = result.columns.given
    assert found.columns.file_names == result.columns.file_names
    assert (found.columns.given == given).all()
    soft_label = fitted.soft_labels({EVIDENCE: expected}, given)
    np.testing.assert_allclose(found.columns.soft_label[:], soft_label, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.columns.noise_probability, 1 - soft_label[range(48), given], atol=1e-5)
    assert not found.columns.trusted.any()
    assert found.metadata.to_dict()["model"]["versions"] == result.metadata.to_dict()["versions"]
    for name in ("corrector", "backbone", "weights", "image_size", "epochs", "seed", "trusted_rows"):
        assert found.metadata.to_dict()[name] == result.metadata.to_dict()[name]


def test_a_model_of_vectors_brings_their_standardisation(folder, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    true = np.arange(48) % 3
    values = (rng.normal(size=(48, 5)) + 4 * np.eye(5)[true]) * np.logspace(-4, 4, 5) + 7
    columns = {"label": [list(COLOURS)[place] for place in true], "vector": list(values.astype(np.float32))}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    (tmp_path / "trusted.csv").write_text(
        "index,label\n" + "".join(f"{row},{columns['label'][row]}\n" for row in range(24))
    )
    settings = {"source": str(tmp_path / "v.parquet"), "features": "vector", "augment": None}
    result, training = fit(folder, monkeypatch, trusted=tmp_path / "trusted.csv", **settings)
    model = result.model
    model.save(tmp_path / "model.pt")
    pq.write_table(pa.table(columns).slice(40), tmp_path / "new.parquet")
    found = predict(
        build(
            PredictConfig,
            source=tmp_path / "new.parquet",
            model=tmp_path / "model.pt",
            features="vector",
            amp="off",
        )
    )
    evidence = {EVIDENCE: predictions(training, model)[40:]}
    expected = read_model(tmp_path / "model.pt").calibration.soft_labels(evidence, result.columns.given[40:])
    np.testing.assert_allclose(found.columns.soft_label[:], expected, rtol=1e-3, atol=1e-5)
    assert (found.metadata.to_dict()["features"], found.metadata.to_dict()["dimension"]) == ("vector", 5)


@pytest.mark.parametrize(
    ("corrector", "unseen", "calibration_rows"),
    [("mslc", 4, 16), ("mlc", 8, 16), ("tmlc", 6, 12), ("none", 6, 18)],
)
def test_the_calibration_for_unseen_images_lives_off_rows_the_backbone_never_saw(
    folder, monkeypatch, corrector, unseen, calibration_rows
):
    result, training = fit(folder, monkeypatch, corrector=corrector)
    verified = np.flatnonzero(result.columns.trusted)
    never_trained = np.setdiff1d(verified, training.rows.train)
    model = result.model
    fitted = model.calibration
    assert len(fitted.right) == len(never_trained) == unseen
    assert result.metadata.to_dict()["calibration"]["calibration_rows"] == calibration_rows
    truth = np.array(
        [list(COLOURS).index(Path(name).stem.strip("0123456789")) for name in result.columns.file_names]
    )
    assert set(truth[never_trained]) == {0, 1, 2}, "rows of every class"
    right = predictions(training, model)[never_trained].argmax(axis=1) == truth[never_trained]
    assert fitted.right.sum() >= right.sum() - 2  # cross-validated, with the given labels to help


@pytest.mark.parametrize("spoilt", ["averaged", "backbone"])
def test_rows_never_trained_on_choose_between_the_last_weights_and_their_mean(folder, monkeypatch, spoilt):
    result, training = fit(folder, monkeypatch, epochs=8)
    assert training.averaged is not None
    means, lasts = (net.state_dict().values() for net in (training.averaged, training.backbone))
    assert any(not torch.equal(mean, last) for mean, last in zip(means, lasts, strict=True))
    with torch.no_grad():
        for parameter in getattr(training, spoilt).head.parameters():
            parameter.zero_()
    model = result.model
    assert model.trained["averaged"] == (spoilt == "backbone")
    assert model.backbone is (training.averaged if spoilt == "backbone" else training.backbone)


def test_without_rows_never_trained_on_a_model_has_the_mean_of_the_weights(folder, monkeypatch):
    result, training = fit(folder, monkeypatch, corrector="none", trusted=None)
    assert result.model.backbone is training.averaged


def test_a_preset_keeps_the_last_weights_as_in_the_paper(folder, monkeypatch):
    result, training = fit(folder, monkeypatch, preset="mslc-paper")
    assert training.averaged is None
    model = result.model
    assert model.backbone is training.backbone
    assert not model.trained["averaged"]


@pytest.mark.parametrize("corrector", ["none", "tmlc"])
def test_without_a_model_to_keep_every_verified_row_is_trained_on(folder, monkeypatch, corrector):
    result, training = fit(folder, monkeypatch, corrector=corrector, keep_model=False)
    assert np.isin(np.flatnonzero(result.columns.trusted), training.rows.train).all()
    assert training.averaged is None, "an average costs time at every step"


@pytest.mark.parametrize("corrector", ["none", "mslc"])
def test_verified_images_outside_the_source_calibrate_without_a_given_label(
    folder, tmp_path, monkeypatch, corrector
):
    for place, colour in enumerate(COLOURS):
        for number in range(6):
            draw(tmp_path / f"verified/{colour}/{number}.png", colour, 1000 + 100 * place + number)
    result, _ = fit(folder, monkeypatch, corrector=corrector, trusted=tmp_path / "verified")
    fitted = result.model.calibration
    assert len(fitted.right) == 18
    assert not fitted.relabelled.any()
    assert set(fitted.cross_validated.values()) == {None}
    assert fitted.weights[EVIDENCE] != 1, "the prior, which the rows should have moved"
    assert result.metadata.to_dict()["calibration"]["calibration_rows"] == 0


def test_trusted_rows_without_a_given_label_are_not_trained_on(folder, tmp_path, monkeypatch):
    """MetaLabelNet trains on rows without a label; those that drive it must stay out."""
    source = open_source(str(folder / "images"))
    names = [source.file_names[row] for row in range(0, 48, 2)]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *(f"{name}," for name in names)]))
    _, training = fit(folder, monkeypatch, corrector="metalabelnet", labels=tmp_path / "labels.csv")
    meta = training.rows.meta.rows
    assert (training.rows.meta.given == -1).any()
    assert not np.isin(meta, torch.cat([training.rows.train, training.rows.unlabelled])).any()


@pytest.fixture(scope="module")
def model(folder) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        fit(folder, patch)[0].model.save(folder / "model.pt")
    return folder / "model.pt"


def test_labels_are_read_as_the_model_s_classes_whatever_the_source_has(model, tmp_path):
    for number, (given, colour) in enumerate((("red", "red"), ("green", "red"), ("red", "green"))):
        draw(tmp_path / f"new/{given}/{number}.png", colour, 500 + number)
    found = predict(build(PredictConfig, source=str(tmp_path / "new"), model=model))
    assert found.class_names == ["blue", "green", "red"]
    assert found.columns.given.tolist() == [1, 2, 2]
    assert found.columns.soft_label.shape == (3, 3)
    rows = np.arange(3)
    assert found.columns.noise_probability == pytest.approx(
        1 - found.columns.soft_label[:][rows, found.columns.given], abs=1e-6
    )
    assert len(found.metadata.to_dict()["noise_matrix"]) == 3


def test_images_without_labels_get_labels_and_no_probability(model, tmp_path):
    for number in range(3):
        draw(tmp_path / f"{number}.png", "red", 600 + number)
    found = predict(build(PredictConfig, source=str(tmp_path), model=model))
    assert np.isnan(found.columns.noise_probability).all()
    assert set(found.columns.action) == {"review"}
    assert found.metadata.to_dict()["estimated_noise_rate"] is None
    assert found.metadata.to_dict()["noise_matrix"] is None
    assert found.summary.selection == "No row has a given label, so there is none to keep or to fix."


def test_labels_that_are_no_class_of_the_model_are_refused(model, tmp_path):
    draw(tmp_path / "2024/a.png", "red", 0)
    with pytest.raises(RelabelError, match=r"no class of the model .*: '2024'") as refusal:
        predict(build(PredictConfig, source=str(tmp_path), model=model))
    assert "Its classes are 'blue', 'green', 'red'." in refusal.value.hint
    (tmp_path / "list.csv").write_text("file_name\n2024/a.png")
    found = predict(build(PredictConfig, source=str(tmp_path / "list.csv"), model=model))
    assert found.columns.given.tolist() == [-1]


def test_a_source_without_any_readable_image_is_refused(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(RelabelError, match=r"None of the images of .* can be read"):
        predict(build(PredictConfig, source=str(tmp_path), model=model))
