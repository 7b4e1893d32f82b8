"""Training on tiny images of coloured stripes, a quarter of whose labels are wrong."""

import io
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relabel import backbones, correctors
from relabel.backbones import Backbone
from relabel.correctors.mslc import MSLC
from relabel.data.loading import ImageInputs
from relabel.device import Compute
from relabel.errors import RunError
from relabel.training import EpochReport, Rows, Schedule, Training

CLASSES, SIZE, WRONG = 3, 8, 0.25
TRAIN, META, UNLABELLED = torch.arange(120), torch.arange(120, 150), torch.arange(150, 162)
TRUE = torch.arange(162) % CLASSES
SCHEDULE = Schedule(
    epochs=5,
    warmup_epochs=2,
    average_from=2,
    batch_size=24,
    learning_rate=0.05,
    weight_decay=5e-4,
    meta_learning_rate=0.01,
    meta_batch_size=8,
)


def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One channel of stripes a class, under noise."""
    noise = np.random.default_rng(0).integers(0, 180, (len(TRUE), SIZE, SIZE, 3))
    noise[np.arange(len(TRUE)), ::2, :, TRUE.numpy()] += 75
    return noise.astype(np.uint8)


def labels() -> Tensor:
    """Given labels: the meta rows' are as noisy as the others'."""
    given = TRUE.clone()
    wrong = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))[: int(WRONG * len(TRAIN))]
    given[wrong] = (given[wrong] + 1) % CLASSES
    given[META[::4]] = (given[META[::4]] + 1) % CLASSES
    given[UNLABELLED] = -1
    return given


ROWS = Rows(train=TRAIN, given=labels(), unlabelled=UNLABELLED, meta=META, meta_labels=TRUE[META])


def tiny() -> Backbone:
    """Everything that could break a resumed run: normalisation statistics and a random layer."""
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
    )
    return Backbone(body, nn.Linear(32, CLASSES))


@dataclass
class Setting:
    corrector: str = "mslc"
    seed: int = 0
    rows: Rows = ROWS
    schedule: Schedule = SCHEDULE
    backbone: str = "tiny"
    amp: torch.dtype | None = None
    images: np.ndarray[Any, np.dtype[np.uint8]] = field(default_factory=images)

    def training(self) -> Training:
        torch.manual_seed(100 + self.seed)
        backbone = tiny() if self.backbone == "tiny" else backbones.build(self.backbone, CLASSES, SIZE)
        return Training(
            backbone,
            correctors.create(self.corrector),
            ImageInputs(self.images, "flip"),
            self.rows,
            self.schedule,
            Compute(torch.device("cpu"), self.amp),
            self.seed,
        )


def run(training: Training) -> list[EpochReport]:
    reports: list[EpochReport] = []
    training.run(reports.append, lambda: None)
    return reports


def finished(**changes: Any) -> Training:
    training = Setting(**changes).training()
    run(training)
    return training


def assert_identical(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


both = pytest.mark.parametrize("corrector", ["none", "mslc"])


class StoppedError(Exception):
    pass


@both
def test_a_seed_gives_one_result_to_the_last_bit(corrector: str) -> None:
    first, second, other = (finished(corrector=corrector, seed=seed) for seed in (3, 3, 4))
    assert_identical(first.state_dict(), second.state_dict())
    assert not torch.equal(first.ledger.mean_probability(), other.ledger.mean_probability())


def test_the_seed_counts_beyond_the_start_of_the_backbone() -> None:
    """Order, augmentation and dropout follow the seed even where the weights start alike."""
    one, other = Setting(seed=3).training(), Setting(seed=4).training()
    other.backbone.load_state_dict(one.backbone.state_dict())
    other.corrector.load_state_dict(one.corrector.state_dict())
    run(one)
    run(other)
    assert not torch.equal(one.backbone.head.weight, other.backbone.head.weight)


@both
@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_stopped_run_goes_on_as_if_never_stopped(corrector: str, stop_after: int) -> None:
    file = io.BytesIO()

    def stop(report: EpochReport) -> None:
        if report.epoch + 1 == stop_after:
            torch.save(stopped.state_dict(), file)
            raise StoppedError

    stopped = Setting(corrector=corrector).training()
    with pytest.raises(StoppedError):
        stopped.run(stop, lambda: None)
    file.seek(0)
    resumed = Setting(corrector=corrector).training()
    with torch.no_grad():  # a resumed run does not owe its start to the seed
        for parameter in (*resumed.backbone.parameters(), *resumed.corrector.parameters()):
            parameter.zero_()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.rand(3)  # whatever else drew from the global generator
    reports = run(resumed)
    assert [report.epoch for report in reports] == list(range(stop_after, SCHEDULE.epochs))
    whole = finished(corrector=corrector)
    assert_identical(resumed.state_dict(), whole.state_dict())
    assert_identical(evidence(resumed), evidence(whole))


def evidence(training: Training) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in training.evidence().items()}


@both
def test_the_reports_tell_the_phases(corrector: str) -> None:
    reports = run(Setting(corrector=corrector).training())
    meta = corrector == "mslc"
    assert [report.phase for report in reports] == (["warm-up"] * 2 + ["meta"] * 3 if meta else ["train"] * 5)
    assert [report.meta_loss is not None for report in reports] == [
        meta and report.epoch >= 2 for report in reports
    ]
    assert all(report.epochs == 5 and report.loss > 0 for report in reports)


def test_a_step_is_told_for_every_batch() -> None:
    steps: list[None] = []
    training = Setting(schedule=replace(SCHEDULE, batch_size=50)).training()
    training.run(lambda _: None, lambda: steps.append(None))
    assert training.steps_per_epoch == 3
    assert len(steps) == 5 * 3


@both
def test_meta_rows_are_never_trained_on(corrector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The warm start may read their given labels, and does so for φ alone.
    monkeypatch.setattr(MSLC, "warm_start", lambda *arguments: None)
    training = finished(corrector=corrector)
    averaged = SCHEDULE.epochs - SCHEDULE.average_from
    assert (training.ledger.visits[TRAIN] == averaged).all()
    assert (training.ledger.visits[META] == 0).all()
    # Other given labels of the meta rows change nothing at all.
    given = ROWS.given.clone()
    given[META] = TRUE[META]
    assert_identical(
        finished(corrector=corrector, rows=replace(ROWS, given=given)).state_dict(), training.state_dict()
    )


def test_unlabelled_rows_are_predicted_and_not_trained_on() -> None:
    training = finished()
    assert (training.ledger.visits[UNLABELLED] == SCHEDULE.epochs - SCHEDULE.average_from).all()
    mean = training.ledger.mean_probability()[UNLABELLED]
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(len(UNLABELLED)))
    without = finished(rows=replace(ROWS, unlabelled=UNLABELLED[:0]))
    assert_identical(without.backbone.state_dict(), training.backbone.state_dict())
    assert (without.ledger.visits[UNLABELLED] == 0).all()


def with_other_meta_images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    changed = images()
    changed[META] = 255 - changed[META]
    return changed


def test_the_trusted_batch_reaches_the_backbone_through_the_corrector_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the corrector's own learning switched off, other trusted images change no weight and no buffer."""
    monkeypatch.setattr(MSLC, "warm_start", lambda *arguments: None)
    still = replace(SCHEDULE, meta_learning_rate=0.0)
    one, other = finished(schedule=still), finished(schedule=still, images=with_other_meta_images())
    assert_identical(one.backbone.state_dict(), other.backbone.state_dict())
    assert_identical(one.ledger.state_dict(), other.ledger.state_dict())
    learning = finished(images=with_other_meta_images())
    assert not torch.equal(learning.backbone.head.weight, finished().backbone.head.weight)


