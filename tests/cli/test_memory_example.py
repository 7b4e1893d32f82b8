"""A user measures what a large collection costs with examples/memory.py, here at a small size."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

SCRIPT = Path(__file__).parents[2] / "examples/memory.py"
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read memory from")


@pytest.fixture
def memory(example):
    return example("memory")


def test_the_command_prints_what_a_fit_costs():
    command = [sys.executable, SCRIPT, "200", "20", "--epochs", "2", "--corrector", "none"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, row = finished.stdout.splitlines()
    corrector, rows, classes, epochs, own, resident, output, _ = (
        cell.strip() for cell in row.strip("|").split("|")
    )
    assert (corrector, rows, classes, epochs, output) == ("none", "200", "20", "2", "0.00 GB")
    assert 0.1 < float(own.split()[0]) < float(resident.split()[0]) < 4


def test_vectors_are_written_part_by_part_with_five_trusted_rows_a_class(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ROWS_AT_A_TIME", 300)
    memory.write_vectors(tmp_path / "vectors.parquet", 1000, 30)
    table = pq.read_table(tmp_path / "vectors.parquet").to_pydict()
    assert table["file_name"] == [f"row {row}" for row in range(1000)]
    assert {len(vector) for vector in table["vector"]} == {memory.DIMENSION}
    assert sum(name is not None for name in table["trusted_label"]) == 150
    is_wrong = [
        given != true
        for given, true in zip(table["label"], table["trusted_label"], strict=True)
        if true is not None
    ]
    assert 0.25 < sum(is_wrong) / 150 < 0.55


def test_memory_is_read_off_a_process_and_its_failure_reported(memory):
    holds = "import time; held = bytearray(60_000_000); time.sleep(1)"
    peak = memory.Peak.of(subprocess.Popen([sys.executable, "-c", holds]))
    assert 60e6 < peak.own < 200e6
    assert peak.resident > peak.own
    with pytest.raises(SystemExit, match="exit code 3"):
        memory.Peak.of(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
