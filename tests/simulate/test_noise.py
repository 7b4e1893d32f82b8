"""Noise models on labels and random images: which labels they flip, how many, and to what."""

import numpy as np
import pytest

from relabel.errors import RelabelError
from relabel.simulate.noise import (
    FROM_IMAGES,
    MAPPED,
    NOISE_MODELS,
    CorruptedLabels,
    Labels,
    corrupt,
    from_margins,
)

CLASSES = ["airplane", "bird", "cat", "dog", "truck"]
MAPPING = {4: 0, 2: 3}
PER_CLASS = ("uniform", "flip-random", "flip-to-one")


class FakeImages:
    """Random images and logits; every 50th labelled row cannot be read."""

    def __init__(self, given: Labels, size: int = 8) -> None:
        rng = np.random.default_rng(11)
        labelled = np.flatnonzero(given >= 0)
        self.rows = np.delete(labelled, np.s_[::50])
        self.pixels = rng.integers(0, 256, (len(given), size, size, 3), dtype=np.uint8)
        self.scores = rng.normal(size=(len(given), 5)).astype(np.float32)

    def values(self):
        return self.rows, self.pixels

    def logits(self):
        return self.rows, self.scores


def labels(per_class: int = 200, unlabelled: int = 37) -> Labels:
    values = np.concatenate([np.repeat(np.arange(5), per_class), np.full(unlabelled, -1)])
    return np.random.default_rng(5).permutation(values).astype(np.int64)


def noisy(given: Labels, noise: str, rate: float, seed: int = 0, images=None) -> CorruptedLabels:
    return corrupt(
        given,
        CLASSES,
        noise=noise,
        rate=rate,
        seed=seed,
        mapping=MAPPING if noise in MAPPED else None,
        images=images or (FakeImages(given) if noise in FROM_IMAGES else None),
    )


def counts(given: Labels, result: CorruptedLabels) -> np.ndarray:
    """Rows by [given, noisy] class."""
    labelled = given >= 0
    return np.bincount(given[labelled] * 5 + result.labels[labelled], minlength=25).reshape(5, 5)


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
    seeded = (result.labels != noisy(given, noise, 0.4, seed=1).labels).any()
    assert seeded != (noise == "feature-dependent")  # where the seed goes into the network
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # the global generator is not touched
    assert not noisy(given, noise, 0.0).wrong.any()


@pytest.mark.parametrize("noise", sorted(FROM_IMAGES))
def test_rows_without_a_readable_image_keep_their_label(noise: str) -> None:
    given = labels()
    images = FakeImages(given)
    result = noisy(given, noise, 1.0, images=images)
    unreadable = np.setdiff1d(np.arange(len(given)), images.rows)
    assert not result.wrong[unreadable].any()
    assert result.wrong[images.rows].mean() > 0.9


@pytest.mark.parametrize("rate", [0.1, 0.333, 1.0])
def test_symmetric_flips_an_exact_count_evenly_over_the_other_classes(rate: float) -> None:
    given = labels()
    result = noisy(given, "symmetric", rate)
    assert result.wrong.sum() == round(rate * 1000)
    if rate == 1.0:
        table = counts(given, result)
        np.testing.assert_array_equal(np.diag(table), 0)
        assert table[~np.eye(5, dtype=bool)].min() > 25  # 50 expected of 200


def test_symmetric_inclusive_sometimes_redraws_the_true_class() -> None:
    assert noisy(labels(4000), "symmetric-inclusive", 0.5).actual_rate == pytest.approx(0.4, abs=0.01)


def test_uniform_spreads_an_exact_share_of_each_class_in_equal_quotas() -> None:
    given = labels(100)
    table = counts(given, noisy(given, "uniform", 0.25))  # 25 rows a class, 5 to each
    np.testing.assert_array_equal(table, np.full((5, 5), 5) + np.diag(np.full(5, 75)))
    targets = set()
    for seed in range(30):
        moved = counts(given, noisy(given, "uniform", 0.18, seed)) - np.diag(np.full(5, 82))  # 18 = 3 * 5 + 3
        np.testing.assert_array_equal(np.sort(moved, axis=1), np.tile([3, 3, 4, 4, 4], (5, 1)))
        targets |= set(np.flatnonzero(moved.ravel() == 3).tolist())
    assert len(targets) == 25  # who gets the remainder is drawn


def test_flip_random_flips_an_exact_share_of_each_class_evenly_over_the_others() -> None:
    given = labels(203)
    table = counts(given, noisy(given, "flip-random", 0.6))
    np.testing.assert_array_equal(np.diag(table), 203 - 122)
    assert table[~np.eye(5, dtype=bool)].min() > 15  # 30 expected
    assert len(set(table[~np.eye(5, dtype=bool)].tolist())) > 5  # no quotas


@pytest.mark.parametrize("noise", PER_CLASS)
def test_a_class_without_rows_or_with_one_is_no_trouble(noise: str) -> None:
    given = np.array([0, 0, 0, 0, 2, -1], dtype=np.int64)
    assert noisy(given, noise, 0.5).wrong[4:].sum() == 0  # round(0.5) is 0
    assert noisy(given, noise, 0.75).wrong[:4].sum() <= 3


