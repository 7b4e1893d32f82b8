import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from relabel import backbones
from relabel.calibration import calibrate
from relabel.calibration.selection import select
from relabel.correctors.registry import REGISTRY, create
from relabel.data.batches import ImageInputs, VectorInputs
from relabel.device import resolve
from relabel.errors import RelabelError
from relabel.files import kind_of
from relabel.label_noise.transition_matrix import TransitionEstimate
from relabel.labels.metadata import Run
from relabel.metrics import noise_matrix
from relabel.saved.corrector_file import CorrectorFile
from relabel.saved.model_file import EVIDENCE, Model, read_model

CLASSES = ["Katze 🐈", "犬", "bird"]
RUN, VERSIONS = Run(epochs=3, seed=7), {"torch": "2"}
TRAINED = {**RUN.to_dict(), "versions": VERSIONS}


def build(corrector: str = "mslc", name: str = "cnn8", size: int = 8) -> Model:
    rng = np.random.default_rng(0)
    true, given = rng.integers(3, size=(2, 12))
    given[::5] = -1
    evidence = {EVIDENCE: rng.dirichlet(np.ones(3), 12)}
    torch.manual_seed(3)
    vectors = name == "mlp"
    backbone = (
        backbones.mlp(3, torch.randn(size), torch.rand(size)) if vectors else backbones.build(name, 3, size)
    )
    width = backbone.head.in_features
    fitted = calibrate.fit(evidence, given, true, TransitionEstimate.of(noise_matrix(given, true, 3)), 0)
    made = create(corrector, 3, width)
    return Model(
        backbone=backbone,
        backbone_name=name,
        size=size,
        class_names=CLASSES,
        corrector=CorrectorFile.of(made, corrector, 3, width, {}, TRAINED, fitted.calibration_prior),
        calibration=fitted,
        run=RUN,
        versions=VERSIONS,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build().save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("name", ["cnn8", "resnet18", "mlp"])
def test_a_model_predicts_the_same_after_a_round_trip(tmp_path, name):
    model = build(name=name, size=16)
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    inputs = VectorInputs(torch.randn(5, 16)) if name == "mlp" else ImageInputs(images, "flip")
    compute = resolve("cpu", "off")
    before = model.evidence(inputs, compute)[EVIDENCE][:].numpy()
    model.save(tmp_path / "model.pt")
    read = read_model(tmp_path / "model.pt")
    np.testing.assert_array_equal(read.evidence(inputs, compute)[EVIDENCE][:].numpy(), before)
    assert before.sum(axis=1) == pytest.approx(1)
    assert (read.class_names, read.backbone_name) == (CLASSES, name)
    assert read.size == 16
    assert read.named_size == ({"dimension": 16} if name == "mlp" else {"image_size": 16})
    assert os.listdir(tmp_path) == ["model.pt"]


def test_the_calibration_comes_back_whole_and_promises_the_same(path):
    made, read = build().calibration, read_model(path).calibration
    for name, value in asdict(made).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    rows = np.array([1, 1]), np.array([0.98, 0.5]), np.array([0, 0])
    assert select(read.corrections, *rows, 0.6) == select(made.corrections, *rows, 0.6)
    assert read.to_dict() == made.to_dict()


@pytest.mark.parametrize("corrector", REGISTRY)
def test_every_corrector_is_kept_with_its_parameters(tmp_path, corrector):
    model = build(corrector)
    model.save(tmp_path / "model.pt")
    read = read_model(tmp_path / "model.pt")
    assert read.corrector.name == corrector
    state = read.corrector.corrector().state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.corrector.state.items())


def test_a_model_describes_itself_in_plain_values(path):
    described = read_model(path).describe()
    assert described["kind"] == "relabel model"
    assert described["class_names"] == CLASSES
    assert described["parameters"] == sum(p.numel() for p in build().backbone.parameters())
    assert (described["corrector"], described["epochs"], described["seed"]) == ("mslc", 3, 7)
    assert described["calibration"]["calibration_rows"] == 12
    assert kind_of(path) == "model"


