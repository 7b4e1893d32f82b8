"""Calibration on simulated rows whose true posterior is known."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from relabel.calibration import calibrate, decision_threshold
from relabel.calibration.calibrate import Calibration, fit, refit
from relabel.calibration.log_linear_pool import DesignMatrix
from relabel.calibration.selection import actions, best, select
from relabel.label_noise.transition_matrix import TransitionEstimate, joint_counts
from relabel.metrics import expected_calibration_error, noise_matrix, row_shares

C = 4
SIGNAL = 1.8
# Rows are true classes; the classes differ in how often and into what they are mislabelled.
TRANSITION = np.array(
    [[0.6, 0.3, 0.05, 0.05], [0.0, 0.9, 0.1, 0.0], [0.1, 0.1, 0.7, 0.1], [0.25, 0.0, 0.0, 0.75]]
)
KNOWN = TRANSITION.clip(1e-3) / TRANSITION.clip(1e-3).sum(axis=1, keepdims=True)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Simulated = tuple[dict[str, Floats], Labels, Labels]


def softmax(scores: Floats) -> Floats:
    exponent = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponent / exponent.sum(axis=1, keepdims=True)


def simulate(rows: int, seed: int, sharpness: float = 1.0) -> Simulated:
    """Evidence, given and true labels: of sharpness 1, the evidence is the exact posterior of the image."""
    rng = np.random.default_rng(seed)
    true = rng.integers(C, size=rows)
    given = (rng.random((rows, 1)) > TRANSITION[true].cumsum(axis=1)).sum(axis=1).clip(max=C - 1)
    image = rng.normal(size=(rows, C)) + SIGNAL * np.eye(C)[true]
    return {"late": softmax(sharpness * SIGNAL * image)}, given, true


def transition_of(given: Labels, true: Labels, classes: int = C) -> TransitionEstimate:
    return TransitionEstimate.of(noise_matrix(given, true, classes))


NOTHING = TransitionEstimate.of(np.zeros((C, C), dtype=np.int64))
SEEN = np.zeros(10_000, dtype=bool)  # of rows, how many were held out


def fitted(simulated: Simulated, seed: int = 0) -> Calibration:
    evidence, given, true = simulated
    return fit(evidence, given, true, transition_of(given, true), seed)


def accuracy(labels: Labels, true: Labels) -> float:
    return float((labels == true).mean())


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.5])
def test_the_weights_undo_the_evidence_s_own_sharpness(sharpness: float) -> None:
    weights = fitted(simulate(4000, 0, sharpness)).weights
    assert list(weights) == ["late", "transition", "keep"]
    assert weights["late"] == pytest.approx(1 / sharpness, rel=0.1)
    assert weights["transition"] == pytest.approx(1, abs=0.15)  # Bayes: posterior ∝ p_c T_{c,y}
    assert weights["keep"] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("sharpness", [0.5, 1.5])
def test_noise_probabilities_are_calibrated_and_labels_improve_on_fresh_rows(sharpness: float) -> None:
    fresh_evidence, given, true = simulate(8000, 1, sharpness)
    made = fitted(simulate(600, 0, sharpness))
    soft_label = made.soft_labels(fresh_evidence, given)
    noise_probability = 1 - soft_label[np.arange(len(given)), given]
    error = expected_calibration_error(noise_probability, given != true)
    assert error is not None
    assert error < 0.03
    uncalibrated = expected_calibration_error(
        1 - fresh_evidence["late"][np.arange(len(given)), given], given != true
    )
    assert uncalibrated is not None
    assert error < uncalibrated / 2
    corrected = accuracy(soft_label.argmax(axis=1), true)
    assert corrected > accuracy(given, true) + 0.05
    assert corrected > accuracy(fresh_evidence["late"].argmax(axis=1), true)
    before, after = (made.cross_validated[f"accuracy_{when}"] for when in ("before", "after"))
    assert before == pytest.approx(accuracy(given, true), abs=0.06)
    assert after == pytest.approx(corrected, abs=0.04)


def test_further_evidence_starts_without_weight_and_earns_it() -> None:
    evidence, given, true = simulate(2000, 0)
    noise = softmax(np.random.default_rng(5).normal(size=(2000, C)))
    evidence["corrector"] = noise
    made = fitted((evidence, given, true))
    assert list(made.weights) == ["late", "corrector", "transition", "keep"]
    assert made.weights["corrector"] == pytest.approx(0, abs=0.1)
    swapped = fitted(({"late": noise, "corrector": evidence["late"]}, given, true))
    assert swapped.weights["corrector"] == pytest.approx(1, abs=0.1)


def test_renaming_the_classes_renames_the_soft_labels() -> None:
    order = np.array([2, 0, 3, 1])  # new class k is old class order[k]
    evidence, given, true = simulate(300, 0)
    renamed = {"late": evidence["late"][:, order]}, np.argsort(order)[given], np.argsort(order)[true]
    one, other = fitted((evidence, given, true)), fitted(renamed)
    assert other.transition == pytest.approx(one.transition[np.ix_(order, order)], abs=1e-12)
    soft_label = one.soft_labels(evidence, given)
    assert other.soft_labels(*renamed[:2]) == pytest.approx(soft_label[:, order], abs=1e-8)
    assert other.confidence == pytest.approx(one.confidence, abs=1e-8)


def test_a_seed_deals_the_folds_and_nothing_else() -> None:
    simulated = simulate(300, 0)
    one, again, other = fitted(simulated, 1), fitted(simulated, 1), fitted(simulated, 2)
    assert one.weights == again.weights == other.weights
    assert (one.confidence == again.confidence).all()
    assert (one.confidence != other.confidence).any()


def test_the_cross_validation_does_not_see_the_label_it_judges() -> None:
    """With evidence that says nothing, a calibration row's own pair would otherwise give its class away."""
    rng = np.random.default_rng(0)
    true = np.arange(60) % 30
    given = rng.permutation(true)
    evidence = {"late": np.full((60, 30), 1 / 30)}
    made = fit(evidence, given, true, transition_of(given, true, 30), 0)
    assert made.right.mean() < 0.15


