"""The transition matrix T_ij = p(given = j | true = i): the one estimate that a run makes of its label noise.

Trusted rows show T directly, but there are never enough of them for C² numbers. So T is estimated by
empirical Bayes: its rows are drawn towards a prior matrix with two strengths, one for each class's noise
rate and one for the classes its mislabelled rows are given. Each is a Dirichlet prior with as many
pseudo-rows as maximise the Dirichlet-multinomial likelihood of the counts (Minka, Estimating a Dirichlet
distribution, 2000). Symmetric noise is then smoothed to one rate; structured noise keeps its structure.
Anchor points say beforehand where mislabelled rows go (`anchor_points`; Patrini et al. 2017, eq. 12),
where there are any.

A fit makes one `TransitionEstimate` after training, for its labels and for a kept model, and a corrector that
wants T gets one at the end of the warm-up (`WarmUp.transition`). After calibration T is read off the soft
labels once more, for the report (`joint_counts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Counts = NDArray[np.int64]

_STRENGTHS = 10.0 ** np.arange(-1, 4.1, 0.25)
"""Pseudo-rows to choose from: fewer change nothing, more outweigh any trusted set."""
_NOISE_RATE_ROWS = 2
"""Pseudo-rows of the pooled noise rate: without a prior matrix its prior is uniform (Laplace's rule)."""
_NOISE_RATE = 0.5
"""Mean of that uniform prior."""


@dataclass(frozen=True)
class TransitionEstimate:
    """p(given | true) by trusted rows and anchor points.

    counts: [C, C] trusted rows by (true, given); prior: the Dirichlet priors fitted to them.
    """

    counts: Counts
    prior: DirichletPrior

    @classmethod
    def of(cls, counts: Counts, anchors: Counts | None = None) -> TransitionEstimate:
        """The estimate from `counts` [C, C] of trusted rows by (true, given).

        anchors: [C, C] anchor points by (predicted, given), whose own estimate is the prior matrix; without
        one, the prior is symmetric noise.
        """
        prior_matrix = cls.of(anchors).matrix if anchors is not None and anchors.any() else None
        return cls(counts, DirichletPrior.fitted(counts, prior_matrix))

    @cached_property
    def matrix(self) -> Floats:
        """T [C, C], positive, rows (true classes) sum to 1."""
        return self.prior.posterior(self.counts)

    def leave_one_out(self, true: Labels, given: Labels) -> Floats:
        """p(given | class) [P, C] of P counted rows, each by the estimate without its own pair (true, given).

        A row that is scored by a matrix that counts it is worth twice. Only the entry of its true class
        differs from `matrix`; the prior stays.
        """
        found = self.matrix[:, given].T
        prior, rows = self.prior, self.counts.sum(axis=1)[true]
        correct = true == given
        mislabelled = rows - self.counts[true, true] - ~correct
        noise_rate = 1 - prior.mean[true, true]
        rate = (mislabelled + prior.rate_rows * noise_rate) / (rows - 1 + prior.rate_rows)
        share = prior.mean[true, given] / noise_rate
        share = (self.counts[true, given] - 1 + prior.share_rows * share) / (mislabelled + prior.share_rows)
        found[np.arange(len(true)), true] = np.where(correct, 1 - rate, rate * share)
        return found


@dataclass(frozen=True)
class DirichletPrior:
    """The priors of a row of T.

    mean: [C, C], positive, rows sum to 1; rate_rows: pseudo-rows of a class's noise rate; share_rows: of how
    its mislabelled rows are shared out among the other classes.
    """

    mean: Floats
    rate_rows: float
    share_rows: float

    @classmethod
    def fitted(cls, counts: Counts, prior_matrix: Floats | None = None) -> DirichletPrior:
        """The prior with mean `at_pooled_rate` and the strengths under which `counts` [C, C] are likeliest.

        prior_matrix: [C, C]; its mislabelled rows' shares count, its classes' noise rates do not (drawing a
        class's rate towards that of its anchor points cost label accuracy: examples/RESULTS.md, "Choices").
        """
        mean = at_pooled_rate(counts, prior_matrix)
        correct, noise_rate = np.diag(counts), 1 - np.diag(mean)
        by_correctness = np.stack([correct, counts.sum(axis=1) - correct], axis=1)
        shares = _off_diagonal(mean) / noise_rate[:, None]
        return cls(
            mean,
            rate_rows=_likeliest_strength(by_correctness, np.stack([1 - noise_rate, noise_rate], axis=1)),
            share_rows=_likeliest_strength(_off_diagonal(counts), shares),
        )

    def posterior(self, counts: Counts) -> Floats:
        """The posterior mean of T [C, C], positive, rows sum to 1; counts: [C, C] by (true, given)."""
        correct, rows = np.diag(counts), counts.sum(axis=1)
        noise_rate = 1 - np.diag(self.mean)
        rate = (rows - correct + self.rate_rows * noise_rate) / (rows + self.rate_rows)
        shares = _off_diagonal(self.mean) / noise_rate[:, None]
        shares = (_off_diagonal(counts) + self.share_rows * shares) / (rows - correct + self.share_rows)[
            :, None
        ]
        found = np.diag(1 - rate)
        found[~np.eye(len(found), dtype=bool)] = (rate[:, None] * shares).ravel()
        return found


def at_pooled_rate(counts: Counts, prior_matrix: Floats | None = None) -> Floats:
    """Noise [C, C] of one rate for all classes, pooled over `counts` [C, C] by (true, given).

    Its mislabelled rows go where those of `prior_matrix` [C, C] go, whose mean rate the pooled one is drawn
    towards; without one, to all other classes alike, and towards one half.
    """
    classes, total = len(counts), counts.sum()
    if prior_matrix is None:
        prior_matrix = np.full((classes, classes), _NOISE_RATE / (classes - 1))
        np.fill_diagonal(prior_matrix, 1 - _NOISE_RATE)
    rates = 1 - np.diag(prior_matrix)
    pooled = (total - np.trace(counts) + _NOISE_RATE_ROWS * rates.mean()) / (total + _NOISE_RATE_ROWS)
    matrix: Floats = pooled * prior_matrix / rates[:, None]
    np.fill_diagonal(matrix, 1 - pooled)
    return matrix


def joint_counts(soft_label: NDArray[np.floating], given: Labels) -> Floats:
    """Expected rows [C, C] by (true, given), by soft labels [N, C] of rows with a given label [N] (−1: none).

    Those of parts of the rows add up.
    """
    import torch  # index_add_ is several times as fast as np.add.at; nothing else here needs torch

    labelled, shares = torch.from_numpy(given), torch.from_numpy(soft_label).double()
    joint = torch.zeros(2 * (shares.shape[1],), dtype=torch.float64)
    rows = labelled >= 0
    found: Floats = joint.index_add_(0, labelled[rows], shares[rows]).T.numpy()
    return found


def _off_diagonal(matrix: NDArray[np.integer] | Floats) -> Floats:
    """[C, C - 1]."""
    off: Floats = matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1).astype(np.float64)
    return off


def _likeliest_strength(counts: NDArray[np.integer] | Floats, mean: Floats) -> float:
    """The pseudo-rows around `mean` [C, K] under which `counts` [C, K] are likeliest."""
    from scipy.special import gammaln

    cells = counts.nonzero()
    seen, expected = counts[cells], mean[cells]
    totals = counts.sum(axis=1)

    def log_likelihood(rows: float) -> float:
        likelihood = gammaln(seen + rows * expected) - gammaln(rows * expected)
        return float(likelihood.sum() + (gammaln(rows) - gammaln(rows + totals)).sum())

    return float(max(_STRENGTHS, key=log_likelihood))
