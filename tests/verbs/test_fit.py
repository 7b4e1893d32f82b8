"""The whole story on small real pictures, and on TrashNet where RELABEL_DATA names the folder that has it."""

import csv
import inspect
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from relabel import schedule
from relabel.calibration import calibrate, transfer
from relabel.calibration.decision_threshold import keep_given
from relabel.config import FitConfig
from relabel.correctors import registry
from relabel.data.batches import VectorInputs
from relabel.data.sources import open_source
from relabel.data.trusted import TrustedSet
from relabel.device import resolve
from relabel.errors import RelabelError
from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import TransitionEstimate, joint_counts
from relabel.labels.table import Labels
from relabel.metrics import Evaluation, evaluate, noise_matrix
from relabel.options import build, changed
from relabel.progress import Silent
from relabel.saved.corrector_file import CorrectorFile, read_corrector
from relabel.saved.model_file import EVIDENCE
from relabel.simulate import noise
from relabel.simulate.demo import write_dataset
from relabel.verbs import fit

NONE = np.zeros(0, dtype=np.int64)
TRASHNET = Path(os.environ.get("RELABEL_DATA", "missing")) / "trashnet"


def _evaluate(result: Labels, truth: np.ndarray) -> Evaluation:
    failed = np.zeros(len(truth), dtype=bool)
    failed[list(result.columns.errors)] = True
    return evaluate(
        given=result.columns.given,
        corrected=result.columns.soft_label[:].argmax(axis=1),
        truth=truth,
        noise_probability=result.columns.noise_probability,
        confidence=result.columns.soft_label[:].max(axis=1),
        action=result.columns.action,
        trusted=result.columns.trusted,
        failed=failed,
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("demo"), overwrite=False)


def _truth(data, source):
    with data.truth.open(newline="") as file:
        true = {row["file_name"]: int(row["label"]) for row in csv.DictReader(file)}
    return np.array([true[name] for name in source.file_names])


@pytest.mark.parametrize("corrector", ["none", "mslc", "mlc", "metalabelnet", "tmlc"])
def test_corrected_labels_are_better_than_the_given_ones(digits, corrector):
    config = build(
        FitConfig,
        source=str(digits.images),
        trusted=digits.trusted,
        corrector=corrector,
        augment="shift",
        epochs=12,
    )
    result = fit.fit(config)
    figures = _evaluate(result, _truth(digits, result.columns))
    assert figures.label_accuracy_before == pytest.approx(0.7, abs=0.02)
    assert figures.label_accuracy_after > 0.85
    assert figures.noise_auroc > 0.9