def test_calibration_rows_are_judged_by_weights_of_the_other_folds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    original = calibrate.fit_weights

    def spy(groups: list[tuple[DesignMatrix, Labels]], prior: Floats) -> Floats:
        sizes.append(sum(len(true) for _, true in groups))
        return original(groups, prior)

    monkeypatch.setattr(calibrate, "fit_weights", spy)
    fitted(simulate(100, 0))
    assert sizes == [100] + 10 * [90]


@pytest.mark.parametrize("calibration_rows", [0, 1, 5, 300])
def test_soft_labels_sum_to_one_with_any_number_of_calibration_rows_and_unlabelled_rows(
    calibration_rows: int,
) -> None:
    made = fitted(simulate(calibration_rows, 0))
    evidence, given, _ = simulate(50, 1)
    given[::5] = -1
    evidence["late"][3] = [1, 0, 0, 0]
    soft_label = made.soft_labels(evidence, given)
    assert soft_label.shape == (50, C)
    assert soft_label.min() >= 0
    assert soft_label.sum(axis=1) == pytest.approx(1)
    assert made.relabelled.shape == made.right.shape == made.confidence.shape == (calibration_rows,)


def test_an_unlabelled_row_has_the_evidence_alone() -> None:
    made = fitted(simulate(300, 0))
    evidence, given, _ = simulate(50, 1)
    given[:] = -1
    expected = softmax(made.weights["late"] * np.log(evidence["late"].clip(1e-4)))
    assert made.soft_labels(evidence, given) == pytest.approx(expected)


