"""Fit on small pictures, keep the model, and label pictures with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from relabel import backbones
from relabel.config import PredictConfig
from relabel.errors import RelabelError
from relabel.labels.table import Labels
from relabel.options import build
from relabel.saved.model_file import EVIDENCE, Model, read_model
from relabel.training.loop import Training
from relabel.verbs.predict import predict as verb

COLOURS = ["blue", "green", "red"]


def predict(**keywords: Any) -> Labels:
    return verb(build(PredictConfig, **{"device": "cpu", "amp": "off", **keywords}))


def predictions(training: Training, model: Model) -> np.ndarray:
    """What the backbone that the model took over says of every row of the training."""
    backbone = training.averaged if model.run.averaged else training.backbone
    assert backbone is not None
    every = torch.arange(len(training.rows.given))
    found = backbones.evaluate(backbone, training.inputs, training.compute, every)
    return torch.cat([torch.softmax(logits, 1) for _, logits, _ in found]).numpy()


FROZEN = {"freeze": True, "weights": "cnn8.pt", "backbone": "cnn8", "augment": None}


@pytest.mark.parametrize(
    "options",
    [
        {"corrector": "mslc"},
        {"corrector": "none"},
        {"corrector": "mlc"},
        {"corrector": "metalabelnet"},
        {"corrector": "tmlc"},
        FROZEN,
        {**FROZEN, "corrector": "metalabelnet"},
    ],
    ids=lambda options: " ".join(map(str, filter(None, options.values()))),
)
def test_a_saved_model_gives_the_finished_backbone_s_predictions_through_its_calibration(
    folder: Path, small_fit: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "weights" in options:
        options = {**options, "weights": str(folder / options["weights"])}
    result, training = small_fit(**options)
    labels = result.columns.soft_label[:]
    model = result.model
    model.save(tmp_path / "model.pt")
    assert (result.columns.soft_label[:] == labels).all()
    expected = predictions(training, model)
    assert np.ptp(expected, axis=0).max() > 0.1, "predictions that are all alike would show nothing"

    settings = {"model": tmp_path / "model.pt", "device": "cpu", "amp": "off"}
    found = predict(source=str(folder / "images"), **settings)
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


def test_a_model_of_vectors_brings_their_standardisation(
    folder: Path, small_fit: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    true = np.arange(48) % 3
    values = (rng.normal(size=(48, 5)) + 4 * np.eye(5)[true]) * np.logspace(-4, 4, 5) + 7
    columns = {"label": [COLOURS[place] for place in true], "vector": list(values.astype(np.float32))}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    (tmp_path / "trusted.csv").write_text(
        "index,label\n" + "".join(f"{row},{columns['label'][row]}\n" for row in range(24))
    )
    settings = {"source": str(tmp_path / "v.parquet"), "features": "vector", "augment": None}
    result, training = small_fit(trusted=tmp_path / "trusted.csv", **settings)
    model = result.model
    model.save(tmp_path / "model.pt")
    pq.write_table(pa.table(columns).slice(40), tmp_path / "new.parquet")
    found = predict(
        source=tmp_path / "new.parquet",
        model=tmp_path / "model.pt",
        features="vector",
        amp="off",
    )
    evidence = {EVIDENCE: predictions(training, model)[40:]}
    expected = read_model(tmp_path / "model.pt").calibration.soft_labels(evidence, result.columns.given[40:])
    np.testing.assert_allclose(found.columns.soft_label[:], expected, rtol=1e-3, atol=1e-5)
    assert (found.metadata.to_dict()["features"], found.metadata.to_dict()["dimension"]) == ("vector", 5)


@pytest.fixture(scope="module")
def model(folder: Path, small_fit: Any) -> Path:
    small_fit()[0].model.save(folder / "model.pt")
    return folder / "model.pt"


def test_labels_are_read_as_the_model_s_classes_whatever_the_source_has(
    model: Path, draw: Any, tmp_path: Path
) -> None:
    for number, (given, colour) in enumerate((("red", "red"), ("green", "red"), ("red", "green"))):
        draw(tmp_path / f"new/{given}/{number}.png", colour, 500 + number)
    found = predict(source=str(tmp_path / "new"), model=model)
    assert found.class_names == ["blue", "green", "red"]
    assert found.columns.given.tolist() == [1, 2, 2]
    assert found.columns.soft_label.shape == (3, 3)
    rows = np.arange(3)
    assert found.columns.noise_probability == pytest.approx(
        1 - found.columns.soft_label[:][rows, found.columns.given], abs=1e-6
    )
    assert len(found.metadata.to_dict()["noise_matrix"]) == 3


def test_images_without_labels_get_labels_and_no_probability(model: Path, draw: Any, tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / f"{number}.png", "red", 600 + number)
    found = predict(source=str(tmp_path), model=model)
    assert np.isnan(found.columns.noise_probability).all()
    assert set(found.columns.action) == {"review"}
    assert found.metadata.to_dict()["estimated_noise_rate"] is None
    assert found.metadata.to_dict()["noise_matrix"] is None
    assert found.summary.selection == "No row has a given label, so there is none to keep or to fix."


def test_labels_that_are_no_class_of_the_model_are_refused(model: Path, draw: Any, tmp_path: Path) -> None:
    draw(tmp_path / "2024/a.png", "red", 0)
    with pytest.raises(RelabelError, match=r"no class of the model .*: '2024'") as refusal:
        predict(source=str(tmp_path), model=model)
    assert "Its classes are 'blue', 'green', 'red'." in refusal.value.hint
    (tmp_path / "list.csv").write_text("file_name\n2024/a.png")
    found = predict(source=str(tmp_path / "list.csv"), model=model)
    assert found.columns.given.tolist() == [-1]


def test_a_source_without_any_readable_image_is_refused(model: Path, draw: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(RelabelError, match=r"None of the images of .* can be read"):
        predict(source=str(tmp_path), model=model)
