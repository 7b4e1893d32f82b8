import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relabel import __version__
from relabel.calibration.prior import CalibrationPrior
from relabel.correctors.base import Epoch, no_rows
from relabel.correctors.registry import REGISTRY, create
from relabel.correctors.tmlc_net import TMLCNet
from relabel.errors import RelabelError
from relabel.saved.corrector_file import CorrectorFile, read_corrector

C, D = 3, 5
PRIOR = CalibrationPrior(
    weights={"late": 2.0, "last": 0.5, "transition": 0.25, "keep": -0.1},
    relabelled=np.array([True, False]),
    right=np.array([True, True]),
    confidence=np.array([0.9, 0.6]),
)
TRAINED = {"backbone": "cnn8", "class_names": ["a", "b", "c"]}


def kept_prior(**changes: object) -> dict[str, object]:
    """`PRIOR` as a file keeps it, with some changes."""
    kept = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in vars(PRIOR).items()
    }
    return {**kept, **changes}


def options_of(name: str) -> dict[str, str]:
    """Every option at its last value, none of them a default."""
    return {option: values[-1] for option, values in REGISTRY[name].options.items()}


def saved(path: Path, name: str = "mlc") -> Path:
    torch.manual_seed(0)
    options = options_of(name)
    made = create(name, C, D, options)
    CorrectorFile.of(made, name, C, D, options, TRAINED, PRIOR).save(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path / "corrector.pt")


@pytest.mark.parametrize("name", REGISTRY)
def test_a_corrector_comes_back_with_its_parameters_and_its_story(tmp_path: Path, name: str) -> None:
    file = read_corrector(saved(tmp_path / "corrector.pt", name))
    torch.manual_seed(0)
    original = create(name, C, D, options_of(name))
    torch.manual_seed(1)
    restored = file.corrector()
    assert type(restored) is type(original)
    assert vars(restored).keys() == vars(original).keys()
    for option, value in options_of(name).items():
        assert value in vars(restored).values(), option
    state = original.state_dict()
    assert restored.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in restored.state_dict().items())
    assert file.trained == TRAINED
    assert file.calibration_prior.weights == PRIOR.weights
    for part in ("relabelled", "right", "confidence"):
        assert (vars(file.calibration_prior)[part] == vars(PRIOR)[part]).all()
    described = file.describe()
    assert described["corrector"] == name
    assert described["options"] == options_of(name)
    assert described["relabel_version"] == __version__
    assert described["backbone"] == "cnn8"
    assert described["parameters"] == sum(value.numel() for value in state.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "soup"}, "is not a corrector file"),
        ({"format": 99}, "has format 99"),
        ({"corrector": "nosuch"}, "unknown corrector 'nosuch'"),
        ({"corrector": None}, "is not a whole corrector file"),
        ({"corrector": "mslc", "options": {}}, "does not hold the parameters of mslc"),
        ({"num_classes": C + 1}, "does not hold the parameters of mlc"),
        ({"num_classes": "3"}, "is not a whole corrector file"),
        ({"num_features": None}, "is not a whole corrector file"),
        ({"options": {"nosuch": "soft"}}, "does not hold the parameters of mlc"),
        ({"options": {"start": 3}}, "does not hold the parameters of mlc"),
        ({"options": None}, "is not a whole corrector file"),
        ({"state": {}}, "does not hold the parameters of mlc"),
        ({"state": {"x": 1}}, "does not hold the parameters of mlc"),
        ({"state": {"scores": 1}}, "does not hold the parameters of mlc"),
        ({"state": {3: torch.zeros(1)}}, "does not hold the parameters of mlc"),
        ({"state": None}, "is not a whole corrector file"),
        ({"trained": 3}, "is not a whole corrector file"),
        ({"calibration_prior": None}, "is not a whole corrector file"),
        ({"calibration_prior": {}}, "does not hold the parameters of mlc"),
        (
            {"calibration_prior": kept_prior(weights={"late": 1.0})},
            "does not hold the parameters of mlc",
        ),
        (
            {"calibration_prior": kept_prior(weights={"late": 1.0, "transition": float("nan"), "keep": 0.0})},
            "does not hold the parameters of mlc",
        ),
        (
            {"calibration_prior": kept_prior(right=torch.ones(3).bool())},
            "does not hold the parameters of mlc",
        ),
        (
            {"calibration_prior": kept_prior(confidence=torch.ones(2) * 2)},
            "does not hold the parameters of mlc",
        ),
    ],
    ids=str,
)
def test_a_file_that_is_not_whole_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(RelabelError, match=message):
        read_corrector(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "evil", [1]], ids=["empty", "stub", "code", "list"])