def test_without_calibration_rows_the_given_label_has_some_weight_and_no_row_is_a_fix() -> None:
    made = fitted(simulate(0, 0))
    assert not made.abstains
    assert set(made.cross_validated.values()) == {None}
    given = np.array([0, 0])
    undecided, decided = [0.28, 0.3, 0.21, 0.21], [0.001, 0.997, 0.001, 0.001]
    soft_label = made.soft_labels({"late": np.array([undecided, decided])}, given)
    assert soft_label.argmax(axis=1).tolist() == [0, 1]
    selection = select(made.corrections, *best(soft_label), given, 0.5)
    assert (selection.threshold, selection.calibration_rows) == (None, 0)


def test_without_calibration_rows_a_model_s_prediction_has_weight_one() -> None:
    nothing, none = np.zeros((0, C)), np.zeros(0, dtype=np.int64)
    made = fit({"prediction": nothing}, none, none, NOTHING, 0)
    assert made.weights == {"prediction": 1.0, "transition": 0.25, "keep": 0.0}
    made = fit({"early": nothing, "late": nothing, "last": nothing}, none, none, NOTHING, 0)
    assert list(made.weights.values()) == [1.0, 1.0, 0.0, 0.25, 0.0]


@pytest.fixture
def misled() -> Calibration:
    """Six calibration rows with correct labels, each misled by an evidence of its own, which is sure of
    another class: the other rows do not tell what it is worth."""
    given = np.zeros(6, dtype=np.int64)
    evidence = {f"{k}": np.full((6, C), 1 / C) for k in range(6)}
    for k in range(6):
        evidence[f"{k}"][k] = [1e-4, 1, 1e-4, 1e-4]
    weights = {**dict.fromkeys(evidence, 1.0), "transition": 1.0, "keep": 0.0}
    transferred = replace(fitted(simulate(0, 0)), weights=weights)
    made = refit(transferred, evidence, given, given, SEEN[:6], 0)
    return replace(made, weights={"late": 1.0, "transition": 0.25, "keep": 0.0})


def test_one_broken_label_does_not_make_it_abstain() -> None:
    given = np.array([0])
    made = fitted(({"late": np.array([[1e-4, 1, 1e-4, 1e-4]])}, given, given))
    assert not made.right.any()
    assert made.decision_threshold == pytest.approx(np.log(2))
    assert made.to_dict()["decision_threshold"] == made.decision_threshold
    made = replace(made, weights={"late": 1.0, "transition": 0.0, "keep": 0.0})
    near, far, own = [0.3, 0.5, 0.1, 0.1], [0.3, 0.61, 0.05, 0.04], [0.5, 0.3, 0.1, 0.1]
    evidence = {"late": np.array([near, far, own, near])}
    soft_label = made.soft_labels(evidence, np.array([0, 0, 0, -1]))
    assert soft_label.argmax(axis=1).tolist() == [0, 1, 0, 1]
    assert soft_label[1:] == pytest.approx(evidence["late"][1:])
    assert soft_label[0] == pytest.approx(np.array([0.5005, 0.5, 0.1, 0.1]) / 1.2005)


@pytest.mark.parametrize(("own", "other", "relabelled"), [(0.28, 0.6, False), (0.2, 0.68, True)])
def test_calibration_rows_are_judged_under_the_threshold_that_the_rows_have(
    own: float, other: float, relabelled: bool
) -> None:
    """Left out of the fit, odds of the evidence times 3^-0.25: a label may be any, one in two of its own."""
    assert other / own * 3**-0.25 > 1, "which would be enough without a threshold"
    evidence, given = {"late": np.array([[own, other, 0.06, 0.06]])}, np.array([0])
    assert fitted((evidence, given, given)).relabelled.tolist() == [relabelled]


def test_it_abstains_from_corrections_that_harm_the_calibration_rows(misled: Calibration) -> None:
    evidence, given, _ = simulate(200, 1)
    given[:20] = -1
    soft_label = misled.soft_labels(evidence, given)
    assert misled.abstains
    assert misled.to_dict()["abstains"] is True
    assert misled.to_dict()["decision_threshold"] is None, "which JSON can write"
    assert (soft_label.argmax(axis=1) == given)[20:].all()
    assert (soft_label.argmax(axis=1) == evidence["late"].argmax(axis=1))[:20].all()
    assert soft_label.sum(axis=1) == pytest.approx(1)
    selection = select(misled.corrections, *best(soft_label), given, 0.95)
    assert selection.threshold is None
    assert set(actions(*best(soft_label), given, selection)[20:]) <= {"keep", "review"}
    assert misled.cross_validated["accuracy_after"] == misled.cross_validated["accuracy_before"] == 1


