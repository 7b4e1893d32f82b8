"""A user, or a machine, stops a run half-way and continues it to the very same result."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from relabel.interrupts import Stopped

FIT = ("fit", "images", "--trusted", "trusted.csv", "--image-size", "8", "--device", "cpu", "--epochs", "30")
# The process says when it decodes, and takes its time over it.
SLOW_DECODING = """
import sys, time
from relabel import cli
from relabel.data import batches
plain = batches.decode
def decode(*arguments):
    print("decoding", file=sys.stderr, flush=True)
    time.sleep(0.5)
    return plain(*arguments)
batches.decode = decode
from relabel.__main__ import main as command
command()
"""
# The process gets a signal while it imports what the commands need.
EARLY = """
import signal, sys
class Strikes:
    def find_spec(self, name, *rest):
        if name == "pyarrow":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Strikes())
from relabel.__main__ import main as command
command()
"""
# As EARLY, but once the flags are read.
STARTING = EARLY.replace('"pyarrow"', '"torch"')
# The process gets a signal right after its main thread has locked one of the thread pool's conditions, once
# AFTER images were begun.
STRUCK = """
import signal, threading
from relabel import cli
from relabel.data import batches
main, plain, locked, decoded = threading.get_ident(), batches.decode, threading.Condition.__enter__, []
def decode(*arguments):
    decoded.append(1)
    return plain(*arguments)
def enter(self):
    taken = locked(self)
    if len(decoded) >= AFTER and threading.get_ident() == main:
        signal.raise_signal(signal.SIGINT)
    return taken
