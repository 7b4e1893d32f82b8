"""Episodes on tiny striped images whose truth is known."""

import io
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from relabel.correctors.tmlc_net import TMLCNet
from relabel.data.batches import AUGMENTATIONS
from relabel.device import Compute
from relabel.pretraining import episodes
from relabel.pretraining.episodes import Episode, Pool, Recording, draw, record, stage, training_of
from relabel.schedule import default_learning_rate
from relabel.simulate import noise

CPU = Compute(torch.device("cpu"), None)
EPISODE = Episode(
    number=0,
    pool="stripes",
    classes=(0, 2, 3),
    rows=90,
    noises=(("symmetric", 0.3),),
    image_size=8,
    augment="flip",
    backbone="cnn8",
    epochs=4,
    warmup_epochs=2,
    batch_size=32,
    learning_rate=0.05,
    weight_decay=5e-4,
    seed=3,
)


def pool(classes: int = 4, rows: int = 120, size: int = 8, seed: int = 0) -> Pool:
    """Stripes of a class's own place and brightness, under noise."""
    true = np.arange(rows) % classes
    images = np.random.default_rng(seed).integers(0, 120, (rows, size, size, 3))
    images[np.arange(rows), true % size] += (60 + 75 * (true % 2))[:, None, None]
    names = [f"class {label}" for label in range(classes)]
    return Pool("stripes", images.astype(np.uint8), true.astype(np.int64), names, CPU)


POOL = pool()


def corrector(seed: int = 0) -> TMLCNet:
    """One that has learned nothing, for two classes: decided enough to show."""
    torch.manual_seed(seed)
    made = TMLCNet(2, 1)
    with torch.no_grad():
        for parameter in made.decoder.parameters():
            parameter.mul_(5)
    return made.requires_grad_(False)


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "_JUDGE_SAMPLES", 600)


def assert_identical(one: Recording, other: Recording) -> None:
    torch.testing.assert_close(one.state(), other.state(), rtol=0, atol=0)


def differs(one: Recording, other: Recording) -> bool:
    return not torch.equal(one.probability, other.probability)


@cache
def plain() -> Recording:
    """A recording to look at and to compare with; not to be changed."""
    return record(EPISODE, POOL, None, CPU)