def damage(content: dict, key: str, value: object) -> dict:
    """The content with one entry replaced, `a.b` being entry b of entry a."""
    outer, _, inner = key.partition(".")
    return {**content, outer: damage(content[outer], inner, value) if inner else value}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "soup", "is not a model file"),
        ("kind", "relabel corrector", "is not a model file"),
        ("format", 99, "has format 99, and this version reads format 2. Install the newest relabel"),
        ("backbone", 3, "is not a whole model file"),
        ("backbone", "nosuch", "is not a whole model file"),
        ("backbone", "resnet18", "is not a whole model file"),
        ("image_size", 10**9, "is not a whole model file"),
        ("image_size", None, "is not a whole model file"),
        ("backbone", "mlp", "is not a whole model file"),
        ("class_names", ["a", "b"], "is not a whole model file"),
        ("class_names", ["a", "b", "b"], "is not a whole model file"),
        ("class_names", ["a", "b", 3], "is not a whole model file"),
        ("class_names", [], "is not a whole model file"),
        ("state", {}, "is not a whole model file"),
        ("state", {1: 2}, "is not a whole model file"),
        ("state.head.weight", torch.zeros(3, 5), "is not a whole model file"),
        ("state.head.bias", torch.full((3,), float("nan")), "is not a whole model file"),
        ("calibration", {}, "is not a whole model file"),
        ("calibration.weights", {"mean": 1.0, "transition": 1.0, "keep": 0.0}, "is not a whole model file"),
        ("calibration.weights", {EVIDENCE: float("inf"), "transition": 1.0, "keep": 0.0}, "is not a whole"),
        ("calibration.transition", torch.eye(2), "is not a whole model file"),
        ("calibration.transition", torch.eye(3), "is not a whole model file"),
        ("calibration.transition", None, "is not a whole model file"),
        ("calibration.right", torch.zeros(3, dtype=torch.bool), "is not a whole model file"),
        ("calibration.confidence", torch.full((12,), 7.0), "is not a whole model file"),
        ("calibration.cross_validated", {}, "is not a whole model file"),
        ("calibration.decision_threshold", -1.0, "is not a whole model file"),
        ("corrector", {}, "is not a whole model file"),
        ("corrector.corrector", "nosuch", "is not a whole model file"),
        ("corrector.state", {}, "is not a whole model file"),
        ("trained", None, "is not a whole model file"),
        ("trained", {"seed": torch.zeros(2)}, "is not a whole model file"),
        ("trained", {3: "seed"}, "is not a whole model file"),
        ("trained", {"seed": 7}, "is not a whole model file"),
        ("trained", {"seed": 7, "versions": None}, "is not a whole model file"),
    ],
    ids=lambda value: "" if isinstance(value, torch.Tensor) else str(value)[:30],
)
def test_a_file_that_is_not_whole_is_refused(path, key, value, message):
    content = torch.load(path, weights_only=True)
    if key.startswith("state."):
        content["state"][key.removeprefix("state.")] = value
    else:
        content = damage(content, key, value)
    torch.save(content, path)
    with pytest.raises(RelabelError) as refusal:
        read_model(path)
    assert message in str(refusal.value)
    assert str(path) in refusal.value.message


@pytest.mark.parametrize("dimension", [5, 0, 2**40, "8", None])
def test_a_model_of_vectors_with_another_dimension_is_refused(tmp_path, dimension):
    build(name="mlp").save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save({**content, "dimension": dimension}, tmp_path / "model.pt")
    with pytest.raises(RelabelError, match="is not a whole model file"):
        read_model(tmp_path / "model.pt")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", ["", "half", "code", "pickle", "list"])
def test_a_damaged_file_is_refused_and_nothing_in_it_runs(path, content, monkeypatch):
    monkeypatch.chdir(path.parent)
    whole = path.read_bytes()
    if content == "code":
        torch.save({**torch.load(path, weights_only=True), "trained": Evil()}, path)
    elif content == "list":
        torch.save([1], path)
    else:
        path.write_bytes({"": b"", "half": whole[: len(whole) // 2], "pickle": pickle.dumps(Evil())}[content])
    assert kind_of(path) is None
    with pytest.raises(RelabelError, match="is not a model file"):
        read_model(path)
    assert not os.path.exists("evil")


def test_what_is_not_plain_never_reaches_a_file_unnoticed(tmp_path):
    model = build()
    replace(model, versions={"torch": torch.__version__}).save(tmp_path / "model.pt")
    with pytest.raises(RelabelError, match="loaded safely"):
        read_model(tmp_path / "model.pt")
