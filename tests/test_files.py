import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from relabel.errors import RelabelError, RunError
from relabel.files import atomic_path, check_output, release, scratch_array


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


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_array_takes_its_space_on_the_disk_at_once(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr("os.posix_fallocate", lambda *arguments: taken.append(arguments[1:]), raising=False)
    array = scratch_array((3, 5), np.float32)
    assert taken == [(0, 60)]
    assert (array.shape, array.dtype, array.any()) == ((3, 5), np.float32, False)
    assert scratch_array((0, 5), np.uint8).shape == (0, 5)
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_reserves_nothing_has_scratch_arrays_too(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)
    array = scratch_array((1000,), np.int64)
    array[-1] = 7
    assert array.sum() == 7


@pytest.mark.parametrize("known", [True, False])
def test_an_array_that_does_not_fit_is_refused_in_one_sentence(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """By the free space or, where that says nothing (quotas), by the system."""

    def full(*_: object) -> None:
        assert not known, "nothing is taken where it is known not to fit"
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    free = 3_100_000_000 if known else 2**50
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(RunError) as refusal:
        scratch_array((100_000, 224, 224, 3), np.uint8, " or eat less")
    if known:
        assert refusal.value.message == (
            f"Temporary data of 15.1 GB cannot be kept in {scratch}, which has 3.1 GB free: "
            "No space left on device."
        )
    else:
        assert refusal.value.message.endswith("free: Disk quota exceeded.")
    assert refusal.value.hint == "Set TMPDIR to a folder on another disk or eat less."
    assert os.listdir(scratch) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="has the memory on Linux alone")
def test_a_released_array_is_out_of_memory_and_keeps_its_values() -> None:
    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssShmem")))

    array = scratch_array((64, 2**18), np.uint8)
    array[:] = np.arange(64)[:, None]
    before = mapped()
    release(array)
    assert before - mapped() > 12 * 1024, "of 16 MB, in kB"
    assert (array == np.arange(64)[:, None]).all()


def test_what_is_no_scratch_array_is_left_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(10_000))
    own = np.load(tmp_path / "a.npy", mmap_mode="c")
    for array in (np.ones(10_000), own):
        array[:] = 1
        release(array)
        release(array[:5])
        assert array.sum() == 10_000
