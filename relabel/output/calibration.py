"""From what training saw to probabilities one can act on, fitted on the probe rows.

Probe rows are trusted rows that went through training as ordinary rows under their given label, so they
are exchangeable with the rows nobody verified. On them a softmax over the classes

    q_ic ∝ exp( Σ_k w_k log p^k_ic + w_T log T_{c,y_i} + w_keep 1[c = y_i] )

is fitted: p^k are distributions from training (two epoch averages, the last prediction, the corrector's
soft label), T_{c,y} = p(given y | true c) the trusted rows' smoothed noise matrix. The few weights are
shared by all classes, so permuting the classes permutes q. An unlabelled row has no last two terms.

A data set without a verified row borrows the weights of others, and takes from its own anchors what is
mistaken for what: `matched`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relabel.metrics import expected_calibration_error, smoothed_transition
from relabel.output.anchors import Floats, posterior

Labels = NDArray[np.int64]

_PRIOR = {"early": 1.0, "late": 1.0, "prediction": 1.0, "transition": 0.25, "keep": 0.0}
"""Where the weights stand without probes, and what few probes are drawn towards.

Averages over epochs are flatter than their accuracy deserves, hence 2 for both together; a finished
backbone's prediction of an unseen image is not (0.9 to 1.4 on digits, with a corrector); the others are near
what hundreds of probes give on photographs and on CIFAR-10N, with and without a corrector.
"""
CORRECTOR = "corrector"
"""The name, among the evidence, of the soft label of a corrector that learned on other data sets."""
_PRIOR_STRENGTH = 3.0
_FOLDS = 10
_ROWS_LEARNED, _ROWS_JUDGED = 300, 1_500  # of a data set: for the weights that suit many, and for the promise
_FIGURES = ("probe_accuracy_before", "probe_accuracy_after", "probe_calibration_error")
_FURTHEST_LEANING = 20.0
_FLOOR = 1e-4  # what bf16 logits resolve; below it a logarithm would be noise


@dataclass(frozen=True)
class Promise:
    """What `fix` promises: of the rows marked, in expectation at least `precision` are right.

    threshold: least soft-label maximum of a `fix` row, None when the promise cannot be made for any row;
    probes, right: probe rows relabelled with a confidence of at least `precision`, and how many of these are
    right; needed: how many such probes it takes at the least, all of them right; rows: how many of those that
    nobody verified are relabelled with such a confidence.
    """

    precision: float
    threshold: float | None
    probes: int
    right: int
    needed: int
    rows: int


@dataclass(frozen=True)
class Experience:
    """What the calibrations of other data sets leave to one without probes.

    weights: by evidence name, transition and keep last; relabelled, right, confidence: [P], as in
    `Calibration`, of rows of those data sets; withheld: whether corrections did them more harm than good.
    """

    weights: dict[str, float]
    relabelled: NDArray[np.bool_]
    right: NDArray[np.bool_]
    confidence: Floats
    withheld: bool = False

    @property
    def evidence(self) -> list[str]:
        """The names of the distributions it weighs, in order."""
        return list(self.weights)[:-2]

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Experience:
        """The experience whose `vars` are `values`; ValueError, TypeError or KeyError when they are not."""
        made = cls(**values)
        if not (
            list(made.weights)[-2:] == ["transition", "keep"]
            and all(isinstance(weight, float) and math.isfinite(weight) for weight in made.weights.values())
            and _are_probes(made.relabelled, made.right, made.confidence)
            and isinstance(made.withheld, bool)
        ):
            raise ValueError("these are not the values of an experience")
        return made


@dataclass(frozen=True)
class Calibration:
    """The fitted map from evidence to soft labels, and what its own probes say of it.

    weights: by evidence name; transition: [C, C] rows = true class, smoothed, rows sum to 1; figures under
    `cross_validated` come from probes left out of the fit (None where no probe defines them).
    """

    weights: dict[str, float]
    transition: Floats
    withheld: bool
    """Whether corrections were withheld because on the probes they did more harm than good."""
    relabelled: NDArray[np.bool_]
    """[P] probes whose cross-validated corrected label differs from the given one."""
    right: NDArray[np.bool_]
    """[P] probes whose cross-validated corrected label is right."""
    confidence: Floats
    """[P] cross-validated soft-label maximum."""
    cross_validated: dict[str, float | None]
    borrowed: bool = False
    """Whether weights and probes are those of other data sets."""
    factors: Floats | None = None
    """[C, C] by class and given label, with which `matched` multiplies the soft labels."""
    leaning: float = 0.0
    """The log odds that given labels gain where corrections are withheld."""

    @property
    def experience(self) -> Experience:
        """What is of use to other data sets."""
        return Experience(self.weights, self.relabelled, self.right, self.confidence, self.withheld)

    def soft_labels(self, evidence: Mapping[str, NDArray[np.floating]], given: Labels) -> Floats:
        """Calibrated [N, C] from distributions [N, C] by name and given labels [N] (−1: none)."""
        features = _features(evidence, given, self.transition[:, given].T)
        soft_label = _softmax(features @ _vector(self.weights))
        if self.withheld:
            return _kept(soft_label, given, self.leaning)
        return soft_label if self.factors is None else _multiplied(soft_label, given, self.factors)

    def promise(self, corrected: Labels, confidence: Floats, given: Labels, precision: float) -> Promise:
        """Choose the threshold of `fix` for rows that nobody verified, by their `best` and given labels [N].

        A fix needs two things. Its own calibrated confidence must reach `precision`. And the probes must bear
        that out by conformal selection (Jin and Candès 2023): a row's p-value is its rank among the probes
        with such a correction that is wrong, and Benjamini-Hochberg at level 1 − precision picks the
        threshold. Rows and probes being exchangeable, the expected share of wrong fixes is then at most
        1 − precision, whatever the classifier and however few the probes. An exact binomial bound at 90 %
        confidence would ask for more than twice as many probes, the confidence alone for none.
        """
        changed = _changed(corrected, given)
        confidence = np.sort(confidence[changed & (confidence >= precision)])[::-1]
        judging = self.relabelled & (self.confidence >= precision)
        wrong = np.sort(self.confidence[judging & ~self.right])
        # For each candidate threshold: probes wrong at or above it, and rows it would mark.
        wrong_above = len(wrong) - np.searchsorted(wrong, confidence, side="left")
        marked = np.searchsorted(-confidence, -confidence, side="right")
        expected_wrong = (1 + wrong_above) / (judging.sum() + 1) * len(confidence) / np.maximum(marked, 1)
        kept = confidence[expected_wrong <= 1 - precision + 1e-9]
        return Promise(
            precision=precision,
            threshold=float(kept.min()) if len(kept) else None,
            probes=int(judging.sum()),
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
            and tuple(made.cross_validated) == _FIGURES
            and all(isinstance(number, float) and math.isfinite(number) for number in numbers)
            and isinstance(made.withheld, bool)
            and transition.shape == (num_classes, num_classes)
            and (transition > 0).all()
            and np.allclose(transition.sum(axis=1), 1)
            and _are_probes(made.relabelled, made.right, made.confidence)
            and isinstance(made.borrowed, bool)
            and made.factors is None  # of the rows they were matched on, and of no others
            and isinstance(made.leaning, float)
            and 0 <= made.leaning <= _FURTHEST_LEANING
        ):
            raise ValueError("these are not the values of a calibration")
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the Parquet metadata."""
        return {
            "probes": 0 if self.borrowed else len(self.right),
            "weights": self.weights,
            "withheld": self.withheld,
            **self.cross_validated,
        }


