"""Borrowed calibrations of simulated data sets, whose exact posterior and noise matrix are known."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from relabel.calibration.calibrate import Calibration, fit, refit
from relabel.calibration.labelled_runs import LabelledRun, learn, soft_labels
from relabel.calibration.prior import CalibrationPrior
from relabel.calibration.selection import actions, best
from relabel.calibration.transfer import held_out, raked, transferred_calibration, with_decision_threshold
from relabel.label_noise.anchor_points import posterior
from relabel.label_noise.transition_matrix import TransitionEstimate, joint_counts
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


def solved(
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
    by_heart = memorised * np.eye(classes)[given] * ~apart[:, None]
    return LabelledRun(
        {"late": softmax(sharpness * SIGNAL * image + by_heart)}, given, true, apart, transition
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


def weighing(**weights: float) -> CalibrationPrior:
    """An experience of these weights and of no row."""
    no_rows = np.zeros(0)
    return CalibrationPrior(weights, no_rows > 0, no_rows > 0, no_rows)


def without_labels(weights: dict[str, float], transition: Floats) -> Calibration:
    """A calibration by those weights as they are."""
    transferred = weighing(**weights)
    nothing = {name: np.zeros((0, len(transition))) for name in transferred.evidence}
    return transferred_calibration(transferred, nothing, np.zeros(0, dtype=np.int64), transition)


def by_all(made: Calibration, data: LabelledRun) -> Floats:
    """The soft labels where training has seen every label."""
    return made.soft_labels(data.evidence, data.given)


def matched_to(made: Calibration, data: LabelledRun) -> Calibration:
    return raked(made, joint_counts(by_all(made, data), data.given))


@pytest.fixture(scope="module")
def calibration_prior() -> CalibrationPrior:
    return learn([solved(1_500, seed, classes=3 + seed, sharpness=0.5) for seed in range(6)], 0)


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


def test_no_more_labels_are_held_out_than_two_numbers_need_and_rare_classes_keep_theirs() -> None:
    given = np.concatenate([np.zeros(20_000, dtype=np.int64), np.arange(1, 3_000)])
    chosen = held_out(given, 0)
    assert chosen.sum() == 500
    assert not chosen[20_000:].any(), "each the only one of its class"


@pytest.mark.parametrize("classes", [4, 8])
@pytest.mark.parametrize("memorised", [0.0, 2.0])
def test_held_out_labels_tell_that_a_network_is_too_cautious(classes: int, memorised: float) -> None:
    """Whatever training made of the labels it has seen."""
    data = solved(4_000, 0, classes, sharpness=0.3, memorised=memorised)
    made = transferred_calibration(weighing(late=1.0, transition=0.5, keep=0.25), *labels_of(data))
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
    data = solved(4_000, 1, classes, sharpness=0.5)
    transition = solved(10, 0, classes, noise_rate=said).transition
    evidence, given, _ = labels_of(data)
    made = transferred_calibration(weighing(late=1.0, transition=0.5, keep=0.25), evidence, given, transition)

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


def as_anchors_tell(data: LabelledRun) -> Floats:
    """Its noise matrix where the network has begun to learn labels by heart: log odds of noise .3 too low."""
    odds = math.exp(log_odds(data.transition) - 0.3)
    return solved(10, 0, len(data.transition), noise_rate=odds / (1 + odds)).transition


def test_nothing_but_the_level_moves_where_the_labels_agree_as_often_as_expected() -> None:
    data = solved(4_000, 0)
    evidence, given, _ = labels_of(data)
    made = transferred_calibration(
        weighing(late=1.0, transition=0.5, keep=0.25), evidence, given, as_anchors_tell(data)
    )
    assert made.weights["late"] == pytest.approx(1, abs=0.15)
    assert np.abs(made.transition - data.transition).max() < 0.03
    assert np.abs(made.transition - as_anchors_tell(data)).max() > 0.05


@pytest.mark.parametrize(("said", "left"), [(0.02, 0.3), (0.1, 0.5), (0.5, 0.8)])
def test_held_out_labels_move_a_noise_level_that_the_anchors_have_wrong(said: float, left: float) -> None:
    """The more easily where labels learned by heart have made it too low."""
    data = solved(4_000, 0)
    wrong = solved(4_000, 0, noise_rate=said).transition
    made = transferred_calibration(weighing(late=1.0, transition=1.0, keep=0.0), *labels_of(data)[:2], wrong)
    level = 1 - np.diag(made.transition).mean()
    assert abs(level - 0.3) < left * abs(said - 0.3)
    assert made.transition.sum(axis=1) == pytest.approx(1)
    off_diagonal = made.transition[~np.eye(C, dtype=bool)]
    assert off_diagonal == pytest.approx(level / (C - 1)), "where wrong labels go stays"


def test_a_network_that_is_too_sure_is_not_told_from_noise() -> None:
    data = solved(4_000, 0, sharpness=2.0)
    made = transferred_calibration(weighing(late=1.0, transition=0.5, keep=0.25), *labels_of(data))
    assert made.weights["late"] == pytest.approx(1, abs=0.01)


def test_no_number_of_held_out_labels_counts_as_more_than_a_hundred() -> None:
    """The prior holds back as much with 4,000 of them as with 400."""
    few, many = solved(4_000, 1, sharpness=0.2), solved(40_000, 1, sharpness=0.2)
    transferred = weighing(late=1.0, transition=0.5, keep=0.25)
    one, other = (
        transferred_calibration(transferred, *labels_of(data)[:2], as_anchors_tell(data)).weights["late"]
        for data in (few, many)
    )
    assert one == pytest.approx(other, rel=0.25)
    assert other < 4.6, "of 5"


def test_without_a_held_out_label_the_weights_are_those_of_others(
    calibration_prior: CalibrationPrior,
) -> None:
    made = without_labels(calibration_prior.weights, solved(10, 0).transition)
    assert made.weights == pytest.approx(calibration_prior.weights)


def test_the_weights_that_suit_many_data_sets_are_found_whatever_their_classes() -> None:
    data = [solved(300, seed, classes, sharpness=0.5) for seed, classes in enumerate((2, 3, 5, 9) * 3)]
    weights = learn(data, 0).weights
    assert list(weights) == ["late", "transition", "keep"]
    assert weights["late"] == pytest.approx(2, rel=0.1)
    assert weights["transition"] == pytest.approx(1, abs=0.2)  # Bayes, as everywhere
    assert weights["keep"] == pytest.approx(0, abs=0.3)


def test_rows_that_come_in_an_order_teach_no_less() -> None:
    """Of each data set 300 rows are learned from, drawn at random: here the right ones come first."""
    data = [solved(1_500, seed, sharpness=0.5) for seed in range(4)]
    in_order = [each[np.argsort(each.true != each.given, kind="stable")] for each in data]
    assert learn(in_order, 0).weights == pytest.approx(learn(data, 0).weights, abs=0.25)


def test_labels_are_distrusted_as_far_as_other_data_sets_learned_theirs_by_heart() -> None:
    """And rows whose label was held out say nothing of that."""
    data = [solved(300, seed, classes, memorised=1.5) for seed, classes in enumerate((2, 3, 5, 9) * 3)]
    assert learn(data, 0).weights["keep"] == pytest.approx(-1.5, abs=0.4)


def test_further_evidence_of_many_data_sets_earns_its_weight_too() -> None:
    data = []
    for seed in range(6):
        made = solved(300, seed)
        noise = softmax(np.random.default_rng(100 + seed).normal(size=(300, C)))
        data.append(replace(made, evidence={"late": noise, "last": made.evidence["late"]}))
    weights = learn(data, 0).weights
    assert list(weights) == ["late", "last", "transition", "keep"]
    assert weights["late"] == pytest.approx(0, abs=0.1)
    assert weights["last"] == pytest.approx(1, abs=0.15)


def test_a_large_data_set_counts_no_more_than_another() -> None:
    flat, sharp = solved(6_000, 0, sharpness=0.4), solved(350, 1, sharpness=1.5)
    learned = learn([flat, sharp], 0)
    assert learned.weights == pytest.approx(learn([of_rows(flat, slice(350)), sharp], 0).weights, abs=0.25)
    assert learned.weights["late"] < learn([flat], 0).weights["late"] - 0.5, "what the large one alone says"
    assert len(learned.right) == 1_500 + 350, "as judges all are welcome"


def test_what_is_learned_is_judged_on_data_sets_that_were_left_out() -> None:
    """One whose evidence is sure of a wrong class is no warning of itself."""
    data = [solved(300, seed) for seed in range(3)]
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


def test_rows_of_right_relabelled_and_confidence_belong_together() -> None:
    found = learn([solved(1_500, seed) for seed in range(4)], 0)
    sure = found.confidence > 0.95
    assert 0.3 < sure.mean() < 0.9
    assert found.right[sure].mean() > 0.95
    assert found.right[~sure].mean() < 0.9
    assert found.right[found.relabelled & sure].mean() > 0.9
    assert found.relabelled.mean() == pytest.approx(0.3, abs=0.05)


def test_one_data_set_alone_is_judged_by_the_weights_without_any() -> None:
    data, none = solved(200, 0), np.zeros(0, dtype=np.int64)
    prior = fit(
        {"late": np.ones((0, C))}, none, none, TransitionEstimate.of(np.zeros((C, C), dtype=np.int64)), 0
    )
    expected = soft_labels(prior.calibration_prior, data)
    assert np.sort(learn([data], 0).confidence) == pytest.approx(np.sort(expected.max(axis=1)), abs=1e-4)


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("sharpness", [0.2, 0.5])
def test_a_borrowed_calibration_serves_a_data_set_nobody_verified(
    calibration_prior: CalibrationPrior, classes: int, sharpness: float
) -> None:
    """One whose averages are flatter than those of any other data set, too."""
    data = solved(8_000, 53, classes, sharpness)
    soft_label = soft_labels(calibration_prior, data)
    assert accuracy(soft_label.argmax(axis=1), data.true) > accuracy(data.given, data.true) + 0.08
    assert error(soft_label, data) < (0.06 if sharpness == 0.5 else 0.08)
    as_others = matched_to(without_labels(calibration_prior.weights, data.transition), data)
    assert sharpness == 0.5 or error(by_all(as_others, data), data) > 0.1
    made = transferred_calibration(calibration_prior, *labels_of(data))
    assert made.transferred
    assert not made.abstains
    selection = made.selection(*best(soft_label), data.given, 0.8)
    judged = calibration_prior.relabelled & (calibration_prior.confidence >= 0.8)
    assert (selection.calibration_rows, selection.right) == (
        judged.sum(),
        (judged & calibration_prior.right).sum(),
    )
    assert selection.threshold is not None
    fixed = actions(*best(soft_label), data.given, selection) == "fix"
    assert fixed.sum() > 30
    assert accuracy(soft_label.argmax(axis=1)[fixed], data.true[fixed]) > 0.78


def test_a_borrowed_calibration_says_so_and_can_be_lent_again(calibration_prior: CalibrationPrior) -> None:
    made = transferred_calibration(calibration_prior, *labels_of(solved(500, 0, sharpness=0.2)))
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["calibration_rows"] == 0
    assert told["weights"] == made.weights != calibration_prior.weights
    assert {told[name] for name in ("accuracy_before", "accuracy_after")} == {None}
    assert told["calibration_error"] is None
    assert Calibration.restored(asdict(made), ["late"], C).transferred
    again = CalibrationPrior.restored(vars(made.calibration_prior))
    assert again.weights == made.weights
    assert (again.confidence == calibration_prior.confidence).all()


def test_what_did_more_harm_than_good_is_withheld_from_other_data_too() -> None:
    """Evidence that is sure of a wrong class."""
    made = solved(300, 0)
    harmful = learn([replace(made, evidence={"late": np.roll(made.evidence["late"], 1, axis=1)})], 0)
    assert harmful.abstains
    data = solved(500, 9)
    transferred = transferred_calibration(CalibrationPrior.restored(vars(harmful)), *labels_of(data))
    assert (by_all(transferred, data).argmax(axis=1) == data.given).all()
    assert transferred.calibration_prior.abstains
    assert not learn([solved(300, seed) for seed in range(4)], 0).abstains
    with pytest.raises(ValueError, match="not the values of a calibration prior"):
        CalibrationPrior.restored({**vars(harmful), "abstains": 1})


@pytest.mark.parametrize(
    ("changed", "odds"), [(0, 216), (2, 216), (9, 8), (12, 3.375), (17, 1.186), (18, 1), (30, 1)]
)
def test_corrections_need_a_margin_where_few_of_the_wrong_labels_have_a_better_one(
    changed: int, odds: float
) -> None:
    """Of 100 rows, of whose labels 30 are wrong by the soft labels' own account."""
    given = np.arange(100) % C
    own = np.full(100, 0.7 if changed == 0 else (70 - 0.3 * changed) / (100 - changed))
    own[:changed] = 0.3
    soft_label = np.zeros((100, C))
    soft_label[np.arange(100), given] = own
    soft_label[np.arange(100), (given + 1) % C] = 1 - own
    transferred = without_labels({"late": 1.0, "transition": 1.0, "keep": 0.0}, solved(10, 0).transition)
    made = with_decision_threshold(transferred, soft_label, given)
    assert math.exp(made.decision_threshold) == pytest.approx(odds, rel=1e-3)
    assert made.weights == transferred.weights
    assert made.transition is transferred.transition


