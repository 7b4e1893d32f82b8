"""Which rows an epoch trains on."""

import pytest
import torch

from relabel.correctors.base import Learning, Needs, TrustedRows
from relabel.training.rows import Rows

META = TrustedRows(torch.tensor([6, 7, 9]), torch.tensor([0, 1, 1]), torch.tensor([1, -1, -1]))
ROWS = Rows(torch.arange(4), torch.tensor([0, 1, 0, 1, -1, -1, 1, -1, 0]), torch.tensor([4, 5]), META)


@pytest.mark.parametrize(
    ("needs", "warm_up", "meta_phase"),
    [
        (Needs(), [], []),
        (Needs(Learning.NOT), [], []),
        (Needs(given_labels=False), [], [4, 5]),
        (Needs(Learning.LOOK_AHEAD_AFTER_WARM_UP), [6], []),
        (Needs(Learning.LOOK_AHEAD_AFTER_WARM_UP, given_labels=False), [6], [4, 5]),
        (Needs(Learning.LOOK_AHEAD_AFTER_WARM_UP).frozen, [], []),
    ],
    ids=str,
)
def test_beside_the_training_rows_an_epoch_trains_on(
    needs: Needs, warm_up: list[int], meta_phase: list[int]
) -> None:
    for corrects, more in ((False, warm_up), (True, meta_phase)):
        assert ROWS.trained(needs, corrects).tolist() == [0, 1, 2, 3, *more]
