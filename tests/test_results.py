"""The figures in examples/RESULTS.md and README are those of examples/benchmark.parquet."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).parent.parent
RESULTS = (REPOSITORY / "examples" / "RESULTS.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SHOWN = re.compile(r"^    (python examples/benchmark\.py .+ --methods .+)$", flags=re.MULTILINE)
SPREAD = re.compile(r"\d+\.\d+ ± \d+\.\d+")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """The data that the commands name, as far as showing tables needs them: as many rows or files."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("cifar10n_worse_25k", 25_000), ("cifar10n_vectors", 25_000), ("trashnet", 2_527)):
        pq.write_table(pa.table({"embedding": range(rows)}), folder / f"{name}.parquet")
    (folder / "trashnet" / "glass").mkdir(parents=True)
    for number in range(2_527):
        (folder / "trashnet" / "glass" / f"{number}.jpg").touch()
    return folder


def below_their_command():
    """Each command that shows tables, with the tables between it and the next command or chapter."""
    _, *parts = SHOWN.split(RESULTS)
    for command, text in zip(parts[::2], parts[1::2], strict=True):
        own = text.partition("\n## ")[0]
        yield command, re.findall(r"^### .+\n\n(?:\|.+\n)+", own, flags=re.MULTILINE)


@pytest.mark.parametrize(("command", "tables"), list(below_their_command()))
def test_tables_are_what_their_command_prints(command, tables, stand_ins):
    words = shlex.split(command.replace("PATH/TO", str(stand_ins)))
    shown = subprocess.run(
        [sys.executable, *words[1:]], check=True, cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    assert tables
    for table in tables:
        assert table in shown


def test_readme_s_figures_with_a_spread_and_those_of_its_comparison_are_among_the_results():
    rows = re.findall(r"^\| .+$", README.partition("## How good are the labels?")[2], flags=re.MULTILINE)
    figures = SPREAD.findall(README) + re.findall(r"\d+\.\d+", "".join(rows))
    assert len(rows) == 7
    assert not [figure for figure in figures if figure not in RESULTS]