POOLS = {
    "two classes": pool(classes=2, rows=500, size=16),
    "few rows": pool(classes=5, rows=30, size=24),
    "tiny images": pool(rows=400, size=8),
    "odd size": pool(rows=400, size=13),
    "large": pool(classes=12, rows=9_000, size=32),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_drawn_episode_stays_within_its_limits(name: str) -> None:
    drawn_from = POOLS[name]
    native = drawn_from.images.shape[1]
    for number in range(150):
        episode = draw(number, 0, [drawn_from])
        count = len(episode.classes)
        assert (episode.number, episode.pool) == (number, "stripes")
        assert list(episode.classes) == sorted(set(episode.classes))
        assert count >= 2
        assert set(episode.classes) <= set(drawn_from.true)
        available = np.isin(drawn_from.true, episode.classes).sum()
        least, most = episodes._ROWS
        assert min(least, available) <= episode.rows <= min(most, available)
        assert episode.image_size == native or episode.image_size in episodes._SIZES
        assert episode.image_size <= native
        shown = episode.rows * episode.epochs * (episode.image_size / 16) ** 2
        shown *= 1 if episode.backbone == "cnn8" else 2
        assert shown <= episodes._EFFORT or episode.rows <= least
        rate = sum(rate for _, rate in episode.noises)
        assert all(rate > 0 for _, rate in episode.noises)
        assert 0.01 < rate < 1 - 1 / count, "wrong labels must not outnumber chance"
        assert len({kind for kind, _ in episode.noises}) == len(episode.noises) <= 2
        assert episodes._EPOCHS[0] <= episode.epochs <= episodes._EPOCHS[1]
        assert 1 <= episode.warmup_epochs <= episode.epochs / 2 + 1
        assert episode.batch_size in (16, 32, 64, 128)
        assert 0.29 < episode.learning_rate / default_learning_rate(episode.batch_size) < 1.51
        assert episode.weight_decay > 0
        assert 0 <= episode.seed < 2**31


def test_an_episode_is_a_function_of_seed_and_number_alone() -> None:
    pools = [pool(seed=1), pool(classes=3, rows=50)]
    drawn = [draw(number, 7, pools) for number in range(6)]
    np.random.seed(5)
    torch.manual_seed(5)
    assert [draw(number, 7, pools) for number in reversed(range(6))] == drawn[::-1]
    assert [draw(number, 7, [pool(seed=2), pools[1]]) for number in range(6)] == drawn, "of no pixel"
    assert all(draw(number, 8, pools) != drawn[number] for number in range(6))
    assert len({replace(episode, number=0) for episode in drawn}) == 6
    assert all(max(episode.classes) < 3 for episode in drawn[1::2]), "the second pool's turn"
    assert any(max(episode.classes) == 3 for episode in drawn[::2])


def test_everything_there_is_to_draw_occurs() -> None:
    drawn = [draw(number, 0, [POOLS["large"]]) for number in range(300)]
    kinds = Counter(kind for episode in drawn for kind, _ in episode.noises)
    alone = {episode.noises[0][0] for episode in drawn if len(episode.noises) == 1}
    assert set(kinds) == alone == set(episodes._NOISE)
    assert {episode.backbone for episode in drawn} == set(episodes._BACKBONES)
    assert {episode.image_size for episode in drawn} == set(episodes._SIZES)
    assert {episode.augment for episode in drawn} == set(AUGMENTATIONS)
    assert {episode.batch_size for episode in drawn} == {16, 32, 64, 128}
    assert {len(episode.noises) for episode in drawn} == {1, 2}
    counts = Counter(len(episode.classes) for episode in drawn)
    assert set(counts) == set(range(2, 13))
    assert counts[12] > 80, "all of the classes more often than any other number"
    epochs = [episode.epochs for episode in drawn]
    assert min(epochs) < 20
    assert max(epochs) > 50
    rates = [sum(rate for _, rate in episode.noises) for episode in drawn]
    assert min(rates) < 0.05
    assert max(rates) > 0.4


def test_wrong_labels_and_warm_ups_keep_within_what_can_be_learned_from() -> None:
    drawn = [draw(number, 0, [POOLS[name]]) for name in ("two classes", "large") for number in range(300)]
    of_two = [sum(rate for _, rate in episode.noises) for episode in drawn if len(episode.classes) == 2]
    assert 0.35 < max(of_two) <= 0.4, "of two classes half being wrong would leave nothing"
    assert all(episode.warmup_epochs >= round(0.15 * episode.epochs) for episode in drawn)


def test_a_class_without_any_row_is_never_drawn() -> None:
    empty = replace(POOL, true=np.where(POOL.true == 1, 2, POOL.true))
    drawn = [draw(number, 0, [empty]) for number in range(60)]
    assert {label for episode in drawn for label in episode.classes} == {0, 2, 3}


def test_a_recording_holds_every_epoch_of_every_row() -> None:
    found = plain()
    rows = np.isin(POOL.true, EPISODE.classes)
    assert found.true.tolist() == [EPISODE.classes.index(label) for label in POOL.true[rows]]
    assert found.probability.shape == (90, 4, 3)
    assert found.last.shape == (90, 3)
    assert found.given.dtype == found.true.dtype == torch.int64
    assert found.held_out.sum() == 9
    assert found.seen.tolist() == torch.where(found.held_out, -1, found.given).tolist()
    for probability in (*found.probability.unbind(dim=1), found.last):
        torch.testing.assert_close(probability.float().sum(dim=1), torch.ones(90), rtol=0, atol=2e-3)
    before, after = found.probability[:, :-1], found.probability[:, 1:]
    assert (before != after).any(dim=2).all(), "no epoch is a copy of another"
    assert (found.last != found.probability[:, -1]).any()
    first, second, third, fourth = found.probability.float().unbind(dim=1)
    torch.testing.assert_close(found.early, (first + second) / 2)
    torch.testing.assert_close(found.late, (third + fourth) / 2)


def test_a_scene_can_be_learned_from_some_of_its_rows() -> None:
    scene, found = stage(EPISODE, POOL), record(EPISODE, POOL, None, CPU)
    assert scene.given.tolist() == found.given.tolist()
    assert scene.true.tolist() == found.true.tolist()
    assert len(scene.values) == len(scene.true)
    some = np.arange(0, len(scene.true), 2)
    training = training_of(EPISODE, scene, None, CPU, some)
    training.run(lambda report: None, lambda: None)
    assert training.sample_memory.visits.nonzero().squeeze(1).tolist() == some.tolist()
    wrong = replace(scene, given=np.where(np.isin(np.arange(len(scene.given)), some), scene.given, 0))
    other = training_of(EPISODE, wrong, None, CPU, some)
    other.run(lambda report: None, lambda: None)
    assert torch.equal(training.backbone.head.weight, other.backbone.head.weight)


def test_what_is_held_out_is_predicted_and_not_learned() -> None:
    """Another label of such a row changes nothing of the run."""
    found, scene = plain(), stage(EPISODE, POOL)
    other = replace(scene, given=np.where(found.held_out, (scene.given + 1) % 3, scene.given))
    rows = np.arange(len(scene.given))
    parts = rows[~found.held_out.numpy()], rows[found.held_out.numpy()]
    training = training_of(EPISODE, other, None, CPU, *parts)
    training.run(lambda report: None, lambda: None)
    assert torch.equal(training.evidence()["last"][:].half(), found.last)
    torch.testing.assert_close(training.sample_memory.mean[:], found.late, rtol=0, atol=1e-3)
    assert (training.sample_memory.visits == 2).all(), "the late half of four epochs"


def test_fewer_rows_than_there_are_are_drawn_from_all_of_them() -> None:
    found = record(replace(EPISODE, rows=40, epochs=2), POOL, None, CPU)
    assert len(found.given) == 40
    assert set(found.true.tolist()) == {0, 1, 2}


def test_the_finished_backbone_has_learned_the_stripes() -> None:
    episode = replace(EPISODE, noises=(("symmetric", 0.1),), epochs=8, augment="none")
    found = record(episode, POOL, None, CPU)
    assert (found.last.argmax(dim=1) == found.true).float().mean() > 0.8


@pytest.mark.parametrize("kind", episodes._NOISE)
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_as_many_labels_are_wrong_as_were_asked_for(kind: str, rate: float) -> None:
    found = record(replace(EPISODE, noises=((kind, rate),), epochs=2), POOL, None, CPU)
    wrong = (found.given != found.true).float().mean().item()
    assert wrong == pytest.approx(rate, abs=0.1 if kind == "instance-dependent" else 0.02)
    assert set(found.given.tolist()) == {0, 1, 2}


def test_noise_by_features_goes_by_the_judge_of_the_episode_s_own_rows_and_classes() -> None:
    episode = replace(EPISODE, noises=(("feature-dependent", 0.3),), epochs=2)
    found = record(episode, POOL, None, CPU)
    logits = POOL.logits[np.isin(POOL.true, episode.classes)][:, list(episode.classes)]
    assert found.given.tolist() == noise.from_margins(logits, found.true.numpy(), 0.3).tolist()


@pytest.mark.parametrize("first", episodes._NOISE)
def test_a_second_noise_undoes_nothing_of_the_first(first: str) -> None:
    second = "feature-dependent" if first == "symmetric" else "symmetric"
    one = record(replace(EPISODE, noises=((first, 0.3),), epochs=2), POOL, None, CPU)
    both = record(replace(EPISODE, noises=((first, 0.3), (second, 0.3)), epochs=2), POOL, None, CPU)
    wrong = one.given != one.true
    assert torch.equal(both.given[wrong], one.given[wrong])
    more = (both.given != both.true) & ~wrong
    assert 5 <= more.sum() <= 27, "a part of 0.3 of the 90"


def test_the_same_seed_records_the_same_bits_and_another_does_not() -> None:
    noises = (("feature-dependent", 0.2), ("instance-dependent", 0.2))
    episode = replace(EPISODE, noises=noises, epochs=3)
    used = pool()
    first = record(episode, used, corrector(), CPU)
    torch.manual_seed(99)
    np.random.seed(99)
    assert_identical(record(episode, used, corrector(), CPU), first)
    fresh = record(episode, pool(), corrector(), CPU)  # whose judge is not trained yet
    assert_identical(fresh, first)
    other = record(replace(episode, seed=4), used, corrector(), CPU)
    assert differs(other, first)
    assert not torch.equal(other.given, first.given)


def test_a_corrector_rewrites_the_labels_after_the_warm_up() -> None:
    taught = corrector()
    before = {name: value.clone() for name, value in taught.state_dict().items()}
    corrected = record(EPISODE, POOL, taught, CPU)
    warm_up = EPISODE.warmup_epochs
    assert torch.equal(corrected.given, plain().given)
    assert torch.equal(corrected.probability[:, :warm_up], plain().probability[:, :warm_up])
    for epoch in range(warm_up, EPISODE.epochs):
        assert not torch.equal(corrected.probability[:, epoch], plain().probability[:, epoch])
    torch.testing.assert_close(dict(taught.state_dict()), before, rtol=0, atol=0)
    assert (taught.num_classes, taught.encoder.weight_ih_l0.requires_grad) == (2, False)
    assert differs(record(EPISODE, POOL, corrector(1), CPU), corrected)


def test_a_corrector_that_keeps_every_label_changes_nothing() -> None:
    keeping = corrector()
    keeping.kept_share.fill_(1.0)
    found = record(EPISODE, POOL, keeping, CPU)
    assert torch.equal(found.probability, plain().probability)


def test_a_corrector_works_at_more_classes_than_it_has_candidates_for() -> None:
    many = pool(classes=23, rows=92)
    episode = replace(EPISODE, classes=tuple(range(23)), rows=92, epochs=3)
    found = record(episode, many, corrector(), CPU)
    assert found.held_out.sum() == 9
    assert differs(found, record(episode, many, None, CPU))
    first = found.probability[found.held_out][:, 0].float()
    assert (first.max(dim=1).values > 0.044).all(), "followed from the first epoch on, to choose candidates"


def test_larger_images_are_averaged_down() -> None:
    large = replace(POOL, images=POOL.images.repeat(2, axis=1).repeat(2, axis=2))
    assert large.images.shape[1] == 16
    assert_identical(record(EPISODE, large, None, CPU), plain())
    assert differs(record(replace(EPISODE, image_size=16), large, None, CPU), plain())


@pytest.mark.parametrize("backbone", [name for name in episodes._BACKBONES if name != "cnn8"])
@pytest.mark.parametrize("size", [8, 12])
def test_every_backbone_can_be_recorded_on_tiny_images(backbone: str, size: int) -> None:
    episode = replace(EPISODE, backbone=backbone, image_size=size, rows=17, batch_size=16, epochs=2)
    found = record(episode, pool(size=size), None, CPU)
    assert found.probability.isfinite().all()
    assert differs(found, record(replace(episode, backbone="cnn8"), pool(size=size), None, CPU))


def test_what_is_drawn_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "_EPOCHS", (2, 3))
    monkeypatch.setattr(episodes, "_BACKBONES", {"cnn8": 1.0})
    few = pool(classes=3, rows=20)
    for number in range(12):
        episode = draw(number, 0, [few])
        found = record(episode, few, corrector() if number % 2 else None, CPU)
        assert found.probability.shape == (episode.rows, episode.epochs, len(episode.classes))
        assert found.early.isfinite().all()
        assert found.late.isfinite().all()


