"""A user meta-trains a corrector on data sets whose labels are true, stops half-way and goes on."""

import importlib.util
import json
import os
import shlex
import signal
import sys
import time

import pytest
import torch

from relabel.errors import RunError
from relabel.interrupts import Stopped
from relabel.pretraining import episodes, meta_train
from relabel.saved.corrector_file import read_corrector
from relabel.training import checkpoint

TINY = ("--episodes", "3", "--steps", "3", "--device", "cpu")
PRETRAIN = ("pretrain", "images", "second", "-o", "tmlc.pt", *TINY)
EIGHT = ("--episodes", "8", "--steps", "3")
KEPT = ".tmlc.pt.recordings"
# As `quick` below, in a process of its own whose third run says so and takes its time.
SLOW = """
import sys, time
from relabel import cli
from relabel.pretraining import episodes, meta_train
episodes._EPOCHS = (2, 3)
episodes._BACKBONES = {"cnn8": 1.0}
episodes._JUDGE_SAMPLES = 100
plain = meta_train.record
def record(episode, *rest):
    if episode.number == 2:
        print("third", file=sys.stderr, flush=True)
        time.sleep(30)
    return plain(episode, *rest)
meta_train.record = record
from relabel.__main__ import main as command
command()
"""


@pytest.fixture
def quick(folder, tools, monkeypatch):
    """A second source, and episodes of a few epochs of a small network."""
    for number in range(12):
        for name in ("a", "b", "c"):
            tools["draw"](
                folder / f"second/{name}/{number}.png", "blue" if name == "b" else "red", seed=number
            )
    monkeypatch.setattr(episodes, "_EPOCHS", (2, 3))
    monkeypatch.setattr(episodes, "_BACKBONES", {"cnn8": 1.0})
    monkeypatch.setattr(episodes, "_JUDGE_SAMPLES", 100)
    return folder


@pytest.fixture
def recorded(monkeypatch):
    """The numbers of the episodes that are recorded."""
    recorded = []
    plain = meta_train.record

    def record(episode, *rest):
        recorded.append(episode.number)
        return plain(episode, *rest)

    monkeypatch.setattr(meta_train, "record", record)
    return recorded


def test_a_corrector_for_any_data_is_written_and_nothing_else(run, quick, files):
    before = files()
    done = run(*PRETRAIN)
    assert done.code == 0
    assert not done.out
    assert set(files()) - set(before) == {"tmlc.pt"}
    assert not (quick / KEPT).exists()
    assert [line.split(":")[0] for line in done.err.splitlines()[:-1]] == [
        f"Episode {n}" for n in range(1, 5)
    ]
    assert done.err.splitlines()[-1].startswith("Wrote tmlc.pt (")
    described = json.loads(run("inspect", "tmlc.pt", "--json").out)
    assert (described["corrector"], described["episodes"], described["steps"]) == ("tmlc", 4, 3)
    assert described["sources"] == [
        {"name": "images", "rows": 28, "classes": 2},
        {"name": "second", "rows": 36, "classes": 3},
    ]
    assert "Sources " in run("inspect", "tmlc.pt").out.decode()
    done = run("apply", "second", "--corrector", "tmlc.pt", "--epochs", "2", "--device", "cpu", "-q")
    assert done.code == 0
    metadata = json.loads(run("inspect", "labels.parquet", "--json").out)
    assert set(metadata["calibration"]["weights"]) == {
        "early", "late", "last", "transition", "keep"
    }  # fmt: skip
    assert metadata["pretrained"]["episodes"] == 4


def test_quiet_says_nothing(run, quick):
    done = run(*PRETRAIN, "-q")
    assert (done.code, done.out, done.err) == (0, b"", "")


def test_recordings_in_a_folder_of_the_user_s_stay_and_are_used_again(run, quick, recorded):
    arguments = (*PRETRAIN, "-q", "--recordings", "runs/first")
    assert run(*arguments).code == 0
    assert recorded == [0, 1, 2, 3]
    assert sorted(os.listdir("runs/first")) == [f"000{number}.episode" for number in range(4)]
    first = read_corrector(quick / "tmlc.pt")
    assert run(*arguments, "--overwrite").code == 0
    assert recorded == [0, 1, 2, 3]
    again = read_corrector(quick / "tmlc.pt")
    torch.testing.assert_close(again.state, first.state, rtol=0, atol=0)
    assert again.calibration_prior.weights == first.calibration_prior.weights


