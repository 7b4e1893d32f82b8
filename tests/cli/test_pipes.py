"""A user joins commands: standard output carries the bytes and nothing else."""

import errno
import io
import json
import os
import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

FIT = ("fit", "images", "--trusted", "trusted.csv", "--epochs", "2", "--image-size", "8", "-o", "-")


def test_the_labels_go_through_a_pipe_into_evaluate(start, tools):
    tools["write_csv"]("truth.csv", [("red/red9.png", "red"), ("blue/blue9.png", "blue")])
    first = start(*FIT)
    second = start("evaluate", "-", "--truth", "truth.csv", "--json", stdin=first.stdout)
    first.stdout.close()
    out, err = second.communicate(timeout=120)
    assert (first.wait(60), second.returncode, err) == (0, 0, b"")
    assert json.loads(out)["rows"] == 2


def test_standard_output_is_the_file_and_can_be_inspected(fit, run, folder, files, monkeypatch):
    before = files()
    done = fit("-o", "-")
    assert done.code == 0
    assert "Wrote the labels to standard output" in done.err
    table = pq.read_table(io.BytesIO(done.out))
    assert files() == before
    assert fit("-q").code == 0
    assert table.equals(pq.read_table("labels.parquet"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(done.out)))
    shown = run("inspect", "-", "--json")
    assert shown.code == 0
    assert json.loads(shown.out)["rows"] == 28


@pytest.mark.parametrize(
    "arguments", [FIT, ("corrupt", "images", "--noise", "symmetric", "--rate", "0.2", "-o", "-"), ("--help",)]
)
def test_a_reader_that_goes_away_is_no_reason_for_a_traceback(start, arguments):
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    process = start(*arguments, stdout=reader.stdin)
    reader.stdin.close()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert b"Traceback" not in err
    assert b"Exception" not in err
    if arguments is FIT:
        assert b"The reader of standard output closed it too early." in err
        assert b"--resume" in err


CORRUPT = ("corrupt", "images", "--noise", "uniform", "--rate", "0.2", "-o")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("goes", ["away", "full"])
def test_the_line_that_is_shown_when_standard_output_fails_continues_the_run(start, folder, goes):
    saves = ("--save-corrector", "c.pt", "--save-model", "m.pt")
    sentence = b"The reader of standard output closed it too early."
    if goes == "full":
        sentence = b"Standard output could not be written: No space left on device. Free some space"
    with open("/dev/full", "wb") as full, subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        process = start(*FIT, "-q", *saves, stdout=full if goes == "full" else reader.stdin)
        reader.stdin.close()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith(b"Error: " + sentence)
    assert err.count(b"\n") == 1
    program, *arguments = shlex.split(err.decode().split("continue with: ")[1])
    assert program == "relabel"
    again = start(*arguments)
    out, err = again.communicate(timeout=120)
    assert (again.returncode, err) == (0, b"")
    assert len(pq.read_table(io.BytesIO(out))) == 28
    assert not list(folder.glob(".relabel-*"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize(
    "arguments", [(*CORRUPT, "-"), ("inspect", "noisy.csv", "--json"), ("inspect", "noisy.csv")]
)
def test_a_full_standard_output_is_reported_by_other_commands_too(run, start, arguments):
    assert run(*CORRUPT, "noisy.csv", "-q").code == 0
    with open("/dev/full", "wb") as full:
        process = start(*arguments, stdout=full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.decode().splitlines() == [
        "Error: Standard output could not be written: No space left on device. "
        "Free some space or choose another place."
    ]


@pytest.mark.parametrize(
    ("closed", "arguments", "code", "said"),
    [
        ("0<&-", ("inspect", "-"), 2, "Error: standard input is"),
        ("1>&-", ("inspect", "noisy.csv"), 1, "Error: Standard output could not be written"),
        ("1>&-", (*FIT, "--device", "cpu"), 1, "Error: Standard output could not be written"),
        ("2>&-", (*CORRUPT, "other.csv"), 0, ""),
    ],
)
def test_a_closed_stream_ends_in_a_sentence_where_it_is_needed(run, folder, closed, arguments, code, said):
    assert run(*CORRUPT, "noisy.csv", "-q").code == 0
    line = f'exec "$0" -m relabel "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "NoneType" not in done.stderr
    assert os.path.exists("other.csv") == ("other.csv" in arguments)


@pytest.fixture
def inspect(run, monkeypatch):
    """`relabel inspect -` with bytes on standard input."""

    def go(sent, *flags):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sent)))
        return run("inspect", "-", *flags)

    return go


def test_every_kind_of_file_can_be_inspected_through_a_pipe(fit, run, inspect, folder):
    assert fit("-q", "--save-corrector", "c.pt", "--save-model", "m.pt").code == 0
    for suffix in (".csv", ".parquet"):
        noise = ("--noise", "uniform", "--rate", "0.2", "-q", "-o", f"n{suffix}")
        assert run("corrupt", "images", *noise).code == 0
    for name in ("labels.parquet", "c.pt", "m.pt", "n.csv", "n.parquet"):
        for flags in ((), ("--json",)):
            shown = inspect((folder / name).read_bytes(), *flags)
            assert (shown.code, shown.err) == (0, "")
            assert shown.out == run("inspect", name, *flags).out


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"PK\x03\x04 and no more", "standard input is neither a corrector nor a model file"),
        (b"file_name,label,clean_label\na.png,x\n", "standard input, row 2: 2 cells where the header has 3."),
        (b"file_name,label\na.png,x\n", "standard input is not a Parquet file."),
    ],
)
def test_what_is_wrong_with_standard_input_is_reported_by_that_name(inspect, folder, sent, sentence):
    done = inspect(sent)
    assert done.code == 2
    assert done.err.startswith(f"Error: {sentence}")
    assert done.err.count("\n") == 1


def test_a_disk_too_small_for_standard_input_is_reported(inspect, folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    done = inspect(b"PAR1")
    assert done.code == 1
    assert done.err.startswith("Error: Standard input could not be kept in ")
    assert done.err.endswith(": No space left on device. Free some space, or set TMPDIR to another folder.\n")


@pytest.mark.parametrize("sent", [b"", b"PAR1 but no more"])
def test_what_comes_through_the_pipe_may_be_broken(inspect, folder, sent):
    done = inspect(sent)
    assert done.code == 2
    assert done.err.startswith("Error: standard input ")