def test_the_judge_of_features_has_learned_the_true_labels() -> None:
    judge = pool(seed=3)
    logits = judge.logits
    assert logits.shape == (120, 4)
    assert (logits.argmax(axis=1) == judge.true).mean() > 0.8
    assert judge.logits is logits, "trained once"


def test_a_recording_survives_a_file() -> None:
    file = io.BytesIO()
    torch.save(plain().state(), file)
    file.seek(0)
    assert_identical(Recording.restored(torch.load(file, weights_only=True)), plain())


def vectors(rows: int = 240, dimension: int = 6, unit: float = 1e4) -> Pool:
    """Four separate classes, in dimensions of very different units."""
    true = np.arange(rows) % 4
    values = np.random.default_rng(0).normal(0, 0.3, (rows, dimension)) + 2 * np.eye(4, dimension)[true]
    names = [f"class {label}" for label in range(4)]
    scaled = values * np.geomspace(1, unit, dimension)
    return Pool("vectors", scaled.astype(np.float32), true.astype(np.int64), names, CPU)


def test_an_episode_of_vectors_has_an_mlp_and_no_image_size() -> None:
    pools = [POOL, vectors(rows=9_000)]
    drawn = [draw(number, 0, pools) for number in range(40)]
    assert {(one.pool, one.backbone == "mlp", one.image_size is None) for one in drawn} == {
        ("stripes", False, False), ("vectors", True, True)
    }  # fmt: skip
    assert max(one.rows for one in drawn) > 2_000
    assert [one for one in drawn if one.pool == "stripes"] == [draw(n, 0, [POOL]) for n in range(0, 40, 2)]
    assert episodes.drawn_from(pools[1:])["backbones"] == ["mlp"]
    assert "image_sizes" not in episodes.drawn_from(pools[1:])


@pytest.mark.parametrize("kind", episodes._NOISE)
def test_the_mlp_learns_vectors_in_any_unit_under_every_noise(kind: str) -> None:
    drawn = replace(
        EPISODE, pool="vectors", backbone="mlp", image_size=None, rows=170, epochs=20, noises=((kind, 0.3),)
    )
    found = record(drawn, vectors(), None, CPU)
    assert 0.6 < (found.given == found.true).float().mean() < 0.75
    assert (found.late.argmax(dim=1) == found.true).float().mean() > 0.8
    assert_identical(found, record(drawn, vectors(), None, CPU))