def test_trusted_rows_come_back_as_verified_and_are_split_for_meta_and_probes(digits):
    result = fit.fit(
        build(FitConfig, source=str(digits.images), trusted=digits.trusted, augment="shift", epochs=2)
    )
    truth = _truth(digits, result.columns)
    rows = np.flatnonzero(result.columns.trusted)
    assert len(rows) == 150
    assert (result.columns.soft_label[:][rows] == np.eye(10, dtype=np.float32)[truth[rows]]).all()
    wrong = result.columns.given[rows] != truth[rows]
    assert (result.columns.noise_probability[rows] == wrong).all()
    assert (result.columns.action[rows] == np.where(wrong, "fix", "keep")).all()
    assert result.metadata.to_dict()["calibration"]["calibration_rows"] == 100
    np.testing.assert_allclose(result.columns.soft_label[:].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("corrector", ["none", "mslc", "mlc", "metalabelnet", "tmlc"])
def test_every_corrector_trains_in_the_batches_that_suit_the_source(digits, monkeypatch, corrector):
    """However many verified rows it keeps out of the training."""

    class BegunError(Exception):
        pass

    def train(training, *_):
        raise BegunError(training.schedule.batch_size)

    monkeypatch.setattr(fit, "_train", train)
    monkeypatch.setattr(schedule, "default_batch_size", lambda rows: rows)
    with pytest.raises(BegunError, match="1797"):
        fit.fit(
            build(
                FitConfig,
                source=str(digits.images),
                trusted=digits.trusted,
                corrector=corrector,
                epochs=2,
                **SMALL,
            )
        )


@pytest.mark.parametrize("start", ["trusted", "random"])
def test_half_of_mslc_s_labelled_meta_rows_are_witnesses_and_no_trusted_row_is_lost(start):
    given = np.tile(np.arange(3), 40)
    given[::4] = -1
    rows = np.arange(60)
    trusted = replace(TrustedSet.empty(), rows=rows, labels=rows % 3)
    needs = registry.create("mslc", 3, 4, {"start": start}).needs
    split = fit._split(trusted, given, {}, needs, build(FitConfig, source="images", corrector="mslc"))
    parts = [split.meta, split.in_training, split.calibration_rows]
    assert np.sort(np.concatenate(parts)).tolist() == rows.tolist(), "each in one part"
    assert (split.in_training_labels == split.in_training % 3).all()
    assert (given[split.in_training] >= 0).all()
    assert (given[split.meta] < 0).any()
    labelled = np.count_nonzero(given[split.meta] >= 0)
    assert len(split.in_training) == (0 if start == "random" else pytest.approx(labelled, abs=1))
    assert split.unseen.tolist() == split.meta.tolist(), "the backbone trains on witnesses"


@pytest.mark.parametrize("keep_model", [False, True])
def test_metalabelnet_warms_up_on_its_meta_rows_so_that_a_model_needs_others(digits, keep_model):
    source = open_source(str(digits.images))
    rows = np.arange(0, 1200, 10)
    trusted = replace(TrustedSet.empty(), rows=rows, labels=_truth(digits, source)[rows])
    needs = registry.create("metalabelnet", 10, 4).needs
    config = build(FitConfig, source="images", corrector="metalabelnet", keep_model=keep_model)
    split = fit._split(trusted, source.given, {}, needs, config)
    parts = [split.meta, split.calibration_rows, split.unseen]
    assert np.sort(np.concatenate(parts)).tolist() == rows.tolist(), "each in one part"
    assert len(split.unseen) == (30 if keep_model else 0)
    assert len(split.calibration_rows) == pytest.approx(2 * len(split.meta), abs=2)
    no_rows = np.zeros(len(source), dtype=bool)
    found = fit._rows(source, {}, split, no_rows, needs)
    assert found.meta.given.tolist() == source.given[split.meta].tolist()
    assert not np.isin(split.meta, found.train.numpy()).any(), "the training adds them to the warm-up"
    assert not np.isin(split.unseen, found.train.numpy()).any()
    assert len(found.train) == len(source) - len(split.meta) - len(split.unseen)


def test_metalabelnet_as_in_the_paper_never_trains_on_its_meta_rows_which_then_serve_a_model(digits):
    source = open_source(str(digits.images))
    rows = np.arange(0, 1200, 10)
    trusted = replace(TrustedSet.empty(), rows=rows, labels=_truth(digits, source)[rows])
    needs = registry.create("metalabelnet", 10, 4, {"start": "random"}).needs
    config = build(FitConfig, source="images", preset="metalabelnet-paper", keep_model=True)
    split = fit._split(trusted, source.given, {}, needs, config)
    assert len(split.meta) == 40
    assert split.unseen.tolist() == split.meta.tolist()


def test_the_training_is_told_how_trusted_rows_were_labelled_where_they_were(digits):
    """The last two are images outside of the source."""
    source = open_source(str(digits.images))
    rows = np.array([5, 0, len(source), len(source) + 1])
    found = fit._verified(rows, np.array([3, 1, 4, 1]), source)
    assert found.rows.tolist() == rows.tolist()
    assert found.true.tolist() == [3, 1, 4, 1]
    assert found.columns.given.tolist() == [source.given[5], source.given[0], -1, -1]


def test_a_frozen_backbone_trains_only_its_head_on_features_computed_once(digits, tmp_path):
    from relabel import backbones

    weights = tmp_path / "cnn8.pt"
    torch.manual_seed(3)
    torch.save(backbones.build("cnn8", 5, 16).state_dict(), weights)
    config = build(FitConfig,
        source=str(digits.images), trusted=digits.trusted, corrector="none", weights=str(weights),
        backbone="cnn8", image_size=16, freeze=True, epochs=10,
    )  # fmt: skip
    result = fit.fit(config)
    figures = _evaluate(result, _truth(digits, result.columns))
    # Random convolutions are features too; better than the given labels they must be.
    assert figures.label_accuracy_after > figures.label_accuracy_before


def test_other_weights_of_the_same_name_do_not_continue_a_checkpoint(digits, tmp_path):
    from relabel import backbones

    weights, moved = tmp_path / "cnn8.pt", tmp_path / "moved.pt"

    def write(path, seed):
        torch.manual_seed(seed)
        torch.save(backbones.build("cnn8", 10, 16).state_dict(), path)

    write(weights, 3)
    moved.write_bytes(weights.read_bytes())
    config = build(FitConfig,
        source=str(digits.images), trusted=digits.trusted, corrector="none", weights=str(weights),
        backbone="cnn8", image_size=16, freeze=True, epochs=2, checkpoint=tmp_path / "run.checkpoint",
    )  # fmt: skip
    fit.fit(config)
    write(weights, 4)
    with pytest.raises(RelabelError, match="other data or other settings"):
        fit.fit(changed(config, resume=True))
    fit.fit(changed(config, weights=str(moved), resume=True))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"meta_gradient": "exact"}, "--meta-gradient exact: tmlc is not learned through a look-ahead"),
        ({"corrector": "none", "meta_gradient": "exact"}, "--meta-gradient exact: none is not"),
        ({"corrector": "none", "warmup": 1}, "--warmup has no meaning for --corrector none"),
        ({"corrector": "none", "meta_every": 2}, "--meta-every has no meaning"),
        ({"corrector": "none", "meta_batch_size": 2}, "--meta-batch-size has no meaning"),
        ({"corrector": "none", "meta_lr": 0.1}, "--meta-lr has no meaning"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(digits, monkeypatch, flags, told):
    monkeypatch.setattr(fit, "open_images", None)
    with pytest.raises(RelabelError, match=told):
        fit.fit(build(FitConfig, source=str(digits.images), trusted=digits.trusted, **flags))


def test_a_corrector_that_reads_given_labels_is_not_the_default_where_verified_rows_have_none():
    source = type("Source", (), {"given": np.array([0, 1, 0, -1, -1, -1]), "noun": "images"})()
    told = []
    watcher = Silent()
    watcher.say = told.append

    def chosen(rows, external=(), **flags):
        trusted = TrustedSet(np.array(rows), np.zeros(len(rows), dtype=int), list(external), NONE, [])
        return fit._with_corrector(
            build(FitConfig, source="images", **flags), source, trusted, watcher
        ).corrector

    assert chosen([0, 1]) == chosen([0, 3]) == chosen([0], [Path("a.png")]) == "tmlc"
    assert told == []
    assert chosen([0, 3, 4]) == chosen([3, 4, 5]) == chosen([0, 3], [Path("a.png")]) == "mslc"
    assert (
        told
        == ["Most verified images have no given label in SOURCE, and tmlc cannot learn from such: mslc does."]
        * 3
    )
    assert chosen([3, 4], corrector="mlc") == "mlc"


def test_a_model_of_many_classes_is_calibrated_on_what_it_will_keep_of_its_predictions(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(240) % 80)
    vectors = rng.normal(0, 1, (240, 16)) + rng.normal(0, 1, (80, 16))[labels]
    table = {"v": pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32(), 16)), "label": labels}
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    trusted = tmp_path / "trusted.csv"
    trusted.write_text("index,label\n" + "".join(f"{row},{labels[row]}\n" for row in range(0, 240, 2)))
    result = fit.fit(
        build(FitConfig,
            source=str(tmp_path / "v.parquet"), trusted=trusted, features="v",
            corrector="mslc", epochs=2, keep_model=True,
        )
    )  # fmt: skip
    seen = {}
    plain = calibrate.fit

    def noted(evidence, *arguments, **options):
        seen.update(evidence)
        return plain(evidence, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "fit", noted)
        model = result.model
    assert [*seen] == [EVIDENCE]
    compute = resolve("cpu", "off")
    kept = model.evidence(VectorInputs(torch.from_numpy(vectors.astype(np.float32))), compute)[EVIDENCE][
        :
    ].numpy()
    share = np.sort(seen[EVIDENCE], axis=1)
    assert (share[:, :48] == share[:, :1]).all(), "all but the 32 likeliest share alike"
    assert all(np.abs(kept - row).max(axis=1).min() < 1e-6 for row in seen[EVIDENCE])