def test_the_corrector_learns_in_the_meta_phase_only() -> None:
    training = Setting().training()
    start = {name: value.clone() for name, value in training.corrector.state_dict().items()}
    seen: list[bool] = []
    training.run(
        lambda _: seen.append(
            all(torch.equal(start[name], value) for name, value in training.corrector.state_dict().items())
        ),
        lambda: None,
    )
    assert seen == [True, True, False, False, False]


def test_the_memory_starts_at_the_warm_up_average() -> None:
    training = Setting(schedule=replace(SCHEDULE, epochs=2)).training()
    run(training)
    expected = training.ledger.mean_probability()
    begun: list[Tensor] = []
    continued = Setting(schedule=SCHEDULE).training()
    begin = continued.corrector.begin
    continued.corrector.begin = lambda mean: begun.append(mean.clone()) or begin(mean)  # type: ignore[func-returns-value, method-assign]
    continued.load_state_dict(training.state_dict())
    run(continued)
    assert len(begun) == 1
    assert torch.equal(begun[0], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(value: float) -> None:
    training = Setting().training()
    with torch.no_grad():
        training.backbone.head.bias[0] = value
    with pytest.raises(RunError, match="no longer finite in epoch 1") as caught:
        run(training)
    assert "--lr" in caught.value.hint


def accuracy(probability: Tensor, rows: Tensor) -> float:
    return float((probability[rows].argmax(dim=1) == TRUE[rows]).float().mean())


@pytest.mark.parametrize(
    ("corrector", "backbone", "amp"),
    [
        ("none", "tiny", None),
        ("mslc", "tiny", None),
        ("mslc", "tiny", torch.bfloat16),
        ("mslc", "cnn8", None),
    ],
)
def test_the_average_prediction_is_better_than_the_given_labels(
    corrector: str, backbone: str, amp: torch.dtype | None
) -> None:
    schedule = replace(SCHEDULE, epochs=8, average_from=3)
    training = finished(corrector=corrector, backbone=backbone, amp=amp, schedule=schedule)
    mean = training.ledger.mean_probability()
    assert accuracy(mean, TRAIN) > 1 - WRONG + 0.1
    assert accuracy(mean, UNLABELLED) > 1 - WRONG
    assert accuracy(evidence(training)["last"], META) > 1 - WRONG


def test_the_evidence_is_one_distribution_a_row_and_source() -> None:
    training = finished()
    found = evidence(training)
    assert list(found) == ["mean", "last"]
    for values in found.values():
        assert values.shape == (len(TRUE), CLASSES)
        torch.testing.assert_close(values.sum(dim=1), torch.ones(len(TRUE)))


def test_predictions_use_no_augmentation_and_change_nothing() -> None:
    training = finished()
    before = {name: value.clone() for name, value in training.backbone.state_dict().items()}
    rows = torch.tensor([5, 130, 2])
    (index, logits), (again_index, again) = next(training.predict(rows)), next(training.predict(rows))
    assert index.tolist() == again_index.tolist() == [5, 130, 2]
    assert torch.equal(logits, again)
    assert_identical(dict(training.backbone.state_dict()), before)


def test_a_batch_of_one_small_image_can_be_normalised() -> None:
    """At the end of cnn8 an 8 px image is one value a channel, which BatchNorm refuses alone."""
    rows = replace(ROWS, meta=META[:1], meta_labels=ROWS.meta_labels[:1])
    schedule = replace(SCHEDULE, epochs=3, batch_size=1)
    rows = replace(rows, train=TRAIN[:5])
    training = Setting(rows=rows, schedule=schedule, backbone="cnn8", images=images()[:, :8, :8]).training()
    assert all(np.isfinite(report.loss) for report in run(training))