def _are_probes(relabelled: NDArray[Any], right: NDArray[Any], confidence: NDArray[Any]) -> bool:
    return bool(
        relabelled.shape == right.shape == confidence.shape == (len(right),)
        and relabelled.dtype == right.dtype == np.bool_
        and (np.abs(confidence - 0.5) <= 0.5 + 1e-9).all()
    )


def actions(corrected: Labels, confidence: Floats, given: Labels, promise: Promise) -> NDArray[np.str_]:
    """`keep`, `fix` or `review` per row [N], from the `best` [N], [N] of soft labels and the given labels.

    A row whose corrected label differs is a `fix` from the promise's threshold on and a `review` below; a row
    that keeps its label is a `review` when that label is more likely wrong than right. An unlabelled row has
    no label to keep and none to fix: `review`.
    """
    changed = _changed(corrected, given)
    action = np.where((given < 0) | changed | (confidence <= 0.5), "review", "keep")
    if promise.threshold is not None:
        action[changed & (confidence >= promise.threshold)] = "fix"
    return action


def fit(
    evidence: Mapping[str, NDArray[np.floating]],
    given: Labels,
    true: Labels,
    counts: NDArray[np.int64],
    seed: int,
    prior: Mapping[str, float] = _PRIOR,
    transition: Floats | None = None,
    factors: Floats | None = None,
) -> Calibration:
    """Fit the calibration on P probe rows.

    evidence: distributions [P, C] by name; given, true: [P] class ids, given −1 where there is no label,
    which says something of the distributions and nothing of the rest; counts: [C, C] verified rows by (true,
    given) over ALL trusted rows of the source, probes included; seed: of the cross-validation folds; prior:
    weights by name, 0 where not named; transition: [C, C], where it is known without the verified rows;
    factors: [C, C], of a calibration that was `matched` and that the probes are to improve on. Works with no
    probe at all: the prior weights, and no promise.
    """
    num_classes = len(counts)
    names = [*evidence, "transition", "keep"]
    start = np.array([prior.get(name, 0.0) for name in names])
    labelled = given >= 0
    if transition is None:
        transition = smoothed_transition(counts)
        likelihood = np.ones((len(true), num_classes))
        likelihood[labelled] = _leave_one_out(counts, true[labelled], given[labelled])
    else:
        likelihood = transition[:, given].T
    features = _features(evidence, given, likelihood)
    fixed = np.zeros((len(true), num_classes))
    if factors is not None:
        fixed[labelled] = np.log(factors[:, given[labelled]].T)
    weights = _fit_weights([(features, true, fixed)], start)

    held_out = np.zeros((len(true), num_classes))
    fold = np.random.default_rng(seed).permutation(len(true)) % _FOLDS
    for part in range(min(_FOLDS, len(true))):
        rest = fold != part
        fitted = _fit_weights([(features[rest], true[rest], fixed[rest])], start)
        held_out[~rest] = _softmax(features[~rest] @ fitted + fixed[~rest])
    kept_right = int(np.count_nonzero(given == true))
    withheld = int(np.count_nonzero((held_out.argmax(axis=1) == true) & labelled)) < kept_right
    leaning = 0.0
    if withheld:
        leaning = _leaning(held_out[labelled], given[labelled], (kept_right + 1) / (labelled.sum() + 2))
        held_out = _kept(held_out, given, leaning)
    corrected, confidence = best(held_out)
    return Calibration(
        weights=dict(zip(names, (float(weight) for weight in weights), strict=True)),
        transition=transition,
        withheld=withheld,
        relabelled=_changed(corrected, given),
        right=corrected == true,
        confidence=confidence,
        cross_validated=_figures(held_out[labelled], given[labelled], true[labelled]),
        factors=factors,
        leaning=leaning,
    )