@pytest.fixture
def copies(digits, tmp_path):
    """A folder of verified images: copies of each 30th one, in the folders of their true classes."""
    source = open_source(str(digits.images))
    truth = _truth(digits, source)
    for row in range(0, len(source), 30):
        target = tmp_path / "verified" / str(truth[row])
        target.mkdir(parents=True, exist_ok=True)
        (target / f"copy{row}.png").write_bytes(source.references[row].read_bytes())
    return tmp_path / "verified"


def test_a_trusted_folder_of_copies_is_rows_of_the_source(digits, copies):
    source = open_source(str(digits.images))
    result = fit.fit(build(FitConfig, source=str(digits.images), trusted=copies, augment="shift", epochs=2))
    assert result.metadata.to_dict()["corrector"] == "tmlc"
    assert np.flatnonzero(result.columns.trusted).tolist() == list(range(0, len(source), 30))
    right = result.columns.soft_label[:].argmax(axis=1) == _truth(digits, source)
    assert right[result.columns.trusted].all()
    assert result.summary.trusted_outside_source == 0


def test_a_trusted_folder_outside_the_source_drives_the_corrector_alone(digits, copies):
    for path in copies.glob("*/*.png"):
        Image.open(path).resize((20, 20)).save(path)
    result = fit.fit(build(FitConfig, source=str(digits.images), trusted=copies, augment="shift", epochs=2))
    assert result.metadata.to_dict()["trusted_rows"] == 60
    assert (
        result.metadata.to_dict()["corrector"] == "mslc"
    )  # the default, tmlc, learns from rows of the source
    assert result.metadata.to_dict()["calibration"]["calibration_rows"] == 0
    assert result.metadata.to_dict()["trusted_noise_rate"] is None
    assert not result.columns.trusted.any()
    assert not (result.columns.action == "fix").any()


