"""Training on tiny images of coloured stripes, a quarter of whose labels are wrong."""

import copy
import functools
import io
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relabel import backbones, sample_memory
from relabel.backbones import Backbone
from relabel.config import META_GRADIENTS
from relabel.correctors import mslc, registry
from relabel.correctors.base import Epoch, Learning, Memory, Store, TrustedRows, WarmUp, no_rows
from relabel.correctors.mlc import MLC
from relabel.correctors.registry import REGISTRY
from relabel.correctors.tmlc_net import TMLCNet
from relabel.data.batches import ImageInputs
from relabel.device import Compute
from relabel.errors import DivergedError, RunError
from relabel.sample_memory import DeferredWrites
from relabel.saved.corrector_file import shipped_state
from relabel.schedule import Schedule
from relabel.training import hypergradient, loop
from relabel.training.checkpoint import passing_buffers
from relabel.training.hypergradient import Hypergradient, LookAhead
from relabel.training.loop import EpochReport, Training
from relabel.training.rows import Rows

CLASSES, SIZE, WRONG = 3, 8, 0.25
TRAIN, META, UNLABELLED = torch.arange(120), torch.arange(120, 150), torch.arange(150, 162)
SOURCE, EXTERNAL = 162, torch.arange(162, 168)  # trusted images outside of the source
TRUE = torch.arange(SOURCE + len(EXTERNAL)) % CLASSES
SCHEDULE = Schedule(
    epochs=5,
    warmup_epochs=2,
    batch_size=24,
    learning_rate=0.05,
    weight_decay=5e-4,
    meta_learning_rate=0.01,
    meta_batch_size=8,
)
AVERAGING = replace(SCHEDULE, averaged_weights=0.5, averaged_model=0.5, meta_phase_rate=0.2)
LATE = SCHEDULE.epochs - SCHEDULE.epochs // 2


def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One channel of stripes a class, under noise."""
    noise = np.random.default_rng(0).integers(0, 180, (len(TRUE), SIZE, SIZE, 3))
    noise[np.arange(len(TRUE)), ::2, :, TRUE.numpy()] += 75
    return noise.astype(np.uint8)


def labels() -> Tensor:
    """Given labels: the meta rows' are as noisy as the others'."""
    given = TRUE[:SOURCE].clone()
    wrong = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))[: int(WRONG * len(TRAIN))]
    given[wrong] = (given[wrong] + 1) % CLASSES
    given[META[::4]] = (given[META[::4]] + 1) % CLASSES
    given[UNLABELLED] = -1
    return given


def trusted(rows: Tensor) -> TrustedRows:
    given = torch.cat([labels(), torch.full((len(TRUE) - SOURCE,), -1)])
    return TrustedRows(rows, TRUE[rows], given[rows])


IN_TRAINING = TRAIN[::4]
ROWS = Rows(TRAIN, labels(), UNLABELLED, trusted(META), trusted(IN_TRAINING))


def with_other_given(rows: Tensor) -> Rows:
    given = ROWS.given.clone()
    given[rows] = (given[rows] + 1) % CLASSES
    return replace(ROWS, given=given)


def with_external() -> Rows:
    meta = torch.cat([META, EXTERNAL])
    return replace(ROWS, meta=trusted(meta))


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
    options: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    rows: Rows = ROWS
    schedule: Schedule = SCHEDULE
    backbone: str = "tiny"
    amp: torch.dtype | None = None
    images: np.ndarray[Any, np.dtype[np.uint8]] = field(default_factory=images)
    augmentation: str = "flip"

    def training(self) -> Training:
        torch.manual_seed(100 + self.seed)
        backbone = tiny() if self.backbone == "tiny" else backbones.build(self.backbone, CLASSES, SIZE)
        features = backbone.head.in_features
        corrector = registry.create(self.corrector, CLASSES, features, self.options, shipped_state())
        rows = self.rows
        if corrector.needs.learning is Learning.DIRECT:
            rows = replace(rows, train=torch.cat([rows.train, rows.meta.rows]))
        return Training(
            backbone,
            corrector,
            ImageInputs(self.images, self.augmentation),
            rows,
            self.schedule,
            Compute(torch.device("cpu"), self.amp),
            self.seed,
        )


@pytest.fixture(autouse=True)
def short_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests ask what a step does, not what hundreds of them learn."""
    monkeypatch.setattr(loop, "HEAD_START", 5)
    monkeypatch.setattr(mslc, "_FIT_STEPS", 12)


def run(training: Training) -> list[EpochReport]:
    reports: list[EpochReport] = []
    training.run(reports.append, lambda: None)
    return reports


def finished(**changes: Any) -> Training:
    training = Setting(**changes).training()
    run(training)
    return training


@functools.cache
def plain(corrector: str, gradient: str = "last-layer") -> Training:
    """A finished run to look at and to compare with; not to be changed."""
    return finished(corrector=corrector, schedule=replace(SCHEDULE, meta_gradient=gradient))