def test_a_damaged_file_is_refused_and_nothing_in_it_runs(
    path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"kind": Evil()} if content == "evil" else content, path)
    with pytest.raises(RelabelError, match="is not a corrector file"):
        read_corrector(path)
    assert not os.path.exists("evil")


def trained_tmlc(options: dict[str, str]) -> CorrectorFile:
    """A file of what has learned something, for C classes."""
    torch.manual_seed(0)
    made = create("tmlc", C, D, options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    dict(made.named_buffers())["kept_share"].fill_(0.25)
    return CorrectorFile.of(made, "tmlc", C, D, options, TRAINED, PRIOR)


@pytest.mark.parametrize("options", [{}, {"target": "given", "without": "tse"}], ids=str)
@pytest.mark.parametrize(("classes", "features"), [(2, 1), (7, 64), (25, D)])
def test_a_tmlc_net_is_transferred_as_it_is(
    tmp_path: Path, classes: int, features: int, options: dict[str, str]
) -> None:
    original = trained_tmlc(options)
    original.save(tmp_path / "tmlc.pt")
    made = read_corrector(tmp_path / "tmlc.pt").transferred(classes, features)
    assert isinstance(made, TMLCNet)
    assert made.num_classes == classes
    assert all(vars(made)[name] == value for name, value in options.items())
    torch.testing.assert_close(dict(made.state_dict()), original.state, rtol=0, atol=0)
    probability = torch.rand(30, classes).softmax(dim=1)
    given = torch.arange(30) % classes
    everyone = torch.ones(30, dtype=torch.bool)
    observed = made.observe(Epoch(0, probability, everyone, given, {}, no_rows()))
    memory = {name: values[:] for name, values in observed.items()}
    soft_label = made.soft_label(torch.empty(0), given, memory)
    assert soft_label.shape == (30, classes)
    torch.testing.assert_close(soft_label.sum(dim=1), torch.ones(30))
    assert (soft_label.gather(1, given[:, None]) >= 0.25).all(), "its share for the given label goes with it"


def test_what_is_transferred_shares_nothing_with_its_file() -> None:
    file = trained_tmlc({})
    one, other = file.transferred(4, 1), file.transferred(4, 1)
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(other.parameters()).any()
    assert file.state["encoder.weight_ih_l0"].any()
    assert all(parameter.requires_grad for parameter in file.corrector().parameters()), "not frozen there"


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "tmlc"])
@pytest.mark.parametrize(("classes", "features"), [(C, D), (C + 4, D + 1)])
def test_no_other_corrector_means_anything_on_other_data(
    tmp_path: Path, name: str, classes: int, features: int
) -> None:
    file = read_corrector(saved(tmp_path / "corrector.pt", name))
    with pytest.raises(RelabelError) as refusal:
        file.transferred(classes, features)
    assert refusal.value.exit_code == 2
    assert str(refusal.value) == (
        f"A trained {name} is of no use on other data. "
        "Name a file that fit --corrector tmlc --save-corrector or pretrain has written."
    )


def test_a_calibration_by_unknown_evidence_is_refused() -> None:
    weights = {"late": 1.0, "tea-leaves": 1.0, "transition": 0.25, "keep": 0.0}
    file = CorrectorFile.of(create("tmlc", C, D, {}), "tmlc", C, D, {}, TRAINED, PRIOR)
    file.transferred(C, D)
    with pytest.raises(RelabelError, match="asks for 'tea-leaves', which this version does not know"):
        replace(file, calibration_prior=replace(PRIOR, weights=weights)).transferred(C, D)
