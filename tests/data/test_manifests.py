"""Files that tables list, read as each form of SOURCE reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from relabel.config import SourceOptions
from relabel.data import manifests
from relabel.data.sources import open_source
from relabel.errors import RelabelError

Tree = Callable[..., Path]
WriteTable = Callable[..., Path]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_manifest_with_verified_labels_is_read_once(
    tree: Tree, write_table: WriteTable, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    read = []
    plain = manifests.read_table

    def counted(path: Path, *rest: object, **options: object) -> object:
        read.append(path)
        return plain(path, *rest, **options)

    monkeypatch.setattr(manifests, "read_table", counted)
    rows = [["a.png", "x", "y"], ["b.png", "y", ""], ["gone.png", "", "x"]]
    path = write_table(tree("a.png", "b.png") / f"list{suffix}", rows, ("file_name", "label", "checked"))
    source = open_source(str(path), options=SourceOptions(trusted_column="checked"))
    assert read == [path]
    assert source.file_names == ["a.png", "b.png", "gone.png"]
    assert (source.given.tolist(), source.trusted) == ([0, 1, -1], ["y", None, "x"])
    assert source.errors == {2: "file not found"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"trusted_column": "true"},
            "needs the columns file_name, label and true, and has file_name, label.",
        ),
        ({"label_column": "kind"}, "needs the columns file_name and kind, and has file_name, label."),
        ({"image_column": "img"}, "needs the columns img and label, and has file_name, label."),
    ],
)
def test_a_column_that_is_not_there_is_named(
    tree: Tree, write_table: WriteTable, options: dict[str, str], message: str
) -> None:
    path = write_table(tree("a.png") / "list.csv", [["a.png", "x"]])
    with pytest.raises(RelabelError) as caught:
        open_source(str(path), options=SourceOptions(**options))
    assert caught.value.message == f"{path} {message}"


def test_a_column_that_is_there_twice_is_refused(tree: Tree, write_table: WriteTable) -> None:
    path = write_table(tree("a.png") / "list.csv", [["a.png", "x", "y"]], ("file_name", "label", "label"))
    with pytest.raises(RelabelError, match=r"list\.csv has several columns 'label'\."):
        open_source(str(path))
