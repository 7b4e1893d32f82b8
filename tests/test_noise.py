from pathlib import Path

import numpy as np
import pytest

from relabel.errors import RelabelError
from relabel.noise import NOISE_MODELS, CorruptedLabels, Labels, corrupt, read_mapping

CLASSES = ["airplane", "bird", "cat", "dog", "truck"]
MAPPING = {4: 0, 2: 3}


def labels(per_class: int = 200, unlabelled: int = 37) -> Labels:
    values = np.concatenate([np.repeat(np.arange(5), per_class), np.full(unlabelled, -1)])
    return np.random.default_rng(5).permutation(values).astype(np.int64)


def noisy(given: Labels, noise: str, rate: float, seed: int = 0) -> CorruptedLabels:
    mapping = MAPPING if noise == "asymmetric" else None
    return corrupt(given, CLASSES, noise=noise, rate=rate, seed=seed, mapping=mapping)


@pytest.mark.parametrize("noise", NOISE_MODELS)
def test_every_model(noise: str) -> None:
    given = labels()
    kept = given.copy()
    state = np.random.get_state()[1].copy()
    result = noisy(given, noise, 0.4)

    assert result.labels.dtype == np.int64
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_array_equal(result.labels[given < 0], -1)
    assert set(result.labels[given >= 0]) <= set(range(5))
    np.testing.assert_array_equal(result.wrong, result.labels != given)
    assert result.actual_rate == result.wrong.sum() / 1000
    np.testing.assert_array_equal(result.labels, noisy(given, noise, 0.4).labels)
    assert (result.labels != noisy(given, noise, 0.4, seed=1).labels).any()
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # the global generator is not touched
    assert not noisy(given, noise, 0.0).wrong.any()


@pytest.mark.parametrize("rate", [0.1, 0.333, 1.0])
def test_symmetric_flips_an_exact_count_evenly_over_the_other_classes(rate: float) -> None:
    given = labels()
    result = noisy(given, "symmetric", rate)
    assert result.wrong.sum() == round(rate * 1000)
    if rate == 1.0:
        counts = np.bincount(given[given >= 0] * 5 + result.labels[given >= 0], minlength=25).reshape(5, 5)
        np.testing.assert_array_equal(np.diag(counts), 0)
        assert counts[~np.eye(5, dtype=bool)].min() > 25  # 50 expected of 200


def test_symmetric_inclusive_sometimes_redraws_the_true_class() -> None:
    assert noisy(labels(4000), "symmetric-inclusive", 0.5).actual_rate == pytest.approx(0.4, abs=0.01)


def test_asymmetric_flips_an_exact_share_of_the_mapped_classes_only() -> None:
    given = labels(101)
    result = noisy(given, "asymmetric", 0.3)
    for source in range(5):
        flipped = result.labels[(given == source) & result.wrong]
        assert flipped.tolist() == [MAPPING[source]] * 30 if source in MAPPING else len(flipped) == 0


def test_a_chain_in_the_map_flips_no_row_twice() -> None:
    given = labels()
    result = corrupt(given, CLASSES, noise="asymmetric", rate=1.0, seed=0, mapping={0: 1, 1: 2})
    np.testing.assert_array_equal(result.labels[given == 0], 1)
    np.testing.assert_array_equal(result.labels[given == 1], 2)


def test_flip_to_one_moves_an_exact_share_of_each_class_to_one_other_class() -> None:
    given = labels()
    targets = set()
    for seed in range(8):
        result = noisy(given, "flip-to-one", 0.25, seed)
        for source in range(5):
            flipped = result.labels[(given == source) & result.wrong]
            assert len(flipped) == 50
            assert len(set(flipped)) == 1
            targets.add((source, int(flipped[0])))
    assert len(targets) > 10  # the other class is drawn anew by each seed


@pytest.mark.parametrize(
    ("noise", "rate", "mapping", "message"),
    [
        (
            "gaussian",
            0.4,
            None,
            "gaussian is not known.*symmetric, symmetric-inclusive, asymmetric, flip-to-one",
        ),
        ("symmetric", 1.5, None, "1.5 is not between 0 and 1"),
        ("symmetric", -0.1, None, "not between"),
        ("symmetric", float("nan"), None, "not between"),
        ("symmetric", 0.4, {0: 1}, "does not use a map"),
        ("asymmetric", 0.4, None, "needs a map"),
        ("asymmetric", 0.4, {2: 2}, "'cat' to itself"),
    ],
)
def test_bad_requests(noise: str, rate: float, mapping: dict[int, int] | None, message: str) -> None:
    with pytest.raises(RelabelError, match=message):
        corrupt(labels(), CLASSES, noise=noise, rate=rate, seed=0, mapping=mapping)


def test_sources_that_cannot_be_corrupted() -> None:
    with pytest.raises(RelabelError, match="at least two classes"):
        corrupt(np.zeros(3, dtype=np.int64), ["cat"], noise="symmetric", rate=0.5, seed=0)
    with pytest.raises(RelabelError, match="no labelled row"):
        corrupt(np.full(3, -1), CLASSES, noise="symmetric", rate=0.5, seed=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.csv", "from,to\ntruck,airplane\ncat,dog\n"),
        ("map.csv", "\ufeffto,from,note\r\nairplane,truck,x\r\ndog,cat,y\r\n"),
        ("map.json", '{"truck": "airplane", "cat": "dog"}'),
    ],
)
def test_read_mapping(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_mapping(tmp_path / name, CLASSES) == MAPPING


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("map.csv", "from,to\ntruck,airplane\ncat,lion\n", "row 3: 'lion' is not a class.*airplane, bird"),
        ("map.csv", "from,to\ntruck\n", "row 2: '' is not a class"),
        ("map.csv", "from,to\ncat,dog\ncat,bird\n", "row 3: 'cat' is mapped twice"),
        ("map.csv", "truck,airplane\n", "no header"),
        ("map.csv", "", "no header"),
        ("map.csv", "from,to\n", "is empty"),
        ("map.json", '{"cat": "dog", "lion": "dog"}', "entry 2: 'lion' is not a class"),
        ("map.json", '{"cat": "dog", "cat": "bird"}', "entry 2: 'cat' is mapped twice"),
        ("map.json", '{"cat": "dog"', "is not JSON"),
        ("map.json", '{"cat": {"dog": "bird"}}', "not an object of class names"),
        ("map.json", '["cat", "dog"]', "not an object of class names"),
        ("map.json", "7", "not an object of class names"),
    ],
)
def test_bad_maps(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RelabelError, match=message):
        read_mapping(tmp_path / name, CLASSES)


def test_maps_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RelabelError, match="could not be read"):
        read_mapping(tmp_path / "none.csv", CLASSES)
    (tmp_path / "latin.csv").write_bytes("from,to\ncafé,cat\n".encode("latin-1"))
    with pytest.raises(RelabelError, match="not UTF-8"):
        read_mapping(tmp_path / "latin.csv", CLASSES)