def transferred(experience: Experience, transition: Floats) -> Calibration:
    """The calibration of a data set nobody has verified a row of: other data sets' weights and probes.

    transition: [C, C], this data set's own, as its anchors tell it.
    """
    return Calibration(
        weights=experience.weights,
        transition=transition,
        withheld=experience.withheld,
        relabelled=experience.relabelled,
        right=experience.right,
        confidence=experience.confidence,
        cross_validated=dict.fromkeys(_FIGURES),
        borrowed=True,
    )


def matched(fitted: Calibration, joint: Floats) -> Calibration:
    """`fitted` with factors that bring its soft labels near to what its anchors say of each given label.

    joint: [C, C], expected rows by (true, given) as the soft labels of all rows by `fitted` tell it
    (`joint_counts`). Borrowed weights know neither how far this network got nor which classes are mistaken
    for which: with asymmetric noise they turned labels into those they are mistaken for, and not back. On
    five runs of 5,000 CIFAR-10 images (symmetric 5 and 40 %, asymmetric, instance-dependent and human noise)
    8.2 points more labels were right than given, 5.6 with one level for all classes in place of factors, and
    the calibration error was .042 in place of .074.
    """
    if fitted.withheld or not joint.any():
        return fitted
    return replace(fitted, factors=_factors(joint, fitted.transition))


def _factors(joint: Floats, transition: Floats) -> Floats:
    rows = joint.sum(axis=0)
    own = joint / np.maximum(rows, 1e-12)
    factors: Floats = posterior(transition, rows) / np.maximum(own, _FLOOR)
    return np.where(rows > 0, factors, 1.0)


