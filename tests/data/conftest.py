import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from relabel.data.batches import decode_all
from relabel.data.sources import Source

Tree = Callable[..., Path]
Picture = Callable[..., bytes]
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


@pytest.fixture
def picture() -> Picture:
    """The bytes of a PNG of one grey, so that a row is known by its image."""

    def make(grey: int, size: tuple[int, int] = (8, 6)) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, (grey, grey, grey)).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def greys() -> Callable[..., list[int | str]]:
    """What the images of a source decode to, row by row: their grey, or why there is none."""

    def look(source: Source) -> list[int | str]:
        images, errors = decode_all(source.references, 8, set(source.errors), lambda _: None, 4)
        found: list[int | str] = images[:, 4, 4, 0].tolist()
        for row, reason in {**source.errors, **errors}.items():
            found[row] = reason
        return found

    return look