def test_the_bias_does_not_take_correct_calibration_rows_for_proof_that_every_label_is_correct(
    misled: Calibration,
) -> None:
    """Six of six are right: seven in eight."""
    assert misled.abstains
    assert misled.confidence.mean() == pytest.approx(7 / 8, abs=1e-6)
    assert 0 < misled.given_label_bias < decision_threshold.MAX_GIVEN_LABEL_BIAS


@pytest.mark.parametrize("frequent", [0.25, 0.85])
def test_where_it_abstains_noise_probabilities_still_rank_and_have_the_right_mean(
    frequent: float,
) -> None:
    """Evidence too weak to correct 4 % of wrong labels, all of them in the rare classes if there are such."""
    rng = np.random.default_rng(3)
    shares = np.array([frequent, *3 * [(1 - frequent) / 3]])
    true = rng.choice(C, size=6000, p=shares)
    wrong = rng.random(len(true)) < np.where(true > 0, 0.04 / (1 - shares[0]), 0.0)
    given = np.where(wrong, (true + 1) % C, true)
    image = rng.normal(size=(len(true), C)) + 1.5 * np.eye(C)[true]
    evidence = {"late": softmax(4 * image)}
    made = fitted(({"late": evidence["late"][:300]}, given[:300], true[:300]))
    made = replace(made, decision_threshold=math.inf, weights={"late": 1.0, "transition": 0.0, "keep": 0.0})
    plain = replace(made, decision_threshold=0.0).soft_labels(evidence, given)
    right = float((given == true)[:300].mean())
    given_label_bias = decision_threshold.given_label_bias(plain[:300], given[:300], right)
    soft_label = replace(made, given_label_bias=given_label_bias).soft_labels(evidence, given)
    assert accuracy(plain.argmax(axis=1), true) < accuracy(given, true)
    assert (soft_label.argmax(axis=1) == given).all()
    noise_probability = 1 - soft_label[np.arange(len(given)), given]
    assert noise_probability[:300].mean() == pytest.approx(1 - right, abs=1e-6)
    ranks = np.argsort(np.argsort(noise_probability)) + 1
    area = (ranks[wrong].mean() - (wrong.sum() + 1) / 2) / (~wrong).sum()
    assert area > 0.85


def test_corrections_that_help_need_no_threshold() -> None:
    assert fitted(simulate(300, 0)).decision_threshold == 0


def test_fixes_keep_their_precision_on_fresh_rows() -> None:
    evidence, given, true = simulate(8000, 1)
    made = fitted(simulate(1000, 0))
    soft_label = made.soft_labels(evidence, given)
    action = actions(*best(soft_label), given, select(made.corrections, *best(soft_label), given, 0.95))
    fixed = action == "fix"
    assert fixed.sum() > 200
    assert accuracy(soft_label.argmax(axis=1)[fixed], true[fixed]) > 0.93


def test_the_expected_noise_matrix_reads_the_soft_labels() -> None:
    soft_label = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.7, 0.3]])
    found = row_shares(joint_counts(soft_label, np.array([0, 1, 1, -1])))
    assert found == pytest.approx(np.array([[1 / 1.5, 0.5 / 1.5], [0, 1]]))
    evidence, given, _ = simulate(20_000, 0)
    posterior = softmax(np.log(evidence["late"]) + np.log(TRANSITION[:, given].T.clip(1e-12)))
    assert row_shares(joint_counts(posterior, given)) == pytest.approx(TRANSITION, abs=0.02)
    parts = joint_counts(posterior[:700], given[:700]) + joint_counts(posterior[700:], given[700:])
    assert parts == pytest.approx(joint_counts(posterior, given))