def test_no_margin_is_made_of_nothing_and_what_is_withheld_stays_so() -> None:
    transferred = without_labels({"late": 1.0, "transition": 1.0, "keep": 0.0}, solved(10, 0).transition)
    given = np.arange(C)
    assert with_decision_threshold(transferred, np.eye(C), given) is transferred, "no label is in doubt"
    assert with_decision_threshold(transferred, np.zeros((0, C)), given[:0]) is transferred
    abstains = replace(transferred, decision_threshold=math.inf)
    assert with_decision_threshold(abstains, np.full((C, C), 1 / C) + 1e-3 * np.eye(C), given) is abstains


def test_a_data_set_is_labelled_with_its_margin() -> None:
    """Of a network that knows nothing of two thirds of the images, and hesitates."""
    transferred, data = weighing(late=1.0, transition=1.0, keep=0.0), solved(1_500, 4, sharpness=0.5)
    unknown = np.arange(1_500)[:, None] % 3 > 0
    data = replace(data, evidence={"late": np.where(unknown, 1 / C, data.evidence["late"])})
    seen = data[np.flatnonzero(~data.held_out)]
    made = matched_to(transferred_calibration(transferred, *labels_of(data)), seen)
    kept = with_decision_threshold(made, by_all(made, seen), seen.given)
    assert 0 < kept.decision_threshold < math.inf
    expected = kept.soft_labels(data.evidence, data.given, data.held_out)
    np.testing.assert_allclose(soft_labels(transferred, data), expected, atol=1e-9)
    assert np.abs(expected - made.soft_labels(data.evidence, data.given, data.held_out)).max() > 1e-3