def _multiplied(soft_label: Floats, given: Labels, factors: Floats) -> Floats:
    """Soft labels [N, C] times their given label's factors; rows without one stay."""
    scaled: Floats = soft_label * np.where((given >= 0)[:, None], factors[:, given].T, 1.0)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


@dataclass(frozen=True)
class Solved:
    """A data set whose truth is known, with what a fit on it found.

    evidence: distributions [N, C] by name; given, true: [N] class ids; transition: [C, C], from its anchors.
    """

    evidence: Mapping[str, NDArray[np.floating]]
    given: Labels
    true: Labels
    transition: Floats


def learn(solved: Sequence[Solved], seed: int) -> Experience:
    """The weights that suit all those data sets, each of which counts alike, whatever its size.

    What they are worth is told by rows of data sets that were left out of the fit, `matched` as in use.
    """
    rng = np.random.default_rng(seed)
    names = [*solved[0].evidence, "transition", "keep"]
    prior = np.array([_PRIOR.get(name, 0.0) for name in names])
    judged = [_rows_of(data, rng.permutation(len(data.true))[:_ROWS_JUDGED]) for data in solved]
    groups = [(features[:_ROWS_LEARNED], true[:_ROWS_LEARNED], 0.0) for features, true, _ in judged]
    fold = rng.permutation(len(groups)) % _FOLDS
    soft: dict[int, Floats] = {}
    for part in np.unique(fold):
        rest = [group for place, group in enumerate(groups) if fold[place] != part]
        weights = _fit_weights(rest, prior) if rest else prior
        for place in np.flatnonzero(fold == part).tolist():
            features, _, given = judged[place]
            soft[place] = _softmax(features @ weights)
            factors = _factors(joint_counts(soft[place], given), solved[place].transition)
            soft[place] = _multiplied(soft[place], given, factors)
    found = [best(soft[place]) for place in range(len(groups))]
    corrected, confidence = (np.concatenate(parts) for parts in zip(*found, strict=True))
    true, given = (np.concatenate([rows[column] for rows in judged]) for column in (1, 2))
    fitted = _fit_weights(groups, prior)
    return Experience(
        weights=dict(zip(names, (float(weight) for weight in fitted), strict=True)),
        relabelled=_changed(corrected, given),
        right=corrected == true,
        confidence=confidence,
        withheld=int((corrected == true).sum()) < int((given == true).sum()),
    )


def _rows_of(data: Solved, rows: NDArray[np.int64]) -> tuple[Floats, Labels, Labels]:
    """Features [n, C, K + 2], true and given labels [n] of some rows."""
    given = data.given[rows]
    evidence = {name: values[rows] for name, values in data.evidence.items()}
    return _features(evidence, given, data.transition[:, given].T), data.true[rows], given


def _leave_one_out(counts: NDArray[np.int64], true: Labels, given: Labels) -> Floats:
    """p(given | true) [P, C] for each class, of probes [P] whose own pairs are taken out of `counts` first.

    A probe's own verified pair must not stand in the matrix that scores it: `smoothed_transition` without it,
    but only the column that is asked for.
    """
    probes, classes = np.arange(len(true)), len(counts)
    columns, rows = counts[:, given].T.astype(np.float64), np.tile(counts.sum(axis=1), (len(true), 1))
    columns[probes, true] -= 1
    rows[probes, true] -= 1
    total, wrong = counts.sum() - 1, counts.sum() - np.trace(counts) - (given != true)
    rate = ((wrong + 1) / (total + 2))[:, None]
    prior = np.where(np.arange(classes) == given[:, None], 1 - rate, rate / (classes - 1))
    smoothed: Floats = (columns + classes * prior) / (rows + classes)
    return smoothed


def _features(evidence: Mapping[str, NDArray[np.floating]], given: Labels, likelihood: Floats) -> Floats:
    """[N, C, K + 2]: K log distributions, log T_{·,y} and 1[c = y]; the last two 0 if unlabelled."""
    features = np.empty((*likelihood.shape, len(evidence) + 2))
    for column, (name, values) in enumerate(evidence.items()):
        probability = _of_corrector(values, given) if name == CORRECTOR else values
        features[..., column] = np.log(np.clip(probability, _FLOOR, None, dtype=np.float64))
    features[..., -2] = np.where((given >= 0)[:, None], np.log(likelihood), 0.0)
    features[..., -1] = np.arange(likelihood.shape[1]) == given[:, None]
    return features