@pytest.mark.parametrize("calibration_rows", [0, 1, 100])
def test_the_metadata_is_json(calibration_rows: int) -> None:
    made = fitted(simulate(calibration_rows, 0))
    restored = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert restored["calibration_rows"] == calibration_rows
    assert restored["weights"] == pytest.approx(made.weights)
    selection = select(made.corrections, *simulate_corrections(made), 0.95)
    json.dumps(
        [selection.threshold, selection.calibration_rows, selection.right, selection.needed], allow_nan=False
    )


def simulate_corrections(made: Calibration) -> tuple[Labels, Floats, Labels]:
    evidence, given, _ = simulate(200, 1)
    return *best(made.soft_labels(evidence, given)), given


def test_calibration_rows_without_a_given_label_judge_the_evidence_alone() -> None:
    """Every second row unlabelled: the evidence's sharpness is learned from all, the rest from half."""
    evidence, given, true = simulate(2000, 0, 0.5)
    given[::2] = -1
    made = fitted((evidence, given, true))
    labelled = given >= 0
    alone = fitted(({"late": evidence["late"][labelled]}, given[labelled], true[labelled]))
    assert made.weights["late"] == pytest.approx(2, rel=0.1)
    assert made.weights["transition"] == pytest.approx(alone.weights["transition"], abs=0.1)
    assert not made.relabelled[~labelled].any()
    assert made.right[~labelled].mean() == pytest.approx(accuracy(evidence["late"].argmax(1), true), abs=0.03)
    before, after = (alone.cross_validated[f"accuracy_{when}"] for when in ("before", "after"))
    assert made.cross_validated["accuracy_before"] == before
    assert made.cross_validated["accuracy_after"] == pytest.approx(after, abs=0.02)


def test_a_row_without_a_label_has_none_to_correct() -> None:
    """Ten labels that are right, and forty rows without one that the evidence knows."""
    true = np.arange(50) % C
    given = np.where(np.arange(50) < 10, true, -1)
    made = fitted(({"late": 0.8 * np.eye(C)[true] + 0.05}, given, true))
    assert made.right.all()
    assert made.decision_threshold == pytest.approx(math.log(2)), "no good is shown"


def test_without_any_given_label_it_does_not_abstain_and_no_row_is_a_fix() -> None:
    evidence, given, true = simulate(200, 0)
    made = fitted((evidence, np.full_like(given, -1), true))
    assert not made.abstains
    assert set(made.cross_validated.values()) == {None}
    assert select(made.corrections, *best(made.soft_labels(evidence, given)), given, 0.5).threshold is None


@pytest.mark.parametrize("calibration_rows", [0, 100])
def test_a_calibration_is_restored_from_its_values(calibration_rows: int) -> None:
    made = fitted(simulate(calibration_rows, 0))
    again = Calibration.restored(asdict(made), ["late"], C)
    assert again.to_dict() == made.to_dict()
    rows = simulate(50, 1)[:2]
    assert (again.soft_labels(*rows) == made.soft_labels(*rows)).all()
    for evidence, classes in ((["last"], C), (["late"], C + 1)):
        with pytest.raises(ValueError, match="not the values of a calibration"):
            Calibration.restored(asdict(made), evidence, classes)


def test_without_a_row_to_relabel_there_is_no_fix() -> None:
    made = fitted(simulate(300, 0))
    nothing = [column[:0] for column in simulate_corrections(made)]
    assert select(made.corrections, *nothing, 0.95).threshold is None
    assert actions(*nothing, select(made.corrections, *nothing, 0.95)).size == 0


