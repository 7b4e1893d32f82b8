"""What simulated data sets with a known truth teach for others."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from relabel.calibration.calibrate import fit
from relabel.calibration.labelled_runs import LabelledRun, learn, soft_labels
from relabel.calibration.log_linear_pool import softmax
from relabel.label_noise.transition_matrix import TransitionEstimate

C = 4
SIGNAL = 1.8

Floats = NDArray[np.float64]


def simulated(
    rows: int,
    seed: int,
    classes: int = C,
    sharpness: float = 1.0,
    noise_rate: float = 0.3,
    memorised: float = 0.0,
) -> LabelledRun:
    """A data set with its exact noise matrix, and every tenth label held out.

    Of sharpness 1, `late` is the exact posterior of the image; that of a row whose label training has seen is
    multiplied by e^memorised for the given label.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=rows)
    transition = np.full((classes, classes), noise_rate / (classes - 1))
    np.fill_diagonal(transition, 1 - noise_rate)
    given = (rng.random((rows, 1)) > transition[true].cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    image = rng.normal(size=(rows, classes)) + SIGNAL * np.eye(classes)[true]
    apart = np.arange(rows) % 10 == 0
    seen_label = memorised * np.eye(classes)[given] * ~apart[:, None]
    return LabelledRun(
        {"late": softmax(sharpness * SIGNAL * image + seen_label)}, given, true, apart, transition
    )


def of_rows(data: LabelledRun, rows: slice) -> LabelledRun:
    return data[np.arange(len(data.given))[rows]]


def test_the_weights_that_suit_many_data_sets_are_found_whatever_their_classes() -> None:
    data = [simulated(300, seed, classes, sharpness=0.5) for seed, classes in enumerate((2, 3, 5, 9) * 3)]
    weights = learn(data, 0).weights
    assert list(weights) == ["late", "transition", "keep"]
    assert weights["late"] == pytest.approx(2, rel=0.1)
    assert weights["transition"] == pytest.approx(1, abs=0.2)  # Bayes, as everywhere
    assert weights["keep"] == pytest.approx(0, abs=0.3)


def test_the_order_of_rows_does_not_matter() -> None:
    """Rows to learn from are drawn at random: here the correctly labelled ones come first."""
    data = [simulated(1_500, seed, sharpness=0.5) for seed in range(4)]
    in_order = [each[np.argsort(each.true != each.given, kind="stable")] for each in data]
    assert learn(in_order, 0).weights == pytest.approx(learn(data, 0).weights, abs=0.25)


def test_given_labels_lose_the_weight_that_other_data_sets_memorised() -> None:
    """And rows whose label was held out say nothing of that."""
    data = [simulated(300, seed, classes, memorised=1.5) for seed, classes in enumerate((2, 3, 5, 9) * 3)]
    assert learn(data, 0).weights["keep"] == pytest.approx(-1.5, abs=0.4)


def test_further_evidence_of_many_data_sets_earns_its_weight_too() -> None:
    data = []
    for seed in range(6):
        made = simulated(300, seed)
        noise = softmax(np.random.default_rng(100 + seed).normal(size=(300, C)))
        data.append(replace(made, evidence={"late": noise, "last": made.evidence["late"]}))
    weights = learn(data, 0).weights
    assert list(weights) == ["late", "last", "transition", "keep"]
    assert weights["late"] == pytest.approx(0, abs=0.1)
    assert weights["last"] == pytest.approx(1, abs=0.15)


def test_a_large_data_set_counts_no_more_than_another() -> None:
    flat, sharp = simulated(6_000, 0, sharpness=0.4), simulated(350, 1, sharpness=1.5)
    learned = learn([flat, sharp], 0)
    assert learned.weights == pytest.approx(learn([of_rows(flat, slice(350)), sharp], 0).weights, abs=0.25)
    assert learned.weights["late"] < learn([flat], 0).weights["late"] - 0.5, "what the large one alone says"
    assert len(learned.right) == 1_500 + 350, "all of them are calibration rows"


def test_corrections_are_those_of_data_sets_that_were_left_out() -> None:
    """One whose evidence is sure of a wrong class is no warning of itself."""
    data = [simulated(300, seed) for seed in range(3)]
    data[2] = replace(data[2], evidence={"late": np.roll(data[2].evidence["late"], 1, axis=1)})
    found = learn(data, 0)
    others = [learn([*data[:k], *data[k + 1 :]], 0) for k in range(3)]
    soft = [soft_labels(replace(others[k], abstains=False), data[k]) for k in range(3)]
    expected = np.concatenate([each.max(axis=1) for each in soft])
    assert np.sort(found.confidence) == pytest.approx(np.sort(expected), abs=1e-3)
    right = [int((each.argmax(axis=1) == made.true).sum()) for each, made in zip(soft, data, strict=True)]
    assert right[2] < 200 < min(right[:2])
    assert abs(found.right.sum() - sum(right)) <= 2
    relabelled = sum((each.argmax(axis=1) != made.given).sum() for each, made in zip(soft, data, strict=True))
    assert abs(found.relabelled.sum() - relabelled) <= 2
    seen = [soft_labels(found, made).max(axis=1) for made in data]
    assert np.abs(np.sort(np.concatenate(seen)) - np.sort(expected)).max() > 0.1


def test_the_rows_of_the_corrections_belong_together() -> None:
    found = learn([simulated(1_500, seed) for seed in range(4)], 0)
    sure = found.confidence > 0.95
    assert 0.3 < sure.mean() < 0.9
    assert found.right[sure].mean() > 0.95
    assert found.right[~sure].mean() < 0.9
    assert found.right[found.relabelled & sure].mean() > 0.9
    assert found.relabelled.mean() == pytest.approx(0.3, abs=0.05)


def test_one_data_set_alone_is_corrected_by_the_default_weights() -> None:
    data, none = simulated(200, 0), np.zeros(0, dtype=np.int64)
    prior = fit(
        {"late": np.ones((0, C))}, none, none, TransitionEstimate.of(np.zeros((C, C), dtype=np.int64)), 0
    )
    expected = soft_labels(prior.calibration_prior, data)
    assert np.sort(learn([data], 0).confidence) == pytest.approx(np.sort(expected.max(axis=1)), abs=1e-4)
