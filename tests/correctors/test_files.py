import os

import pytest
import torch

from relabel.correctors import create
from relabel.correctors.files import read_corrector, save_corrector
from relabel.errors import RelabelError

TRAINED = {"backbone": "cnn8", "class_names": ["a", "b"]}


@pytest.fixture
def path(tmp_path):
    save_corrector(tmp_path / "mslc.pt", "mslc", create("mslc"), TRAINED)
    return tmp_path / "mslc.pt"


def test_a_corrector_comes_back_with_its_parameters_and_its_story(path):
    torch.manual_seed(0)
    corrector = create("mslc")
    save_corrector(path, "mslc", corrector, TRAINED)
    file = read_corrector(path)
    assert file.state.keys() == corrector.state_dict().keys()
    assert all(torch.equal(value, file.state[key]) for key, value in corrector.state_dict().items())
    described = file.describe()
    assert described["corrector"] == "mslc"
    assert described["backbone"] == "cnn8"
    assert described["parameters"] == sum(value.numel() for value in corrector.state_dict().values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "soup"}, "is not a corrector file"),
        ({"format": 99}, "has format 99"),
        ({"corrector": "nosuch"}, "unknown corrector 'nosuch'"),
        ({"corrector": None}, "unknown corrector None"),
        ({"state": {}}, "does not hold the parameters of mslc"),
        ({"state": {"x": 1}}, "does not hold the parameters of mslc"),
        ({"state": None}, "is not a whole corrector file"),
        ({"trained": 3}, "is not a whole corrector file"),
    ],
    ids=str,
)
def test_a_file_that_is_not_whole_is_refused(path, change, told):
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(RelabelError, match=told):
        read_corrector(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "evil", [1]], ids=["empty", "stub", "code", "list"])
def test_a_damaged_file_is_refused_and_nothing_in_it_runs(path, content, monkeypatch):
    monkeypatch.chdir(path.parent)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"kind": Evil()} if content == "evil" else content, path)
    with pytest.raises(RelabelError, match="is not a corrector file"):
        read_corrector(path)
    assert not os.path.exists("evil")
