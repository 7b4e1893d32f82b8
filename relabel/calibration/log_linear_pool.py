"""A softmax over the classes in which every kind of evidence has one weight.

    q_ic ∝ exp( Σ_k w_k log p^k_ic + w_T log T_{c,y_i} + w_keep 1[c = y_i] )

p^k are distributions from training (two epoch averages, the last prediction), T_{c,y} = p(given y | true c).
The few weights are shared by all classes, so permuting the classes permutes q. An unlabelled row has no last
two terms. A row whose label was *held out* of training has T alone, at weight 1: its distributions know
nothing of that label, and Bayes asks for no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PRIOR_STRENGTH = 3.0
FLOOR = 1e-4  # what bf16 logits resolve; below it a logarithm would be noise


@dataclass(frozen=True)
class DesignMatrix:
    """What the scores of n rows are made of: features [n, C, K + 2], a weight each, and `fixed` [n, C]."""

    features: Floats
    fixed: Floats

    @classmethod
    def of(
        cls,
        evidence: Mapping[str, NDArray[np.floating]],
        given: Labels,
        likelihood: Floats,
        held_out: NDArray[np.bool_] | None = None,
        raking_factors: Floats | None = None,
    ) -> DesignMatrix:
        """The terms of rows with distributions [n, C] by name, given labels [n] (−1: none) and their
        likelihood p(given | true) [n, C] for each class.

        held_out: [n], whose label training did not see; factors: [C, C], by class and given label, that
        multiply the soft labels of those it did see.
        """
        features = np.empty((*likelihood.shape, len(evidence) + 2))
        for column, probability in enumerate(evidence.values()):
            features[..., column] = np.log(np.clip(probability, FLOOR, None, dtype=np.float64))
        labelled = given >= 0
        log_likelihood = np.where(labelled[:, None], np.log(likelihood), 0.0)
        seen = labelled if held_out is None else labelled & ~held_out
        features[..., -2] = np.where(seen[:, None], log_likelihood, 0.0)
        features[..., -1] = (np.arange(likelihood.shape[1]) == given[:, None]) & seen[:, None]
        fixed = np.where(seen[:, None], 0.0, log_likelihood)
        if raking_factors is not None:
            fixed[seen] = np.log(raking_factors[:, given[seen]].T)
        return cls(features, fixed)

    def __getitem__(self, rows: NDArray[np.bool_] | slice) -> DesignMatrix:
        return DesignMatrix(self.features[rows], self.fixed[rows])

    def scores(self, weights: Floats) -> Floats:
        """[n, C] by the weights [K + 2]."""
        scores: Floats = self.features @ weights + self.fixed
        return scores


def softmax(scores: Floats) -> Floats:
    """Of scores [..., C]."""
    exponent: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exponent /= exponent.sum(axis=-1, keepdims=True)
    return exponent


def fit_weights(groups: Sequence[tuple[DesignMatrix, Labels]], prior: Floats) -> Floats:
    """Maximum a-posteriori weights [K + 2] under a Gaussian around `prior`; the problem is convex.

    groups: the terms of rows that choose among the same C classes, and their true class ids [n].
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    def objective(weights: Floats) -> tuple[float, Floats]:
        offset = weights - prior
        loss, gradient = float(PRIOR_STRENGTH / 2 * offset @ offset), PRIOR_STRENGTH * offset
        for terms, true in groups:
            rows = np.arange(len(true))
            scores = terms.scores(weights)
            log_norm = logsumexp(scores, axis=1)
            probability = np.exp(scores - log_norm[:, None])
            loss += float((log_norm - scores[rows, true]).sum())
            gradient = gradient + np.einsum("nc,nck->k", probability, terms.features)
            gradient -= terms.features[rows, true].sum(axis=0)
        return loss, gradient

    fitted: Floats = minimize(objective, prior, jac=True, method="BFGS").x
    return fitted
