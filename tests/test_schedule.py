"""Schedules: what the data decide, what flags and papers say, and the learning rate over a run."""

import math

import pytest

from relabel.errors import RelabelError
from relabel.schedule import (
    BATCH_SIZE,
    EPOCH_LIMITS,
    LARGE_BATCH_SIZE,
    LARGE_BATCHES_FROM,
    LONGEST_WARMUP,
    MOST_WEIGHT_DECAY,
    WEIGHT_DECAY,
    Schedule,
    averaged_epochs,
    default_batch_size,
    default_epochs,
    default_learning_rate,
    default_weight_decay,
)

ROWS = [1, 500, 2_500, 9_999, 10_000, 39_999, 40_000, 60_000, 10**6]


def test_larger_data_get_fewer_epochs_within_limits() -> None:
    found = [default_epochs(rows) for rows in ROWS]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == EPOCH_LIMITS[::-1]
    assert EPOCH_LIMITS[0] < default_epochs(40_000) < EPOCH_LIMITS[1]


def test_a_transferred_corrector_which_nothing_steers_gets_no_more_epochs() -> None:
    pairs = [(default_epochs(rows, transferred=True), default_epochs(rows)) for rows in ROWS]
    assert all(transferred <= guided for transferred, guided in pairs)
    assert pairs[0][0] < pairs[0][1]


def test_large_data_are_trained_in_large_batches() -> None:
    sizes = [default_batch_size(rows) for rows in (1, LARGE_BATCHES_FROM - 1, LARGE_BATCHES_FROM, 10**7)]
    assert sizes == [BATCH_SIZE, BATCH_SIZE, LARGE_BATCH_SIZE, LARGE_BATCH_SIZE]


def test_a_batch_of_four_times_the_size_has_twice_the_peak_rate() -> None:
    for size in (2, 64, 100):
        assert default_learning_rate(4 * size) == pytest.approx(2 * default_learning_rate(size))


def test_fewer_rows_get_more_weight_decay_within_limits() -> None:
    found = [default_weight_decay(rows) for rows in ROWS]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (MOST_WEIGHT_DECAY, WEIGHT_DECAY)
    assert WEIGHT_DECAY < default_weight_decay(5_000) < MOST_WEIGHT_DECAY


def test_weight_decay_grows_for_small_data_only_where_training_begins_from_scratch() -> None:
    def decay(schedule: Schedule, **flags: bool) -> float | None:
        return schedule.resolved(1_000, **flags).weight_decay

    assert decay(Schedule()) == default_weight_decay(1_000)
    assert decay(Schedule(), from_scratch=False) == decay(Schedule(), transferred=True) == WEIGHT_DECAY
    for given in (0.0, 1e-4):
        assert decay(Schedule(weight_decay=given)) == given


def test_what_is_asked_for_stands_and_the_rest_follows_from_the_rows() -> None:
    found = Schedule().resolved(5_000)
    assert (found.epochs, found.batch_size) == (default_epochs(5_000), default_batch_size(5_000))
    assert found.learning_rate == default_learning_rate(found.batch_size)
    chosen = Schedule(epochs=7, batch_size=100, learning_rate=0.3).resolved(5_000)
    assert (chosen.epochs, chosen.batch_size, chosen.learning_rate) == (7, 100, 0.3)
    assert Schedule(batch_size=16).resolved(5_000).learning_rate == default_learning_rate(16)
    assert found.resolved(10**6) == found, "nothing is left to decide"


def test_none_overrides_nothing() -> None:
    schedule = Schedule(epochs=7, meta_every=4)
    assert schedule.overridden(epochs=None, meta_every=None) == schedule
    assert schedule.overridden(epochs=9, averaged_model=0.0) == Schedule(epochs=9, meta_every=4)


@pytest.mark.parametrize("epochs", [2, 3, 10, 27, 30, 54, 80])
@pytest.mark.parametrize("least", [0, 27])
def test_the_warm_up_has_its_share_and_its_least_epochs_and_leaves_some(epochs: int, least: int) -> None:
    found = Schedule(epochs=epochs, warmup=0.5, least_warmup=least).resolved(1_000).warmup_epochs
    assert 1 <= found < epochs
    longest = max(1, round(LONGEST_WARMUP * epochs))
    assert found == max(round(0.5 * epochs), min(least, longest, epochs - 1))
    assert Schedule(epochs=epochs, least_warmup=least, warmup_epochs=1).resolved(1_000).warmup_epochs == 1


@pytest.mark.parametrize("warmup", [20, 25])
def test_a_warm_up_of_the_whole_run_is_refused(warmup: int) -> None:
    with pytest.raises(RelabelError, match=f"--warmup {warmup}: the run has 20 epochs in all."):
        Schedule(epochs=20, warmup_epochs=warmup).resolved(1_000)
    with pytest.raises(RelabelError, match="--warmup"):
        Schedule(warmup_epochs=default_epochs(10**6)).resolved(10**6)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    schedule, step = Schedule(epochs=10, learning_rate=0.4), 0.25
    rates = [schedule.learning_rate_at(place * step, step, corrected=False) for place in range(40)]
    peak = rates.index(max(rates))
    assert rates[:8] == sorted(rates[:8])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert (peak, max(rates)) == (7, pytest.approx(0.4))
    assert 0 < rates[-1] < 0.02
    assert schedule.learning_rate_at(10.0, step, corrected=False) == 0


def test_the_rate_falls_to_a_tenth_at_every_milestone() -> None:
    schedule = Schedule(epochs=10, learning_rate=0.4, milestones=(0.5, 0.8))
    rates = [schedule.learning_rate_at(place, 0.1, corrected=False) for place in (0, 4.9, 5, 7.9, 8, 9.9)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_the_meta_phase_multiplies_the_rate() -> None:
    schedule = Schedule(epochs=10, learning_rate=0.4, meta_phase_rate=0.2)
    for place in (0.5, 3.0, 9.0):
        usual, meta = (
            schedule.learning_rate_at(place, 0.1, corrected=corrected) for corrected in (False, True)
        )
        assert meta == pytest.approx(0.2 * usual)


@pytest.mark.parametrize("epochs", [1, 2, 5, 7, 60, 61])
def test_the_early_and_the_late_window_meet_at_half_time(epochs: int) -> None:
    early, late = averaged_epochs(epochs)
    assert early.stop == late.start == epochs // 2
    assert late.stop == epochs
    assert math.isclose(early.start, epochs / 6, abs_tol=1)
    assert len(late) >= len(early)
