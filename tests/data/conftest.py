import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Tree = Callable[..., Path]
WriteTable = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make a folder of small images (any other extension: text), named by their relative paths."""

    def make(*names: str, root: str = "images") -> Path:
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp"):
                with open(path, "wb") as file:
                    Image.new("RGB", (8, 6), "red").save(file, "PNG")
            else:
                path.write_text("not an image")
        (tmp_path / root).mkdir(exist_ok=True)
        return tmp_path / root

    return make


@pytest.fixture
def write_table() -> WriteTable:
    """Write rows of cells under a header as CSV, JSON lines or Parquet, by the extension."""

    def write(
        path: Path, rows: Sequence[Sequence[object]], columns: Sequence[str] = ("file_name", "label")
    ) -> Path:
        match path.suffix:
            case ".csv":
                with open(path, "w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([columns, *rows])
            case ".jsonl":
                lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows]
                path.write_text("".join(lines))
            case ".parquet":
                arrays = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
                pq.write_table(pa.table(arrays), path)
        return path

    return write