batches.decode, threading.Condition.__enter__ = decode, enter
from relabel.__main__ import main as command
command()
"""


@pytest.fixture
def stop(start):
    """Start a run, send its group a signal once it has printed `after`, return its code and last words."""

    def go(*arguments, after="Epoch 3/", signum=signal.SIGINT, again=0, **options):
        process = start(*arguments, **options)
        for line in process.stderr:
            if after in line.decode():
                break
        for _ in range(1 + again):
            os.killpg(process.pid, signum)
            time.sleep(0.02)
        process.wait(60)
        return process.returncode, process.stderr.read().decode()

    return go


@pytest.fixture
def whole(run, folder):
    """The result of a run without an interruption."""

    def go():
        assert run(*FIT, "-q", "-o", "whole.parquet").code == 0
        return result("whole.parquet")

    return go


def result(path):
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"relabel"])
    return table.to_pydict(), {key: value for key, value in metadata.items() if key != "command"}


def last_line(text):
    return text.splitlines()[-1]


def test_ctrl_c_keeps_the_checkpoint_and_the_line_it_shows_continues_the_run(stop, run, whole, files):
    before = files()
    code, err = stop(*FIT, "-o", "my labels.parquet")
    assert code == 130
    assert "Traceback" not in err
    assert set(files()) - set(before) == {".my labels.parquet.checkpoint"}
    line = last_line(err)
    assert line.startswith("Interrupted. The checkpoint .my labels.parquet.checkpoint is kept;")
    program, *arguments = shlex.split(line.split("continue with: ")[1])
    assert program == "relabel"
    done = run(*arguments)
    assert done.code == 0
    assert "Resuming after epoch" in done.err
    assert "Epoch 1/" not in done.err
    assert set(files()) - set(before) == {"my labels.parquet"}
    assert result("my labels.parquet") == whole()


def test_ctrl_c_before_anything_has_begun_is_one_line(start):
    process = start(*FIT, program=("-c", EARLY))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"Interrupted. Nothing was written.\n")


def test_ctrl_c_while_torch_is_imported_is_one_line(start, files):
    process = start(*FIT, "-q", program=("-c", STARTING))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err == b"Interrupted. No epoch was finished and nothing was written.\n"


def test_a_killed_run_continues_to_the_same_result(stop, run, whole, files):
    before = files()
    code, _ = stop(*FIT, signum=signal.SIGKILL, after="Epoch 14/30 (meta)")
    assert code == -signal.SIGKILL
    assert run(*FIT, "--resume", "-q").code == 0
    assert result("labels.parquet") == whole()
    assert set(files()) - set(before) == {"labels.parquet", "whole.parquet"}


def test_without_a_cache_ctrl_c_stops_between_two_images_and_the_run_goes_on_with_or_without(
    stop, run, whole
):
    code, err = stop(*FIT, "--no-cache")
    assert code == 130
    assert "relabel fit --resume images" in last_line(err)
    assert last_line(err).endswith("--no-cache")
    done = run(*FIT, "--resume")
    assert done.code == 0
    assert "Resuming after epoch" in done.err
    assert result("labels.parquet") == whole()


def test_sigterm_cleans_up_and_says_how_to_continue(stop, files):
    before = files()
    code, err = stop(*FIT, signum=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert last_line(err).startswith("Terminated. The checkpoint .labels.parquet.checkpoint is kept;")
    assert set(files()) - set(before) == {".labels.parquet.checkpoint"}


def test_an_impatient_second_ctrl_c_changes_nothing(stop, files):
    before = files()
    code, err = stop(*FIT, again=3)
    assert code == 130
    assert "Traceback" not in err
    assert "--resume" in last_line(err)
    assert set(files()) - set(before) == {".labels.parquet.checkpoint"}


@pytest.mark.parametrize("flags", [(), ("--no-cache",)])
def test_ctrl_c_while_decoding_leaves_nothing(stop, files, flags):
    before = files()
    code, err = stop(*FIT, *flags, after="decoding", program=("-c", SLOW_DECODING))
    assert code == 130
    assert last_line(err) == "Interrupted. No epoch was finished and nothing was written."
    assert files() == before


@pytest.mark.parametrize(("flags", "after"), [((), 1), (("--no-cache",), 29)])
def test_ctrl_c_that_strikes_a_lock_of_the_decoding_threads_does_not_hang(start, files, flags, after):
    before = files()
    process = start(*FIT, *flags, program=("-c", STRUCK.replace("AFTER", str(after))))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert last_line(err.decode()) == "Interrupted. No epoch was finished and nothing was written."
    assert files() == before


def test_ctrl_c_in_the_demo_shows_the_line_of_its_fit(run, folder, monkeypatch):
    def stopped(config, _):
        config.run.checkpoint.touch()
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr("relabel.verbs.fit.fit", stopped)
    done = run("demo", "d")
    assert done.code == 130
    assert last_line(done.err).endswith(
        "continue with: relabel fit --resume d/images --trusted d/trusted.csv "
        "--augment shift --epochs 30 --precision 0.9 -o d/labels.parquet"
    )


@pytest.fixture
def interrupted(run, folder, stopped):
    """The checkpoint of a run that was stopped after its first epoch."""
    assert stopped(lambda: run(*FIT)).code == 130
    return folder / ".labels.parquet.checkpoint"


def test_another_run_does_not_continue_the_checkpoint(run, interrupted, files, tools):
    before = files()
    for flags, sentence in (
        (("--seed", "1"), "--seed was 0 and is 1; the trusted rows differ"),
        (("--lr", "0.01"), "--lr was not given and is 0.01"),
        (("--epochs", "31"), "--epochs was 30 and is 31"),
    ):
        done = run(*FIT, *flags, "--resume")
        assert done.code == 2
        assert f"belongs to a run with other data or other settings: {sentence}. Repeat" in done.err
    tools["write_csv"]("labels.csv", [("red/red9.png", "blue")])
    assert run(*FIT, "--labels", "labels.csv", "--resume").code == 2
    (interrupted.parent / "labels.csv").unlink()
    assert files() == before


def test_other_images_under_the_same_names_do_not_continue_the_checkpoint(run, interrupted, tools, whole):
    image = Path("images/red/red9.png")
    kept = image.read_bytes()
    for spoil in (
        lambda: tools["draw"](image, "blue", seed=99),
        lambda: image.write_bytes(b"no image any more"),
    ):
        spoil()
        done = run(*FIT, "--resume", "--overwrite")
        assert done.code == 2
        assert "belongs to a run with other data or other settings" in done.err
    image.write_bytes(kept)
    assert run(*FIT, "--resume", "-q").code == 0
    assert result("labels.parquet") == whole()


def test_a_damaged_checkpoint_is_reported_and_dropping_resume_starts_again(run, interrupted, whole):
    interrupted.write_bytes(interrupted.read_bytes()[:1000])
    done = run(*FIT, "--resume")
    assert done.code == 2
    assert "is damaged or another kind of file" in done.err
    assert "Drop --resume to start again." in done.err
    assert run(*FIT, "-q").code == 0
    assert result("labels.parquet") == whole()


def test_without_resume_the_run_says_that_it_starts_afresh(run, interrupted, whole):
    done = run(*FIT, "-q")
    assert done.code == 0
    assert done.err == (
        "Warning: Starting afresh replaces the checkpoint .labels.parquet.checkpoint; "
        "--resume would continue it.\n"
    )
    assert not interrupted.exists()
    assert result("labels.parquet") == whole()


def test_resume_without_a_checkpoint_starts_with_the_first_epoch(fit):
    done = fit("--resume")
    assert done.code == 0
    assert "No checkpoint at .labels.parquet.checkpoint yet" in done.err
