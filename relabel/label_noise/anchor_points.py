"""Anchor points: the rows whose class the network is surest of before it memorises wrong labels.

Such rows are mostly of that class, so the labels they were given estimate p(given | true) without a trusted
row (Patrini et al., Making Deep Neural Networks Robust to Label Noise, 2017, eqs. 12 and 13). Theirs is one
anchor point a class and its predicted distribution; here there are many a class, and their given labels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relabel.sample_memory import ProbabilityStore, blocks

Floats = NDArray[np.float64]

_SHARE = 0.3
"""Anchor points of a class, as a share of the rows with its label.

More bring in more of the network's own mistakes, fewer more chance; .1 to .4 made little difference
(examples/RESULTS.md, "Choices").
"""
_ABOVE_UNIFORM = 1e-6
"""Of a probability in float32: a prediction no surer than this is uniform, as after a run of one epoch."""
_EM_STEPS = 50
"""Past convergence for noise that leaves most labels correct, and C² each."""
_LEAST_FREQUENCY = 1e-6
"""Of a class at the first step: EM could never raise one that starts at 0."""


def count(early: Tensor | ProbabilityStore, given: NDArray[np.int64]) -> NDArray[np.int64]:
    """Anchor points [C, C] by (predicted class, given label).

    early: [N, C], the early temporal ensemble; given: [N], −1 for rows that do not count. Of the rows
    predicted as a class, its anchor points are the surest, as many as `_SHARE` of the rows with its label.
    """
    num_rows, num_classes = early.shape
    sureness, label = torch.zeros(num_rows), torch.zeros(num_rows, dtype=torch.int64)
    for block in blocks(num_rows, num_classes):
        sureness[block], label[block] = early[block].float().max(dim=1)
    candidates = np.flatnonzero((given >= 0) & (sureness.numpy() > 1 / num_classes + _ABOVE_UNIFORM))
    predicted = label.numpy()[candidates]
    order = np.lexsort((-sureness.numpy()[candidates], predicted))
    first = np.searchsorted(predicted[order], np.arange(num_classes))
    rank = np.arange(len(order)) - first[predicted[order]]
    wanted = np.ceil(_SHARE * np.bincount(given[given >= 0], minlength=num_classes))
    chosen = order[rank < wanted[predicted[order]]]
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (predicted[chosen], given[candidates[chosen]]), 1)
    return counts


def posterior(transition: Floats, given: NDArray[np.floating]) -> Floats:
    """p(true | given) [C, C], columns summing to 1, by Bayes' rule from p(given | true).

    given: [C], rows by given label; the true classes' frequencies are those under which it is likeliest (EM).
    """
    label = given / given.sum()
    frequency = label.clip(_LEAST_FREQUENCY)
    for _ in range(_EM_STEPS):
        frequency = frequency * (transition @ (label / (frequency @ transition)))
    joint: Floats = frequency[:, None] * transition
    joint /= joint.sum(axis=0)
    return joint
