"""Mean weights over a span of epochs."""

import io

import pytest
import torch
from torch import nn

from relabel.backbones import Backbone
from relabel.training.averaging import WeightAverage, last_epochs


def tiny() -> Backbone:
    return Backbone(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))


def stepped(backbone: Backbone) -> None:
    """New weights, and two more batches counted."""
    with torch.no_grad():
        backbone.head.weight.normal_()
    backbone.body[1].num_batches_tracked += 2


@pytest.mark.parametrize(
    ("end", "share", "epochs"),
    [(10, 0.0, []), (10, 0.05, [9]), (10, 0.5, [5, 6, 7, 8, 9]), (3, 1.0, [0, 1, 2]), (0, 0.5, [])],
)
def test_the_last_epochs_make_a_share_of_those_before_the_end(
    end: int, share: float, epochs: list[int]
) -> None:
    assert list(last_epochs(end, share)) == epochs


def test_the_mean_is_over_the_epochs_steps_and_counts_are_the_newest() -> None:
    """Torch would average counts too, and fails: BatchNorm's number of batches is an integer."""
    backbone, average = tiny(), WeightAverage(range(1, 3))
    weights = []
    for epoch in range(4):
        stepped(backbone)
        if epoch in (1, 2):
            weights.append(backbone.head.weight.detach().clone())
        average.update(epoch, backbone)
        assert (average.backbone is None) == (epoch == 0)
    assert average.backbone is not None
    torch.testing.assert_close(average.backbone.head.weight.detach(), torch.stack(weights).mean(dim=0))
    assert average.backbone.body[1].num_batches_tracked == 6
    average.clear()
    assert average.backbone is None


def test_the_mean_goes_on_from_a_file_as_if_never_stopped() -> None:
    backbone, whole, resumed = tiny(), WeightAverage(range(4)), WeightAverage(range(4))
    for epoch in range(4):
        stepped(backbone)
        whole.update(epoch, backbone)
        resumed.update(epoch, backbone)
        file = io.BytesIO()
        torch.save(resumed.state_dict(), file)
        file.seek(0)
        resumed = WeightAverage(range(4))
        resumed.load_state_dict(torch.load(file, weights_only=True), tiny())
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_no_mean_goes_through_a_file_as_none() -> None:
    average = WeightAverage(range(1))
    average.update(0, tiny())
    average.load_state_dict(WeightAverage(range(1)).state_dict(), tiny())
    assert average.backbone is None
