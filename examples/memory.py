"""What a collection of some size costs in memory and time: synthetic vectors, the real command.

    python examples/memory.py 1000000 14
    python examples/memory.py 2400000 1000 --epochs 3

Rows are 16 numbers around the centre of their class, 40 % of the labels are drawn at random, and five rows a
class are trusted (100 at the least). `relabel fit` runs on them in a process of its own, whose memory is read
off while it runs. Memory of its own (anonymous) is what the process needs. Pages of mapped files are counted
apart, because the system writes them back and takes them away when memory is short.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import _shared
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIMENSION = 16
ROWS_AT_A_TIME = 100_000


def main() -> None:
    """Print one row of a Markdown table."""
    parser = _shared.parser(__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("classes", type=int)
    parser.add_argument("--corrector", default="tmlc")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relabel-memory-") as name:
        folder = Path(name)
        write_vectors(folder / "vectors.parquet", arguments.rows, arguments.classes)
        command = [
            *(sys.executable, "-m", "relabel", "fit", folder / "vectors.parquet", "--features", "vector"),
            *("--trusted-column", "trusted_label", "--corrector", arguments.corrector),
            *("--epochs", arguments.epochs, "--batch-size", 1024, "--quiet", "-o", folder / "labels.parquet"),
        ]
        started = time.perf_counter()
        peak = Peak.of(subprocess.Popen([str(part) for part in command]))
        minutes = (time.perf_counter() - started) / 60
        written = (folder / "labels.parquet").stat().st_size
    row = {
        "corrector": arguments.corrector,
        "rows": f"{arguments.rows:,}",
        "classes": f"{arguments.classes:,}",
        "epochs": str(arguments.epochs),
        "own memory": f"{peak.own / 1e9:.2f} GB",
        "with mapped files": f"{peak.resident / 1e9:.2f} GB",
        "output": f"{written / 1e9:.2f} GB",
        "minutes": f"{minutes:.1f}",
    }
    print(_shared.table([*row], [[*row.values()]]))


def write_vectors(path: Path, rows: int, classes: int) -> None:
    """`vector` [16], `label`, and `trusted_label`, null in untrusted rows."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, DIMENSION)).astype(np.float32)
    names = pa.array([f"class {number:04d}" for number in range(classes)])
    trusted = rng.permutation(rows)[: max(100, 5 * classes)]
    kinds = [
        ("file_name", pa.string()),
        ("vector", pa.list_(pa.float32(), DIMENSION)),
        ("label", pa.string()),
        ("trusted_label", pa.string()),
    ]
    with pq.ParquetWriter(path, pa.schema(kinds)) as writer:
        for start in range(0, rows, ROWS_AT_A_TIME):
            index = np.arange(start, min(start + ROWS_AT_A_TIME, rows))
            true = rng.integers(classes, size=len(index))
            given = np.where(rng.random(len(index)) < 0.4, rng.integers(classes, size=len(index)), true)
            vectors = centres[true] + 0.5 * rng.normal(size=(len(index), DIMENSION)).astype(np.float32)
            columns = [
                pa.array([f"row {row}" for row in index]),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIMENSION),
                names.take(pa.array(given)),
                names.take(pa.array(true, mask=~np.isin(index, trusted))),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=writer.schema))


@dataclass
class Peak:
    """The most bytes of memory a process held: of its own, and with the pages of mapped files."""

    own: int = 0
    resident: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, process: subprocess.Popen[bytes]) -> Peak:
        """Watch the process to its end. Raises SystemExit when it fails."""
        peak = cls()
        watching = threading.Thread(target=peak._watch, args=(Path(f"/proc/{process.pid}/status"),))
        watching.start()
        failed = process.wait()
        peak._done.set()
        watching.join()
        if failed:
            raise SystemExit(f"relabel fit ended with exit code {failed}.")
        return peak

    def _watch(self, status: Path) -> None:
        while not self._done.wait(0.1):
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                own, mapped = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
            except (OSError, KeyError):  # it has just ended
                return
            self.own, self.resident = max(self.own, own), max(self.resident, own + mapped)


if __name__ == "__main__":
    _shared.run(main)
