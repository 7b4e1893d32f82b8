"""Batches of meta rows, forwards of any batch, and φ as a constant."""

import torch
from torch import nn

from relabel.backbones import Backbone
from relabel.correctors.mslc import MSLC
from relabel.device import Compute
from relabel.training.meta_step import constant, forward, learned, shuffled_batches

CPU = Compute(torch.device("cpu"), None)


def test_every_row_comes_once_in_a_round_in_batches_of_nearly_one_size() -> None:
    batches = shuffled_batches(10, 4, torch.Generator().manual_seed(0))
    rounds = [[next(batches) for _ in range(3)] for _ in range(2)]
    for found in rounds:
        assert torch.cat(found).sort().values.tolist() == list(range(10))
        assert sorted(len(batch) for batch in found) == [3, 3, 4]
    assert torch.cat(rounds[0]).tolist() != torch.cat(rounds[1]).tolist()


def test_a_batch_of_one_goes_through_a_norm_in_training() -> None:
    torch.manual_seed(0)
    backbone = Backbone(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))
    logits, features = forward(backbone, torch.randn(1, 3), CPU)
    assert (logits.shape, features.shape) == ((1, 2), (1, 4))
    assert logits.isfinite().all()
    inputs = torch.randn(5, 3)
    found = forward(backbone.eval(), inputs, CPU)
    torch.testing.assert_close(found, backbone(inputs))


def test_within_the_region_phi_is_a_constant() -> None:
    corrector = MSLC(3, 4)
    parameters = learned(corrector)
    with constant(corrector):
        assert learned(corrector) == []
    assert all(one is other for one, other in zip(learned(corrector), parameters, strict=True))
    assert len(parameters) == 8
