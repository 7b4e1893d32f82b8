"""What the contract itself computes: needs, the warm-up's noise, the loss of soft labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relabel.correctors.base import Learning, Needs, TrustedRows, WarmUp, no_rows, soft_cross_entropy
from relabel.correctors.plain import Plain

N, C = 30, 3
GIVEN = torch.arange(N) % C


def warm_up(meta: TrustedRows, given: torch.Tensor = GIVEN, sure: float = 0.9) -> WarmUp:
    """Predictions that are `sure` of the class of the row number."""
    probability = torch.full((N, C), (1 - sure) / (C - 1))
    probability[torch.arange(N), torch.arange(N) % C] = sure
    return WarmUp(probability, probability, given, nn.Linear(2, C), lambda: torch.zeros(N, 2), meta)


@pytest.mark.parametrize("learning", Learning)
def test_frozen_leaves_what_phi_is_not_learned_by(learning: Learning) -> None:
    needs = Needs(learning, in_training_rows=True, given_labels=False, transfers=True)
    assert needs.looks_ahead == ("look-ahead" in learning.value)
    assert needs.frozen == Needs(Learning.NOT, given_labels=False, transfers=True)
    assert not needs.frozen.looks_ahead
    assert needs.frozen.frozen == needs.frozen


def test_the_warm_up_tells_how_meta_rows_were_labelled() -> None:
    rows = torch.arange(12)
    true = (rows + (rows < 6)) % C  # half of them are given another class
    found = warm_up(TrustedRows(rows, true, GIVEN[rows])).transition
    even = warm_up(TrustedRows(rows, GIVEN[rows], GIVEN[rows])).transition
    assert found is not None
    assert even is not None
    assert found.matrix.shape == (C, C)
    np.testing.assert_allclose(found.matrix.sum(axis=1), 1)
    assert np.diag(found.matrix).mean() < np.diag(even.matrix).mean() - 0.1


def test_without_labelled_rows_there_is_nothing_to_tell() -> None:
    unlabelled = torch.full_like(GIVEN, -1)
    assert warm_up(no_rows(), unlabelled).transition is None
    rows = torch.arange(3)
    nameless = TrustedRows(rows, rows % C, torch.full_like(rows, -1))
    assert warm_up(nameless, unlabelled).transition is None


def test_a_meta_row_is_no_anchor_point_as_well() -> None:
    """Its given label counts once, with its true one."""
    rows = torch.arange(N)
    everyone = warm_up(TrustedRows(rows, GIVEN, GIVEN)).transition
    others = warm_up(TrustedRows(rows, GIVEN, GIVEN), sure=0.4).transition
    assert everyone is not None
    assert others is not None
    np.testing.assert_array_equal(everyone.matrix, others.matrix)


def test_the_loss_of_a_soft_label_is_linear_in_it_and_that_of_a_class_at_its_corners() -> None:
    logits = torch.randn(5, C, generator=torch.Generator().manual_seed(0))
    corners = [torch.full((5,), label) for label in range(C)]
    losses = [F.cross_entropy(logits, corner, reduction="none") for corner in corners]
    for corner, loss in zip(corners, losses, strict=True):
        torch.testing.assert_close(soft_cross_entropy(logits, F.one_hot(corner, C).float()), loss)
    weights = torch.tensor([0.2, 0.5, 0.3])
    mixed = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    torch.testing.assert_close(soft_cross_entropy(logits, weights.expand(5, C)), mixed)


def test_by_default_the_loss_follows_a_soft_label_that_passes_no_gradient() -> None:
    logits = torch.randn(5, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = Plain(C, 2).loss(logits, GIVEN[:5], {})
    torch.testing.assert_close(loss, F.cross_entropy(logits, GIVEN[:5], reduction="none"))
