"""A log-linear pool (Genest and Zidek 1986) of predictions, the transition matrix and the given label:

    q_ic ∝ exp( Σ_k w_k log p^k_ic + w_T log T_{c,y_i} + w_keep 1[c = y_i] )

p^k are distributions from training (two temporal ensembles, the last prediction), T_{c,y} = p(given y | true
c). The weights are shared by all classes, so permuting the classes permutes q. An unlabelled row lacks the
last two terms. A row whose label was *held out* of training has T alone, at weight 1: its predictions are
independent of that label, and the pool is Bayes' rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PRIOR_PRECISION = 3.0
"""Of each weight's Gaussian prior: a standard deviation of .58, so that 0 to 2 is likely around 1."""
FLOOR = 1e-4
"""Of a probability: what bf16 logits resolve; below it a logarithm would be noise."""


@dataclass(frozen=True)
class DesignMatrix:
    """Of n rows: features [n, C, K + 2], one weight each, and `fixed` [n, C], terms of weight 1."""

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
        """Of rows with distributions [n, C] by name, given labels [n] (−1: none) and their likelihood
        p(given | class) [n, C].

        held_out: [n], rows whose label training did not see; raking_factors: [C, C], by class and given
        label, that multiply the soft labels of rows whose label it did see.
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
    """Distributions [..., C] of scores."""
    exponent: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exponent /= exponent.sum(axis=-1, keepdims=True)
    return exponent


def fit_weights(groups: Sequence[tuple[DesignMatrix, Labels]], prior: Floats) -> Floats:
    """Maximum a-posteriori weights [K + 2] under a Gaussian with mean `prior`; the problem is convex.

    groups: rows that choose among the same C classes, and their true class ids [n].
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    def objective(weights: Floats) -> tuple[float, Floats]:
        offset = weights - prior
        loss, gradient = float(PRIOR_PRECISION / 2 * offset @ offset), PRIOR_PRECISION * offset
        for design, true in groups:
            rows = np.arange(len(true))
            scores = design.scores(weights)
            log_norm = logsumexp(scores, axis=1)
            probability = np.exp(scores - log_norm[:, None])
            loss += float((log_norm - scores[rows, true]).sum())
            gradient = gradient + np.einsum("nc,nck->k", probability, design.features)
            gradient -= design.features[rows, true].sum(axis=0)
        return loss, gradient

    fitted: Floats = minimize(objective, prior, jac=True, method="BFGS").x
    return fitted