def test_ctrl_c_keeps_the_recordings_and_the_line_it_shows_goes_on(start, run, quick, files, recorded):
    before = files()
    process = start(*PRETRAIN, "--seed", "7", program=("-c", SLOW))
    for line in process.stderr:
        if b"third" in line:
            break
    for _ in range(2):  # of which the second changes nothing
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert process.wait(60) == 130
    err = process.stderr.read().decode()
    assert "Traceback" not in err
    kept = {f"{KEPT}/0000.episode", f"{KEPT}/0001.episode"}
    assert set(files()) - set(before) == kept
    line = err.splitlines()[-1]
    assert line.startswith(f"Interrupted. The recorded runs in {KEPT} are kept; continue with: ")
    program, *arguments = shlex.split(line.split("continue with: ")[1])
    assert program == "relabel"
    assert run(*arguments).code == 0
    assert recorded == [2, 3]
    assert set(files()) - set(before) == {"tmlc.pt"}
    assert run(*PRETRAIN, "--seed", "7", "-q", "-o", "whole.pt").code == 0
    continued, at_once = read_corrector(quick / "tmlc.pt"), read_corrector(quick / "whole.pt")
    torch.testing.assert_close(continued.state, at_once.state, rtol=0, atol=0)
    assert continued.calibration_prior.weights == at_once.calibration_prior.weights


def test_ctrl_c_before_anything_is_recorded_leaves_nothing(run, quick, files, monkeypatch):
    def stopped(*_):
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(meta_train, "record", stopped)
    before = files()
    done = run(*PRETRAIN)
    assert done.code == 130
    assert done.err == "Interrupted. Nothing was written.\n"
    assert files() == before
    assert not (quick / KEPT).exists()


def test_a_disk_that_is_full_keeps_what_was_recorded_and_says_how_to_go_on(run, quick, recorded, monkeypatch):
    plain = checkpoint.save

    def save(path, *rest):
        plain(path, *rest)
        if path.name == "0001.episode":
            path.unlink()
            raise RunError(f"{path} could not be written: No space left.", "Free some space.")

    monkeypatch.setattr("relabel.pretraining.meta_train.checkpoint.save", save)
    done = run(*PRETRAIN, "-q")
    assert done.code == 1
    assert (
        "0001.episode could not be written: No space left. Free some space. The recorded runs in" in done.err
    )
    assert done.err.endswith(f"continue with: relabel {shlex.join(PRETRAIN)} -q\n")
    assert os.listdir(KEPT) == ["0000.episode"]


def test_an_existing_corrector_is_replaced_only_when_asked(run, quick, files):
    (quick / "tmlc.pt").write_bytes(b"mine")
    before = files()
    done = run(*PRETRAIN)
    assert done.code == 2
    assert "--output: The output tmlc.pt exists. Choose another name or add --overwrite." in done.err
    assert files() == before
    assert run(*PRETRAIN, "--overwrite", "-q").code == 0
    read_corrector(quick / "tmlc.pt")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-o", "x.pt"), "Missing argument 'SOURCE...'."),
        (("images",), "Missing option '--output'"),
        (("images", "nosuch", "-o", "x.pt"), "'nosuch'"),
        (("images", "-o", "x.pt", "--episodes", "1"), "--episodes 1: must be at least 2."),
        (("images", "-o", "x.pt", "--steps", "0"), "--steps 0: must be at least 1."),
        (("images", "-o", "x.pt", "--seed", "-1"), "--seed -1"),
        (("images", "-o", "x.pt", "--device", "abacus"), "'abacus'"),
        (("images", "-o", "nosuch/x.pt"), "has no folder"),
        (("images", "-o", "images"), "The output images is a folder."),
        (("images", "-o", "."), "The output . is a folder."),
        (("list.csv", "-o", "list.csv", "--overwrite"), "--output list.csv is also SOURCE 1."),
        (("images", "images/../list.csv", "-o", "list.csv", "--overwrite"), "is also SOURCE 2."),
        (("images", "-o", "x.pt", "--recordings", "list.csv"), "--recordings list.csv is not a folder."),
        (("images", "-o", "x.pt", "--recordings", "list.csv/x"), "--recordings list.csv/x could not be made"),
        (("images", "-o", "x.pt", "--recordings", "./x.pt"), "--recordings x.pt is also --output."),
        (("one", "-o", "x.pt"), "fewer than two classes"),
        (("images", "-o", "x.pt", "--trusted", "trusted.csv"), "--trusted"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, folder, files, tools, arguments, sentence):
    tools["write_csv"]("list.csv", [("images/red/red0.png", "red"), ("images/blue/blue0.png", "blue")])
    for name in ("red", "blue"):
        tools["draw"](folder / f"one/{name}/0.png", name)
    (folder / "one/red/0.png").write_bytes(b"no picture")
    before = files()
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    done = run("pretrain", *arguments)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("Error: ")
    assert sentence in done.err
    assert sum(not line.startswith("Warning: ") for line in done.err.splitlines()) == 1
    assert not done.out
    assert files() == before
    assert sorted(path for path in folder.rglob("*") if path.is_dir()) == folders


