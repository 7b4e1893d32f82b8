"""Transition matrices estimated from counted rows, against the Dirichlet-multinomial and against truths."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from relabel.label_noise.transition_matrix import DirichletPrior, TransitionEstimate, at_pooled_rate
from relabel.metrics import noise_matrix

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

TRUTH = np.array([[0.7, 0.3, 0.0, 0.0], [0.05, 0.9, 0.0, 0.05], [0.0, 0.0, 1.0, 0.0], [0.1, 0.1, 0.3, 0.5]])
NOTHING = np.zeros((4, 4), dtype=np.int64)


def drawn(truth: Floats, rows: int, seed: int = 0) -> Counts:
    """[C, C] pairs, so many rows a class."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(rows, chances) for chances in truth])


def estimated(counts: Counts, prior_matrix: Floats | None = None) -> Floats:
    return DirichletPrior.fitted(counts, prior_matrix).posterior(counts)


def symmetric(rate: float, classes: int = 6) -> Floats:
    matrix = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return matrix


def test_noise_at_the_pooled_rate_goes_where_that_of_the_prior_matrix_goes() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 5]])
    found = at_pooled_rate(counts)
    assert np.diag(found) == pytest.approx(1 - 4 / 13)  # 3 wrong of 11, and 1 of 2
    assert found[~np.eye(3, dtype=bool)] == pytest.approx(2 / 13)
    prior_matrix = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.3, 0.2, 0.5]])
    rate = (3 + 2 * 0.3) / 13
    expected = [[1 - rate, 0.75, 0.25], [0.5, 1 - rate, 0.5], [0.6, 0.4, 1 - rate]]
    scale = np.where(np.eye(3, dtype=bool), 1, rate)
    assert at_pooled_rate(counts, prior_matrix) == pytest.approx(scale * expected)


@pytest.mark.parametrize("prior_matrix", [None, symmetric(0.2, 4)])
def test_the_estimate_is_a_distribution_a_class_and_tends_to_the_counts(prior_matrix: Floats | None) -> None:
    for rows in (0, 1, 10, 1_000_000):
        found = estimated(drawn(TRUTH, rows), prior_matrix)
        assert found.sum(axis=1) == pytest.approx(1)
        assert (found > 0).all()
    assert found == pytest.approx(TRUTH, abs=2e-3)


def test_without_a_row_it_is_the_prior_matrix() -> None:
    assert estimated(NOTHING, symmetric(0.3, 4)) == pytest.approx(symmetric(0.3, 4))
    assert np.diag(estimated(NOTHING)) == pytest.approx(0.5), "any label may be wrong"


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_strengths_are_the_likeliest_of_the_dirichlet_multinomial(classes: int) -> None:
    """Against the sequential form: each label's chance given those before it."""
    counts = drawn(symmetric(0.4, classes), 12, seed=classes)
    prior_matrix = estimated(drawn(symmetric(0.3, classes), 50))
    made = DirichletPrior.fitted(counts, prior_matrix)
    mean = made.mean

    def log_likelihood(cells: Floats, of: Floats, rows: float) -> float:
        total = 0.0
        for own, chances in zip(cells, of, strict=True):
            seen = 0
            for count, chance in zip(own, chances, strict=True):
                for before in range(int(count)):
                    total += math.log((before + rows * chance) / (seen + rows))
                    seen += 1
        return total

    off = ~np.eye(classes, dtype=bool)
    rates = np.stack([np.diag(counts), counts.sum(axis=1) - np.diag(counts)], axis=1)
    noise_rate = 1 - np.diag(mean)
    for cells, of, chosen in (
        (rates, np.stack([1 - noise_rate, noise_rate], axis=1), made.rate_rows),
        (
            counts[off].reshape(classes, -1),
            mean[off].reshape(classes, -1) / noise_rate[:, None],
            made.share_rows,
        ),
    ):
        best = log_likelihood(cells, of, chosen)
        for rows in (0.1, 1, 10, 100, 1_000, 10_000):
            assert log_likelihood(cells, of, rows) <= best + 1e-6


