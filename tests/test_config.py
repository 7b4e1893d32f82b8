from pathlib import Path

import pytest

from relabel.config import FitConfig
from relabel.errors import RelabelError


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--precision", [{"precision": value} for value in (0, 1, 95, float("nan"))]),
        ("--image-size", [{"image_size": value} for value in (7, 1025)]),
        ("--epochs", [{"epochs": value} for value in (1, 0, -3)]),
        ("--batch-size", [{"batch_size": 1}]),
        ("--warmup", [{"warmup": 0}, {"warmup": 5, "epochs": 5}]),
        ("--lr", [{"learning_rate": value} for value in (0, -1, float("nan"), float("inf"))]),
        ("--seed", [{"seed": value} for value in (-1, 2**63)]),
        ("--freeze", [{"freeze": True}]),
    ],
)
def test_a_value_no_run_can_have_is_refused_by_its_flag(flag, values):
    for value in values:
        with pytest.raises(RelabelError, match=f"^{flag} "):
            FitConfig("images", Path("trusted.csv"), **value)


def test_the_edges_are_allowed():
    FitConfig("i", Path("t"), image_size=8, epochs=2, warmup=1, batch_size=2, seed=2**63 - 1, precision=0.999)
    FitConfig("i", Path("t"), warmup=100, weights="imagenet", freeze=True)