def test_a_transferred_prior_is_where_the_weights_stand_without_calibration_rows_and_near_with_few() -> None:
    prior = {"late": 5.0, "transition": 1.5, "keep": -2.0}
    transferred = replace(fitted(simulate(0, 0)), weights=prior, transition=KNOWN)

    def weights(calibration_rows: int, transferred: Calibration | None) -> dict[str, float]:
        simulated = simulate(calibration_rows, 0)
        if transferred is None:
            return fitted(simulated).weights
        return refit(transferred, *simulated, SEEN[:calibration_rows], 0).weights

    assert weights(0, transferred) == prior
    few, many = weights(4, transferred), weights(4000, transferred)
    assert few["late"] > 3.5
    assert weights(4, None)["late"] < 3
    assert many == pytest.approx(weights(4000, None), abs=0.25)


@pytest.mark.parametrize("calibration_rows", [0, 5, 400])
def test_a_transferred_transition_matrix_stays(calibration_rows: int) -> None:
    evidence, given, true = simulate(calibration_rows, 0)
    transferred = replace(fitted(simulate(0, 0)), transition=KNOWN, transferred=True)
    made = refit(transferred, evidence, given, true, SEEN[:calibration_rows], 0)
    assert made.transition is KNOWN
    assert not made.transferred
    if calibration_rows == 400:
        assert made.weights["transition"] == pytest.approx(1, abs=0.25)
        assert made.weights != fitted((evidence, given, true)).weights


@pytest.mark.parametrize(
    ("transferred", "made"), [(0.0, math.log(2)), (math.log(8), math.log(8)), (math.inf, math.inf)]
)
def test_where_calibration_rows_show_nothing_the_transferred_threshold_stays(
    transferred: float, made: float
) -> None:
    """And where they show good, there is none, whatever was transferred."""
    evidence, given, true = simulate(400, 0)
    transferred = replace(
        fitted(simulate(0, 0)), transition=KNOWN, transferred=True, decision_threshold=transferred
    )
    few = {name: values[:1] for name, values in evidence.items()}
    found = refit(transferred, few, true[:1], true[:1], SEEN[:1], 0)
    assert found.decision_threshold == pytest.approx(made)
    assert refit(transferred, evidence, given, true, SEEN[:400], 0).decision_threshold == 0


def test_the_transition_matrix_is_the_estimate_from_trusted_rows_and_anchor_points() -> None:
    evidence, given, true = simulate(60, 3)
    pairs = noise_matrix(given, true, C)
    estimate = TransitionEstimate.of(pairs, noise_matrix(*simulate(5_000, 4)[1:], C))
    made, alone = fit(evidence, given, true, estimate, 0), fitted((evidence, given, true))
    np.testing.assert_array_equal(made.transition, estimate.matrix)
    assert np.abs(made.transition - KNOWN).max() < np.abs(alone.transition - KNOWN).max()


def test_calibration_rows_whose_label_was_held_out_count_by_bayes() -> None:
    """As transferred from data whose labels were all correct."""
    evidence, given, true = simulate(400, 0)
    held_out = np.arange(400) < 200
    weights = {"late": 1.0, "transition": 0.0, "keep": 9.0}
    transferred = replace(fitted(simulate(0, 0)), transition=KNOWN, weights=weights)
    none = {name: values[:0] for name, values in evidence.items()}
    unfitted = refit(transferred, none, given[:0], true[:0], held_out[:0], 0)
    soft_label = replace(unfitted, decision_threshold=0.0).soft_labels(evidence, given, held_out)
    bayes = evidence["late"] * KNOWN[:, given].T
    bayes /= bayes.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(soft_label[:200], bayes[:200], atol=1e-6)
    assert (soft_label[200:].argmax(axis=1) == given[200:]).mean() > 0.95
    made = refit(transferred, evidence, given, true, held_out, 0)
    assert made.weights["late"] == pytest.approx(1, abs=0.4)
    assert made.weights["keep"] < 6, "what the rows that training saw say"
    of_held_out = {name: values[:200] for name, values in evidence.items()}
    alone = refit(transferred, of_held_out, given[:200], true[:200], held_out[:200], 0)
    assert alone.weights["keep"] == pytest.approx(9), "nothing is said"
