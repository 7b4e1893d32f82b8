from pathlib import Path

import numpy as np
import pytest

from relabel.data.image_refs import Embedded, Files, Joined, Slices
from relabel.errors import ImageError


@pytest.mark.parametrize("cell", [b"content", {"bytes": b"content", "path": "gone"}, {"path": "a.png"}])
def test_an_embedded_image_is_its_bytes_or_the_file_it_names(tmp_path: Path, cell: object) -> None:
    (tmp_path / "a.png").write_bytes(b"content")
    with Embedded("row 1", lambda: cell, tmp_path).open("rb") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}, {}])
def test_a_row_without_an_image_says_so(tmp_path: Path, cell: object) -> None:
    with pytest.raises(ImageError, match="the row has no image"):
        Embedded("row 1", lambda: cell, tmp_path).open("rb")


def test_an_address_is_opened_by_the_library_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"content")
    cell = {"bytes": None, "path": f"file://{tmp_path}/a.png"}
    with Embedded("row 1", lambda: cell, Path("elsewhere")).open("rb") as file:
        assert file.read() == b"content"


def test_files_are_paths_made_when_asked_for(tmp_path: Path) -> None:
    names = ["a/b.png", str(tmp_path / "c.png"), "\\udcff.png"]
    files = Files(Path("root"), names, {2: "\udcff.png"})
    assert [files[row] for row in range(len(files))] == [
        Path("root/a/b.png"), tmp_path / "c.png", Path("root/\udcff.png")
    ]  # fmt: skip
    names.append("d.png")
    assert len(files) == 4
    with pytest.raises(IndexError):
        files[4]


def test_parts_are_joined_in_order() -> None:
    joined = Joined([[Path("a"), Path("b")], [], [Path("c")]])
    assert len(joined) == 3
    assert [joined[row].name for row in range(3)] == ["a", "b", "c"]
    for row in (-1, 3):
        with pytest.raises(IndexError):
            joined[row]


def test_slices_of_a_file_and_of_memory(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(b"..one.three")
    for file in (tmp_path / "shard.tar", np.frombuffer(b"..one.three", dtype=np.uint8)):
        slices = Slices(file, [2, 6], [3, 5], "shard.tar")
        assert [slices[row].open("rb").read() for row in range(len(slices))] == [b"one", b"three"]
        assert slices[1].name == "image 2 of shard.tar"
