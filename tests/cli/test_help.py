"""A user reads the help: it is complete, and it comes at once."""

import re
from pathlib import Path

import pytest
import typer

from relabel import cli

COMMAND = typer.main.get_command(cli.app)
PARAMETERS = [
    (name, parameter)
    for name, command in [("", COMMAND), *COMMAND.commands.items()]
    for parameter in command.params
]
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids=[f"{n}-{p.name}" for n, p in PARAMETERS])
def test_every_flag_and_argument_has_a_help_text(name, parameter):
    assert getattr(parameter, "help", None), f"relabel {name}: {parameter.name} has no help"


def test_the_help_lists_exactly_the_commands_there_are_each_in_one_whole_line(run):
    done = run("--help")
    listed = done.out.decode().split("Commands:\n")[1].rstrip().splitlines()
    assert {line.split()[0] for line in listed} == set(COMMAND.commands)
    assert set(COMMAND.commands) == {
        "fit", "apply", "pretrain", "predict", "evaluate", "corrupt", "inspect", "demo",
    }  # fmt: skip
    assert all(line.endswith(".") and "..." not in line for line in listed)


def test_every_flag_is_used_by_a_test_or_shown_in_the_readme():
    text = "".join(path.read_text("utf-8") for path in (REPOSITORY / "tests").rglob("*.py"))
    text += (REPOSITORY / "README.md").read_text("utf-8")
    flags = {flag for _, parameter in PARAMETERS for flag in parameter.opts if flag.startswith("--")}
    assert not {flag for flag in flags if not re.search(rf"{flag}(?![\w-])", text)}


@pytest.mark.parametrize(
    "arguments",
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["fit", "--help"], 0),
        (["-h"], 0),
        (["evaluate", "-h"], 0),
        (["fit", "images", "--trusted", "trusted.csv", "--corrector", "nosuch"], 2),
        (["fit", "nosuch", "--trusted", "trusted.csv"], 2),
        (["fit", "images", "--trusted", "nosuch.csv"], 2),
        (["apply", "images", "--labels", "nosuch.csv"], 2),
        (["predict", "images", "--model", "nosuch.pt"], 2),
        (["apply", "images", "--corrector", "nosuch.pt"], 2),
        (["pretrain", "images", "nosuch", "-o", "tmlc.pt"], 2),
        (["fit", "images", "--trusted", "trusted.csv", "--epochs", "many"], 2),
    ],
    ids=lambda case: " ".join(case[0]) or "bare",
)
def test_help_and_mistakes_answer_at_once_without_torch(start, arguments):
    words, code = arguments
    process = start(*words, program=("-X", "importtime", "-m", "relabel"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    imported = {line.rsplit("|", 1)[1].strip() for line in err.decode().splitlines() if line.count("|") == 2}
    assert "relabel.cli" in imported
    assert not {"torch", "torchvision", "sklearn", "scipy", "datasets", "pyarrow.dataset"} & imported
    if set(words) & {"--help", "-h", "--version"}:
        assert not {"numpy", "pyarrow", "PIL"} & imported


def test_the_bare_command_shows_its_help_as_it_is_laid_out(run):
    done = run()
    assert done.code == 2
    assert done.err.startswith("Usage: relabel")
    assert "\n  fit " in done.err
    assert not done.out