def test_the_transfer_tables_come_from_the_same_recordings(
    run, quick, recorded, example, monkeypatch, capfdbinary
):
    transfer = example("transfer")
    run("pretrain", "images", "second", "-o", "tmlc.pt", "--recordings", "kept", *EIGHT, "-q")
    recorded.clear()
    flags = "--recordings kept --by source rate --figure states.svg"
    arguments = ["images", "second", *EIGHT, *flags.split()]
    has_cleanlab = importlib.util.find_spec("cleanlab") is not None
    monkeypatch.setattr(sys, "argv", ["transfer.py", *arguments, *["--cleanlab"] * has_cleanlab])
    transfer.main()
    shown = capfdbinary.readouterr().out.decode()
    assert not recorded
    assert "Episodes learned from and tried on: images 2 and 2, second 2 and 2\n" in shown
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if "|" in line
    ]
    starts = [place for place, cells in enumerate(lines) if "tried on" in cells[0]]
    by_source, by_rate, variants = (
        lines[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)
    )
    assert by_source[0] == ["learned from \\ tried on", "images", "second"]
    own = ["own rows", "own rows, calibrated"]
    baselines = [*own, "late window", *["cleanlab"] * has_cleanlab, "CE", "given"]
    taught = ["images", "second", "others"]
    assert [cells[0] for cells in by_source[2:]] == [
        *taught, *(f"{name}, calibrated" for name in taught), *baselines
    ]  # fmt: skip
    assert [cells[0] for cells in variants[2:]] == list(transfer.VARIANTS)
    # Of two sources all but the target are the other one.
    for first in (2, 5):
        assert by_source[first + 2][1:] == [by_source[first + 1][1], by_source[first][2]]
    assert set(by_rate[0][1:]) <= {"to 20 %", "20 to 40 %", "from 40 %"}
    tables = by_source[2:] + by_rate[2:] + variants[2:]
    assert all(0 <= float(cell) <= 100 for cells in tables for cell in cells[1:])
    picture = (quick / "states.svg").read_text()
    assert picture.count("Before learning") == picture.count("After learning") == 1
    assert picture.count("<circle") > 20
    assert "states.svg: of " in shown


def test_a_transfer_table_has_the_mean_over_the_runs_of_a_group(example):
    transfer = example("transfer")
    runs = [("a", 0), ("b", 0), ("a", 0)]
    means = transfer.by_group(runs, lambda run: run[0], {"CE": [0.2, 0.5, 0.4], "given": [1.0, 0.0, 0.0]})
    assert means == {"CE": {"a": pytest.approx(0.3), "b": 0.5}, "given": {"a": 0.5, "b": 0.0}}
    assert transfer.grouped(runs, lambda run: run[0]) == {"a": [runs[0], runs[2]], "b": [runs[1]]}
    assert transfer.table("learned from", {"CE": {"a": 0.3, "b": 0.5}}).splitlines() == [
        "| learned from \\ tried on | a | b |", "| --- | --- | --- |", "| CE | 30.0 | 50.0 |"
    ]  # fmt: skip