SMALL = {"augment": "none", "image_size": 8, "device": "cpu", "amp": "off"}


@pytest.fixture(scope="module")
def corrector_file(digits):
    """What a TMLC-Net has learned on the digits."""
    config = build(
        FitConfig,
        source=str(digits.images),
        trusted=digits.trusted,
        corrector="tmlc",
        epochs=3,
        seed=1,
        **SMALL,
    )
    path = digits.images.parent / "tmlc.pt"
    fit.fit(config).corrector.save(path)
    return path


def observed(digits, pretrained=None, **options):
    """A fit, and the training behind it."""
    kept = []

    class Kept(fit.Training):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

    config = build(FitConfig, **{"source": str(digits.images), "epochs": 4, **SMALL, **options})
    config = replace(config, pretrained=pretrained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "Training", Kept)
        return fit.fit(config), kept[0]


def apply(digits, corrector_file, **options):
    """A fit with that corrector as it is, and the training behind it."""
    return observed(digits, pretrained=corrector_file, **options)


def test_anchors_among_the_rows_nobody_verified_tell_where_wrong_labels_go(digits, monkeypatch):
    told = []

    def spy(*arguments):
        told.append(inspect.signature(made).bind(*arguments).arguments["transition"])
        return made(*arguments)

    made = calibrate.fit
    monkeypatch.setattr(calibrate, "fit", spy)
    result, training = observed(digits, trusted=digits.trusted, corrector="none", epochs=6, keep_model=True)
    assert result.model is not None
    given = np.where(result.columns.trusted, -1, result.columns.given)
    anchors = anchor_points.count(training.sample_memory.early, given)
    counts = noise_matrix(
        result.columns.given, np.where(result.columns.trusted, _truth(digits, result.columns), -1), 10
    )
    assert len(told) == 3, "of the labels, and of the model with last and with mean weights"
    assert len(set(map(id, told))) == 1, "estimated once"
    np.testing.assert_array_equal(told[0].matrix, TransitionEstimate.of(counts, anchors).matrix)


