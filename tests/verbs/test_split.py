"""Who gets which trusted rows: 60 rows of three classes, some without a given label, some outside SOURCE."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from relabel.correctors import registry
from relabel.correctors.base import Needs
from relabel.data.trusted import TrustedSet
from relabel.verbs.split import Split, split_trusted

ROWS = np.arange(60)
GIVEN = np.tile(np.arange(3), 40)
TRUSTED = replace(TrustedSet.empty(), rows=ROWS, labels=ROWS % 3)
OUTSIDE = replace(TRUSTED, external=[Path("a"), Path("b"), Path("c")], external_labels=np.array([2, 1, 0]))


def needs(name: str, start: str | None = None) -> Needs:
    return registry.create(name, 3, 4, {"start": start or registry.REGISTRY[name].options["start"][-1]}).needs


def split(needs: Needs, given: np.ndarray = GIVEN, keep_model: bool = False) -> Split:
    return split_trusted(TRUSTED, given, {}, needs, seed=0, keep_model=keep_model)


def every_row(split: Split) -> list[int]:
    return np.unique(np.concatenate([part.rows for part in split.parts])).tolist()


@pytest.mark.parametrize("name", ["mslc", "mlc", "metalabelnet", "tmlc"])
@pytest.mark.parametrize("keep_model", [False, True])
def test_every_trusted_row_has_a_use_and_keeps_its_label(name: str, keep_model: bool) -> None:
    found = split(needs(name), keep_model=keep_model)
    assert every_row(found) == ROWS.tolist()
    for part in found.parts:
        assert (part.true == part.rows % 3).all()
        assert np.ptp(np.bincount(part.true, minlength=3)) <= 1, "class by class"
    once = [found.meta, found.in_training, found.calibration]
    assert sum(map(len, once)) == len(np.unique(np.concatenate([part.rows for part in once])))


def test_what_learns_nothing_leaves_all_to_the_calibration() -> None:
    found = split(registry.create("none", 3, 4).needs)
    assert found.calibration.rows.tolist() == ROWS.tolist()
    frozen = split(needs("tmlc").frozen)
    assert frozen.calibration.rows.tolist() == ROWS.tolist()


@pytest.mark.parametrize("start", ["trusted", "random"])
def test_half_of_the_labelled_meta_rows_of_mslc_pass_through_training(start: str) -> None:
    given = GIVEN.copy()
    given[::4] = -1
    found = split(needs("mslc", start), given)
    assert every_row(found) == ROWS.tolist()
    assert (given[found.in_training.rows] >= 0).all()
    assert (given[found.meta.rows] < 0).any()
    labelled = np.count_nonzero(given[found.meta.rows] >= 0)
    assert len(found.in_training) == (0 if start == "random" else pytest.approx(labelled, abs=1))
    assert found.unseen.rows.tolist() == found.meta.rows.tolist(), "the backbone trains on none of them"


@pytest.mark.parametrize("keep_model", [False, True])
def test_meta_rows_of_a_warm_up_are_not_unseen_so_that_a_model_needs_others(keep_model: bool) -> None:
    found = split(needs("metalabelnet", "classifier"), keep_model=keep_model)
    assert len(found.unseen) == (15 if keep_model else 0)
    assert len(found.calibration) == pytest.approx(2 * len(found.meta), abs=2)
    assert not np.isin(found.unseen.rows, found.meta.rows).any()


def test_meta_rows_that_no_training_saw_serve_a_model_too() -> None:
    found = split(needs("metalabelnet", "random"), keep_model=True)
    assert len(found.meta) == 20
    assert found.unseen.rows.tolist() == found.meta.rows.tolist()


@pytest.mark.parametrize(("name", "taught"), [("mslc", True), ("tmlc", False)])
def test_images_outside_the_source_drive_a_look_ahead_alone_and_calibrate_a_model(
    name: str, taught: bool
) -> None:
    found = split_trusted(OUTSIDE, GIVEN, {1: "broken", 121: "broken"}, needs(name), seed=0, keep_model=True)
    outside = [120, 122]
    assert set(outside) <= set(found.unseen.rows)
    assert (set(outside) <= set(found.meta.rows)) is taught
    assert found.meta.true[found.meta.rows >= 120].tolist() == ([2, 0] if taught else [])
    assert not np.isin([1, 121], every_row(found)).any(), "what cannot be read is of no use"
    assert (found.calibration.rows < 120).all()


def test_the_seed_deals_the_rows() -> None:
    first, again = split(needs("mslc")), split(needs("mslc"))
    other = split_trusted(TRUSTED, GIVEN, {}, needs("mslc"), seed=1, keep_model=False)
    assert first.meta.rows.tolist() == again.meta.rows.tolist() != other.meta.rows.tolist()
    assert len(first.meta) == len(other.meta)