def test_margins_choose_the_rows_nearest_to_the_boundary_and_the_class_behind_it() -> None:
    logits = np.array(
        [
            [9.0, 1.0, 0.0],  # sure
            [2.0, 1.5, 0.0],  # second nearest of the right ones
            [0.0, 3.0, 5.0],  # the network is sure of another class: first
            [0.0, 1.0, 0.9],  # nearest of the right ones
            [4.0, 3.0, 4.5],  # another class, just: second
        ]
    )
    given = np.array([0, 0, 1, 1, 0])
    by_rate = {0.0: [], 0.2: [2], 0.4: [2, 4], 0.6: [2, 3, 4], 0.8: [1, 2, 3, 4], 1.0: [0, 1, 2, 3, 4]}
    for rate, flipped in by_rate.items():
        result = from_margins(logits, given, rate)
        assert np.flatnonzero(result != given).tolist() == flipped
        np.testing.assert_array_equal(result[flipped], np.array([1, 1, 2, 2, 2])[flipped])


def test_feature_dependent_flips_the_smallest_margins_to_the_second_choice() -> None:
    given = labels()
    images = FakeImages(given)
    result = noisy(given, "feature-dependent", 0.3, images=images)
    assert result.wrong.sum() == round(0.3 * len(images.rows))
    scores = images.scores.copy()
    own = scores[np.arange(len(given)), given]
    scores[np.arange(len(given)), given] = -np.inf
    np.testing.assert_array_equal(result.labels[result.wrong], scores.argmax(axis=1)[result.wrong])
    decision_threshold = own - scores.max(axis=1)
    right = np.setdiff1d(images.rows, np.flatnonzero(result.wrong))
    assert decision_threshold[result.wrong].max() <= decision_threshold[right].min()


@pytest.mark.parametrize(("rate", "expected"), [(0.1, 0.129), (0.4, 0.4), (0.5, 0.5), (0.9, 0.871)])
def test_instance_dependent_flips_about_the_rate_to_other_classes(rate: float, expected: float) -> None:
    given = labels(2000, unlabelled=0)
    images = FakeImages(given)
    images.rows = np.arange(len(given))
    result = noisy(given, "instance-dependent", rate, images=images)
    # The mean of the truncated normal, and three standard deviations of a share of 10,000 rows.
    assert result.actual_rate == pytest.approx(expected, abs=0.015)
    assert np.count_nonzero(counts(given, result)) > 5 + 7


def test_instance_dependent_targets_depend_on_image_and_class_alone() -> None:
    """Rows of two pictures in five classes: within each picture and class every flip goes one way."""
    given = np.tile(np.repeat(np.arange(5), 60), 2).astype(np.int64)
    pictures = np.repeat([0, 1], 300)
    images = FakeImages(given, size=16)
    images.rows = np.arange(len(given))
    images.pixels = images.pixels[pictures]
    images.pixels[pictures == 1, 8:] = 0
    ways, apart = set(), 0
    for seed in range(6):
        result = noisy(given, "instance-dependent", 0.5, seed, images)
        for own in range(5):
            targets = [
                set(result.labels[(given == own) & (pictures == n) & result.wrong].tolist()) for n in (0, 1)
            ]
            assert [len(found) for found in targets] == [1, 1]
            ways |= {(own, *found) for found in targets}
            apart += targets[0] != targets[1]
    assert len(ways) > 15  # of 20: W is drawn anew
    assert 5 < apart < 28  # the picture decides, too


def test_instance_dependent_draws_from_the_softmax() -> None:
    given = np.zeros(20_000, dtype=np.int64)
    images = FakeImages(given, size=1)
    images.rows = np.arange(len(given))
    shares = []
    for pixel in ([0, 0, 0], [1, 0, 0]):
        images.pixels = np.full((len(given), 1, 1, 3), pixel, dtype=np.uint8)
        result = noisy(given, "instance-dependent", 0.5, images=images)
        shares.append(counts(given, result)[0, 1:] / result.wrong.sum())
    np.testing.assert_allclose(shares[0], 0.25, atol=0.015)  # every score is 0
    assert shares[1].min() > 0.005  # scores of size 1: neither uniform nor one class only
    assert shares[1].max() > 2 * shares[1].min()


def test_asymmetric_flips_an_exact_share_of_the_mapped_classes_only() -> None:
    given = labels(101)
    result = noisy(given, "asymmetric", 0.3)
    for source in range(5):
        flipped = result.labels[(given == source) & result.wrong]
        assert flipped.tolist() == [MAPPING[source]] * 30 if source in MAPPING else len(flipped) == 0


def test_superclass_flips_an_exact_share_of_each_class_along_its_circle() -> None:
    circle = {0: 4, 4: 0, 1: 2, 2: 3, 3: 1}
    given = labels(101)
    table = counts(given, corrupt(given, CLASSES, noise="superclass", rate=0.3, seed=0, mapping=circle))
    np.testing.assert_array_equal(np.diag(table), 71)
    assert all(table[source, target] == 30 for source, target in circle.items())


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
            "gaussian is not known.*symmetric, .*uniform, .*superclass, .*instance-dependent",
        ),
        ("symmetric", 1.5, None, "1.5 is not between 0 and 1"),
        ("symmetric", -0.1, None, "not between"),
        ("symmetric", float("nan"), None, "not between"),
        ("symmetric", 0.4, {0: 1}, "does not use a map"),
        ("asymmetric", 0.4, None, "needs a map"),
        ("superclass", 0.4, None, "needs a map"),
        ("uniform", 0.4, {0: 1}, "does not use a map"),
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