def test_the_soft_labels_of_each_given_label_come_near_to_its_anchors_posterior(
    calibration_prior: CalibrationPrior,
) -> None:
    data = solved(4_000, 3)
    uneven = np.array(
        [[0.6, 0.3, 0.05, 0.05], [0.1, 0.8, 0.1, 0.0], [0.1, 0.1, 0.7, 0.1], [0.25, 0, 0, 0.75]]
    )
    transferred = without_labels(calibration_prior.weights, uneven.clip(1e-3))
    before, after = by_all(transferred, data), by_all(matched_to(transferred, data), data)
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


def test_a_level_that_is_right_stays_and_one_that_is_wrong_comes_nearer(
    calibration_prior: CalibrationPrior,
) -> None:
    """Rows of 5 % noise, by weights that trust no label."""
    data = solved(4_000, 60, sharpness=0.5, noise_rate=0.05)
    transferred = without_labels({**calibration_prior.weights, "keep": -2.0}, data.transition)
    soft_label, better = by_all(transferred, data), by_all(matched_to(transferred, data), data)
    assert error(better, data) < 0.6 * error(soft_label, data)
    assert accuracy(better.argmax(axis=1), data.true) > accuracy(soft_label.argmax(axis=1), data.true)
    right = without_labels({"late": 2.0, "transition": 1.0, "keep": 0.0}, data.transition)
    for made in (right, matched_to(right, data)):
        assert error(by_all(made, data), data) < 0.02


