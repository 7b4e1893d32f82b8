"""Learning from recordings that are made up, and the whole of it on small pictures."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from relabel import __version__
from relabel.calibration.prior import CalibrationPrior
from relabel.config import PretrainConfig
from relabel.correctors.base import Epoch, Memory, no_rows
from relabel.correctors.registry import REGISTRY
from relabel.correctors.tmlc_net import TMLCNet
from relabel.device import Compute
from relabel.errors import RelabelError
from relabel.options import build
from relabel.pretraining import episodes, meta_train
from relabel.pretraining.episodes import Episode, Pool, Recording
from relabel.pretraining.meta_train import (
    Dynamics,
    first_generation,
    learn,
    pretrain,
    prior_of,
    short_names,
)
from relabel.progress import Silent
from relabel.saved.corrector_file import CorrectorFile, read_corrector

CPU = Compute(torch.device("cpu"), None)
COLOURS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 40, 30)}
QUIET = Silent()


def made_up(seed: int, rows: int = 150, classes: int = 4, epochs: int = 12) -> Recording:
    """Predictions that find the true label first and memorise the given one afterwards.

    A third of the labels are wrong, and the truth alone shows in some of the rows only late or never.
    """
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (rows,), generator=generator)
    wrong = torch.rand(rows, generator=generator) < 0.35
    shift = torch.randint(1, classes, (rows,), generator=generator)
    given = torch.where(wrong, (true + shift) % classes, true)
    clearness = 0.2 + torch.rand(rows, 1, generator=generator)
    shares = torch.linspace(0, 1, epochs)
    logits = torch.stack(
        [
            3 * min(1.0, 3 * share) * clearness * F.one_hot(true, classes)
            + 9 * max(0.0, share - 0.5) * F.one_hot(given, classes)
            + torch.randn(rows, classes, generator=generator)
            for share in shares.tolist()
        ],
        dim=1,
    )
    probability = logits.softmax(dim=2).half()
    held_out = torch.arange(rows) % 10 == 3
    return Recording(probability, probability[:, -1], given, true, held_out)


def observed(recording: Recording, epochs: int, without: str) -> Iterator[Memory]:
    """What a TMLC-Net remembers after every one of so many epochs."""
    corrector = TMLCNet(recording.probability.shape[2], 1, without=without)
    memory: Memory = {}
    for number in range(epochs):
        memory |= corrector.observe(
            Epoch(
                number=number,
                probability=recording.probability[:, number].float(),
                trained=~recording.held_out,
                given=recording.seen,
                memory=memory,
                meta=no_rows(),
            )
        )
        yield memory


@pytest.mark.parametrize("classes", [5, 23])
@pytest.mark.parametrize("without", REGISTRY["tmlc"].options["without"])
def test_a_replayed_history_is_what_training_would_have_remembered(without: str, classes: int) -> None:
    """After every epoch of a run that becomes many times as long as a history, of 20 classes at most."""
    recording = made_up(0, rows=20, classes=classes, epochs=70)
    dynamics = Dynamics.of(recording, without)
    rows = torch.tensor([7, 0, 19, 3])
    for passed, memory in enumerate(observed(recording, 70, without), start=1):
        expected = {name: values[rows] for name, values in memory.items()}
        torch.testing.assert_close(dynamics.memory(rows, passed), expected, rtol=0, atol=0)


def test_a_replay_gives_the_soft_labels_of_the_recorded_run() -> None:
    true = np.arange(60) % 3
    images = np.random.default_rng(0).integers(0, 120, (60, 8, 8, 3))
    images[np.arange(60), true] += 120
    pool = Pool("stripes", images.astype(np.uint8), true, ["a", "b", "c"], CPU)
    episode = Episode(
        number=0, pool="stripes", classes=(0, 1, 2), rows=60, noises=(("symmetric", 0.3),), image_size=8,
        augment="none", backbone="cnn8", epochs=20, warmup_epochs=3, batch_size=32, learning_rate=0.05,
        weight_decay=5e-4, seed=0,
    )  # fmt: skip
    corrector = learned()
    recording = episodes.record(episode, pool, corrector, CPU)
    rows = torch.arange(60)
    parts = [rows[part].numpy() for part in (~recording.held_out, recording.held_out)]
    training = episodes.training_of(episode, episodes.stage(episode, pool), corrector, CPU, *parts)
    training.run(lambda report: None, lambda: None)
    found = TMLCNet(3, 1)
    found.load_state_dict(corrector.state_dict())
    memories = Dynamics.of(recording).memory(rows, 20), training.sample_memory.read(rows, torch.device("cpu"))
    with torch.no_grad():
        replayed, trained = (found.soft_label(torch.empty(0), recording.seen, memory) for memory in memories)
    # Recorded in halves, and so are the features.
    torch.testing.assert_close(replayed, trained, rtol=0, atol=0.02)


@cache
def learned() -> TMLCNet:
    """From six recordings of different lengths and numbers of classes; not to be changed."""
    recordings = [made_up(seed, classes=3 + seed % 3, epochs=10 + 4 * seed) for seed in range(6)]
    return learn(recordings, 120, 0, QUIET)


def accuracy(labels: Tensor, recording: Recording) -> float:
    return (labels == recording.true).float().mean().item()


@pytest.mark.parametrize("classes", [2, 5, 8])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_what_was_learned_corrects_other_recordings_at_any_time(classes: int, share: float) -> None:
    unseen = made_up(100, rows=400, classes=classes, epochs=30)
    memory = Dynamics.of(unseen).memory(torch.arange(400), round(share * 30))
    corrector = TMLCNet(classes, 1)
    corrector.load_state_dict(learned().state_dict())
    with torch.no_grad():
        soft_label = corrector.soft_label(torch.empty(0), unseen.given, memory)
    assert accuracy(soft_label.argmax(dim=1), unseen) > accuracy(unseen.given, unseen) + 0.15
    last = unseen.probability[:, round(share * 30) - 1].argmax(dim=1)
    assert accuracy(soft_label.argmax(dim=1), unseen) > accuracy(last, unseen)


def test_learning_is_repeatable_and_ends_frozen() -> None:
    recordings = [made_up(seed) for seed in range(2)]
    one, again, other = (learn(recordings, 4, seed, QUIET) for seed in (1, 1, 2))
    torch.testing.assert_close(one.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(one.encoder.weight_ih_l0, other.encoder.weight_ih_l0)
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert one.kept_share.item() == 0, "nothing is kept for the given label's sake"


def test_the_net_s_options_are_learned_with() -> None:
    recordings = [made_up(seed, rows=30) for seed in range(2)]
    plain = learn(recordings, 4, 0, QUIET)
    for name, values in REGISTRY["tmlc"].options.items():
        for value in values[1:]:
            made = learn(recordings, 4, 0, QUIET, {name: value})
            assert vars(made)[name] == value
            # `sd` is about what becomes of the scores, and who learns from recordings begins at random.
            unchanged = torch.equal(made.encoder.weight_ih_l0, plain.encoder.weight_ih_l0)
            assert unchanged == (value in ("sd", "random"))


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21])
def test_every_number_of_steps_can_be_taken(steps: int) -> None:
    advanced: list[int] = []

    class Counting(Silent):
        def stage(self, name: str, total: int) -> None:
            assert total == steps

        def advance(self, steps: int = 1) -> None:
            advanced.append(steps)

    learn([made_up(0, rows=20)], steps, 0, Counting())
    assert sum(advanced) == steps


def test_every_recording_is_learned_from() -> None:
    """Another truth of the last one teaches something else."""
    useful = [made_up(seed) for seed in range(2)]
    useless = replace(made_up(2), true=made_up(2).given)
    one, other = learn([*useful, useless], 20, 0, QUIET), learn([*useful, made_up(2)], 20, 0, QUIET)
    assert not torch.equal(one.encoder.weight_ih_l0, other.encoder.weight_ih_l0)


def spoilt(recording: Recording, epochs: range) -> Recording:
    """With every row's predictions of those epochs at another row."""
    probability = recording.probability.clone()
    probability[:, list(epochs)] = probability[:, list(epochs)].roll(1, dims=0)
    return replace(recording, probability=probability)


