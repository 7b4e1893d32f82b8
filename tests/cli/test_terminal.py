"""A user watches: bars on a terminal, plain lines anywhere else, and no text cut off."""

import fcntl
import os
import re
import struct
import termios

import pytest

FIT = ("fit", "images", "--trusted", "trusted.csv", "--epochs", "2", "--image-size", "8")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def watch(start, monkeypatch):
    """Run in a terminal of so many columns; what it received, and the exit code."""

    def go(*arguments, columns):
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        environment = {**os.environ, "TERM": "xterm"}
        process = start(*arguments, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65_536):
                seen += chunk
        except OSError:  # Linux's way to say that the other end is closed
            pass
        os.close(ours)
        return seen.decode(), process.wait(60)

    return go


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_gets_bars_and_a_summary_that_fits(watch, columns):
    seen, code = watch(*FIT, columns=columns)
    assert code == 0
    assert "\x1b[" in seen
    assert "Training" in seen
    assert "━" in seen
    text = ESCAPE.sub("", seen.split("What was found")[1]).replace("\r", "")
    assert all(len(line) <= columns for line in text.splitlines())
    words = " ".join(text.split())
    assert "28 (8 trusted)" in words
    assert "Keep / fix / review" in words
    assert "…" not in words
    assert words.endswith("Wrote labels.parquet")


def test_binary_labels_are_not_poured_on_a_terminal(watch):
    seen, code = watch(*FIT, "-o", "-", columns=80)
    assert code == 2
    assert "would write Parquet bytes to the terminal" in seen


@pytest.mark.parametrize("variable", ["", "FORCE_COLOR", "CLICOLOR_FORCE"])
def test_anything_else_gets_plain_lines_one_an_epoch(fit, monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, "1")
    done = fit()
    assert done.code == 0
    assert "\x1b" not in done.err
    assert "\r" not in done.err
    assert re.findall(r"^Epoch (\d)/2 ", done.err, re.MULTILINE) == ["1", "2"]
    assert not [line for line in done.err.splitlines() if line != line.rstrip()]


def test_names_with_escape_sequences_or_markup_reach_the_terminal_as_text(fit, run, folder, tools):
    for number in range(6):
        tools["draw"](folder / f"images/[bold]\x1b[2J/g{number}.png", "red")
    assert fit("-q").code == 0
    done = run("inspect", "labels.parquet")
    assert r"3: [bold]\x1b[2J, blue, red" in done.out.decode()


def test_an_output_in_another_encoding_does_not_fail(start, run, fit, folder, tools):
    os.rename("images/red", "images/rötlich")
    rows = [
        (f"{name}/{file}{n}.png", name)
        for name, file in (("rötlich", "red"), ("blue", "blue"))
        for n in range(4)
    ]
    assert fit("-q", "--trusted", tools["write_csv"]("checked.csv", rows)).code == 0
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for flags in ((), ("--json",)):
        process = start("inspect", "labels.parquet", *flags, env=environment)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert rb"r\u00f6tlich" in out or rb"r\xf6tlich" in out
