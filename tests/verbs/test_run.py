"""What `fit` and `apply` share, on image files of digits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relabel import backbones
from relabel.config import FitConfig
from relabel.correctors import registry
from relabel.data.trusted import TrustedSet
from relabel.errors import RelabelError
from relabel.options import build
from relabel.progress import Silent
from relabel.verbs import run
from relabel.verbs.split import Part, split_trusted

NEEDS = {
    name: registry.create(name, 10, 4, {"start": start}).needs
    for name, start in (("mslc", "random"), ("metalabelnet", "classifier"), ("tmlc", "random"))
}


@pytest.fixture(scope="module")
def data(digits: Any) -> run.Data:
    """Digits, every tenth of 1,200 trusted, of which one cannot be used and one has no label."""
    config = build(FitConfig, source=str(digits.images), trusted=digits.trusted, image_size=8)
    source, _ = run.open_rows(config, Silent())
    rows = np.arange(0, 1200, 10)
    trusted = replace(TrustedSet.empty(), rows=rows, labels=rows % 10)
    given = source.given.copy()
    given[20] = -1
    source = replace(source, given=given)
    built = run.build_backbone(source, config.network)
    found = run.decode(source, trusted, built, None, True, Silent())
    return replace(found, errors={30: "broken"})


def test_a_row_that_cannot_be_used_has_no_label_to_train_on(data: run.Data) -> None:
    assert (data.given[30], data.given[20]) == (-1, -1)
    assert data.labelled_rows == len(data.source) - 2
    assert data.trusted_rows == 120


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.parametrize("keep_model", [False, True])
def test_no_row_is_trained_on_that_must_not_be(data: run.Data, name: str, keep_model: bool) -> None:
    needs = NEEDS[name]
    split = split_trusted(data.trusted, data.source.given, {}, needs, 0, keep_model)
    rows = run.training_rows(data, split, needs)
    apart = np.concatenate([split.unseen.rows, split.meta.rows if needs.looks_ahead else np.zeros(0, int)])
    expected = np.setdiff1d(np.arange(len(data.source)), [*apart, 20, 30])
    assert rows.train.tolist() == expected.tolist()
    assert rows.unlabelled.tolist() == ([] if 20 in apart else [20])
    assert rows.meta.given.tolist() == data.source.given[split.meta.rows].tolist()


def test_labels_that_are_held_out_are_not_seen(data: run.Data) -> None:
    needs = NEEDS["tmlc"].frozen
    split = split_trusted(data.trusted, data.source.given, {}, needs, 0, keep_model=False)
    held_out = np.arange(len(data.source)) % 5 == 1
    rows = run.training_rows(data, split, needs, held_out)
    assert (rows.given[held_out] == -1).all()
    assert not np.isin(np.flatnonzero(held_out), rows.train).any()
    assert np.isin(np.flatnonzero(held_out), rows.unlabelled).all()


def test_images_outside_the_source_have_no_given_label() -> None:
    given = np.array([2, 0, 1])
    found = run.trusted_rows(Part(np.array([2, 0, 3, 4]), np.array([3, 1, 4, 1])), given)
    assert found.rows.tolist() == [2, 0, 3, 4]
    assert found.true.tolist() == [3, 1, 4, 1]
    assert found.given.tolist() == [1, 2, -1, -1]


def test_too_few_usable_classes_are_refused(data: run.Data) -> None:
    split = split_trusted(data.trusted, data.source.given, {}, NEEDS["tmlc"], 0, keep_model=False)
    alone = replace(data, source=replace(data.source, given=np.zeros_like(data.source.given)))
    with pytest.raises(RelabelError, match="fewer than two classes"):
        run.check_usable(alone, split, True, Silent())
    none = split_trusted(TrustedSet.empty(), data.source.given, {}, NEEDS["tmlc"].frozen, 0, keep_model=False)
    with pytest.raises(RelabelError, match="none of the trusted images can be read"):
        run.check_usable(data, none, True, Silent())
    run.check_usable(data, none, False, Silent())


def test_other_weights_of_the_same_name_do_not_continue_a_checkpoint(
    folder: Path, small_fit: Any, tmp_path: Path
) -> None:
    weights, moved = tmp_path / "cnn8.pt", tmp_path / "moved.pt"

    def write(path: Path, seed: int) -> None:
        torch.manual_seed(seed)
        torch.save(backbones.build("cnn8", 3, 10).state_dict(), path)

    def fitted(path: Path, resume: bool = True) -> None:
        small_fit(
            corrector="none", weights=str(path), backbone="cnn8", image_size=16, augment=None, freeze=True,
            epochs=2, checkpoint=tmp_path / "run.checkpoint", resume=resume, keep_model=False,
        )  # fmt: skip

    write(weights, 3)
    moved.write_bytes(weights.read_bytes())
    fitted(weights, resume=False)
    write(weights, 4)
    with pytest.raises(RelabelError, match="other data or other settings"):
        fitted(weights)
    fitted(moved)


def test_frozen_features_have_unit_variance_or_none(data: run.Data) -> None:
    from relabel.device import resolve

    torch.manual_seed(0)
    backbone = backbones.build("cnn8", 10, 8)
    head, shown, frozen = run.freeze(backbone, data, resolve("cpu", "off"), Silent())
    features = shown.inputs.batch(torch.arange(len(data.source)), torch.device("cpu"), None)
    deviation = features.std(dim=0)
    assert torch.isclose(deviation, torch.ones(1), atol=1e-3).logical_or(deviation == 0).all()
    assert head.head.out_features == 10
    assert shown.shown == data.shown, "the digest is that of the images"
    images = torch.arange(5)
    whole = frozen.under(head)
    expected = [
        logits for _, logits, _ in backbones.evaluate(whole, data.inputs, resolve("cpu", "off"), images)
    ]
    found = [logits for _, logits, _ in backbones.evaluate(head, shown.inputs, resolve("cpu", "off"), images)]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-3, atol=1e-4)
