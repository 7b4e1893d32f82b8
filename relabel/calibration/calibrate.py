"""From what training saw to probabilities one can act on, fitted on the probe rows.

Probe rows are trusted rows that went through training as ordinary rows under their given label, so they
are exchangeable with the rows nobody verified. On them the weights of the evidence are fitted (`weighing`),
T being the trusted rows' noise matrix (`transition`).

A data set without a verified row has a calibration of `borrowed` weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relabel.calibration.log_linear_pool import DesignMatrix, Floats, Labels, fit_weights, softmax
from relabel.label_noise.transition_matrix import Prior
from relabel.metrics import expected_calibration_error

PRIOR = {"early": 1.0, "late": 1.0, "prediction": 1.0, "transition": 0.25, "keep": 0.0}
"""Where the weights stand without probes, and what few probes are drawn towards.

Averages over epochs are flatter than their accuracy deserves, hence 2 for both together; a finished
backbone's prediction of an unseen image is not (0.9 to 1.4 on digits, with a corrector); the others are near
what hundreds of probes give on photographs and on CIFAR-10N, with and without a corrector.
"""
FOLDS = 10
FIGURES = ("accuracy_before", "accuracy_after", "calibration_error")
_FURTHEST_LEANING = 20.0
_CHANCE_OF_HARM, _CHANCE_OF_GOOD = 0.1, 0.25  # that corrections which do neither are held for such
_DECISION_THRESHOLD = math.log(2)  # log e costs more with structured noise and breaks fewer labels


@dataclass(frozen=True)
class Selection:
    """What `fix` promises: of the rows marked, in expectation at least `precision` are right.

    threshold: least soft-label maximum of a `fix` row, None when the promise cannot be made for any row;
    probes, right: probe rows relabelled with a confidence of at least `precision`, and how many of these are
    right; needed: how many such probes it takes at the least, all of them right; rows: how many of those that
    nobody verified are relabelled with such a confidence.
    """

    precision: float
    threshold: float | None
    calibration_rows: int
    right: int
    needed: int
    rows: int


@dataclass(frozen=True)
class CalibrationPrior:
    """What the calibrations of other data sets leave to one without probes.

    weights: by evidence name, transition and keep last; relabelled, right, confidence: [P], as in
    `Calibration`, of rows of those data sets; withheld: whether corrections did them more harm than good.
    """

    weights: dict[str, float]
    relabelled: NDArray[np.bool_]
    right: NDArray[np.bool_]
    confidence: Floats
    abstains: bool = False

    @property
    def evidence(self) -> list[str]:
        """The names of the distributions it weighs, in order."""
        return list(self.weights)[:-2]

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> CalibrationPrior:
        """The experience whose `vars` are `values`; ValueError, TypeError or KeyError when they are not."""
        made = cls(**values)
        if not (
            list(made.weights)[-2:] == ["transition", "keep"]
            and all(isinstance(weight, float) and math.isfinite(weight) for weight in made.weights.values())
            and _are_probes(made.relabelled, made.right, made.confidence)
            and isinstance(made.abstains, bool)
        ):
            raise ValueError("these are not the values of a calibration prior")
        return made


@dataclass(frozen=True)
class Calibration:
    """The fitted map from evidence to soft labels, and what its own probes say of it.

    weights: by evidence name; transition: [C, C] rows = true class, smoothed, rows sum to 1; figures under
    `cross_validated` come from probes left out of the fit (None where no probe defines them).
    """

    weights: dict[str, float]
    transition: Floats
    decision_threshold: float
    """The log odds over the given label that a correction needs; infinite where corrections are withheld."""
    relabelled: NDArray[np.bool_]
    """[P] probes whose cross-validated corrected label differs from the given one."""
    right: NDArray[np.bool_]
    """[P] probes whose cross-validated corrected label is right."""
    confidence: Floats
    """[P] cross-validated soft-label maximum."""
    cross_validated: dict[str, float | None]
    transferred: bool = False
    """Whether weights and probes are those of other data sets."""
    raking_factors: Floats | None = None
    """[C, C] by class and given label, with which `borrowed.matched` multiplies the soft labels."""
    given_label_bias: float = 0.0
    """The log odds that given labels gain where corrections are withheld."""

    @property
    def abstains(self) -> bool:
        """Whether every given label is kept."""
        return self.decision_threshold == math.inf

    @property
    def calibration_prior(self) -> CalibrationPrior:
        """What is of use to other data sets."""
        return CalibrationPrior(self.weights, self.relabelled, self.right, self.confidence, self.abstains)

    def soft_labels(
        self,
        evidence: Mapping[str, NDArray[np.floating]],
        given: Labels,
        held_out: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Calibrated [N, C] from distributions [N, C] by name and given labels [N] (−1: none).

        held_out: [N], rows whose given label training did not see; default: none.
        """
        terms = DesignMatrix.of(evidence, given, self.transition[:, given].T, held_out, self.raking_factors)
        soft_label = softmax(terms.scores(np.array(list(self.weights.values()))))
        return (
            _kept(soft_label, given, self.decision_threshold, self.given_label_bias)
            if self.decision_threshold
            else soft_label
        )

    def selection(self, corrected: Labels, confidence: Floats, given: Labels, precision: float) -> Selection:
        """Choose the threshold of `fix` for rows that nobody verified, by their `best` and given labels [N].

        A fix needs two things. Its own calibrated confidence must reach `precision`. And the probes must bear
        that out by conformal selection (Jin and Candès 2023): a row's p-value is its rank among the probes
        with such a correction that is wrong, and Benjamini-Hochberg at level 1 − precision picks the
        threshold. Rows and probes being exchangeable, the expected share of wrong fixes is then at most
        1 − precision, whatever the classifier and however few the probes. An exact binomial bound at 90 %
        confidence would ask for more than twice as many probes, the confidence alone for none.
        """
        differs = changed(corrected, given)
        confidence = np.sort(confidence[differs & (confidence >= precision)])[::-1]
        judging = self.relabelled & (self.confidence >= precision)
        wrong = np.sort(self.confidence[judging & ~self.right])
        # For each candidate threshold: probes wrong at or above it, and rows it would mark.
        wrong_above = len(wrong) - np.searchsorted(wrong, confidence, side="left")
        marked = np.searchsorted(-confidence, -confidence, side="right")
        expected_wrong = (1 + wrong_above) / (judging.sum() + 1) * len(confidence) / np.maximum(marked, 1)
        kept = confidence[expected_wrong <= 1 - precision + 1e-9]
        return Selection(
            precision=precision,
            threshold=float(kept.min()) if len(kept) else None,
            calibration_rows=int(judging.sum()),
            right=int((judging & self.right).sum()),
            needed=math.ceil(1 / (1 - precision) - 1 - 1e-9),
            rows=len(confidence),
        )

    @classmethod
    def restored(cls, values: Mapping[str, Any], evidence: Sequence[str], num_classes: int) -> Calibration:
        """The calibration whose `dataclasses.asdict` is `values`, fitted on that evidence.

        Raises ValueError, TypeError or KeyError when they are not those of such a calibration.
        """
        made = cls(**values)
        transition = np.asarray(made.transition)
        numbers = [*made.weights.values(), *(v for v in made.cross_validated.values() if v is not None)]
        if not (
            list(made.weights) == [*evidence, "transition", "keep"]
            and tuple(made.cross_validated) == FIGURES
            and all(isinstance(number, float) and math.isfinite(number) for number in numbers)
            and isinstance(made.decision_threshold, float)
            and made.decision_threshold >= 0
            and transition.shape == (num_classes, num_classes)
            and (transition > 0).all()
            and np.allclose(transition.sum(axis=1), 1)
            and _are_probes(made.relabelled, made.right, made.confidence)
            and isinstance(made.transferred, bool)
            and made.raking_factors is None  # of the rows they were matched on, and of no others
            and isinstance(made.given_label_bias, float)
            and 0 <= made.given_label_bias <= _FURTHEST_LEANING
        ):
            raise ValueError("these are not the values of a calibration")
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the Parquet metadata."""
        return {
            "calibration_rows": 0 if self.transferred else len(self.right),
            "weights": self.weights,
            "abstains": self.abstains,
            "decision_threshold": None if self.abstains else self.decision_threshold,
            **self.cross_validated,
        }


def _are_probes(relabelled: NDArray[Any], right: NDArray[Any], confidence: NDArray[Any]) -> bool:
    return bool(
        relabelled.shape == right.shape == confidence.shape == (len(right),)
        and relabelled.dtype == right.dtype == np.bool_
        and (np.abs(confidence - 0.5) <= 0.5 + 1e-9).all()
    )


def actions(corrected: Labels, confidence: Floats, given: Labels, selection: Selection) -> NDArray[np.str_]:
    """`keep`, `fix` or `review` per row [N], from the `best` [N], [N] of soft labels and the given labels.

    A row whose corrected label differs is a `fix` from the promise's threshold on and a `review` below; a row
    that keeps its label is a `review` when that label is more likely wrong than right. An unlabelled row has
    no label to keep and none to fix: `review`.
    """
    differs = changed(corrected, given)
    action = np.where((given < 0) | differs | (confidence <= 0.5), "review", "keep")
    if selection.threshold is not None:
        action[differs & (confidence >= selection.threshold)] = "fix"
    return action


def fit(
    evidence: Mapping[str, NDArray[np.floating]],
    given: Labels,
    true: Labels,
    counts: NDArray[np.int64],
    seed: int,
    transferred: Calibration | None = None,
    held_out: NDArray[np.bool_] | None = None,
    like: Floats | None = None,
) -> Calibration:
    """Fit the calibration on P probe rows.

    evidence: distributions [P, C] by name; given, true: [P] class ids, given −1 where there is no label,
    which says something of the distributions and nothing of the rest; counts: [C, C] verified rows by (true,
    given) over ALL trusted rows of the source, probes included; seed: of the cross-validation folds;
    borrowed: what the probes are to improve on, its transition in place of that of the verified rows;
    held_out: [P], probes whose given label training did not see; like: [C, C], a p(given | true) that tells
    where wrong labels go, None for everywhere alike. Works with no probe at all: the prior weights, or those
    borrowed, and no promise.
    """
    num_classes = len(counts)
    names = [*evidence, "transition", "keep"]
    prior = PRIOR if transferred is None else transferred.weights
    start = np.array([prior.get(name, 0.0) for name in names])
    labelled = given >= 0
    raking_factors = None
    if transferred is None:
        towards = Prior.fitted(counts, like)
        transition = towards.posterior(counts)
        likelihood = np.ones((len(true), num_classes))
        likelihood[labelled] = towards.without_own(counts, true[labelled], given[labelled])
    else:
        transition, raking_factors = transferred.transition, transferred.raking_factors
        likelihood = transition[:, given].T
    terms = DesignMatrix.of(evidence, given, likelihood, held_out, raking_factors)
    weights = fit_weights([(terms, true)], start)

    validated = np.zeros((len(true), num_classes))
    fold = np.random.default_rng(seed).permutation(len(true)) % FOLDS
    for part in range(min(FOLDS, len(true))):
        rest = fold != part
        fitted = fit_weights([(terms[rest], true[rest])], start)
        validated[~rest] = softmax(terms[~rest].scores(fitted))
    was_right, is_right = given == true, validated.argmax(axis=1) == true
    broken, mended = was_right & ~is_right, labelled & ~was_right & is_right
    decision_threshold, given_label_bias = _decision_threshold(int(broken.sum()), int(mended.sum())), 0.0
    if transferred is not None and 0 < decision_threshold < math.inf:
        decision_threshold = max(decision_threshold, transferred.decision_threshold)
    if decision_threshold == math.inf:
        given_label_bias = _given_label_bias(
            validated[labelled], given[labelled], (was_right.sum() + 1) / (labelled.sum() + 2)
        )
    if decision_threshold:
        validated = _kept(validated, given, decision_threshold, given_label_bias)
    corrected, confidence = best(validated)
    return Calibration(
        weights=dict(zip(names, (float(weight) for weight in weights), strict=True)),
        transition=transition,
        decision_threshold=decision_threshold,
        relabelled=changed(corrected, given),
        right=corrected == true,
        confidence=confidence,
        cross_validated=_figures(validated[labelled], given[labelled], true[labelled]),
        raking_factors=raking_factors,
        given_label_bias=given_label_bias,
    )


def _decision_threshold(broken: int, mended: int) -> float:
    """The log odds that a correction needs, of how many right labels of probes corrections made wrong and how
    many wrong ones right: none where they do good, two to one where nothing is shown, infinite where they do
    harm, both by a one-sided sign test.

    With few wrong labels few probes are changed, and weights fitted on these are too sure of themselves: of
    1,360 draws of probes from 17 recorded runs with 0.5 to 10 % of noise, 9.4 % ended with fewer right labels
    than before, and 11.8 % without any margin, for 0.01 points of label accuracy on average.
    """
    from scipy.special import bdtrc

    def chance(count: int) -> float:
        return float(bdtrc(count - 1, broken + mended, 0.5)) if count else 1.0

    if chance(broken) <= _CHANCE_OF_HARM:
        return math.inf
    return 0.0 if chance(mended) <= _CHANCE_OF_GOOD else _DECISION_THRESHOLD


def _kept(
    soft_label: Floats, given: Labels, decision_threshold: float, given_label_bias: float = 0.0
) -> Floats:
    """Soft labels [N, C] that change no label without that margin, and still tell which ones are doubtful.

    A given label's odds are multiplied by e^leaning, and where another class is still likelier, by the margin
    at most, it takes a little more than that one's share. Rows without a label have none to keep: their soft
    label stays.
    """
    kept = soft_label.copy()
    rows = np.flatnonzero(given >= 0)
    own = kept[rows, given[rows]] * math.exp(given_label_bias)
    kept[rows, given[rows]] = 0
    other = kept[rows].max(axis=1)
    near = own <= other
    if decision_threshold < math.inf:
        near &= other <= own * math.exp(decision_threshold)
    kept[rows, given[rows]] = np.where(near, 1.001 * other, own)
    kept /= kept.sum(axis=1, keepdims=True)
    return kept


def _given_label_bias(soft_label: Floats, given: Labels, right: float) -> float:
    """At which leaning given labels [n] have on average the probability of being right that is `right`."""
    from scipy.optimize import brentq

    def excess(given_label_bias: float) -> float:
        kept = _kept(soft_label, given, math.inf, given_label_bias)
        return float(kept[np.arange(len(given)), given].mean()) - right

    if excess(0.0) >= 0:
        return 0.0
    if excess(_FURTHEST_LEANING) <= 0:
        return _FURTHEST_LEANING
    return float(brentq(excess, 0.0, _FURTHEST_LEANING))


def best(soft_label: NDArray[np.floating]) -> tuple[Labels, Floats]:
    """The corrected label [N] and its probability [N], of soft labels [N, C]."""
    return soft_label.argmax(axis=1), soft_label.max(axis=1).astype(np.float64)


def changed(corrected: Labels, given: Labels) -> NDArray[np.bool_]:
    """[N] whether the corrected label differs from a given one."""
    changed: NDArray[np.bool_] = (corrected != given) & (given >= 0)
    return changed


def _figures(soft_label: Floats, given: Labels, true: Labels) -> dict[str, float | None]:
    if len(true) == 0:
        return dict.fromkeys(FIGURES)
    noise_probability = 1 - soft_label[np.arange(len(true)), given]
    figures = (
        float((given == true).mean()),
        float((soft_label.argmax(axis=1) == true).mean()),
        expected_calibration_error(noise_probability, given != true),
    )
    return dict(zip(FIGURES, figures, strict=True))


def expected_noise_matrix(joint: Floats) -> Floats:
    """p(given | true) [C, C] from `joint_counts`; rows sum to 1."""
    shares: Floats = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-12)
    return shares


def joint_counts(soft_label: NDArray[np.floating], given: Labels) -> Floats:
    """Expected rows [C, C] by (true, given), as soft labels [N, C] of rows with a given label [N] tell it.

    Those of parts of the rows add up; −1 is no given label.
    """
    labelled, shares = torch.from_numpy(given), torch.from_numpy(soft_label).double()
    joint = torch.zeros(2 * (shares.shape[1],), dtype=torch.float64)
    rows = labelled >= 0
    found: Floats = joint.index_add_(
        0, labelled[rows], shares[rows]
    ).T.numpy()  # five times as fast as np.add.at
    return found
