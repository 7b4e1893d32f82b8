import os
import stat
from pathlib import Path

import pytest

from relabel.errors import RelabelError, RunError
from relabel.files import atomic_path, check_output


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_failure_midway_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    destination = tmp_path / "out.csv"
    destination.write_text("old")

    def write() -> None:
        with atomic_path(destination) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(failure):
        write()
    assert os.listdir(tmp_path) == ["out.csv"]
    assert destination.read_text() == "old"


def test_the_temporary_file_is_hidden_beside_the_destination(tmp_path: Path) -> None:
    destination = tmp_path / ("a" * 250)  # no room left for a longer name
    with atomic_path(destination) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert not destination.exists()
    assert os.listdir(tmp_path) == [destination.name]
    assert destination.read_text() == "new"


def test_the_mode_is_what_an_ordinary_open_gives(tmp_path: Path) -> None:
    old_umask = os.umask(0o027)
    try:
        for name in ("fresh", "kept"):
            (tmp_path / "kept").touch()
            (tmp_path / "kept").chmod(0o600)
            with atomic_path(tmp_path / name) as temporary:
                temporary.write_text("x")
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "out").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "out").read_text() == "new"


def test_a_refusing_disk_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="could not be written: No space left"), atomic_path(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    with pytest.raises(RunError, match="could not be written"), atomic_path(tmp_path / "none" / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_check_output(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    check_output(tmp_path / "new", overwrite=False)
    check_output(tmp_path / "old", overwrite=True)
    with pytest.raises(RelabelError, match=r"exists.*--overwrite"):
        check_output(tmp_path / "old", overwrite=False)
    with pytest.raises(RelabelError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(RelabelError, match="not a plain file"):
        check_output(Path(os.devnull), overwrite=True)
    with pytest.raises(RelabelError, match="has no folder"):
        check_output(tmp_path / "none" / "new", overwrite=False)
    with pytest.raises(RelabelError, match="has no folder"):
        check_output(tmp_path / "old" / "new", overwrite=False)


def test_check_output_refuses_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not chmod: root, as which tests run in containers, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(RelabelError, match="may not write"):
        check_output(tmp_path / "new", overwrite=False)
