"""Transferred calibrations of simulated data sets, whose exact posterior and noise matrix are known."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from relabel.calibration.calibrate import Calibration, refit
from relabel.calibration.labelled_runs import LabelledRun, learn, soft_labels
from relabel.calibration.prior import CalibrationPrior
from relabel.calibration.selection import actions, best, select
from relabel.calibration.transfer import held_out, raked, transferred_calibration, with_decision_threshold
from relabel.label_noise.anchor_points import posterior
from relabel.label_noise.transition_matrix import joint_counts
from relabel.metrics import expected_calibration_error

C = 4
SIGNAL = 1.8

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def softmax(scores: Floats) -> Floats:
    exponent = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponent / exponent.sum(axis=1, keepdims=True)


def accuracy(labels: Labels, true: Labels) -> float:
    return float((labels == true).mean())


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


def labels_of(data: LabelledRun) -> tuple[Mapping[str, NDArray[np.floating]], Labels, Floats]:
    """What a transferred calibration sees of it."""
    apart = data[np.flatnonzero(data.held_out)]
    return apart.evidence, apart.given, data.transition


def of_rows(data: LabelledRun, rows: slice) -> LabelledRun:
    return data[np.arange(len(data.given))[rows]]


def doubt(soft_label: Floats, data: LabelledRun) -> Floats:
    """The noise probabilities."""
    return 1 - soft_label[np.arange(len(data.given)), data.given]


def error(soft_label: Floats, data: LabelledRun) -> float:
    found = expected_calibration_error(doubt(soft_label, data), data.given != data.true)
    assert found is not None
    return found


def prior_with(**weights: float) -> CalibrationPrior:
    """A prior of these weights and of no row."""
    no_rows = np.zeros(0)
    return CalibrationPrior(weights, no_rows > 0, no_rows > 0, no_rows)


def without_labels(weights: dict[str, float], transition: Floats) -> Calibration:
    """A calibration by those weights as they are."""
    transferred = prior_with(**weights)
    nothing = {name: np.zeros((0, len(transition))) for name in transferred.evidence}
    return transferred_calibration(transferred, nothing, np.zeros(0, dtype=np.int64), transition)


def by_all(made: Calibration, data: LabelledRun) -> Floats:
    """The soft labels where training has seen every label."""
    return made.soft_labels(data.evidence, data.given)


def raked_on(made: Calibration, data: LabelledRun) -> Calibration:
    return raked(made, joint_counts(by_all(made, data), data.given))


@pytest.fixture(scope="module")
def calibration_prior() -> CalibrationPrior:
    return learn([simulated(1_500, seed, classes=3 + seed, sharpness=0.5) for seed in range(6)], 0)


@pytest.mark.parametrize("rows", [0, 1, 9, 40, 1_000])
def test_a_tenth_of_the_labels_is_held_out_and_of_no_class_all(rows: int) -> None:
    given = np.random.default_rng(rows).integers(-1, 3, size=rows)
    chosen = held_out(given, 5)
    labels = (given >= 0).sum()
    assert chosen.sum() == min(round(labels / 10), max(0, labels - len(np.unique(given[given >= 0]))))
    assert (given[chosen] >= 0).all()
    assert set(given[~chosen]) | {-1} == set(given) | {-1}
    assert (held_out(given, 5) == chosen).all()
    if rows == 1_000:
        assert (held_out(given, 6) != chosen).any()
        assert np.bincount(given[chosen]).min() > 15


def test_no_more_labels_are_held_out_than_two_parameters_need_and_rare_classes_keep_theirs() -> None:
    given = np.concatenate([np.zeros(20_000, dtype=np.int64), np.arange(1, 3_000)])
    chosen = held_out(given, 0)
    assert chosen.sum() == 500
    assert not chosen[20_000:].any(), "each the only one of its class"


@pytest.mark.parametrize("classes", [4, 8])
@pytest.mark.parametrize("memorised", [0.0, 2.0])
def test_held_out_labels_sharpen_a_network_that_is_too_cautious(classes: int, memorised: float) -> None:
    """Whatever training made of the labels it has seen."""
    data = simulated(4_000, 0, classes, sharpness=0.3, memorised=memorised)
    made = transferred_calibration(prior_with(late=1.0, transition=0.5, keep=0.25), *labels_of(data))
    assert made.weights["late"] == pytest.approx(1 / 0.3, rel=0.25)
    assert (made.weights["transition"], made.weights["keep"]) == (0.5, 0.25)
    assert np.abs(made.transition - data.transition).max() < 0.08
    soft_label = made.soft_labels(data.evidence, data.given, data.held_out)[data.held_out]
    apart = data[np.flatnonzero(data.held_out)]
    assert accuracy(soft_label.argmax(axis=1), apart.true) > accuracy(apart.given, apart.true) + 0.08
    assert error(soft_label, apart) < 0.08


def log_odds(transition: Floats) -> float:
    """Of a wrong label."""
    rate = 1 - np.diag(transition).mean()
    return math.log(rate / (1 - rate))


@pytest.mark.parametrize("classes", [4, 12])
@pytest.mark.parametrize("said", [0.1, 0.5])
def test_sharpness_and_shift_are_where_the_posterior_has_its_maximum(classes: int, said: float) -> None:
    """On a grid, of the likelihood and the prior written out."""
    data = simulated(4_000, 1, classes, sharpness=0.5)
    transition = simulated(10, 0, classes, noise_rate=said).transition
    evidence, given, _ = labels_of(data)
    made = transferred_calibration(
        prior_with(late=1.0, transition=0.5, keep=0.25), evidence, given, transition
    )

    scores = np.log(evidence["late"].clip(1e-4))
    predicted = scores.argmax(axis=1)

    def loss(sharpness: float, shift: float) -> float:
        odds = said / (1 - said) * math.exp(shift)
        noise = np.full((classes, classes), odds / (1 + odds) / (classes - 1))
        np.fill_diagonal(noise, 1 / (1 + odds))
        agreeing = (softmax(sharpness * scores) * noise[:, predicted].T).sum(axis=1)
        likelihood = np.log(np.where(predicted == given, agreeing, 1 - agreeing)).sum()
        far = (shift - 0.3) / 0.2
        prior = math.log(sharpness) ** 2 / 2 + (math.log(1 + far**2) if far > 0 else far**2 / 2)
        return float(prior - min(1.0, 200 / len(given)) * likelihood)

    sharpness, shift = made.weights["late"], log_odds(made.transition) - log_odds(transition)
    around = [
        loss(max(1, sharpness * math.exp(0.05 * up)), shift + 0.05 * right)
        for up in (-1, 0, 1)
        for right in (-1, 0, 1)
    ]
    far = [loss(math.exp(up), right) for up in (0, 0.5, 1) for right in (-1.5, -0.5, 0, 0.5, 1.5)]
    assert sharpness > 1.05
    assert loss(sharpness, shift) == pytest.approx(min(around), abs=1e-9)
    assert loss(sharpness, shift) <= min(far)


def by_anchor_points(data: LabelledRun) -> Floats:
    """Its noise matrix where the network has begun to memorise labels: log odds of noise .3 too low."""
    odds = math.exp(log_odds(data.transition) - 0.3)
    return simulated(10, 0, len(data.transition), noise_rate=odds / (1 + odds)).transition


def test_nothing_but_the_noise_level_moves_where_the_labels_agree_as_often_as_expected() -> None:
    data = simulated(4_000, 0)
    evidence, given, _ = labels_of(data)
    made = transferred_calibration(
        prior_with(late=1.0, transition=0.5, keep=0.25), evidence, given, by_anchor_points(data)
    )
    assert made.weights["late"] == pytest.approx(1, abs=0.15)
    assert np.abs(made.transition - data.transition).max() < 0.03
    assert np.abs(made.transition - by_anchor_points(data)).max() > 0.05


@pytest.mark.parametrize(("said", "left"), [(0.02, 0.3), (0.1, 0.5), (0.5, 0.8)])
def test_held_out_labels_move_a_noise_level_that_anchor_points_have_wrong(said: float, left: float) -> None:
    """The more easily where memorised labels have made it too low."""
    data = simulated(4_000, 0)
    wrong = simulated(4_000, 0, noise_rate=said).transition
    made = transferred_calibration(
        prior_with(late=1.0, transition=1.0, keep=0.0), *labels_of(data)[:2], wrong
    )
    level = 1 - np.diag(made.transition).mean()
    assert abs(level - 0.3) < left * abs(said - 0.3)
    assert made.transition.sum(axis=1) == pytest.approx(1)
    off_diagonal = made.transition[~np.eye(C, dtype=bool)]
    assert off_diagonal == pytest.approx(level / (C - 1)), "where wrong labels go stays"


def test_a_network_that_is_too_sure_is_not_told_from_noise() -> None:
    data = simulated(4_000, 0, sharpness=2.0)
    made = transferred_calibration(prior_with(late=1.0, transition=0.5, keep=0.25), *labels_of(data))
    assert made.weights["late"] == pytest.approx(1, abs=0.01)


def test_ten_times_as_many_held_out_labels_weigh_no_more_against_the_prior() -> None:
    """The prior holds back as much with 4,000 of them as with 400."""
    few, many = simulated(4_000, 1, sharpness=0.2), simulated(40_000, 1, sharpness=0.2)
    transferred = prior_with(late=1.0, transition=0.5, keep=0.25)
    one, other = (
        transferred_calibration(transferred, *labels_of(data)[:2], by_anchor_points(data)).weights["late"]
        for data in (few, many)
    )
    assert one == pytest.approx(other, rel=0.25)
    assert other < 4.6, "of 5"


def test_without_a_held_out_label_the_weights_are_those_of_others(
    calibration_prior: CalibrationPrior,
) -> None:
    made = without_labels(calibration_prior.weights, simulated(10, 0).transition)
    assert made.weights == pytest.approx(calibration_prior.weights)


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("sharpness", [0.2, 0.5])
def test_a_transferred_calibration_serves_a_data_set_without_a_trusted_row(
    calibration_prior: CalibrationPrior, classes: int, sharpness: float
) -> None:
    """One whose averages are flatter than those of any other data set, too."""
    data = simulated(8_000, 53, classes, sharpness)
    soft_label = soft_labels(calibration_prior, data)
    assert accuracy(soft_label.argmax(axis=1), data.true) > accuracy(data.given, data.true) + 0.08
    assert error(soft_label, data) < (0.06 if sharpness == 0.5 else 0.08)
    as_others = raked_on(without_labels(calibration_prior.weights, data.transition), data)
    assert sharpness == 0.5 or error(by_all(as_others, data), data) > 0.1
    made = transferred_calibration(calibration_prior, *labels_of(data))
    assert made.transferred
    assert not made.abstains
    selection = select(made.corrections, *best(soft_label), data.given, 0.8)
    judged = calibration_prior.relabelled & (calibration_prior.confidence >= 0.8)
    assert (selection.calibration_rows, selection.right) == (
        judged.sum(),
        (judged & calibration_prior.right).sum(),
    )
    assert selection.threshold is not None
    fixed = actions(*best(soft_label), data.given, selection) == "fix"
    assert fixed.sum() > 30
    assert accuracy(soft_label.argmax(axis=1)[fixed], data.true[fixed]) > 0.78


def test_a_transferred_calibration_says_so_and_can_be_transferred_again(
    calibration_prior: CalibrationPrior,
) -> None:
    made = transferred_calibration(calibration_prior, *labels_of(simulated(500, 0, sharpness=0.2)))
    stored = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert stored["calibration_rows"] == 0
    assert stored["weights"] == made.weights != calibration_prior.weights
    assert {stored[name] for name in ("accuracy_before", "accuracy_after")} == {None}
    assert stored["calibration_error"] is None
    assert Calibration.restored(asdict(made), ["late"], C).transferred
    again = CalibrationPrior.restored(vars(made.calibration_prior))
    assert again.weights == made.weights
    assert (again.confidence == calibration_prior.confidence).all()


def test_corrections_that_did_more_harm_than_good_are_not_made_on_other_data_either() -> None:
    """Evidence that is sure of a wrong class."""
    made = simulated(300, 0)
    harmful = learn([replace(made, evidence={"late": np.roll(made.evidence["late"], 1, axis=1)})], 0)
    assert harmful.abstains
    data = simulated(500, 9)
    transferred = transferred_calibration(CalibrationPrior.restored(vars(harmful)), *labels_of(data))
    assert (by_all(transferred, data).argmax(axis=1) == data.given).all()
    assert transferred.calibration_prior.abstains
    assert not learn([simulated(300, seed) for seed in range(4)], 0).abstains
    with pytest.raises(ValueError, match="not the values of a calibration prior"):
        CalibrationPrior.restored({**vars(harmful), "abstains": 1})


def threshold_of(corrected: int, rows: int = 100, mislabelled: float = 30.0) -> float:
    """Of rows whose soft labels expect so many to be mislabelled and give that many another label."""
    given = np.arange(rows) % C
    own = np.full(rows, (rows - mislabelled - 0.3 * corrected) / (rows - corrected))
    own[:corrected] = 0.3
    soft_label = np.zeros((rows, C))
    soft_label[np.arange(rows), given] = own
    soft_label[np.arange(rows), (given + 1) % C] = 1 - own
    transferred = without_labels({"late": 1.0, "transition": 1.0, "keep": 0.0}, simulated(10, 0).transition)
    made = with_decision_threshold(transferred, soft_label, given)
    assert made.weights == transferred.weights
    assert made.transition is transferred.transition
    return made.decision_threshold


def test_the_fewer_of_the_expected_mislabelled_rows_are_corrected_the_higher_the_threshold() -> None:
    found = np.array([threshold_of(corrected) for corrected in range(1, 31)])
    assert (np.diff(found) <= 0).all()
    assert found[-1] == 0, "all of them"
    assert len(np.unique(found)) > 10, "by degrees"


def test_a_threshold_depends_on_the_share_alone_and_has_an_end() -> None:
    assert threshold_of(6) == pytest.approx(threshold_of(12, rows=200, mislabelled=60.0), rel=1e-6)
    assert 0 < threshold_of(0) == threshold_of(1) < math.inf


def test_no_threshold_is_made_of_nothing_and_abstaining_stays() -> None:
    transferred = without_labels({"late": 1.0, "transition": 1.0, "keep": 0.0}, simulated(10, 0).transition)
    given = np.arange(C)
    assert with_decision_threshold(transferred, np.eye(C), given) is transferred, "no label is in doubt"
    assert with_decision_threshold(transferred, np.zeros((0, C)), given[:0]) is transferred
    abstains = replace(transferred, decision_threshold=math.inf)
    assert with_decision_threshold(abstains, np.full((C, C), 1 / C) + 1e-3 * np.eye(C), given) is abstains


def test_a_run_is_labelled_under_its_threshold() -> None:
    """Of a network that knows nothing of two thirds of the images, and hesitates."""
    transferred, data = prior_with(late=1.0, transition=1.0, keep=0.0), simulated(1_500, 4, sharpness=0.5)
    unknown = np.arange(1_500)[:, None] % 3 > 0
    data = replace(data, evidence={"late": np.where(unknown, 1 / C, data.evidence["late"])})
    seen = data[np.flatnonzero(~data.held_out)]
    made = raked_on(transferred_calibration(transferred, *labels_of(data)), seen)
    kept = with_decision_threshold(made, by_all(made, seen), seen.given)
    assert 0 < kept.decision_threshold < math.inf
    expected = kept.soft_labels(data.evidence, data.given, data.held_out)
    np.testing.assert_allclose(soft_labels(transferred, data), expected, atol=1e-9)
    assert np.abs(expected - made.soft_labels(data.evidence, data.given, data.held_out)).max() > 1e-3


def test_raking_brings_the_soft_labels_of_each_given_label_near_to_their_margin(
    calibration_prior: CalibrationPrior,
) -> None:
    data = simulated(4_000, 3)
    uneven = np.array(
        [[0.6, 0.3, 0.05, 0.05], [0.1, 0.8, 0.1, 0.0], [0.1, 0.1, 0.7, 0.1], [0.25, 0, 0, 0.75]]
    )
    transferred = without_labels(calibration_prior.weights, uneven.clip(1e-3))
    before, after = by_all(transferred, data), by_all(raked_on(transferred, data), data)
    assert after.sum(axis=1) == pytest.approx(1)
    wanted = posterior(transferred.transition, np.bincount(data.given).astype(np.float64))
    distances = [
        np.abs(joint_counts(soft, data.given) / np.bincount(data.given) - wanted).sum(axis=0)
        for soft in (before, after)
    ]
    assert (distances[1] < 0.8 * distances[0]).all()
    # Each row is multiplied by the factors of its given label, whatever its evidence.
    odds = (after / before) / (after / before)[:, :1]
    for label in range(C):
        of_label = odds[data.given == label]
        assert of_label == pytest.approx(np.tile(of_label[0], (len(of_label), 1)))


def test_raking_keeps_a_noise_level_that_is_right_and_corrects_one_that_is_not(
    calibration_prior: CalibrationPrior,
) -> None:
    """Rows of 5 % noise, by weights that trust no label."""
    data = simulated(4_000, 60, sharpness=0.5, noise_rate=0.05)
    transferred = without_labels({**calibration_prior.weights, "keep": -2.0}, data.transition)
    soft_label, better = by_all(transferred, data), by_all(raked_on(transferred, data), data)
    assert error(better, data) < 0.6 * error(soft_label, data)
    assert accuracy(better.argmax(axis=1), data.true) > accuracy(soft_label.argmax(axis=1), data.true)
    right = without_labels({"late": 2.0, "transition": 1.0, "keep": 0.0}, data.transition)
    for made in (right, raked_on(right, data)):
        assert error(by_all(made, data), data) < 0.02


def test_soft_labels_are_raked_over_the_rows_whose_label_training_saw() -> None:
    transferred, data = prior_with(late=1.0, transition=0.5, keep=1.0), simulated(600, 2)
    made, seen = transferred_calibration(transferred, *labels_of(data)), data[np.flatnonzero(~data.held_out)]
    expected = raked_on(made, seen).soft_labels(data.evidence, data.given, data.held_out)
    np.testing.assert_allclose(soft_labels(transferred, data), expected, atol=1e-9)


def test_one_way_noise_is_corrected_one_way() -> None:
    """Evidence that takes 0 and 1 for one another alike; only the anchor points tell that 1 is called 0."""
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=3_000)
    given = np.where((true == 1) & (rng.random(3_000) < 0.4), 0, true)
    transition = np.array([[0.98, 0.01, 0.01], [0.4, 0.59, 0.01], [0.01, 0.01, 0.98]])
    image = rng.normal(size=(3_000, 3)) + np.array([[1, 0.2, -1], [0.2, 1, -1], [-1, -1, 2]])[true]
    evidence = {"late": softmax(2 * image)}
    transferred = without_labels({"late": 1.0, "transition": 0.0, "keep": 1.0}, transition)
    before = transferred.soft_labels(evidence, given)
    after = raked(transferred, joint_counts(before, given)).soft_labels(evidence, given)
    relabelled = [(soft.argmax(axis=1) != given) & (given == 1) for soft in (before, after)]
    assert relabelled[0].sum() > 50 > relabelled[1].sum()
    assert accuracy(after.argmax(axis=1), true) > accuracy(before.argmax(axis=1), true) + 0.03


@pytest.mark.parametrize("calibration_rows", [0, 60])
def test_calibration_rows_improve_on_what_was_raked(calibration_rows: int) -> None:
    """By weights that are to blame for a level far off, under factors that have halved the distance."""
    data = simulated(3_000, 70, sharpness=0.5)
    transferred = raked_on(
        without_labels({"late": 2.0, "transition": 1.0, "keep": -3.0}, data.transition), data
    )
    first = of_rows(data, slice(calibration_rows))
    seen = np.zeros(calibration_rows, dtype=bool)
    made = refit(transferred, first.evidence, first.given, first.true, seen, 0)
    assert made.raking_factors is transferred.raking_factors
    rest = of_rows(data, slice(calibration_rows, None))
    before, after = (error(by_all(calibrated, rest), rest) for calibrated in (transferred, made))
    if calibration_rows:
        assert after < before / 2
        assert made.cross_validated["accuracy_after"] == pytest.approx(0.85, abs=0.1)
    else:
        assert made.weights == transferred.weights
        assert by_all(replace(made, decision_threshold=0.0), data) == pytest.approx(by_all(transferred, data))


def test_nothing_to_rake_is_left_as_it_is(calibration_prior: CalibrationPrior) -> None:
    transferred = without_labels(calibration_prior.weights, simulated(10, 0).transition)
    assert raked(transferred, np.zeros((C, C))) is transferred
    abstains = replace(transferred, decision_threshold=math.inf)
    assert raked(abstains, np.ones((C, C))) is abstains
    made = raked(transferred, np.diag([5.0, 6, 0, 3]))
    assert made.raking_factors is not None
    assert np.isfinite(made.raking_factors).all()
    assert (made.raking_factors[:, 2] == 1).all(), "which no row is given"
    unlabelled = made.soft_labels({"late": np.full((1, C), 0.25)}, np.array([-1]))
    assert unlabelled == pytest.approx(0.25)
    with pytest.raises(ValueError, match="not the values"):
        Calibration.restored(asdict(made), ["late"], C)


def test_a_prior_without_any_row_allows_no_fix(calibration_prior: CalibrationPrior) -> None:
    data = simulated(500, 0)
    made = without_labels(calibration_prior.weights, data.transition)
    assert select(made.corrections, *best(by_all(made, data)), data.given, 0.5).threshold is None