def _of_corrector(soft_label: NDArray[np.floating], given: Labels) -> NDArray[np.floating]:
    """What a corrector's soft labels [N, C] say: nothing of rows without a label, which it never learned of.

    Classes that it gave no share, not being candidates of the row, take the least of those that it did.
    """
    least = np.where(soft_label > 0, soft_label, np.inf).min(axis=1, keepdims=True)
    return np.where((given >= 0)[:, None], np.maximum(soft_label, least), 1.0)


def _vector(weights: Mapping[str, float]) -> Floats:
    return np.array(list(weights.values()))


def _softmax(scores: Floats) -> Floats:
    exponent: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exponent /= exponent.sum(axis=-1, keepdims=True)
    return exponent


def _fit_weights(groups: Sequence[tuple[Floats, Labels, Floats | float]], prior: Floats) -> Floats:
    """Maximum a-posteriori weights [K + 2] under a Gaussian around `prior`; the problem is convex.

    groups: features [n, C, K + 2], true class ids [n] and scores [n, C] that are there without any weight, of
    rows that choose among the same C classes.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    def objective(weights: Floats) -> tuple[float, Floats]:
        offset = weights - prior
        loss, gradient = float(_PRIOR_STRENGTH / 2 * offset @ offset), _PRIOR_STRENGTH * offset
        for features, true, fixed in groups:
            rows = np.arange(len(true))
            scores = features @ weights + fixed
            log_norm = logsumexp(scores, axis=1)
            probability = np.exp(scores - log_norm[:, None])
            loss += float((log_norm - scores[rows, true]).sum())
            gradient = gradient + np.einsum("nc,nck->k", probability, features)
            gradient -= features[rows, true].sum(axis=0)
        return loss, gradient

    fitted: Floats = minimize(objective, prior, jac=True, method="BFGS").x
    return fitted


def _kept(soft_label: Floats, given: Labels, leaning: float) -> Floats:
    """Soft labels [N, C] that change nothing, and still tell which given labels are doubtful.

    A given label's odds are multiplied by e^leaning, and where another class is still the likeliest it takes
    a little more than that one's share. Rows without a label have none to keep: their soft label stays.
    """
    kept = soft_label.copy()
    rows = np.flatnonzero(given >= 0)
    own = kept[rows, given[rows]]
    kept[rows, given[rows]] = 0
    kept[rows, given[rows]] = np.maximum(own * math.exp(leaning), 1.001 * kept[rows].max(axis=1))
    kept /= kept.sum(axis=1, keepdims=True)
    return kept


def _leaning(soft_label: Floats, given: Labels, right: float) -> float:
    """At which leaning given labels [n] have on average the probability of being right that is `right`."""
    from scipy.optimize import brentq

    def excess(leaning: float) -> float:
        kept = _kept(soft_label, given, leaning)
        return float(kept[np.arange(len(given)), given].mean()) - right

    if excess(0.0) >= 0:
        return 0.0
    if excess(_FURTHEST_LEANING) <= 0:
        return _FURTHEST_LEANING
    return float(brentq(excess, 0.0, _FURTHEST_LEANING))


def best(soft_label: NDArray[np.floating]) -> tuple[Labels, Floats]:
    """The corrected label [N] and its probability [N], of soft labels [N, C]."""
    return soft_label.argmax(axis=1), soft_label.max(axis=1).astype(np.float64)


def _changed(corrected: Labels, given: Labels) -> NDArray[np.bool_]:
    """[N] whether the corrected label differs from a given one."""
    changed: NDArray[np.bool_] = (corrected != given) & (given >= 0)
    return changed


def _figures(soft_label: Floats, given: Labels, true: Labels) -> dict[str, float | None]:
    if len(true) == 0:
        return dict.fromkeys(_FIGURES)
    noise_probability = 1 - soft_label[np.arange(len(true)), given]
    figures = (
        float((given == true).mean()),
        float((soft_label.argmax(axis=1) == true).mean()),
        expected_calibration_error(noise_probability, given != true),
    )
    return dict(zip(_FIGURES, figures, strict=True))


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