def test_a_pretrained_corrector_repairs_labels_nobody_has_verified(digits, corrector_file):
    result, training = apply(digits, corrector_file)
    file = read_corrector(corrector_file)
    figures = _evaluate(result, _truth(digits, result.columns))
    assert figures.label_accuracy_before == pytest.approx(0.7, abs=0.02)
    assert figures.label_accuracy_after > 0.85
    assert figures.noise_auroc > 0.95
    assert figures.fix_rows > 100
    assert figures.fix_precision > 0.95
    # Nothing was learned on the way, and nine of ten rows were trained on, the others without their label.
    torch.testing.assert_close(dict(training.corrector.state_dict()), file.state, rtol=0, atol=0)
    torch.testing.assert_close(result.corrector.state, file.state, rtol=0, atol=0)
    held_out = transfer.held_out(result.columns.given, 0)
    assert held_out.sum() == result.metadata.to_dict()["held_out_rows"] == 180
    assert training.rows.train.tolist() == np.flatnonzero(~held_out).tolist()
    assert training.rows.unlabelled.tolist() == np.flatnonzero(held_out).tolist()
    assert (training.rows.given[held_out] == -1).all()
    assert not np.isnan(result.columns.noise_probability[held_out]).any()
    assert len(training.rows.meta) == 0
    assert not result.columns.trusted.any()
    metadata = result.metadata.to_dict()
    assert (metadata["corrector"], metadata["trusted_rows"]) == ("tmlc", 0)
    assert metadata["trusted_noise_rate"] is None
    assert metadata["pretrained"]["file"] == str(corrector_file)
    assert metadata["pretrained"]["class_names"] == [str(digit) for digit in range(10)]
    assert metadata["calibration"]["calibration_rows"] == 0
    weights = metadata["calibration"]["weights"]
    sharpened = {name: weights[name] / file.calibration_prior.weights[name] for name in weights}
    assert sharpened["transition"] == sharpened["keep"] == 1
    assert sharpened["early"] == pytest.approx(sharpened["late"])
    assert sharpened["last"] >= 1
    assert metadata["calibration"]["accuracy_after"] is None
    assert result.summary.selection.startswith(
        "At least 95 % of the fixes are right if these rows are like the data the corrector"
    )
    np.testing.assert_allclose(result.columns.soft_label[:].sum(axis=1), 1, atol=1e-5)


def test_verified_rows_calibrate_a_pretrained_corrector_and_teach_it_nothing(digits, corrector_file):
    result, training = apply(digits, corrector_file, trusted=digits.trusted, epochs=3)
    file = read_corrector(corrector_file)
    torch.testing.assert_close(result.corrector.state, file.state, rtol=0, atol=0)
    seen = np.isin(np.flatnonzero(result.columns.trusted), training.rows.train)
    assert 0 < (~seen).sum() < 30, "probes are held out like any other row"
    assert len(training.rows.meta) == 0
    metadata = result.metadata.to_dict()
    assert metadata["trusted_rows"] == result.columns.trusted.sum() == 150
    assert metadata["calibration"]["calibration_rows"] == 150, "not one of them is for the corrector"
    assert metadata["calibration"]["accuracy_after"] > metadata["calibration"]["accuracy_before"]
    rows, truth = np.flatnonzero(result.columns.trusted), _truth(digits, result.columns)
    given = result.columns.given
    evidence = {name: values[:].numpy() for name, values in training.evidence().items()}
    held_out = transfer.held_out(given, 0)
    seen = np.where(held_out, -1, given)
    apart = {name: values[held_out] for name, values in evidence.items()}
    transition = TransitionEstimate.of(anchor_points.count(training.sample_memory.early, seen)).matrix
    transferred = transfer.transferred_calibration(file.calibration_prior, apart, given[held_out], transition)
    transferred = transfer.raked(transferred, joint_counts(transferred.soft_labels(evidence, seen), seen))
    expected = calibrate.refit(
        transferred,
        {name: values[rows] for name, values in evidence.items()},
        given[rows],
        truth[rows],
        held_out[rows],
        0,
    )
    assert metadata["calibration"]["weights"] == pytest.approx(expected.weights, abs=1e-4)
    assert "trusted rows" in result.summary.selection
    assert metadata["trusted_noise_rate"] == pytest.approx(0.3, abs=0.1)
    assert (
        result.columns.soft_label[:].argmax(axis=1)[result.columns.trusted] == truth[result.columns.trusted]
    ).all()