def assert_identical(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def deaf(corrector: str) -> dict[str, str]:
    """Options under which the meta phase starts without reading the meta rows' given labels, and quickly."""
    return {"mslc": {"start": "random"}, "mlc": {"start": "identity"}}.get(corrector, {})


LEARNING = [name for name in REGISTRY if name != "none"]
LOOKING_AHEAD = ["mslc", "mlc", "metalabelnet"]
every = pytest.mark.parametrize("corrector", REGISTRY)
learning = pytest.mark.parametrize("corrector", LEARNING)
looking_ahead = pytest.mark.parametrize("corrector", LOOKING_AHEAD)
gradients = pytest.mark.parametrize("gradient", ["last-layer", "exact"])


def test_every_corrector_is_here() -> None:
    made = {name: Setting(corrector=name).training() for name in REGISTRY}
    assert [name for name in made if made[name].meta] == LEARNING
    assert [name for name in LEARNING if made[name].needs.looks_ahead] == LOOKING_AHEAD


class StoppedError(Exception):
    pass


@every
def test_a_seed_gives_one_result_to_the_last_bit(corrector: str) -> None:
    first, second, other = (
        plain(corrector),
        finished(corrector=corrector),
        finished(corrector=corrector, seed=1),
    )
    assert_identical(first.state_dict(), second.state_dict())
    assert not torch.equal(first.sample_memory.mean[:], other.sample_memory.mean[:])


@looking_ahead
def test_a_seed_gives_one_result_by_exact_gradients_too(corrector: str) -> None:
    schedule = replace(SCHEDULE, meta_gradient="exact")
    first, second = plain(corrector, "exact"), finished(corrector=corrector, schedule=schedule)
    assert_identical(first.state_dict(), second.state_dict())
    assert not torch.equal(first.backbone.head.weight, plain(corrector).backbone.head.weight)


def test_the_seed_counts_beyond_the_start_of_the_backbone() -> None:
    """Order, augmentation and dropout follow the seed even where the weights start alike."""
    one, other = (Setting(options=deaf("mslc"), seed=seed).training() for seed in (3, 4))
    other.backbone.load_state_dict(one.backbone.state_dict())
    other.corrector.load_state_dict(one.corrector.state_dict())
    run(one)
    run(other)
    assert not torch.equal(one.backbone.head.weight, other.backbone.head.weight)


def test_no_two_epochs_of_neighbouring_seeds_draw_alike() -> None:
    """Nor does dropout, whose seed is the next one."""
    derived = [loop._derive(seed, epoch) for seed in range(50) for epoch in range(200)]
    assert len({seed + more for seed in derived for more in (0, 1)}) == 2 * len(derived)
    assert 0 <= loop._derive(2**63 - 1, 199) < 2**63, "torch takes no more"


@every
@pytest.mark.parametrize("schedule", [SCHEDULE, AVERAGING], ids=["", "weights averaged"])
@pytest.mark.parametrize("stop_after", [1, 2, 4], ids=["in the warm-up", "at its end", "after it"])
def test_a_stopped_run_goes_on_as_if_never_stopped(
    corrector: str, stop_after: int, schedule: Schedule
) -> None:
    file = io.BytesIO()

    def stop(report: EpochReport) -> None:
        if report.epoch + 1 == stop_after:
            torch.save(stopped.state_dict(), file)
            raise StoppedError

    stopped = Setting(corrector=corrector, schedule=schedule).training()
    with pytest.raises(StoppedError):
        stopped.run(stop, lambda: None)
    file.seek(0)
    resumed = Setting(corrector=corrector, schedule=schedule).training()
    with torch.no_grad():  # a resumed run does not owe its start to the seed
        for parameter in (*resumed.backbone.parameters(), *resumed.corrector.parameters()):
            parameter.zero_()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.rand(3)  # whatever else drew from the global generator
    reports = run(resumed)
    assert [report.epoch for report in reports] == list(range(stop_after, SCHEDULE.epochs))
    whole = plain(corrector) if schedule is SCHEDULE else finished(corrector=corrector, schedule=schedule)
    assert_identical(resumed.state_dict(), whole.state_dict())
    assert_identical(evidence(resumed), evidence(whole))


def evidence(training: Training) -> dict[str, Tensor]:
    return {name: values[:].clone() for name, values in training.evidence().items()}


@every
def test_the_reports_name_the_phases(corrector: str) -> None:
    reports = run(Setting(corrector=corrector).training())
    meta = corrector in LEARNING
    assert [report.phase for report in reports] == (["warm-up"] * 2 + ["meta"] * 3 if meta else ["train"] * 5)
    assert [report.meta_loss is not None for report in reports] == [
        meta and report.epoch >= 2 for report in reports
    ]
    assert all(report.epochs == 5 and math.isfinite(report.loss) for report in reports)
    assert all(report.meta_loss is None or report.meta_loss > 0 for report in reports)


def test_a_report_has_the_means_over_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Setting(schedule=replace(SCHEDULE, meta_every=2)).training()
    losses: list[float] = []
    trusted: list[float] = []
    original = training._step

    def spy(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        loss, trusted_loss = original(*arguments)
        losses.append(loss.item())
        trusted.extend([] if trusted_loss is None else [trusted_loss.item()])
        return loss, trusted_loss

    monkeypatch.setattr(training, "_step", spy)
    reports = run(training)
    for epoch, report in enumerate(reports):
        assert report.loss == pytest.approx(sum(losses[5 * epoch : 5 * epoch + 5]) / 5)
    assert len(trusted) == 9, "every second of five batches, in three epochs"
    for report, first in zip(reports[2:], (0, 3, 6), strict=True):
        assert report.meta_loss == pytest.approx(sum(trusted[first : first + 3]) / 3)


@pytest.mark.parametrize(
    ("corrector", "warm_up", "meta"),
    # 120 rows in batches of 50 are three, and so they are with 12 unlabelled or 30 meta rows more.
    [("none", 3, 3), ("mslc", 3, 3), ("metalabelnet", 3, 3), ("tmlc", 3, 3)],
)
def test_a_step_is_reported_for_every_batch(corrector: str, warm_up: int, meta: int) -> None:
    steps: list[None] = []
    training = Setting(corrector=corrector, schedule=replace(SCHEDULE, batch_size=50)).training()
    training.run(lambda _: None, lambda: steps.append(None))
    expected = [0, warm_up, 2 * warm_up, 2 * warm_up + meta, 2 * warm_up + 2 * meta, 2 * warm_up + 3 * meta]
    assert [training.steps_before(epoch) for epoch in range(6)] == expected
    assert len(steps) == expected[-1]


def test_unlabelled_rows_add_batches_where_nothing_reads_given_labels() -> None:
    steps: list[int] = []
    training = Setting(corrector="metalabelnet").training()
    training.run(lambda _: None, lambda: steps.append(training.epoch))
    # 120 rows and 30 meta rows before the meta phase, 120 and 12 unlabelled rows in it.
    assert [steps.count(epoch) for epoch in range(5)] == [7, 7, 6, 6, 6]
    assert [training.steps_before(epoch) for epoch in range(6)] == [0, 7, 14, 20, 26, 32]


def rates(schedule: Schedule, corrector: str = "none") -> list[float]:
    found: list[float] = []
    training = Setting(corrector=corrector, schedule=schedule).training()
    training.run(
        lambda _: None,
        lambda: found.append(*{group["lr"] for group in training.optimizer.param_groups}),
    )
    return found


def test_the_learning_rate_goes_up_and_down_once() -> None:
    found = rates(SCHEDULE)
    up, down = found[:5], found[5:]
    assert up == pytest.approx([0.05 * (step + 1) / 5 for step in range(5)])
    assert down == pytest.approx([0.05 * (20 - step) / 20 for step in range(20)])


@pytest.mark.parametrize(
    ("milestones", "epochs"),
    [((), [1, 1, 1, 1, 1]), ((0.4, 0.8), [1, 1, 0.1, 0.1, 0.01]), ((0.5,), [1, 1, None, 0.1, 0.1])],
)
def test_the_learning_rate_falls_at_the_milestones(
    milestones: tuple[float, ...], epochs: list[float | None]
) -> None:
    found = rates(replace(SCHEDULE, milestones=milestones))
    for epoch, share in enumerate(epochs):
        # Half of the run is in the middle of an epoch, between its third and its fourth batch.
        expected = [1, 1, 1, 0.1, 0.1] if share is None else [share] * 5
        assert found[5 * epoch : 5 * epoch + 5] == pytest.approx([0.05 * each for each in expected])


def test_the_meta_phase_can_have_a_lower_learning_rate() -> None:
    raking_factors = [1.0] * 10 + [0.2] * 15
    usual = rates(SCHEDULE, "mslc")
    found = rates(replace(SCHEDULE, meta_phase_rate=0.2), "mslc")
    assert found == pytest.approx([rate * factor for rate, factor in zip(usual, raking_factors, strict=True)])
    milestones = replace(SCHEDULE, milestones=(0.8,), meta_phase_rate=0.2)
    assert rates(milestones, "mslc")[::5] == pytest.approx([0.05, 0.05, 0.01, 0.01, 0.001])
    assert rates(AVERAGING) == rates(SCHEDULE), "plain training has no meta phase"


def state(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.backbone.state_dict().items()}


def assert_mean(found: dict[str, Tensor], states: list[dict[str, Tensor]]) -> None:
    for name, value in found.items():
        if value.is_floating_point():
            mean = torch.stack([each[name] for each in states]).mean(dim=0)
            torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("share", "epochs"), [(0.0, []), (0.3, [1]), (0.5, [1]), (1.0, [0, 1])])
def test_the_meta_phase_begins_with_the_mean_of_the_last_weights(
    share: float, epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    begun: list[dict[str, Tensor]] = []
    training = Setting(schedule=replace(SCHEDULE, averaged_weights=share)).training()
    begin = training.corrector.begin

    def spy(warm_up: WarmUp) -> Store:
        begun.append(state(training))
        assert warm_up.head is training.backbone.head
        return begin(warm_up)

    def step() -> None:
        if training.epoch in (epochs or [1]):
            seen.append(state(training))

    monkeypatch.setattr(training.corrector, "begin", spy)
    training.run(lambda _: None, step)
    (found,) = begun
    assert len(seen) == 5 * max(1, len(epochs))
    assert_mean(found, seen if epochs else seen[-1:])


@every
@pytest.mark.parametrize(("share", "epochs"), [(0.0, []), (0.1, [4]), (0.5, [2, 3, 4]), (1.0, [*range(5)])])
def test_the_mean_of_the_run_s_last_weights_is_kept_apart(
    corrector: str, share: float, epochs: list[int]
) -> None:
    seen: list[dict[str, Tensor]] = []
    training = Setting(corrector=corrector, schedule=replace(SCHEDULE, averaged_model=share)).training()

    def step() -> None:
        if training.epoch in epochs:
            seen.append(state(training))

    training.run(lambda _: None, step)
    assert_identical(state(training), plain(corrector).state_dict()["backbone"])
    average = training.averaged
    assert (average is not None) == bool(epochs)
    if average is not None:
        assert_mean(average.state_dict(), seen)


class _Elsewhere(Compute):
    """A device whose tensors have no values, so that any machine has it: mixing it with the CPU fails."""

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize(("corrector", "gradient"), [(name, g) for name in REGISTRY for g in META_GRADIENTS])
def test_a_step_stays_on_its_device(monkeypatch: pytest.MonkeyPatch, corrector: str, gradient: str) -> None:
    begun = Setting(corrector=corrector, schedule=replace(SCHEDULE, meta_gradient=gradient)).training()
    for _ in range(SCHEDULE.warmup_epochs + 1):
        begun.run_epoch()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(begun.sample_memory, "write", lambda index, memory: None)
    devices = []
    monkeypatch.setattr(
        begun.sample_memory, "add_prediction", lambda index, found: devices.append(found.device)
    )
    device = torch.device("meta")
    inputs, rows, schedule = begun.inputs, begun.rows, begun.schedule
    begun.corrector.__dict__.pop("_pretrained", None)  # kept on the device of its first use
    moved = Training(begun.backbone, begun.corrector, inputs, rows, schedule, _Elsewhere(device, None), 0)
    moved.sample_memory = begun.sample_memory
    moved.epoch = begun.epoch
    generator, writes = torch.Generator().manual_seed(0), DeferredWrites(begun.sample_memory)
    meta_batch = torch.arange(8) if moved.meta else None
    loss, trusted_loss = moved._step(TRAIN[:24], meta_batch, 0.05, generator, writes)
    writes.flush()
    assert [loss.device, *devices] == [device, device]
    assert (trusted_loss is None) == (moved.meta is None)
    assert trusted_loss is None or trusted_loss.device == device


@every
def test_what_steps_leave_to_the_sample_memory_may_wait(
    corrector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, later = Setting(corrector=corrector).training(), Setting(corrector=corrector).training()
    run(later)
    monkeypatch.setattr(sample_memory, "_DEFERRED", 1)
    run(at_once)
    assert_identical(later.state_dict(), at_once.state_dict())


def test_a_run_without_a_warm_up_has_no_weights_to_average() -> None:
    run(Setting(schedule=replace(AVERAGING, warmup_epochs=0)).training())


@learning
@pytest.mark.parametrize("meta_every", [1, 2, 99])
def test_meta_steps_are_taken_every_so_many_batches(corrector: str, meta_every: int) -> None:
    training = Setting(
        corrector=corrector,
        options=deaf(corrector),
        schedule=replace(SCHEDULE, meta_every=meta_every, epochs=4),
    ).training()
    batches = training.steps_before(3) - training.steps_before(2)
    taken: list[int] = []
    assert training.meta is not None
    training.meta.optimizer.register_step_post_hook(lambda *_: taken.append(training.epoch))
    reports = run(training)
    assert batches >= 5
    head_start = taken.count(2) - taken.count(3)
    assert (head_start > 0) == (training.corrector.needs.learning is Learning.DIRECT)
    steps = math.ceil(batches / meta_every)
    assert [taken.count(epoch) for epoch in range(4)] == [0, 0, head_start + steps, steps]
    assert all(report.meta_loss is not None for report in reports[2:])


@looking_ahead
@gradients
def test_the_look_ahead_step_is_the_backbone_s_own_unless_the_corrector_says_otherwise(
    corrector: str, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = replace(SCHEDULE, meta_gradient=gradient)
    training = Setting(corrector=corrector, options=deaf(corrector), schedule=schedule).training()
    seen: list[tuple[float, float]] = []
    original = hypergradient.HYPERGRADIENTS[gradient]

    def spy(step: LookAhead) -> Hypergradient:
        seen.append((step.learning_rate, training.optimizer.param_groups[0]["lr"]))
        return original(step)

    monkeypatch.setitem(hypergradient.HYPERGRADIENTS, gradient, spy)
    losses: list[None] = []
    virtual_loss = training.corrector.virtual_loss

    def counted(logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        losses.append(None)
        return virtual_loss(logits, given, memory)

    monkeypatch.setattr(training.corrector, "virtual_loss", counted)
    run(training)
    assert len(seen) == len(losses) == training.steps_before(5) - training.steps_before(2)
    assert all(rate == backbone_s for rate, backbone_s in seen)


@looking_ahead
@gradients
def test_the_backbone_does_not_wait_for_an_exact_step_of_the_corrector(corrector: str, gradient: str) -> None:
    """In the one step of the meta phase a bold corrector and one that stands still, from the same state."""
    one_batch = replace(SCHEDULE, epochs=3, batch_size=256, meta_gradient=gradient)
    still, bold = (
        finished(
            corrector=corrector,
            options=deaf(corrector),
            schedule=replace(one_batch, meta_learning_rate=meta_learning_rate),
        )
        for meta_learning_rate in (0.0, 1.0)
    )
    waits = gradient == "last-layer" or corrector == "metalabelnet"  # whose look-ahead has a loss of its own
    assert torch.equal(still.backbone.head.weight, bold.backbone.head.weight) != waits
    if not waits:
        assert not all(map(torch.equal, still.corrector.parameters(), bold.corrector.parameters()))


@pytest.mark.parametrize("corrector", ["none", "mslc", "mlc"])
def test_meta_rows_of_a_look_ahead_are_never_trained_on(corrector: str) -> None:
    training = finished(corrector=corrector, options=deaf(corrector))
    assert (training.sample_memory.visits[TRAIN] == LATE).all()
    assert (training.sample_memory.visits[META] == 0).all()
    # Other given labels of the meta rows change nothing at all.
    other = finished(corrector=corrector, options=deaf(corrector), rows=with_other_given(META))
    assert_identical(other.state_dict(), training.state_dict())


def test_metalabelnet_s_meta_rows_are_trained_on_in_the_warm_up_alone() -> None:
    unlabelled = META[::3]
    given = ROWS.meta.given.clone()
    given[::3] = -1
    external = with_external().meta
    meta = replace(external, given=torch.cat([given, external.given[len(META) :]]))
    training = Setting(corrector="metalabelnet", rows=replace(ROWS, meta=meta)).training()
    labelled = META[given >= 0]
    for _ in range(2):
        training.run_epoch()
    assert (training.sample_memory.visits[torch.cat([TRAIN, labelled])] == 2).all()
    assert (training.sample_memory.visits[unlabelled] == 0).all()
    begun = copy.deepcopy(training.state_dict())
    run(training)
    assert (training.sample_memory.visits[TRAIN] == LATE).all()
    assert (training.sample_memory.visits[META] == 0).all()

    other = Setting(corrector="metalabelnet", rows=with_other_given(META)).training()
    other.run_epoch()
    usual = Setting(corrector="metalabelnet").training()
    usual.run_epoch()
    assert not torch.equal(other.backbone.head.weight, usual.backbone.head.weight), "under their given label"
    rows = replace(
        ROWS, meta=replace(meta, given=torch.where(meta.given < 0, -1, (meta.given + 1) % CLASSES))
    )
    unread = Setting(corrector="metalabelnet", rows=rows).training()
    unread.load_state_dict(begun)
    run(unread)
    assert_identical(unread.state_dict(), training.state_dict())


def test_tmlc_s_meta_rows_are_trained_on_like_any_other() -> None:
    training = plain("tmlc")
    assert (training.sample_memory.visits[torch.cat([TRAIN, META])] == LATE).all()
    other = finished(corrector="tmlc", rows=with_other_given(META))
    assert not torch.equal(other.backbone.head.weight, training.backbone.head.weight)


@learning
def test_true_labels_of_trusted_rows_teach_the_corrector_and_not_the_warm_up(corrector: str) -> None:
    setting = Setting(corrector=corrector, options=deaf(corrector))
    one = setting.training()
    other = replace(setting, rows=replace(ROWS, meta=replace(ROWS.meta, true=TRUE[META].flip(0)))).training()
    for _ in range(2):
        one.run_epoch()
        other.run_epoch()
    assert_identical(one.state_dict(), other.state_dict())
    run(one)
    run(other)
    assert not torch.equal(one.backbone.head.weight, other.backbone.head.weight)


@pytest.mark.parametrize("corrector", ["none", "mslc", "mlc", "tmlc"])
def test_unlabelled_rows_are_predicted_and_not_trained_on(corrector: str) -> None:
    training = plain(corrector)
    assert (training.sample_memory.visits[UNLABELLED] == LATE).all()
    for mean in (training.sample_memory.early, training.sample_memory.mean):
        torch.testing.assert_close(mean[:][UNLABELLED].sum(dim=1), torch.ones(len(UNLABELLED)))
        assert (mean[:][UNLABELLED] - 1 / CLASSES).abs().max() > 0.01
    without = finished(corrector=corrector, rows=replace(ROWS, unlabelled=UNLABELLED[:0]))
    assert_identical(without.backbone.state_dict(), training.backbone.state_dict())
    assert (without.sample_memory.visits[UNLABELLED] == 0).all()


def changed_images(rows: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    changed = images()
    changed[rows] = 255 - changed[rows]
    return changed


@pytest.mark.parametrize(("follows", "epochs"), [(True, SCHEDULE.epochs), (False, SCHEDULE.epochs - 1)])
def test_a_corrector_that_follows_them_sees_unlabelled_rows_from_the_first_epoch_on(
    monkeypatch: pytest.MonkeyPatch, follows: bool, epochs: int
) -> None:
    training = Setting(corrector="tmlc").training()
    training.needs = replace(training.needs, unlabelled_predictions=follows)
    monkeypatch.setattr(loop, "averaged_epochs", lambda count: (range(1, 3), range(3, count)))
    predicted = []
    predict = training.predict

    def spy(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        assert rows is ROWS.unlabelled
        predicted.append(training.epoch)
        return predict(rows)

    monkeypatch.setattr(training, "predict", spy)
    run(training)
    assert predicted == list(range(SCHEDULE.epochs))[-epochs:]


def test_metalabelnet_trains_on_unlabelled_rows_after_the_warm_up() -> None:
    one = Setting(corrector="metalabelnet").training()
    other = Setting(corrector="metalabelnet", images=changed_images(UNLABELLED)).training()
    for _ in range(2):
        one.run_epoch()
        other.run_epoch()
    assert_identical(one.backbone.state_dict(), other.backbone.state_dict())
    run(one)
    run(other)
    assert not torch.equal(one.backbone.head.weight, other.backbone.head.weight)
    assert (one.sample_memory.visits[torch.cat([TRAIN, UNLABELLED])] == LATE).all()
    assert (one.sample_memory.visits[META] == 0).all()


@pytest.mark.parametrize("corrector", ["none", "tmlc", "metalabelnet"])
@pytest.mark.parametrize(("epochs", "first", "half"), [(7, 1, 3), (5, 0, 2), (2, 0, 1)])
def test_what_was_predicted_before_half_time_is_evidence_of_its_own(
    corrector: str, epochs: int, first: int, half: int
) -> None:
    schedule = replace(SCHEDULE, epochs=epochs, warmup_epochs=1)
    training = Setting(corrector=corrector, schedule=schedule).training()
    predictions = []
    for _ in range(epochs):
        training.run_epoch()
        predictions.append(training.sample_memory.latest[:].clone())
    rows = torch.cat([TRAIN, UNLABELLED])
    found = training.evidence()
    for name, averaged in (("early", predictions[first:half]), ("late", predictions[half:])):
        torch.testing.assert_close(found[name][rows], torch.stack(averaged).mean(dim=0)[rows])


def test_of_one_epoch_there_is_no_early_average() -> None:
    training = finished(schedule=replace(SCHEDULE, epochs=1, warmup_epochs=0))
    found = training.evidence()
    assert (found["early"][:] == 1 / CLASSES).all(), "which says nothing"
    assert torch.equal(found["late"][TRAIN], training.sample_memory.latest[TRAIN])


def test_metalabelnet_reads_no_given_label_after_the_warm_up() -> None:
    begun = Setting(corrector="metalabelnet").training()
    for _ in range(2):
        begun.run_epoch()
    state = copy.deepcopy(begun.state_dict())
    other = Setting(corrector="metalabelnet", rows=with_other_given(TRAIN)).training()
    other.load_state_dict(state)
    run(begun)
    run(other)
    assert_identical(other.state_dict(), begun.state_dict())


def test_metalabelnet_s_features_stay_as_the_warm_up_left_them() -> None:
    training = Setting(corrector="metalabelnet", rows=with_external()).training()
    for _ in range(2):
        training.run_epoch()
    backbone = copy.deepcopy(training.backbone).eval()
    with torch.no_grad():
        shown = training.inputs.batch(torch.arange(len(TRUE)), torch.device("cpu"), None)
        expected = backbone(shown)[1]
    for _ in range(3):
        training.run_epoch()
        torch.testing.assert_close(training.sample_memory.memory["features"], expected)
    before = training.sample_memory.memory["features"].clone()
    training.sample_memory.memory["features"].zero_()
    begun = Setting(corrector="metalabelnet", rows=with_external()).training()
    for _ in range(3):
        begun.run_epoch()
    assert torch.equal(begun.sample_memory.memory["features"], before)


@looking_ahead
@gradients
def test_the_trusted_batch_reaches_the_backbone_through_the_corrector_only(
    corrector: str, gradient: str
) -> None:
    """With the corrector's own learning switched off, other trusted images change no weight and no buffer."""
    still = replace(SCHEDULE, epochs=4, meta_learning_rate=0.0, meta_gradient=gradient)
    # Those without a given label take no part in MetaLabelNet's warm-up.
    nameless = replace(ROWS, meta=replace(ROWS.meta, given=torch.full_like(META, -1)))
    rows = nameless if corrector == "metalabelnet" else ROWS
    setting = {"corrector": corrector, "options": deaf(corrector), "schedule": still, "rows": rows}
    one = finished(**setting)
    other = finished(**setting, images=changed_images(META))
    assert_identical(one.backbone.state_dict(), other.backbone.state_dict())
    assert_identical(one.optimizer.state_dict(), other.optimizer.state_dict())
    for training in (one, other):
        training.sample_memory.memory.pop(
            "features", None
        )  # MetaLabelNet's, of the changed images themselves
    assert_identical(one.sample_memory.state_dict(), other.sample_memory.state_dict())


@learning
def test_other_trusted_images_teach_the_corrector_something_else(corrector: str) -> None:
    changed = finished(corrector=corrector, images=changed_images(META))
    assert not torch.equal(changed.backbone.head.weight, plain(corrector).backbone.head.weight)


@learning
@gradients
def test_a_meta_step_leaves_no_trace_in_the_backbone(corrector: str, gradient: str) -> None:
    """One meta step an epoch or one a batch: weights, statistics, dropout and momentum cannot tell."""
    still = replace(SCHEDULE, epochs=4, meta_learning_rate=0.0, meta_gradient=gradient)
    setting = {"corrector": corrector, "options": deaf(corrector), "augmentation": "none"}
    often = finished(**setting, schedule=still)
    seldom = finished(**setting, schedule=replace(still, meta_every=99))
    for part in ("backbone", "optimizer", "sample_memory", "corrector"):
        assert_identical(getattr(often, part).state_dict(), getattr(seldom, part).state_dict())


@learning
def test_the_corrector_learns_in_the_meta_phase_only(corrector: str) -> None:
    training = Setting(corrector=corrector).training()
    start = copy.deepcopy(training.corrector.state_dict())
    seen: list[bool] = []
    training.run(
        lambda _: seen.append(
            all(torch.equal(start[name], value) for name, value in training.corrector.state_dict().items())
        ),
        lambda: None,
    )
    assert seen == [True, True, False, False, False]


@pytest.mark.parametrize("corrector", LOOKING_AHEAD)
def test_a_virtual_step_of_its_own_scales_the_meta_gradient_and_plain_descent_follows_it(
    corrector: str,
) -> None:
    """The meta-gradient is linear in the look-ahead's rate where that is small."""

    def first_gradient(virtual: float) -> Tensor:
        schedule = replace(SCHEDULE, meta_optimizer="sgd", virtual_learning_rate=virtual)
        training = Setting(corrector=corrector, schedule=schedule).training()
        for _ in range(SCHEDULE.warmup_epochs):
            training.run_epoch()
        assert training.meta is not None
        optimizer, parameters = training.meta.optimizer, training.meta.parameters
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.param_groups[0]["momentum"] == 0
        found: list[Tensor] = []
        optimizer.register_step_pre_hook(
            lambda *_: found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        )
        training.run_epoch()
        return found[0]

    once, twice = first_gradient(1e-3), first_gradient(2e-3)
    assert once.abs().max() > 0
    torch.testing.assert_close(twice, 2 * once, rtol=0, atol=0.02 * once.abs().max().item())


def test_the_backbone_s_weights_decay_and_its_biases_and_norms_do_not() -> None:
    training = Setting(corrector="none", schedule=replace(SCHEDULE, weight_decay=0.3)).training()
    matrices, vectors = training.optimizer.param_groups
    assert {parameter.ndim for parameter in vectors["params"]} == {1}
    assert {parameter.ndim for parameter in matrices["params"]} == {2, 4}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0)
    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in (matrices, vectors))
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(training.backbone.parameters()))


def test_the_corrector_s_optimizer_decays_what_it_is_told_to() -> None:
    training = Setting(schedule=replace(SCHEDULE, meta_weight_decay=1e-2)).training()
    assert training.meta is not None
    assert [group["weight_decay"] for group in training.meta.optimizer.param_groups] == [1e-2]
    run(training)
    assert not torch.equal(training.backbone.head.weight, plain("mslc").backbone.head.weight)


def test_the_corrector_is_projected_after_its_steps() -> None:
    training = finished(corrector="mlc", options={"transition": "projection"})
    assert isinstance(training.corrector, MLC)
    transition = training.corrector.transition
    assert (transition >= 0).all()
    torch.testing.assert_close(transition.sum(dim=1), torch.ones(CLASSES))
    assert (transition - torch.eye(CLASSES)).abs().max() > 0.05


@pytest.mark.parametrize("rows", [ROWS, with_external()], ids=["inside", "outside of the source too"])
def test_the_warm_up_hands_over_what_it_knows(rows: Rows) -> None:
    training = Setting(rows=rows).training()
    for _ in range(2):
        training.run_epoch()
    expected = copy.deepcopy(training)
    handed: list[WarmUp] = []
    features: list[Tensor] = []
    begin = training.corrector.begin

    def spy(warm_up: WarmUp) -> Store:
        mean, probability = warm_up.mean_probability.clone(), warm_up.probability.clone()
        handed.append(replace(warm_up, mean_probability=mean, probability=probability))
        features.append(warm_up.features())
        return begin(warm_up)

    training.corrector.begin = spy  # type: ignore[method-assign]
    run(training)
    (warm_up,) = handed
    assert torch.equal(warm_up.mean_probability[:], expected.sample_memory.mean[:])
    assert (expected.sample_memory.visits[TRAIN] == 2).all()
    assert warm_up.meta is rows.meta
    assert torch.equal(warm_up.probability[:], expected.sample_memory.latest[:])
    assert warm_up.in_training is rows.in_training
    assert warm_up.head is training.backbone.head
    with torch.no_grad():
        shown = training.inputs.batch(torch.arange(len(TRUE)), torch.device("cpu"), None)
        torch.testing.assert_close(features[0], expected.backbone.eval()(shown)[1])
    # Asking for the features left no trace.
    run(expected)
    assert_identical(training.state_dict(), expected.state_dict())


@learning
def test_every_epoch_is_shown_to_the_corrector(corrector: str) -> None:
    training = Setting(corrector=corrector).training()
    seen: list[Epoch] = []
    observe = training.corrector.observe

    def spy(epoch: Epoch) -> Store:
        seen.append(replace(epoch, probability=epoch.probability.clone()))
        return observe(epoch)

    training.corrector.observe = spy  # type: ignore[method-assign]
    run(training)
    assert len(seen) == SCHEDULE.epochs
    trained = torch.cat([TRAIN, META]) if corrector == "tmlc" else TRAIN
    for before, epoch in zip([None, *seen], seen, strict=False):
        assert epoch.trained.nonzero()[:, 0].tolist() == trained.tolist()
        assert torch.equal(epoch.given, ROWS.given)
        assert epoch.meta is ROWS.meta
        assert epoch.in_training is ROWS.in_training
        torch.testing.assert_close(epoch.probability[:].sum(dim=1), torch.ones(SOURCE))
        if before is not None:
            assert (epoch.probability[trained] != before.probability[trained]).any(dim=1).all()
    assert torch.equal(seen[-1].probability[:], training.sample_memory.latest[:])


@looking_ahead
@gradients
def test_trusted_images_outside_of_the_source_take_part(corrector: str, gradient: str) -> None:
    setting = {
        "corrector": corrector,
        "options": deaf(corrector),
        "rows": with_external(),
        "schedule": replace(SCHEDULE, epochs=3, meta_gradient=gradient),
    }
    training, other = finished(**setting), finished(**setting, images=changed_images(EXTERNAL))
    assert not torch.equal(training.backbone.head.weight, other.backbone.head.weight)
    assert all(len(values) == SOURCE for values in evidence(training).values())


def variants() -> list[Any]:
    return [
        pytest.param(name, {option: value}, id=f"{name}-{option}-{value}")
        for name, entry in REGISTRY.items()
        for option, values in entry.options.items()
        for value in values[1:]
    ]


@pytest.mark.parametrize(("corrector", "options"), variants())
def test_every_option_trains_and_resumes(corrector: str, options: dict[str, str]) -> None:
    whole = finished(corrector=corrector, options=options)
    resumed, stopped = (Setting(corrector=corrector, options=options).training() for _ in range(2))
    for _ in range(3):
        assert math.isfinite(stopped.run_epoch().loss)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    run(resumed)
    assert_identical(resumed.state_dict(), whole.state_dict())
    assert not torch.equal(plain(corrector).backbone.head.weight, whole.backbone.head.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(value: float) -> None:
    training = Setting().training()
    with torch.no_grad():
        training.backbone.head.bias[0] = value
    with pytest.raises(RunError, match="no longer finite in epoch 1") as caught:
        run(training)
    assert "--lr" in caught.value.hint


@pytest.mark.parametrize(
    ("corrector", "hint"), [("none", "Lower --lr."), ("mslc", "Lower --lr or --meta-lr.")]
)
def test_predictions_that_are_not_finite_end_the_run(corrector: str, hint: str) -> None:
    training = Setting(corrector=corrector).training()
    run(training)
    with torch.no_grad():
        training.backbone.head.bias[0] = torch.inf
    with pytest.raises(DivergedError, match="predictions are no longer finite") as caught:
        training.evidence()
    assert caught.value.hint == hint


def accuracy(probability: Tensor, rows: Tensor) -> float:
    return float((probability[rows].argmax(dim=1) == TRUE[rows]).float().mean())


@pytest.mark.parametrize(
    ("corrector", "amp", "gradient"),
    [
        *((name, None, "last-layer") for name in REGISTRY),
        ("mslc", torch.bfloat16, "last-layer"),
        ("mlc", torch.bfloat16, "exact"),
    ],
)
def test_the_average_prediction_is_better_than_the_given_labels(
    corrector: str, amp: torch.dtype | None, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    schedule = replace(SCHEDULE, epochs=8, warmup_epochs=4, meta_gradient=gradient)
    training = finished(corrector=corrector, amp=amp, schedule=schedule)
    mean = training.sample_memory.mean[:]
    assert accuracy(mean, TRAIN) > 1 - WRONG + 0.1
    assert accuracy(mean, UNLABELLED) > 1 - WRONG
    assert accuracy(evidence(training)["last"], META) > 1 - WRONG


def test_the_evidence_is_one_distribution_a_row_and_source() -> None:
    training = plain("mslc")
    found = evidence(training)
    assert list(found) == ["early", "late", "last"]
    for values in found.values():
        assert values.shape == (SOURCE, CLASSES)
        torch.testing.assert_close(values.sum(dim=1), torch.ones(SOURCE))


def test_predictions_use_no_augmentation_and_change_nothing() -> None:
    training = plain("mslc")
    before = {name: value.clone() for name, value in training.backbone.state_dict().items()}
    rows = torch.tensor([5, 130, 2])
    (index, logits), (again_index, again) = next(training.predict(rows)), next(training.predict(rows))
    assert index.tolist() == again_index.tolist() == [5, 130, 2]
    assert torch.equal(logits, again)
    assert_identical(dict(training.backbone.state_dict()), before)


@pytest.mark.parametrize(
    ("corrector", "gradient"),
    [("none", "last-layer"), ("mslc", "exact"), ("metalabelnet", "last-layer"), ("tmlc", "last-layer")],
)
def test_a_batch_of_one_small_image_can_be_normalised(corrector: str, gradient: str) -> None:
    """At the end of cnn8 an 8 px image is one value a channel, which BatchNorm refuses alone."""
    rows = replace(ROWS, train=TRAIN[:2], unlabelled=UNLABELLED[:1], meta=trusted(META[:1]))
    schedule = replace(SCHEDULE, epochs=2, warmup_epochs=1, batch_size=1, meta_gradient=gradient)
    training = Setting(corrector=corrector, rows=rows, schedule=schedule, backbone="cnn8").training()
    assert all(math.isfinite(report.loss) for report in run(training))


EVERYONE = torch.cat([TRAIN, META])


@functools.cache
def learned() -> TMLCNet:
    """What a TMLC-Net has learned elsewhere; not to be changed."""
    corrector = finished(corrector="tmlc", seed=9).corrector
    assert isinstance(corrector, TMLCNet)
    return corrector


def transferred(kept_share: float = 0.1, schedule: Schedule = SCHEDULE) -> Training:
    """A training without any trusted row, with a frozen corrector."""
    setting = Setting(
        corrector="none",
        rows=replace(ROWS, train=EVERYONE, meta=no_rows()),
        schedule=schedule,
    )
    training = setting.training()
    corrector = copy.deepcopy(learned())
    corrector.kept_share.fill_(kept_share)
    corrector.log_ratio = None  # no file holds it
    backbone, inputs, rows, compute = training.backbone, training.inputs, training.rows, training.compute
    return Training(backbone, corrector, inputs, rows, schedule, compute, setting.seed, frozen=True)


@functools.cache
def uncorrected() -> Training:
    return finished(corrector="none", rows=replace(ROWS, train=EVERYONE, meta=no_rows()))


def test_a_frozen_corrector_corrects_as_it_is_without_any_trusted_row() -> None:
    training = transferred()
    assert training.meta is None
    before = copy.deepcopy(training.corrector.state_dict())
    seen: list[tuple[int, Tensor]] = []
    plain_loss = training.corrector.loss

    def spy(logits: Tensor, given: Tensor, memory: Memory) -> Tensor:
        assert logits.requires_grad, "the backbone's own"
        soft_label = training.corrector.soft_label(logits, given, memory)
        expected = -(soft_label * logits.log_softmax(dim=1)).sum(dim=1)
        found = plain_loss(logits, given, memory)
        torch.testing.assert_close(found, expected)
        seen.append((training.epoch, given))
        return found

    training.corrector.loss = spy  # type: ignore[method-assign]
    reports = run(training)
    assert [report.phase for report in reports] == ["warm-up"] * 2 + ["meta"] * 3
    assert all(report.meta_loss is None and math.isfinite(report.loss) for report in reports)
    for epoch in range(5):
        rows = sum(len(given) for when, given in seen if when == epoch)
        assert rows == (len(EVERYONE) if epoch >= 2 else 0)
    assert_identical(training.corrector.state_dict(), before)
    assert passing_buffers(training.corrector) == {}, "anchor points alone do not tell enough of the noise"
    assert (training.sample_memory.visits[EVERYONE] == LATE).all()


def test_a_frozen_corrector_changes_nothing_in_the_warm_up_and_much_after_it() -> None:
    training = transferred()
    other = Setting(corrector="none", rows=replace(ROWS, train=EVERYONE, meta=no_rows())).training()
    for epoch in range(3):
        assert torch.equal(training.backbone.head.weight, other.backbone.head.weight), epoch
        training.run_epoch()
        other.run_epoch()
    assert (training.backbone.head.weight - other.backbone.head.weight).abs().max() > 1e-3


def test_a_frozen_corrector_that_keeps_every_label_trains_like_none() -> None:
    training = transferred(kept_share=1.0)
    run(training)
    assert_identical(training.backbone.state_dict(), uncorrected().backbone.state_dict())
    assert_identical(evidence(training), evidence(uncorrected()))


@pytest.mark.parametrize("stop_after", [1, 2, 4], ids=["in the warm-up", "at its end", "after it"])
def test_a_run_with_a_frozen_corrector_goes_on_as_if_never_stopped(stop_after: int) -> None:
    whole, stopped, resumed = (transferred() for _ in range(3))
    run(whole)
    for _ in range(stop_after):
        stopped.run_epoch()
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        for parameter in (*resumed.backbone.parameters(), *resumed.corrector.parameters()):
            parameter.zero_()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.rand(3)
    run(resumed)
    assert_identical(resumed.state_dict(), whole.state_dict())
