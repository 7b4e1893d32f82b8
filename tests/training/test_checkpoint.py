import os
import pickle

import pytest
import torch

from relabel.errors import RelabelError
from relabel.training import checkpoint

STATE = {"epoch": 3, "weights": torch.arange(4.0), "nothing": None}


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "state", STATE, "digest")
    return tmp_path / "state"


def test_a_state_comes_back_as_it_was(path):
    state = checkpoint.load(path, "digest")
    assert state["epoch"] == 3
    assert state["nothing"] is None
    assert torch.equal(state["weights"], STATE["weights"])
    assert checkpoint.is_checkpoint(path)


def test_saving_again_replaces_at_once_and_leaves_no_temporary_file(path):
    checkpoint.save(path, {**STATE, "epoch": 4}, "digest")
    assert checkpoint.load(path, "digest")["epoch"] == 4
    assert os.listdir(path.parent) == ["state"]


def test_another_runs_state_is_refused(path):
    with pytest.raises(RelabelError, match="belongs to a run with other data or other settings"):
        checkpoint.load(path, "other")


def test_what_differs_is_named(path):
    ours = {"epochs": 8, "seed": 0, "the images": "a" * 64, "lr": None}
    theirs = checkpoint.fingerprint({**ours, "epochs": 6, "the images": "b" * 64, "old": 1})
    checkpoint.save(path, STATE, theirs)
    assert checkpoint.load(path, theirs)
    with pytest.raises(RelabelError, match=r"settings: epochs was 6 and is 8; the images differ\. Repeat"):
        checkpoint.load(path, checkpoint.fingerprint(ours))


def half(path):
    path.write_bytes(path.read_bytes()[:300])


def other(path):
    torch.save([1], path)


def nothing(path):
    path.write_bytes(b"")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def evil(path):
    path.write_bytes(pickle.dumps({"format": 1, "fingerprint": "digest", "state": Evil()}))


def evil_torch(path):
    torch.save({"format": 1, "fingerprint": "digest", "state": Evil()}, path)


@pytest.mark.parametrize("damage", [half, other, nothing, evil, evil_torch])
def test_a_damaged_or_foreign_file_is_refused_and_nothing_in_it_runs(path, damage, monkeypatch):
    monkeypatch.chdir(path.parent)
    damage(path)
    assert not checkpoint.is_checkpoint(path)
    with pytest.raises(RelabelError, match="is damaged or another kind of file"):
        checkpoint.load(path, "digest")
    assert not os.path.exists("evil")


def test_a_missing_file_is_no_checkpoint(tmp_path):
    assert not checkpoint.is_checkpoint(tmp_path / "nosuch")


def test_the_fingerprint_follows_the_content_and_not_the_order():
    assert checkpoint.fingerprint({"a": 1, "b": [2]}) == checkpoint.fingerprint({"b": [2], "a": 1})
    assert checkpoint.fingerprint({"a": 1, "b": [2]}) != checkpoint.fingerprint({"a": 1, "b": [3]})
    assert checkpoint.fingerprint({"a": [1] * 999}) != checkpoint.fingerprint({"a": [1] * 998 + [2]})
    assert len(checkpoint.fingerprint({"a": [1] * 999})) < 60