def test_soft_labels_are_matched_over_the_rows_whose_label_training_saw() -> None:
    transferred, data = weighing(late=1.0, transition=0.5, keep=1.0), solved(600, 2)
    made, seen = transferred_calibration(transferred, *labels_of(data)), data[np.flatnonzero(~data.held_out)]
    expected = matched_to(made, seen).soft_labels(data.evidence, data.given, data.held_out)
    np.testing.assert_allclose(soft_labels(transferred, data), expected, atol=1e-9)


def test_one_way_mistakes_are_mended_one_way() -> None:
    """Evidence that takes 0 and 1 for one another alike; only the anchors tell that 1 is called 0."""
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
def test_probes_improve_on_what_was_matched(calibration_rows: int) -> None:
    """By weights that are to blame for a level far off, under factors that have halved the distance."""
    data = solved(3_000, 70, sharpness=0.5)
    transferred = matched_to(
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


def test_nothing_to_match_is_left_as_it_is(calibration_prior: CalibrationPrior) -> None:
    transferred = without_labels(calibration_prior.weights, solved(10, 0).transition)
    assert raked(transferred, np.zeros((C, C))) is transferred
    abstains = replace(transferred, decision_threshold=math.inf)
    assert raked(abstains, np.ones((C, C))) is abstains
    made = raked(transferred, np.diag([5.0, 6, 0, 3]))
    assert made.raking_factors is not None
    assert np.isfinite(made.raking_factors).all()
    assert (made.raking_factors[:, 2] == 1).all(), "which nobody was given"
    unlabelled = made.soft_labels({"late": np.full((1, C), 0.25)}, np.array([-1]))
    assert unlabelled == pytest.approx(0.25)
    with pytest.raises(ValueError, match="not the values"):
        Calibration.restored(asdict(made), ["late"], C)


def test_an_experience_without_any_row_promises_nothing(calibration_prior: CalibrationPrior) -> None:
    data = solved(500, 0)
    made = without_labels(calibration_prior.weights, data.transition)
    assert made.selection(*best(by_all(made, data)), data.given, 0.5).threshold is None
