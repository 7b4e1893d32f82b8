"""A signal ends a run, and no lock of a thread pool stays taken for it."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from relabel import interrupts
from relabel.interrupts import Stopped, held, in_threads


@pytest.fixture
def installed(monkeypatch):
    """The handler of a fresh process that ignores no signal, as one behind nohup would."""
    monkeypatch.setattr(interrupts, "_handler", interrupts._Handler())
    before = {number: signal.signal(number, signal.SIG_DFL) for number in interrupts._SIGNALS}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("installed")
def test_a_signal_raises_stopped_with_its_number(number):
    with pytest.raises(Stopped) as stop:
        signal.raise_signal(number)
    assert stop.value.signum == number
    word = "Interrupted" if number == signal.SIGINT else "Terminated"
    assert str(stop.value.saying("More.")) == f"{word}. More."


@pytest.mark.usefixtures("installed")
def test_a_second_signal_within_two_seconds_is_the_same_one(monkeypatch):
    now = 100.0
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now)
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
    now = 102.0
    signal.raise_signal(signal.SIGINT)
    now = 102.1
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("installed")
def test_a_held_signal_waits_for_the_end_of_the_outermost_region():
    passed = []

    def region() -> None:
        with held():
            with held():
                signal.raise_signal(signal.SIGINT)
                passed.append("not at once")
            passed.append("nor between two ends")

    with pytest.raises(Stopped):
        region()
    assert passed == ["not at once", "nor between two ends"]


@pytest.mark.usefixtures("installed")
def test_a_held_signal_is_raised_by_the_check_and_once():
    passed = []

    def region() -> None:
        with held() as check:
            check()
            signal.raise_signal(signal.SIGINT)
            passed.append("not at once")
            check()
            passed.append("never")

    with pytest.raises(Stopped):
        region()
    assert passed == ["not at once"]
    with held():
        pass


def test_what_is_ignored_stays_ignored():
    program = (
        "import signal; from relabel import interrupts;"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); interrupts.install();"
        "signal.raise_signal(signal.SIGHUP); interrupts.ignore(); signal.raise_signal(signal.SIGINT)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_in_threads_gives_the_results_in_order_and_passes_errors_on():
    with ThreadPoolExecutor(3) as pool:
        assert in_threads(pool, lambda n: time.sleep(0.01 * (3 - n % 4)) or n * n, range(20)) == [
            n * n for n in range(20)
        ]
        assert in_threads(pool, abs, []) == []
        with pytest.raises(ZeroDivisionError):
            in_threads(pool, lambda n: 1 // n, [1, 0, 2])


@pytest.mark.usefixtures("installed")
def test_a_signal_ends_in_threads_after_what_has_begun():
    begun, finished = [], []

    def work(number: int) -> None:
        begun.append(number)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        finished.append(number)

    with ThreadPoolExecutor(2) as pool, pytest.raises(Stopped):
        in_threads(pool, work, range(100))
    assert len(begun) < 10
    assert sorted(finished) == sorted(begun)


@pytest.mark.parametrize("strike", [1, 2, 3, 7])
@pytest.mark.usefixtures("installed")
def test_a_signal_just_after_a_condition_was_locked_leaves_the_pool_alive(monkeypatch, strike):
    main, locked = threading.get_ident(), threading.Condition.__enter__
    times = 0

    def struck(self: threading.Condition) -> bool:
        nonlocal times
        taken = locked(self)
        times += threading.get_ident() == main
        if threading.get_ident() == main and times == strike:
            signal.raise_signal(signal.SIGINT)
        return taken

    pool = ThreadPoolExecutor(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "__enter__", struck)
        with pytest.raises(Stopped):
            in_threads(pool, time.sleep, [0.05] * 8)
    # With its lock left behind, a worker would never end, nor this.
    ending = threading.Thread(target=pool.shutdown, daemon=True)
    ending.start()
    ending.join(30)
    assert not ending.is_alive()
