"""The whole story of a fit, on digits, and on TrashNet where RELABEL_DATA names the folder that has it."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relabel import schedule
from relabel.calibration import calibrate
from relabel.config import FitConfig
from relabel.correctors.registry import REGISTRY
from relabel.data.sources import open_source
from relabel.data.trusted import TrustedSet
from relabel.errors import RelabelError
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.table import Labels
from relabel.metrics import noise_matrix
from relabel.options import build
from relabel.progress import Silent
from relabel.simulate import noise
from relabel.verbs import fit as verb

NONE = np.zeros(0, dtype=np.int64)
TRASHNET = Path(os.environ.get("RELABEL_DATA", "missing")) / "trashnet"
IMAGES = {"augment": "none", "image_size": 8, "device": "cpu", "amp": "off"}


@pytest.mark.parametrize("corrector", REGISTRY)
def test_corrected_labels_are_better_than_the_given_ones(vectors: Any, fit: Any, corrector: str) -> None:
    labels, _ = fit(**vectors.keywords, trusted=vectors.trusted, corrector=corrector, epochs=12)
    figures = labels.evaluate(vectors.true)
    assert figures.label_accuracy_before == pytest.approx(0.7, abs=0.02)
    assert figures.label_accuracy_after > 0.85
    assert figures.noise_auroc > 0.9


@pytest.fixture(scope="module")
def images(digits: Any, fit: Any) -> tuple[Labels, Any]:
    """A fit of the image files, by the default corrector."""
    return fit(source=str(digits.images), trusted=digits.trusted, **{**IMAGES, "augment": "shift"}, epochs=8)


def test_labels_of_images_become_better(images: Any, truth: Any) -> None:
    labels, _ = images
    figures = labels.evaluate(truth(labels.columns))
    assert figures.label_accuracy_before == pytest.approx(0.7, abs=0.02)
    assert figures.label_accuracy_after > 0.85
    assert figures.noise_auroc > 0.9
    assert labels.metadata.run.corrector == "tmlc"


def test_trusted_rows_come_back_as_verified_and_two_in_three_calibrate(images: Any, truth: Any) -> None:
    labels, _ = images
    columns, true = labels.columns, truth(labels.columns)
    rows = np.flatnonzero(columns.trusted)
    assert len(rows) == 150
    assert (columns.soft_label[:][rows] == np.eye(10, dtype=np.float32)[true[rows]]).all()
    wrong = columns.given[rows] != true[rows]
    assert (columns.noise_probability[rows] == wrong).all()
    assert (columns.action[rows] == np.where(wrong, "fix", "keep")).all()
    assert labels.metadata.calibration.calibration_rows == 100
    np.testing.assert_allclose(columns.soft_label[:].sum(axis=1), 1, atol=1e-5)


def test_deciding_anew_is_fitting_with_that_precision(vectors: Any, fit: Any, tmp_path: Path) -> None:
    settings = {**vectors.keywords, "trusted": vectors.trusted, "corrector": "none", "epochs": 2}
    first, _ = fit(**settings, precision=0.9)
    first.save(tmp_path / "labels.parquet")
    for precision in (0.6, 0.8, 0.95):
        expected, _ = fit(**settings, precision=precision)
        expected.save(tmp_path / "expected.parquet", overwrite=True)
        Labels.read(tmp_path / "labels.parquet").decide(precision).save(
            tmp_path / "decided.parquet", overwrite=True
        )
        assert (tmp_path / "decided.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this CPU does not multiply bf16 natively"
)
def test_bf16_repairs_labels_as_well(vectors: Any, fit: Any) -> None:
    settings = {**vectors.keywords, "trusted": vectors.trusted, "corrector": "mslc", "epochs": 8}
    exact, _ = fit(**settings)
    rounded, training = fit(**{**settings, "amp": "bf16"})
    assert training.compute.autocast_dtype is torch.bfloat16
    after = [labels.evaluate(vectors.true).label_accuracy_after for labels in (exact, rounded)]
    assert after[1] == pytest.approx(after[0], abs=0.03)


@pytest.mark.parametrize("corrector", REGISTRY)
def test_every_corrector_trains_in_the_batches_that_suit_the_source(
    vectors: Any, monkeypatch: pytest.MonkeyPatch, corrector: str
) -> None:
    """However many trusted rows it keeps out of the training."""

    class BegunError(Exception):
        pass

    def train(training: Any, *_: object) -> None:
        raise BegunError(training.schedule.batch_size)

    monkeypatch.setattr(verb, "train", train)
    monkeypatch.setattr(schedule, "default_batch_size", lambda rows: rows)
    config = build(FitConfig, **vectors.keywords, trusted=vectors.trusted, corrector=corrector, epochs=2)
    with pytest.raises(BegunError, match="1797"):
        verb.fit(config)


def test_a_frozen_backbone_trains_only_its_head_on_features_computed_once(
    digits: Any, truth: Any, fit: Any, tmp_path: Path
) -> None:
    from relabel import backbones

    weights = tmp_path / "cnn8.pt"
    torch.manual_seed(3)
    torch.save(backbones.build("cnn8", 5, 16).state_dict(), weights)
    labels, training = fit(
        source=str(digits.images), trusted=digits.trusted, corrector="none", weights=str(weights),
        backbone="cnn8", image_size=16, freeze=True, epochs=10, device="cpu", amp="off",
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in training.backbone.parameters()) < 5_000
    figures = labels.evaluate(truth(labels.columns))
    # Random convolutions are features too; better than the given labels they must be.
    assert figures.label_accuracy_after > figures.label_accuracy_before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"meta_gradient": "exact"}, "--meta-gradient exact: tmlc is not learned through a look-ahead"),
        ({"corrector": "none", "meta_gradient": "exact"}, "--meta-gradient exact: none is not"),
        ({"corrector": "none", "warmup": 1}, "--warmup has no meaning for --corrector none"),
        ({"corrector": "none", "meta_every": 2}, "--meta-every has no meaning"),
        ({"corrector": "none", "meta_batch_size": 2}, "--meta-batch-size has no meaning"),
        ({"corrector": "none", "meta_lr": 0.1}, "--meta-lr has no meaning"),
    ],
)
def test_flags_that_would_change_nothing_are_refused_before_any_image_is_decoded(
    digits: Any, fit: Any, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(verb, "decode", None)
    with pytest.raises(RelabelError, match=message):
        fit(source=str(digits.images), trusted=digits.trusted, **flags)


def test_a_corrector_that_reads_given_labels_is_not_the_default_where_trusted_rows_have_none() -> None:
    source: Any = type("Source", (), {"given": np.array([0, 1, 0, -1, -1, -1]), "noun": "images"})()
    said: list[str] = []
    watcher = Silent()
    watcher.say = said.append  # type: ignore[method-assign]

    def chosen(rows: list[int], external: tuple[Path, ...] = (), **flags: str) -> str:
        trusted = TrustedSet(np.array(rows), np.zeros(len(rows), dtype=int), list(external), NONE, [])
        return verb._corrector_name(build(FitConfig, source="images", **flags), source, trusted, watcher)

    assert chosen([0, 1]) == chosen([0, 3]) == chosen([0], (Path("a.png"),)) == "tmlc"
    assert said == []
    assert chosen([0, 3, 4]) == chosen([3, 4, 5]) == chosen([0, 3], (Path("a.png"),)) == "mslc"
    sentence = (
        "Most trusted images have no given label in SOURCE, and tmlc cannot learn from such: mslc does."
    )
    assert said == [sentence] * 3
    assert chosen([3, 4], corrector="mlc") == "mlc"


@pytest.fixture
def copies(digits: Any, truth: Any, tmp_path: Path) -> Path:
    """A folder of trusted images: copies of each 30th one, in the folders of their true classes."""
    source = open_source(str(digits.images))
    true = truth(source)
    for row in range(0, len(source), 30):
        target = tmp_path / "trusted" / str(true[row])
        target.mkdir(parents=True, exist_ok=True)
        (target / f"copy{row}.png").write_bytes(source.references[row].read_bytes())
    return tmp_path / "trusted"


def test_a_trusted_folder_of_copies_is_rows_of_the_source(
    digits: Any, truth: Any, fit: Any, copies: Path
) -> None:
    labels, _ = fit(source=str(digits.images), trusted=copies, epochs=2, **IMAGES)
    assert labels.metadata.run.corrector == "tmlc"
    assert np.flatnonzero(labels.columns.trusted).tolist() == list(range(0, len(labels), 30))
    right = labels.columns.corrected == truth(labels.columns)
    assert right[labels.columns.trusted].all()
    assert labels.summary.trusted_outside_source == 0


def test_a_trusted_folder_outside_the_source_drives_the_corrector_alone(
    digits: Any, fit: Any, copies: Path
) -> None:
    for path in copies.glob("*/*.png"):
        Image.open(path).resize((20, 20)).save(path)
    labels, _ = fit(source=str(digits.images), trusted=copies, epochs=2, **IMAGES)
    run = labels.metadata.run
    assert (run.trusted_rows, labels.summary.trusted_outside_source) == (60, 60)
    assert run.corrector == "mslc", "the default, tmlc, learns from rows of the source"
    assert labels.metadata.calibration.calibration_rows == 0
    assert labels.metadata.noise.trusted_noise_rate is None
    assert not labels.columns.trusted.any()
    assert not (labels.columns.action == "fix").any()


def test_one_estimate_of_the_noise_serves_the_labels_and_the_model(
    vectors: Any, fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    made = calibrate.fit

    def noted(*arguments: Any) -> Any:
        seen.append(arguments[3])
        return made(*arguments)

    monkeypatch.setattr(calibrate, "fit", noted)
    labels, training = fit(
        **vectors.keywords, trusted=vectors.trusted, corrector="none", epochs=6, keep_model=True
    )
    assert labels.model is not None
    given, rows = labels.columns.given, vectors.rows
    anchors = anchor_points.count(training.sample_memory.early, np.where(labels.columns.trusted, -1, given))
    expected = TransitionEstimate.of(noise_matrix(given[rows], vectors.true[rows], 10), anchors)
    assert len(seen) == 3, "of the labels, and of the model with last and with mean weights"
    for transition in seen:
        assert transition is seen[0]
        np.testing.assert_array_equal(transition.matrix, expected.matrix)


@pytest.mark.parametrize("corrector", [name for name in REGISTRY if name != "none"])
def test_without_trusted_rows_a_corrector_has_nothing_to_learn_from(
    vectors: Any, fit: Any, corrector: str
) -> None:
    with pytest.raises(RelabelError, match="too few trusted rows for this corrector to learn from"):
        fit(**vectors.keywords, corrector=corrector, epochs=2)


def test_without_trusted_rows_plain_training_has_its_prior_weights(vectors: Any, fit: Any) -> None:
    labels, _ = fit(**vectors.keywords, corrector="none", epochs=6)
    calibration = labels.metadata.calibration
    assert calibration.calibration_rows == labels.metadata.run.trusted_rows == 0
    assert calibration.weights == {"early": 1, "late": 1, "last": 0, "transition": 0.25, "keep": 0}
    assert not (labels.columns.action == "fix").any()
    figures = labels.evaluate(vectors.true)
    assert figures.label_accuracy_after > figures.label_accuracy_before


@pytest.mark.slow
@pytest.mark.skipif(not TRASHNET.is_dir(), reason="RELABEL_DATA names no folder with trashnet/")
def test_photographs_with_symmetric_noise_are_repaired(fit: Any, tmp_path: Path) -> None:
    clean = open_source(str(TRASHNET))
    noisy = noise.corrupt(clean.given, clean.class_names, noise="symmetric", rate=0.3, seed=7)
    trusted = np.random.default_rng(7).permutation(len(clean))[:300]
    for path, labels, rows in (
        (tmp_path / "noisy.csv", noisy.labels, range(len(clean))),
        (tmp_path / "trusted.csv", clean.given, trusted),
    ):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "label"])
            writer.writerows([clean.file_names[row], clean.class_names[labels[row]]] for row in rows)
    result, _ = fit(
        source=str(TRASHNET), labels=tmp_path / "noisy.csv", trusted=tmp_path / "trusted.csv", image_size=32,
        epochs=30,
    )  # fmt: skip
    figures = result.evaluate([clean.class_names[label] for label in clean.given])
    assert figures.label_accuracy_after > figures.label_accuracy_before + 0.03
    assert figures.calibration_error < 0.1
    assert not result.columns.errors
