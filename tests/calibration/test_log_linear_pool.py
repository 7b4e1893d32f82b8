"""The softmax over evidence, and its weights, against the formulas written out."""

import numpy as np
from numpy.typing import NDArray

from relabel.calibration.log_linear_pool import PRIOR_PRECISION, DesignMatrix, fit_weights, softmax

Floats = NDArray[np.float64]

N, C = 60, 4
RNG = np.random.default_rng(0)
TRANSITION = RNG.dirichlet(np.ones(C), size=C)
EVIDENCE = {name: RNG.dirichlet(np.ones(C), size=N) for name in ("early", "late")}
GIVEN = RNG.integers(-1, C, size=N)
HELD_OUT = (RNG.random(N) < 0.3) & (GIVEN >= 0)
FACTORS = RNG.random((C, C)) + 0.5
WEIGHTS = np.array([0.7, 1.6, 0.4, -0.8])


def terms(**options: NDArray[np.generic]) -> DesignMatrix:
    return DesignMatrix.of(EVIDENCE, GIVEN, TRANSITION[:, GIVEN].T, **options)  # type: ignore[arg-type]


def by_hand(row: int, held_out: bool, raking_factors: Floats | None) -> Floats:
    share = EVIDENCE["early"][row] ** 0.7 * EVIDENCE["late"][row] ** 1.6
    label = GIVEN[row]
    if label >= 0 and held_out:
        share = share * TRANSITION[:, label]
    elif label >= 0:
        share = share * TRANSITION[:, label] ** 0.4 * np.exp(-0.8 * (np.arange(C) == label))
        if raking_factors is not None:
            share = share * raking_factors[:, label]
    made: Floats = share / share.sum()
    return made


def test_without_more_every_label_counts_as_one_that_training_saw() -> None:
    found = softmax(terms().scores(WEIGHTS))
    np.testing.assert_allclose(found, [by_hand(row, False, None) for row in range(N)])


def test_labels_held_out_count_by_bayes_and_the_others_by_weights_and_factors() -> None:
    found = softmax(terms(held_out=HELD_OUT, raking_factors=FACTORS).scores(WEIGHTS))
    np.testing.assert_allclose(found, [by_hand(row, HELD_OUT[row], FACTORS) for row in range(N)])


def test_a_part_of_the_terms_is_those_of_the_part() -> None:
    whole = terms(held_out=HELD_OUT, raking_factors=FACTORS)
    for part in (slice(7, 19), HELD_OUT):
        assert (whole[part].scores(WEIGHTS) == whole.scores(WEIGHTS)[part]).all()


def test_evidence_that_rules_a_class_out_has_a_floor() -> None:
    certain = {"late": np.eye(2)}
    scores = DesignMatrix.of(certain, np.array([-1, -1]), np.full((2, 2), 0.5)).scores(
        np.array([1.0, 9.0, 9.0])
    )
    np.testing.assert_allclose(scores, np.log([[1, 1e-4], [1e-4, 1]]))


def test_the_weights_are_where_the_posterior_has_its_maximum() -> None:
    """Central differences of the objective, written out, are 0 there, and not far from there."""
    made = terms(held_out=HELD_OUT)
    true = RNG.integers(C, size=N)
    prior = np.array([1.0, 1.0, 0.25, 0.0])

    def objective(weights: Floats) -> float:
        likelihood = softmax(made.scores(weights))[np.arange(N), true]
        return float(-np.log(likelihood).sum() + PRIOR_PRECISION / 2 * ((weights - prior) ** 2).sum())

    def slopes(weights: Floats) -> Floats:
        steps = 1e-5 * np.eye(4)
        return np.array([objective(weights + step) - objective(weights - step) for step in steps]) / 2e-5

    found = fit_weights([(made, true)], prior)
    assert np.abs(slopes(found)).max() < 1e-3
    assert np.abs(slopes(prior)).max() > 0.5
    assert objective(found) < objective(prior)


def test_rows_count_alike_in_whatever_groups_they_come() -> None:
    made, true = terms(), RNG.integers(C, size=N)
    prior = np.zeros(4)
    parts = [slice(0, 25), slice(25, N)]
    found = fit_weights([(made[part], true[part]) for part in parts], prior)
    np.testing.assert_allclose(found, fit_weights([(made, true)], prior), atol=1e-4)
    assert fit_weights([], prior).tolist() == prior.tolist()