def test_what_apply_writes_is_what_its_parts_say(digits, corrector_file):
    """Half of the digits, every fifth of them without a label."""
    source = open_source(str(digits.images))
    rows = range(0, len(source), 2)
    table = [(source.file_names[row], source.given[row] if row % 5 else "") for row in rows]
    half = digits.images / "half.csv"
    with half.open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *table])
    result, training = apply(digits, corrector_file, source=str(half), epochs=14)
    half.unlink()
    given = result.columns.given
    without = given < 0
    assert without.sum() == 180
    assert np.isnan(result.columns.noise_probability[without]).all()
    assert not np.isnan(result.columns.noise_probability[~without]).any()
    assert set(result.columns.action[without]) == {"review"}
    np.testing.assert_allclose(result.columns.soft_label[:].sum(axis=1), 1, atol=1e-5)
    truth = _truth(digits, result.columns)
    assert (result.columns.soft_label[:].argmax(axis=1) == truth)[without].mean() > 0.4, (
        "one in ten by chance"
    )
    # By hand, of what training left.
    held_out = transfer.held_out(given, 0)
    assert held_out.sum() == 72
    seen = ~without & ~held_out
    evidence = {name: values[:].double().numpy() for name, values in training.evidence().items()}
    apart = {name: values[held_out] for name, values in evidence.items()}
    counts = anchor_points.count(training.sample_memory.early, np.where(seen, given, -1))
    calibration_prior = read_corrector(corrector_file).calibration_prior
    transferred = transfer.transferred_calibration(
        calibration_prior, apart, given[held_out], TransitionEstimate.of(counts).matrix
    )
    weights, transition = result.metadata.to_dict()["calibration"]["weights"], transferred.transition
    assert weights == pytest.approx(transferred.weights, abs=1e-4)
    logits = sum(weights[name] * np.log(np.clip(values, 1e-4, None)) for name, values in evidence.items())
    logits[seen] += weights["transition"] * np.log(transition[:, given[seen]].T)
    logits[held_out] += np.log(transition[:, given[held_out]].T)
    logits[seen, given[seen]] += weights["keep"]
    expected = torch.from_numpy(logits).softmax(dim=1).numpy()
    by_label = np.bincount(given[seen], minlength=10)
    own = joint_counts(expected[seen], given[seen]) / by_label
    raking_factors = anchor_points.posterior(transition, by_label) / np.maximum(own, 1e-4)
    expected[seen] *= raking_factors[:, given[seen]].T
    expected /= expected.sum(axis=1, keepdims=True)
    decision_threshold = transfer.with_decision_threshold(
        transferred, expected[seen], given[seen]
    ).decision_threshold
    assert result.metadata.to_dict()["calibration"]["decision_threshold"] == pytest.approx(
        decision_threshold, abs=1e-2
    )
    if decision_threshold:
        expected = keep_given(expected, given, decision_threshold)
    np.testing.assert_allclose(result.columns.soft_label[:], expected, atol=1e-3)