def test_few_rows_of_symmetric_noise_leave_no_structure_and_structure_stays() -> None:
    off = ~np.eye(6, dtype=bool)
    counts = drawn(symmetric(0.4), 20)
    raw = counts / counts.sum(axis=1, keepdims=True)
    assert estimated(counts)[off].std() < raw[off].std() / 2
    flipped = 0.6 * np.eye(6) + 0.4 * np.roll(np.eye(6), 1, axis=1)
    found = estimated(drawn(flipped, 8))
    assert np.abs(found - flipped).max() < 0.15
    assert found[(flipped == 0)].max() < 0.02


def test_a_prior_matrix_fills_in_what_few_rows_cannot_tell() -> None:
    flipped = 0.6 * np.eye(6) + 0.4 * np.roll(np.eye(6), 1, axis=1)
    counts = drawn(flipped, 2)
    helpful = estimated(drawn(flipped, 100, seed=1))
    misled = estimated(drawn(flipped.T, 100, seed=1))
    errors = [
        np.abs(estimated(counts, prior_matrix) - flipped).mean() for prior_matrix in (helpful, None, misled)
    ]
    assert all(better < worse for better, worse in pairwise(errors))
    many = drawn(flipped, 500)
    assert np.abs(estimated(many, misled) - flipped).max() < 0.1, "rows overrule the prior matrix"


def test_classes_differ_in_their_noise_as_far_as_the_rows_say() -> None:
    rates = np.array([0.05, 0.1, 0.5, 0.6])
    counts = np.stack([drawn(symmetric(rate, 4), 200)[row] for row, rate in enumerate(rates)])
    assert 1 - np.diag(estimated(counts)) == pytest.approx(rates, abs=0.06)
    assert (
        DirichletPrior.fitted(counts).rate_rows
        < DirichletPrior.fitted(drawn(symmetric(0.3, 4), 200)).rate_rows
    )


@pytest.mark.parametrize("prior_matrix", [None, 0.8 * TRUTH + 0.05])
def test_leave_one_out_equals_the_posterior_without_the_row(prior_matrix: Floats | None) -> None:
    rng = np.random.default_rng(1)
    true = rng.integers(4, size=50)
    given = np.where(rng.random(50) < 0.4, rng.integers(4, size=50), true)
    counts = noise_matrix(given, true, 4)
    made = TransitionEstimate(counts, DirichletPrior.fitted(counts, prior_matrix))
    for row, found in enumerate(made.leave_one_out(true, given)):
        rest = counts.copy()
        rest[true[row], given[row]] -= 1
        np.testing.assert_allclose(found, made.prior.posterior(rest)[:, given[row]], rtol=1e-12)


def test_two_classes_have_noise_rates_alone() -> None:
    counts = np.array([[900, 100], [10, 990]])
    assert estimated(counts) == pytest.approx(np.array([[0.9, 0.1], [0.01, 0.99]]), abs=0.005)


def test_renaming_the_classes_renames_the_estimate() -> None:
    order = np.array([2, 0, 3, 1])
    counts, prior_matrix = drawn(TRUTH, 15), 0.8 * TRUTH + 0.05
    found = estimated(counts[np.ix_(order, order)], prior_matrix[np.ix_(order, order)])
    np.testing.assert_allclose(found, estimated(counts, prior_matrix)[np.ix_(order, order)], rtol=1e-9)


def test_anchor_points_make_the_prior_matrix() -> None:
    anchors, counts = drawn(TRUTH, 200, seed=1), drawn(TRUTH, 5)
    prior_matrix = TransitionEstimate.of(anchors).matrix
    found = TransitionEstimate.of(counts, anchors)
    np.testing.assert_array_equal(found.matrix, estimated(counts, prior_matrix))
    alone = TransitionEstimate.of(counts)
    assert np.abs(found.matrix - TRUTH).mean() < np.abs(alone.matrix - TRUTH).mean()
    np.testing.assert_array_equal(TransitionEstimate.of(counts, NOTHING).matrix, alone.matrix)


@pytest.mark.parametrize("anchors", [None, drawn(TRUTH, 50, seed=2)], ids=["alone", "anchor points"])
def test_the_estimate_converges(anchors: Counts | None) -> None:
    def error(rows: int) -> float:
        found = (TransitionEstimate.of(drawn(TRUTH, rows, seed), anchors).matrix for seed in range(20))
        return float(np.mean([np.abs(matrix - TRUTH).mean() for matrix in found]))

    errors = [error(rows) for rows in (3, 30, 300, 3_000)]
    assert all(better < worse for worse, better in pairwise(errors))
    assert errors[-1] < 0.01
