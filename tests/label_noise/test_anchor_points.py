"""Anchor points of simulated predictions whose transition matrix is known."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel.label_noise import anchor_points
from relabel.label_noise.transition_matrix import Counts, TransitionEstimate
from relabel.sample_memory import ProbabilityStore

C = 5
SYMMETRIC = np.full((C, C), 0.4 / (C - 1))
np.fill_diagonal(SYMMETRIC, 0.6)
ASYMMETRIC = np.eye(C)
ASYMMETRIC[1, :2] = 0.4, 0.6
ASYMMETRIC[3, 3:] = 0.7, 0.3

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def estimated(anchors: Counts) -> Floats:
    return TransitionEstimate.of(anchors).matrix


def simulated(rows: int, transition: Floats, seed: int = 0) -> tuple[Tensor, Labels, Labels]:
    """Early predictions of a fair network, given and true labels."""
    rng = np.random.default_rng(seed)
    true = rng.integers(C, size=rows)
    given = (rng.random((rows, 1)) > transition[true].cumsum(axis=1)).sum(axis=1).clip(max=C - 1)
    image = torch.from_numpy(rng.normal(size=(rows, C)) + 2 * np.eye(C)[true])
    return torch.softmax(2 * image, dim=1).float(), given, true


def test_the_surest_rows_of_each_predicted_class_are_its_anchor_points() -> None:
    early = torch.full((12, 3), 0.05)
    sure = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.6, 0.7, 0.5, 0.9, 0.4, 0.8]
    predicted = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0]
    early[torch.arange(12), torch.tensor(predicted)] = torch.tensor(sure)
    given = np.array([0, 1, 0, 0, 0, 0, 1, 0, 1, 2, 2, -1])
    # Six rows are given 0, of which .3 are two: .9 and .8, for the last counts for nothing. Three are given 1
    # (one anchor: .7, given 0) and two 2 (one anchor).
    expected = [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert anchor_points.count(early, given).tolist() == expected
    order = np.random.default_rng(0).permutation(12)
    assert anchor_points.count(early[order], given[order]).tolist() == expected
    kept = ProbabilityStore(12, 3)
    kept[torch.arange(12)] = early
    assert anchor_points.count(kept, given).tolist() == expected


def test_a_class_with_fewer_predictions_than_anchor_points_has_them_all() -> None:
    early = torch.eye(3)[[0] * 9 + [1]] * 0.9 + 0.03
    found = anchor_points.count(early, np.array([1] * 10))
    assert found.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]], "no row is given 0, so it has no anchor point"


def test_a_uniform_prediction_is_no_anchor_point() -> None:
    assert not anchor_points.count(torch.full((20, C), 1 / C), np.arange(20) % C).any()
    assert not anchor_points.count(torch.eye(C), np.full(C, -1)).any()
    assert anchor_points.count(torch.zeros((0, C)), np.zeros(0, dtype=np.int64)).shape == (C, C)


def test_many_rows_of_many_classes_are_counted_in_parts() -> None:
    probability = torch.rand((60_000, 40), generator=torch.Generator().manual_seed(0))
    given = probability.argmax(dim=1).numpy()
    found = anchor_points.count(probability, given)
    assert (np.diag(found) == np.ceil(0.3 * np.bincount(given))).all()
    assert found.sum() == np.trace(found)


@pytest.mark.parametrize("transition", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_the_transition_matrix_is_found_without_a_trusted_row(transition: Floats) -> None:
    early, given, _ = simulated(6_000, transition)
    found = estimated(anchor_points.count(early, given))
    assert found.sum(axis=1) == pytest.approx(1)
    assert (found > 0).all()
    assert np.abs(found - transition).max() < 0.05


def test_chance_leaves_no_structure_in_symmetric_noise_and_structure_stays() -> None:
    early, given, _ = simulated(1_000, SYMMETRIC)
    counts = anchor_points.count(early, given)
    raw = counts / counts.sum(axis=1, keepdims=True)
    off = ~np.eye(C, dtype=bool)
    assert estimated(counts)[off].std() < raw[off].std() / 2
    early, given, _ = simulated(1_000, ASYMMETRIC)
    found = estimated(anchor_points.count(early, given))
    assert found[1, 0] > 0.25
    assert found[1, 2:].max() < 0.05
    assert np.delete(found[0], 0).max() < 0.03, "what 1 is mistaken for is not mistaken for 1"


def test_renaming_the_classes_renames_the_noise_matrix() -> None:
    early, given, _ = simulated(900, ASYMMETRIC)
    names = np.array([3, 0, 4, 1, 2])
    renamed = estimated(anchor_points.count(early[:, np.argsort(names)], names[given]))
    expected = estimated(anchor_points.count(early, given))
    assert renamed[np.ix_(names, names)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("transition", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_the_posterior_is_bayes_with_frequencies_found_by_em(transition: Floats) -> None:
    frequency = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    joint = frequency[:, None] * transition
    found = anchor_points.posterior(transition, 1_000 * joint.sum(axis=0))
    assert found.sum(axis=0) == pytest.approx(1)
    assert found == pytest.approx(joint / joint.sum(axis=0), abs=0.03)


def test_a_class_without_a_given_label_has_a_posterior_too() -> None:
    found = anchor_points.posterior(SYMMETRIC, np.array([5.0, 0, 3, 2, 1]))
    assert np.isfinite(found).all()
    assert found.sum(axis=0) == pytest.approx(1)


@pytest.mark.parametrize("transition", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_the_posterior_explains_the_given_labels(transition: Floats) -> None:
    """The frequencies it implies give back the labels' frequencies: EM has converged."""
    given = 1_000 * (np.array([0.1, 0.3, 0.2, 0.25, 0.15]) @ transition)
    frequency = anchor_points.posterior(transition, given) @ (given / given.sum())
    assert frequency @ transition == pytest.approx(given / given.sum(), abs=1e-3)