def test_rows_that_training_saw_tell_the_margin_of_apply(digits, corrector_file, monkeypatch):
    asked = []

    def with_decision_threshold(fitted, soft_label, given):
        asked.append((fitted, soft_label, given))
        return replace(fitted, decision_threshold=math.log(5))

    monkeypatch.setattr(transfer, "with_decision_threshold", with_decision_threshold)
    monkeypatch.setattr(fit, "_MOST_ASKED", 400)
    result, _ = apply(digits, corrector_file, epochs=3)
    [(fitted, soft_label, given)] = asked
    assert fitted.raking_factors is not None
    assert soft_label.shape == (400, 10)
    held_out = transfer.held_out(result.columns.given, 0)
    seen = np.random.default_rng(0).permutation(np.flatnonzero(~held_out))[:400]
    np.testing.assert_array_equal(given, result.columns.given[seen])
    expected = keep_given(soft_label, given, math.log(5))
    np.testing.assert_allclose(result.columns.soft_label[:][seen], expected, atol=1e-6)
    assert result.metadata.to_dict()["calibration"]["decision_threshold"] == math.log(5)
    assert (soft_label.argmax(axis=1) != given).sum() > (expected.argmax(axis=1) != given).sum() > 0


def test_a_corrector_that_means_nothing_here_is_refused_before_any_image_is_read(
    digits, tmp_path, monkeypatch
):
    config = build(
        FitConfig, source=str(digits.images), trusted=digits.trusted, corrector="mslc", epochs=2, **SMALL
    )
    torch.manual_seed(0)
    mslc = registry.create("mslc", 10, 256)
    nothing = calibrate.fit(
        {}, NONE, NONE, TransitionEstimate.of(np.eye(10, dtype=np.int64)), 0
    ).calibration_prior
    CorrectorFile.of(mslc, "mslc", 10, 256, {}, {}, nothing).save(tmp_path / "mslc.pt")
    monkeypatch.setattr(fit, "open_images", None)
    for trusted in (None, digits.trusted):
        with pytest.raises(RelabelError, match="A trained mslc is of no use on other data") as refusal:
            fit.fit(replace(config, corrector=None, trusted=trusted, pretrained=tmp_path / "mslc.pt"))
        assert "--corrector tmlc" in refusal.value.hint


@pytest.mark.parametrize("corrector", ["mslc", "mlc", "metalabelnet", "tmlc"])
def test_without_verified_rows_a_corrector_has_nothing_to_learn_from(digits, corrector):
    with pytest.raises(RelabelError, match="too few verified rows for this corrector to learn from"):
        fit.fit(build(FitConfig, source=str(digits.images), corrector=corrector, epochs=2, **SMALL))


def test_without_verified_rows_plain_training_has_its_prior_weights(digits):
    result = fit.fit(build(FitConfig, source=str(digits.images), corrector="none", epochs=2, **SMALL))
    assert result.metadata.to_dict()["calibration"]["calibration_rows"] == 0
    assert result.metadata.to_dict()["trusted_rows"] == 0
    assert not (result.columns.action == "fix").any()
    figures = _evaluate(result, _truth(digits, result.columns))
    assert figures.label_accuracy_after > figures.label_accuracy_before


@pytest.mark.slow
@pytest.mark.skipif(not TRASHNET.is_dir(), reason="RELABEL_DATA names no folder with trashnet/")
def test_photographs_with_symmetric_noise_are_repaired(tmp_path):
    clean = open_source(str(TRASHNET))
    noisy = noise.corrupt(clean.given, clean.class_names, noise="symmetric", rate=0.3, seed=7)
    verified = np.random.default_rng(7).permutation(len(clean))[:300]
    for path, labels, rows in (
        (tmp_path / "noisy.csv", noisy.labels, range(len(clean))),
        (tmp_path / "trusted.csv", clean.given, verified),
    ):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "label"])
            writer.writerows([clean.file_names[row], clean.class_names[labels[row]]] for row in rows)
    result = fit.fit(
        build(
            FitConfig,
            source=str(TRASHNET),
            labels=tmp_path / "noisy.csv",
            trusted=tmp_path / "trusted.csv",
            image_size=32,
            epochs=30,
        )
    )
    figures = _evaluate(result, clean.given)
    assert figures.label_accuracy_after > figures.label_accuracy_before + 0.03
    assert figures.calibration_error < 0.1
    assert not result.columns.errors
