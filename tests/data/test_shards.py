from pathlib import Path

import pytest

from relabel.data.shards import check_one_split, expand, suffix_of
from relabel.errors import RelabelError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train-*.tar", ["train-2.tar", "train-10.tar"]),
        ("train-{2,10}.tar", ["train-2.tar", "train-10.tar"]),
        ("train-{02..11}.tar.gz", ["train-02.tar.gz", "train-03.tar.gz"]),
        ("**/t?st.tar", ["sub/test.tar"]),
        ("{train-[0-9],sub/test}.tar", ["sub/test.tar", "train-2.tar"]),
        ("a[1].tar", ["a[1].tar"]),
        ("train-2.tar", []),
        ("hf://datasets/user/*", []),
    ],
)
def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    numbered = [f"train-{number:02d}.tar.gz" for number in range(2, 12)] if ".gz" in pattern else []
    for name in ("train-10.tar", "train-2.tar", "sub/test.tar", "a[1].tar", "other", *numbered):
        (tmp_path / name).touch()
    (tmp_path / "train-3.tar").mkdir()  # is no file
    monkeypatch.chdir(tmp_path)
    assert list(map(str, expand(pattern)))[: len(expected)] == expected
    assert len(expand(pattern)) == (len(numbered) or len(expected))


@pytest.mark.parametrize("pattern", ["no-*.tar", "train-{1..2}.tar", "train-{1,x}.tar", "{0..100000}.tar"])
def test_a_pattern_that_misses_a_shard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    (tmp_path / "train-1.tar").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RelabelError, match=r"No file matches|too many files"):
        expand(pattern)


def test_extensions() -> None:
    names = ("a.TAR", "b.tar.gz", "c.parquet", "d.tgz", "e.jpg.gz", "f")
    assert [suffix_of(name) for name in names] == [".tar", ".tar.gz", ".parquet", ".tgz", ".gz", ""]


def test_shards_of_one_split_only() -> None:
    check_one_split([Path("d/train-1.tar"), Path("d/train-2.tar"), Path("d/extra.tar")], Path("d"))
    with pytest.raises(RelabelError, match=r"several splits: test, train\. .*'d/test\*\.parquet'"):
        check_one_split([Path("d/train-1.parquet"), Path("d/test-1.parquet")], Path("d"))
    with pytest.raises(RelabelError, match=r"several splits: test, train\. .*'d/x/test/\*\.parquet'"):
        check_one_split([Path("d/x/train/0.parquet"), Path("d/x/test/0.parquet")], Path("d"))
    check_one_split([Path("test/train/0.parquet"), Path("test/train/1.parquet")], Path("test"))
    check_one_split([Path("d/test tubes/0.parquet"), Path("d/train/0.parquet")], Path("d"))