def test_labels_that_were_held_out_teach_a_corrector_nothing() -> None:
    recordings = [made_up(seed) for seed in range(2)]
    others = [
        replace(
            each,
            given=torch.where(each.held_out, (each.given + 1) % 4, each.given),
            true=torch.where(each.held_out, (each.true + 1) % 4, each.true),
        )
        for each in recordings
    ]
    one, other = (learn(each, 20, 0, QUIET).state_dict() for each in (recordings, others))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_calibration_prior_is_of_the_ends_of_the_runs() -> None:
    recordings = [made_up(seed, classes=3 + seed) for seed in range(3)]
    found = prior_of(recordings, 0)
    assert list(found.weights) == ["early", "late", "last", "transition", "keep"]
    assert len(found.right) == len(found.relabelled) == len(found.confidence) == 450
    assert found.right.mean() > 0.85
    assert found.right[found.relabelled].mean() > 0.8
    assert 0.2 < found.relabelled.mean() < 0.5
    assert found.confidence.min() > 1 / 5
    for part, name in ((range(2, 6), "early"), (range(6, 12), "late")):
        useless = prior_of([spoilt(each, part) for each in recordings], 0).weights
        assert abs(useless[name]) < found.weights[name] / 2


def draw(path: Path, colour: str, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 40, (9, 9, 3))
    Image.fromarray(np.clip(COLOURS[colour] + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of two and of three colours, and an empty folder for recordings."""
    for place, colour in enumerate(COLOURS):
        for number in range(12):
            draw(tmp_path / f"three/{colour}/{number}.png", colour, 100 * place + number)
            if colour != "green":
                draw(tmp_path / f"two/{colour}/{number}.png", colour, 1000 + 100 * place + number)
    (tmp_path / "recordings").mkdir()
    return tmp_path


Made = list[tuple[int, TMLCNet | None]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Number and corrector of every recording, which are made up in no time."""
    made: Made = []

    def record(episode: Episode, pool: Pool, corrector: TMLCNet | None, compute: Compute) -> Recording:
        assert episode.pool == pool.name
        made.append((episode.number, corrector))
        return made_up(episode.seed % 1000, rows=30, classes=len(episode.classes), epochs=6)

    monkeypatch.setattr(meta_train, "record", record)
    return made


@pytest.fixture
def run(folder: Path) -> Callable[..., CorrectorFile]:
    """A small `pretrain`; further fields of the config take precedence."""

    def go(**changes: Any) -> CorrectorFile:
        sources = (str(folder / "three"), str(folder / "two"))
        settings = {"episodes": 3, "steps": 3, "device": "cpu", "amp": "off"}
        return pretrain(
            build(
                PretrainConfig, sources=sources, recordings=folder / "recordings", **{**settings, **changes}
            )
        )

    return go


def assert_alike(one: CorrectorFile, other: CorrectorFile) -> None:
    assert (one.name, one.trained, one.calibration_prior.weights) == (
        other.name,
        other.trained,
        other.calibration_prior.weights,
    )
    torch.testing.assert_close(one.state, other.state, rtol=0, atol=0)
    for part in ("relabelled", "right", "confidence"):
        assert (vars(one.calibration_prior)[part] == vars(other.calibration_prior)[part]).all()


def numbers(made: Made) -> list[int]:
    found = [number for number, _ in made]
    made.clear()
    return found


def test_the_whole_of_it_gives_a_corrector_for_any_data(
    run: Callable[..., CorrectorFile], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "_EPOCHS", (3, 5))
    monkeypatch.setattr(episodes, "_BACKBONES", {"cnn8": 1.0})
    monkeypatch.setattr(episodes, "_JUDGE_SAMPLES", 100)
    file = run(seed=5)
    file.save(folder / "tmlc.pt")
    again = read_corrector(folder / "tmlc.pt")
    assert_alike(again, file)
    assert {key: value for key, value in file.trained.items() if key != "versions"} == {
        "sources": [{"name": "three", "rows": 36, "classes": 3}, {"name": "two", "rows": 24, "classes": 2}],
        "noise": [f"{name} up to {most * 100:.0f} %" for name, most in episodes._NOISE.items()],
        "backbones": ["cnn8"],
        "image_sizes": [12, 16, 24, 32],
        "epochs": [3, 5],
        "rows": [200, 5_000],
        "episodes": 4,
        "calibration_episodes": 1,
        "steps": 3,
        "seed": 5,
    }
    assert file.trained["versions"]["relabel"] == __version__
    assert list(file.calibration_prior.weights) == ["early", "late", "last", "transition", "keep"]
    corrector = again.transferred(7, 33)
    assert isinstance(corrector, TMLCNet)
    assert corrector.num_classes == 7
    torch.testing.assert_close(dict(corrector.state_dict()), file.state, rtol=0, atol=0)
    kept = {path.name: path.read_bytes() for path in (folder / "recordings").iterdir()}
    assert sorted(kept) == [f"000{number}.episode" for number in range(4)]
    # From the recordings that are there, and without any.
    assert_alike(run(seed=5), file)
    for name, content in kept.items():
        assert (folder / "recordings" / name).read_bytes() == content
        (folder / "recordings" / name).unlink()
    assert_alike(run(seed=5), file)


def test_the_second_generation_is_recorded_with_what_the_first_taught(
    run: Callable[..., CorrectorFile], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[tuple[int, TMLCNet]] = []
    ends: list[int] = []

    def spy_learn(recordings: list[Recording], *rest: Any, **options: Any) -> TMLCNet:
        taught.append((len(recordings), learn(recordings, *rest, **options)))
        return taught[-1][1]

    def spy_prior(recordings: list[Recording], seed: int) -> CalibrationPrior:
        ends.append(len(recordings))
        return prior_of(recordings, seed)

    monkeypatch.setattr(meta_train, "learn", spy_learn)
    monkeypatch.setattr(meta_train, "prior_of", spy_prior)
    file = run(episodes=4)
    first, second = taught
    assert [number for number, _ in made] == [0, 1, 2, 3, 4, 5]
    assert [corrector for _, corrector in made] == [None] * 4 + [first[1]] * 2
    assert (first[0], second[0], ends) == (4, 6, [2])
    torch.testing.assert_close(file.state, dict(second[1].state_dict()), rtol=0, atol=0)
    assert len(file.calibration_prior.right) == 2 * 30


@pytest.mark.parametrize(
    ("locations", "names"),
    [
        (["a/b/train", "./c.zip"], ["train", "c.zip"]),
        (["a/b/train", "a/c/train", "a/b/train"], ["b/train", "c/train", "b/train"]),
        (["/x/train", "y/x/train"], ["/x/train", "y/x/train"]),
        (["user/digits"], ["digits"]),
    ],
)
def test_sources_of_one_name_are_told_apart(locations: list[str], names: list[str]) -> None:
    assert short_names(locations) == names


def test_the_first_generation_can_be_had_alone(
    run: Callable[..., CorrectorFile], made: Made, folder: Path
) -> None:
    config = build(
        PretrainConfig,
        sources=(str(folder / "three"), str(folder / "two")),
        recordings=folder / "recordings",
        episodes=3,
        device="cpu",
        amp="off",
    )
    pools, found = first_generation(config, QUIET)
    assert [(name, pool.name) for name, pool in pools.items()] == [("three", "three"), ("two", "two")]
    assert [(episode.number, episode.pool) for episode, _ in found] == [
        (0, "three"),
        (1, "two"),
        (2, "three"),
    ]
    assert [recording.probability.shape[1] for _, recording in found] == [6, 6, 6]
    assert made == [(0, None), (1, None), (2, None)]
    made.clear()
    run()
    assert numbers(made) == [3], "the same recordings"


def test_recordings_that_are_there_are_not_made_again(
    run: Callable[..., CorrectorFile], made: Made, folder: Path
) -> None:
    file = run()
    assert numbers(made) == [0, 1, 2, 3]
    assert_alike(run(), file)
    assert numbers(made) == []
    (folder / "recordings/0002.episode").unlink()
    assert_alike(run(), file)
    assert numbers(made) == [2]


@pytest.mark.parametrize("damage", ["half", "text", "other", "empty"])
def test_what_is_no_recording_of_this_run_is_made_anew(
    run: Callable[..., CorrectorFile], made: Made, folder: Path, damage: str
) -> None:
    path = folder / "recordings/0001.episode"
    run(seed=1)
    foreign = path.read_bytes()
    file = run()
    made.clear()
    whole = path.read_bytes()
    path.write_bytes(
        {"half": whole[: len(whole) // 2], "text": b"no recording", "other": foreign, "empty": b""}[damage]
    )
    assert_alike(run(), file)
    assert numbers(made) == [1]
    assert_alike(run(), file)
    assert numbers(made) == []


def test_the_first_generation_outlives_other_steps_and_both_outlive_nothing_else(
    run: Callable[..., CorrectorFile], made: Made, folder: Path
) -> None:
    run()
    made.clear()
    run(steps=4)
    assert numbers(made) == [3], "made with a corrector that has learned otherwise"
    run(steps=4, episodes=4)
    assert numbers(made) == [3, 4, 5], "number 3 is of the first generation now"
    run(steps=4, episodes=4, seed=1)
    assert numbers(made) == [0, 1, 2, 3, 4, 5]
    (folder / "two/red/0.png").rename(folder / "two/blue/moved.png")
    run(steps=4, episodes=4, seed=1)
    assert numbers(made) == [0, 1, 2, 3, 4, 5], "other labels"
    draw(folder / "two/red/1.png", "red", 5)
    run(steps=4, episodes=4, seed=1)
    assert numbers(made) == [0, 1, 2, 3, 4, 5], "other pixels"


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_rows_without_a_label_or_a_readable_image_are_left_out(made: Made, folder: Path) -> None:
    (folder / "three/red/0.png").write_bytes(b"no picture")
    rows = ["file_name,label", *(f"{path.parent.name}/{path.name}," for path in folder.glob("three/blue/*"))]
    rows += [f"{path.parent.name}/{path.name},{path.parent.name}" for path in folder.glob("three/[gr]*/*")]
    (folder / "three/list.csv").write_text("\n".join(rows))
    listening = Listening()
    config = build(
        PretrainConfig,
        sources=(str(folder / "three/list.csv"),),
        recordings=folder / "recordings",
        episodes=3,
        steps=1,
    )
    trained = pretrain(config, listening).trained
    assert trained["sources"] == [{"name": "list.csv", "rows": 23, "classes": 2}]
    assert listening.warned[-1].startswith("1 of 36 images of ")
    assert "left out; first 'red/0.png': " in listening.warned[-1]
    assert listening.said[0].startswith("Episode 1: ")
    assert "by the late window" in listening.said[0]
    assert len(listening.said) == 4


def test_a_source_of_one_class_is_refused_before_anything_is_recorded(made: Made, folder: Path) -> None:
    for path in folder.glob("two/red/*"):
        path.write_bytes(b"no picture")
    config = build(
        PretrainConfig, sources=(str(folder / "three"), str(folder / "two")), recordings=folder / "recordings"
    )
    with pytest.raises(RelabelError, match=r"two: fewer than two classes have images that can be used"):
        pretrain(config)
    assert numbers(made) == []
    assert not list((folder / "recordings").iterdir())


@pytest.mark.parametrize(
    ("flag", "values"),
    [("--episodes 1", {"episodes": 1}), ("--steps 0", {"steps": 0}), ("--seed -1", {"seed": -1})],
)
def test_values_no_run_can_have_are_refused(flag: str, values: dict[str, int]) -> None:
    with pytest.raises(RelabelError, match=flag):
        build(PretrainConfig, sources="images", recordings="recordings", **values)
